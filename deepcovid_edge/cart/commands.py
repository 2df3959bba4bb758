"""`cart`: the service on the cart. Images in by DICOM or folder, their answers in the PACS."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.cli.options import NamedPath
from deepcovid_edge.device.progress import number_of

if TYPE_CHECKING:
    from deepcovid_edge.cart.config import CartConfig
    from deepcovid_edge.cart.send.outbox import Waiting
    from deepcovid_edge.cart.status import CartStatus

_CONFIG = click.argument("config", type=NamedPath())
_STDIN = click.option("--stdin", "from_stdin", is_flag=True, hidden=True)
"""What CONFIG holds comes on standard input: so `run` gives every role the same."""


@click.group()
def command() -> None:
    """Run the cart service: images in by DICOM or folder, answers to the PACS.

    CONFIG is a TOML file. Every role may be run by itself.

    Example: deepcovid-edge cart run cart.toml
    """


@command.command()
@_CONFIG
def run(config: Path) -> None:
    """Run every role, and start again what ends, with CONFIG as it was at the start.

    Example: deepcovid-edge cart run cart.toml
    """
    from deepcovid_edge.cart.config import config_bytes, parse_config
    from deepcovid_edge.cart.run import ROLES, run_roles
    from deepcovid_edge.device.service import stop_event

    data = config_bytes(config)
    settings = parse_config(config, data)
    run_roles(settings, data, stop_event(), (*ROLES, "page") if settings.page else ROLES)


@command.command()
@_CONFIG
@_STDIN
def receive(config: Path, *, from_stdin: bool) -> None:
    """Take images in: DICOM and watched folders.

    Example: deepcovid-edge cart receive cart.toml
    """
    from deepcovid_edge.cart.receive.role import receive as take
    from deepcovid_edge.device.service import stop_event

    take(_read_for_role(config, from_stdin=from_stdin), stop_event())


@command.command()
@_CONFIG
@_STDIN
def work(config: Path, *, from_stdin: bool) -> None:
    """Assess images and send the results.

    Example: deepcovid-edge cart work cart.toml
    """
    from deepcovid_edge.cart.work.role import work as assess
    from deepcovid_edge.device.service import stop_event

    assess(_read_for_role(config, from_stdin=from_stdin), stop_event())


@command.command()
@_CONFIG
@_STDIN
def page(config: Path, *, from_stdin: bool) -> None:
    """Show what was assessed, as a page for a browser.

    Example: deepcovid-edge cart page cart.toml
    """
    from deepcovid_edge.cart.page import LIBRARIES
    from deepcovid_edge.device.service import stop_event
    from deepcovid_edge.errors import require

    settings = _read_for_role(config, from_stdin=from_stdin)
    for library in LIBRARIES:
        require(library, extra="cart")
    from deepcovid_edge.cart.page.role import page as serve

    serve(settings, stop_event())


@command.command()
@click.argument("config", type=NamedPath(), default="/etc/deepcovid-edge/cart.toml")
@click.option(
    "--gpu/--no-gpu",
    default=None,
    help="Whether the assessor may use an NVIDIA GPU.  [default: as it was]",
)
@click.option(
    "--kiosk/--no-kiosk",
    default=None,
    help="Whether the page is on the cart's own screen (cage, cog).  [default: as it was]",
)
@click.option("--start/--no-start", default=True, show_default=True, help="Start the cart.")
@click.option("--restart", is_flag=True, help="Start it again though nothing else has changed.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default="/",
    help="Install into the file system below a folder, and start nothing.",
)
def install(
    config: Path,
    gpu: bool | None,
    kiosk: bool | None,
    start: bool,
    restart: bool,
    dry_run: bool,
    root: Path,
) -> None:
    """Install the cart as services of systemd; run it again after each change of CONFIG.

    It needs root. A CONFIG that is not there is written, and one that is there is left alone.

    Example: sudo /opt/deepcovid-edge/bin/deepcovid-edge cart install
    """
    from deepcovid_edge.cart.install.installation import Installation, InstallSettings

    settings = InstallSettings(
        root.absolute(),
        config,
        gpu=gpu,
        kiosk=kiosk,
        starts=start,
        restarts=restart,
        is_dry=dry_run,
    )
    has_changed = Installation(settings, click.echo).install()
    if not has_changed:
        click.echo("No file has changed.")


@command.command("set-pin")
@_CONFIG
def set_pin(config: Path) -> None:
    """Ask for a new PIN of the page; a page that runs must be started again.

    Example: deepcovid-edge cart set-pin cart.toml
    """
    from deepcovid_edge.cart.page.access import Pin
    from deepcovid_edge.errors import UsageError

    settings = _read(config)
    if settings.page is None or settings.page.pin_file is None:
        raise UsageError(f"{config}: [page] needs pin_file, the file for the hash of the PIN")
    pin = click.prompt("PIN, 6 digits or more", hide_input=True, confirmation_prompt=True)
    Pin.of(pin).write(settings.page.pin_file)
    click.echo(f"The hash of the PIN is in {settings.page.pin_file}.")


@command.command()
@_CONFIG
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(config: Path, as_json: bool) -> None:
    """Show images, queues and alerts; it works while the cart is down.

    Example: deepcovid-edge cart status cart.toml
    """
    from deepcovid_edge.cart.status import read_status
    from deepcovid_edge.cart.store.opening import open_ledger

    settings = _read(config)
    with open_ledger(settings.cart, read_only=True) as ledger:
        found = read_status(settings, ledger)
    click.echo(json.dumps(found.as_dict(), indent=1) if as_json else _in_words(found))


def _in_words(found: CartStatus) -> str:
    images = ", ".join(f"{count} {name}" for name, count in found.images.items())
    lines = [
        f"Model: {found.model}",
        *([f"Variant: {found.running.name} on {found.running.backend}"] if found.running else []),
        f"Images: {images}",
        f"Last image: {found.last_image or 'never'}",
    ]
    for name, queue in found.queues.items():
        states = ", ".join(f"{count} {state}" for state, count in queue.items())
        lines.append(f"To {name}: {states}")
    for alert in found.alerts:
        detail = ", ".join(f"{key}: {value}" for key, value in alert.detail.items())
        said = f"{alert.code.sentence} {alert.code.fix} ({detail})"
        code = alert.code.code
        named = f"`{code}`" if alert.key == code else f"`{code}`, key `{alert.key}`,"
        lines.append(f"Alert {named} since {alert.since}: {said}")
    return "\n".join(lines if found.alerts else [*lines, "No alert."])


@command.command()
@_CONFIG
@click.argument("image", type=click.IntRange(1, 2**62), required=False)
@click.option("--to", "destination", help="To this destination alone.")
def resend(config: Path, image: int | None, destination: str | None) -> None:
    """Send an IMAGE's results again, the same bytes; without IMAGE what was rejected.

    They go to the destinations that CONFIG names; an IMAGE's results also to those that are new.

    Example: deepcovid-edge cart resend cart.toml 17
    """
    from deepcovid_edge.cart.store.deliveries import Deliveries
    from deepcovid_edge.cart.store.opening import open_store
    from deepcovid_edge.errors import NotThereError, UsageError

    settings = _read(config)
    named = {one.name: one.objects for one in settings.destinations}
    if destination is not None and destination not in named:
        raise UsageError(f"--to: got {destination}, expected a destination of {config}")
    ledger, spool = open_store(settings.cart)
    with ledger:
        if image is not None and not ledger.row("SELECT 1 FROM image WHERE id = ?", image):
            raise NotThereError(f"image: the cart has none with the number {image}")
        count = Deliveries(ledger, spool).resend(image, destination, named)
    click.echo(f"{number_of(count, 'object is', 'objects are')} queued.")


@command.command()
@_CONFIG
@click.argument("key")
def acknowledge(config: Path, key: str) -> int:
    """End the alert KEY; one whose cause goes on comes back.

    KEY is as `status` shows it. An alert's code will do where no other alert has it.

    Example: deepcovid-edge cart acknowledge cart.toml "quarantined 17"
    """
    from deepcovid_edge.cart.status import find_alert
    from deepcovid_edge.cart.store.opening import open_ledger

    with open_ledger(_read(config).cart, read_only=False) as ledger:
        alert = find_alert(ledger, key)
        if alert and not alert.is_silence:
            ledger.clear_alert(alert.key)
            click.echo("The alert is over.")
            return ExitCode.DONE
    if alert:
        process = alert.detail.get("process")
        what = f"`{process}` runs" if process else "the disk can be written"
        click.echo(f"The alert ends once {what}.", err=True)
    else:
        click.echo(f"There is no alert {key!r}.", err=True)
    return ExitCode.ERROR


@command.command("check-config")
@_CONFIG
@click.option("--offline", is_flag=True, help="Do not ask the destinations.")
def check_config(config: Path, offline: bool) -> int:
    """Check the configuration, the model and every destination (C-ECHO).

    Example: deepcovid-edge cart check-config cart.toml
    """
    from deepcovid_edge.cart.checks import check

    failed = False
    for found in check(_read(config), asks=not offline):
        click.echo(f"{found.mark} {found.what}: {found.detail}")
        failed |= not found.is_right
    return ExitCode.NOT_EQUIVALENT if failed else ExitCode.DONE


@command.command()
@_CONFIG
@click.option("--seconds", default=300.0, show_default=True, help="Longest time.")
@click.option(
    "--give-up", metavar="NAME", help="Forget what waits for the removed destination NAME, instead."
)
def drain(config: Path, seconds: float, give_up: str | None) -> int:
    """Send all that waits, now; before the cart is moved. A cart that runs is asked to do so.

    Images that are not assessed yet are waited for while the cart runs. If something is left at the
    end, the command says what, and its exit code is 1.

    Results for a destination that the configuration does not name any more wait until it is named
    again, and their images are kept; --give-up NAME forgets them for ever.

    Example: deepcovid-edge cart drain cart.toml --seconds 60
    """
    from deepcovid_edge.cart.send.outbox import Outbox
    from deepcovid_edge.cart.store.deliveries import Deliveries
    from deepcovid_edge.cart.store.opening import open_store
    from deepcovid_edge.errors import UsageError

    settings = _read(config)
    if give_up in {one.name for one in settings.destinations}:
        raise UsageError(f"--give-up: {give_up} is named in {config}; expected a removed one")
    ledger, spool = open_store(settings.cart)
    with ledger:
        if give_up is not None:
            count = Deliveries(ledger, spool).give_up(give_up)
            if not count:
                raise UsageError(f"--give-up: got {give_up}, for which nothing waits")
            click.echo(f"{number_of(count, 'object is', 'objects are')} not sent to {give_up}.")
            return ExitCode.DONE
        outbox = Outbox(settings, ledger, spool)
        outbox.drain(seconds)
        left = outbox.waiting()
    click.echo("\n".join(_left_in_words(left)) if any(left) else "Nothing waits.")
    return ExitCode.ERROR if any(left) else ExitCode.DONE


def _left_in_words(left: Waiting) -> Iterator[str]:
    if left.images:
        images = number_of(left.images, "image waits", "images wait")
        yield f"{images} to be assessed: let the cart run until it is done."
    if left.objects:
        yield f"{number_of(left.objects, 'object waits', 'objects wait')} to be sent."
    if left.parked:
        objects = number_of(left.parked, "object was", "objects were")
        yield f"{objects} rejected: correct that at the destination, then run `cart resend`."
    if left.damaged:
        objects = number_of(left.damaged, "object is", "objects are")
        yield f"{objects} damaged on the cart: see `cart status`."
    if left.unanswered:
        images = number_of(left.unanswered, "image has", "images have")
        them = "it" if left.unanswered == 1 else "them"
        yield f"{images} no answer to send: look at {them} by eye."


@command.command()
@_CONFIG
@click.argument("copy", type=NamedPath(), required=False)
def restore(config: Path, copy: Path | None) -> None:
    """Replace the ledger by a nightly COPY; without COPY by the newest one. Stop the cart before.

    Images, results and deliveries since that night are read from the spool. The ledger that was
    there is kept beside it.

    Example: deepcovid-edge cart restore cart.toml
    """
    from deepcovid_edge.cart.store.backup import FOLDER_NAME, newest
    from deepcovid_edge.cart.store.backup import restore as make_ledger
    from deepcovid_edge.cart.store.spool import Spool
    from deepcovid_edge.errors import NotThereError

    settings = _read(config).cart
    folder = settings.backup or settings.spool / FOLDER_NAME
    if (chosen := copy or newest(folder)) is None:
        raise NotThereError(f"{folder}: has no copy of the ledger")
    found = make_ledger(Spool(settings.spool), chosen)
    added = number_of(found, "later image was", "later images were")
    click.echo(f"The ledger is that of {chosen.name}; {added} added.")


@command.command("export-log")
@_CONFIG
def export_log(config: Path) -> int:
    """Print every event as a line of JSON, and check that none was changed.

    Example: deepcovid-edge cart export-log cart.toml > events.jsonl
    """
    from deepcovid_edge.cart.store.opening import open_ledger

    with open_ledger(_read(config).cart, read_only=True) as ledger:
        for row in ledger.each("SELECT * FROM event ORDER BY id"):
            click.echo(json.dumps({**dict(row), "detail": json.loads(row["detail"])}))
        broken = ledger.broken_event()
    if broken is not None:
        click.echo(f"Event {broken} was changed or removed, or one before it was.", err=True)
    return ExitCode.NOT_EQUIVALENT if broken is not None else ExitCode.DONE


@command.group()
def model() -> None:
    """Change the model that assesses."""


@model.command()
@_CONFIG
@click.argument("name")
@click.option("--site", type=NamedPath(), help="Site file of that model.")
def use(config: Path, name: str, site: Path | None) -> None:
    """Have the model NAME assess from the next image on, once it has proved itself.

    Example: deepcovid-edge cart model use cart.toml squeezenet1_1
    """
    from deepcovid_edge.cart.model_pointer import use_model
    from deepcovid_edge.cart.store.opening import open_store

    settings = _read(config)
    with open_store(settings.cart)[0] as ledger:
        _echo_model(use_model(settings, ledger, name, site))


@model.command()
@_CONFIG
def rollback(config: Path) -> None:
    """Go back to the model before.

    Example: deepcovid-edge cart model rollback cart.toml
    """
    from deepcovid_edge.cart.model_pointer import roll_back
    from deepcovid_edge.cart.store.opening import open_store

    settings = _read(config)
    with open_store(settings.cart)[0] as ledger:
        _echo_model(roll_back(settings, ledger))


def _echo_model(facts: dict[str, Any]) -> None:
    click.echo(f"{facts['model']} assesses, {facts['backend']}, {facts['variant']}")


def _read_for_role(config: Path, *, from_stdin: bool) -> CartConfig:
    from deepcovid_edge.cart.config import parse_config

    return parse_config(config, sys.stdin.buffer.read()) if from_stdin else _read(config)


def _read(config: Path) -> CartConfig:
    from deepcovid_edge.cart.config import read_config

    return read_config(config)
