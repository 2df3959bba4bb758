"""Options that several commands have, defined once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from deepcovid_edge.backends import AUTO, BACKENDS
from deepcovid_edge.backends.settings import PROVIDERS, is_address
from deepcovid_edge.decision.out_of_distribution import CHOICES, REJECT
from deepcovid_edge.device import shares
from deepcovid_edge.models import DEFAULT_MODEL
from deepcovid_edge.pipeline.disk_guard import LEAST_FREE_MIB

Command = TypeVar("Command", bound=Callable[..., Any])


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order of `--help`."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def path_option(*names: str, folder: bool = False, **settings: Any) -> Callable[[Command], Command]:
    """An option whose value is a `Path`; with `folder` it may not be a file."""
    return click.option(*names, type=NamedPath(folder=folder), **settings)


class NamedPath(click.Path):
    """A path that is not empty; whether it can be read, whoever reads it says.

    The disk is not asked as click asks it: a network share that does not answer would stop every
    command here.
    """

    def __init__(self, *, folder: bool = False) -> None:
        super().__init__(path_type=Path, file_okay=not folder, readable=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; an empty one would be the working folder."""
        if value == "":
            self.fail("it is empty: is a variable of the shell not set?", param, ctx)
        path = Path(value)
        if not self.file_okay and shares.is_file(path):
            self.fail(
                f"{self.name.title()} {click.format_filename(value)!r} is a file.", param, ctx
            )
        return path


paths_argument = click.argument("paths", nargs=-1, required=True, type=NamedPath())
"""Files and folders."""


class BackendChoice(click.Choice[str]):
    """A backend's name, or the address of a server."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name or the address; that of a server is checked where it is used."""
        return value if is_address(str(value)) else super().convert(value, param, ctx)


backend_option = click.option(
    "--backend",
    type=click.Choice([AUTO, *BACKENDS]),
    default=AUTO,
    show_default=True,
    help="Library that runs the model.",
)
provider_option = click.option(
    "--provider",
    type=click.Choice(PROVIDERS),
    help="Execution provider of ONNX Runtime.  [default: cpu]",
)
variant_option = click.option(
    "--variant",
    default=AUTO,
    show_default=True,
    help="Variant of the model: fp32, int8-cpu, ...; auto: the fastest verified one.",
)


def _check_range(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Refuse an indeterminate range beside an own threshold, which has none."""
    names = {"threshold", "indeterminate"}
    stated = {
        name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if stated == names and {**context.params, str(parameter.name): value}["indeterminate"]:
        raise click.UsageError(
            "--indeterminate: got --threshold too, which has no indeterminate range: give one"
        )
    return value


model_options = options(
    click.option(
        "--model", default=DEFAULT_MODEL, show_default=True, help="Shipped name or model file."
    ),
    variant_option,
    click.option(
        "--backend",
        type=BackendChoice([AUTO, *BACKENDS]),
        default=AUTO,
        show_default=True,
        help="Library that runs the model, or a server: kserve://HOST[:PORT], triton://HOST[:PORT].",
    ),
    provider_option,
    click.option(
        "--threshold",
        type=float,
        callback=_check_range,
        help="An image is positive from this probability on; then there is no indeterminate range.",
    ),
    path_option("--site", help="Site file of `site-check`; its threshold decides."),
    click.option(
        "--indeterminate/--no-indeterminate",
        default=True,
        callback=_check_range,
        help="Whether images too close to the threshold are indeterminate.  [default: yes]",
    ),
    click.option(
        "--ood",
        type=click.Choice(CHOICES),
        default=REJECT,
        show_default=True,
        help="Out-of-distribution images are not assessed, or get the warning W_OOD.",
    ),
)
"""The options of every command that loads a model to classify images."""
classify_options = options(
    model_options,
    click.option("--workers", type=int, help="Threads.  [default: one per core]"),
    click.option(
        "--min-free",
        type=click.IntRange(0),
        default=LEAST_FREE_MIB,
        show_default=True,
        metavar="MIB",
        help="Do not assess images while the disk of the results has less free space.",
    ),
)
"""The options of every command that classifies images."""
run_options = options(
    classify_options,
    click.option("--json", "format", flag_value="jsonl", help="JSON Lines (default in a pipe)."),
    click.option("--csv", "format", flag_value="csv", help="CSV with the same columns."),
    click.option("--table", "format", flag_value="table", help="A table (default on a terminal)."),
)
"""Those of a command that also writes its records as text."""


def split_options(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split options into settings of the run and keywords of `Model`."""
    return {name: given.pop(name) for name in ("format", "min_free")}, given


def check_needed(needed: str, is_there: bool, *names: str) -> None:
    """Refuse options of the running command that would do nothing without another one.

    Args:
        needed: What they need, as a user writes it.
        is_there: Whether that was given.
        names: Their parameters.

    Raises:
        click.UsageError: One of them stands on the command line.
    """
    if is_there:
        return
    context = click.get_current_context()
    for parameter in context.command.params:
        name = str(parameter.name)
        if name in names and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[0]} needs {needed}.")


def duration(text: str) -> float:
    """Parse a time with its unit, such as `200ms` or `1.5s`, into milliseconds."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?) *(ms|s)", text.strip())
    if not found:
        raise click.BadParameter(f"got {text!r}, expected a time with its unit: 200ms or 1.5s")
    return float(found[1]) * (1000.0 if found[2] == "s" else 1.0)
