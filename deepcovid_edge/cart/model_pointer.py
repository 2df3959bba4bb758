"""Which model assesses: a pointer in the ledger that moves only to a model that has proved itself.

The configuration names the first model. `cart model use` loads another one, has it assess a
synthetic image whose answer must be a number, and only then moves the pointer. `cart model
rollback` moves it back. Images in work are finished by the old model, and every result names the
SHA-256 of its own.

The pointer remembers what the configuration named when it was moved. If the configuration has
changed since, an alert says so, because the change has no effect. A file beside the ledger has the
pointer too, for a ledger that is made again.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.config import CartConfig, CartSettings
from deepcovid_edge.cart.install.visible import check_visible, is_installed
from deepcovid_edge.cart.store.ledger import Ledger, LedgerBusyError
from deepcovid_edge.cart.store.spool import sync
from deepcovid_edge.errors import ModelFileError, OutputError, UsageError
from deepcovid_edge.files import read_regular, write_atomically

_IN_USE, _BEFORE = "model", "model before"
_NAMED_THEN = "configured"
"""Key of a pointer: what the configuration named when it was moved."""
POINTER_NAME = "model.json"
"""The file of the spool that has the pointer too."""
_RUNNING = "model running"
_ALERT_KEY = "model"


class ModelChoice(NamedTuple):
    """A model, by its shipped name or as a file, and its site file."""

    name: str
    site: Path | None

    def __str__(self) -> str:
        return f"{self.name} {self.site_words}"

    @property
    def site_words(self) -> str:
        """The site file in words."""
        return f"with the site file {self.site}" if self.site else "without a site file"

    def is_same(self, other: ModelChoice) -> bool:
        """Whether both are the same files, however their folders are written."""
        return self._places() == other._places()

    def files(self) -> list[Path]:
        """Its files; a shipped model without a site file has none."""
        named = [Path(self.name)] if "/" in self.name else []
        return [*named, self.site] if self.site else named

    def _places(self) -> tuple[str, str]:
        name = os.path.realpath(self.name) if "/" in self.name else self.name
        return name, os.path.realpath(self.site) if self.site else ""


class RunningModel(NamedTuple):
    """What a model runs as, in the words of its records.

    Attributes:
        name: Of the variant that runs, such as `squeezenet1_1-int8-cpu`.
        variant: Such as `int8-cpu`.
        backend: Such as `onnxruntime-cpu`.
    """

    name: str
    variant: str
    backend: str


def named_model(settings: CartSettings) -> ModelChoice:
    """The model that the configuration names."""
    return ModelChoice(settings.model, settings.site)


def model_in_use(config: CartConfig, ledger: Ledger) -> ModelChoice:
    """Name or file of the model that assesses, and its site file or None."""
    text = ledger.get_meta(_IN_USE)
    return named_model(config.cart) if text is None else _read(text)


def note_running(ledger: Ledger, choice: ModelChoice, record: Mapping[str, Any]) -> None:
    """Write down what a model runs as, as its records say, for whoever has the ledger alone."""
    running = [str(record[key]) for key in ("model", "variant", "backend")]
    ledger.set_meta(_RUNNING, json.dumps({**_values(choice), "running": running}))


def running_model(ledger: Ledger, choice: ModelChoice) -> RunningModel | None:
    """What a model ran as when it was last loaded to assess; None where another one was."""
    text = ledger.get_meta(_RUNNING)
    if text is None or _read(text) != choice:
        return None
    return RunningModel(*json.loads(text)["running"])


def pointer_fault(settings: CartSettings, ledger: Ledger) -> str | None:
    """Why another model assesses than somebody may think.

    Returns:
        A sentence that names the model in use, the other one, and what ends the difference; None
        where the configuration names what it named when the pointer was moved.
    """
    text, named = ledger.get_meta(_IN_USE), named_model(settings)
    if text is None:
        place = ledger.path.with_name(POINTER_NAME)
        if not place.exists():
            return None
        return f"{place}: cannot be read, so {named} assesses: repeat the last `cart model use`"
    in_use, then = _read(text), _named_then(text)
    if named.is_same(in_use) or (then and named.is_same(then)):
        return None
    more = ["--site", str(named.site)] if named.site else []
    return (
        f"the configuration names {named}, but since `cart model use` {in_use} assesses: run "
        f"`cart model use CONFIG {shlex.join([named.name, *more])}`, or name in the configuration "
        "what assesses"
    )


def settle_pointer(settings: CartSettings, ledger: Ledger) -> None:
    """Have ledger and file agree on the pointer, and tell of a change that has no effect.

    The ledger's pointer counts, or the file's where the ledger was made again and has none. What
    a full disk keeps from being written here is written at the next start.

    Raises:
        LedgerBusyError: The pointer of a ledger that was made again cannot be written.
    """
    if ledger.get_meta(_IN_USE) is None and (kept := kept_pointer(ledger.path.parent)):
        with ledger.transaction():
            for key, text in kept.items():
                ledger.set_meta(key, text)
    with suppress(OutputError, OSError):
        _keep(ledger)
    with suppress(LedgerBusyError):
        if why := pointer_fault(settings, ledger):
            is_lost = ledger.get_meta(_IN_USE) is None
            code = AlertCode.MODEL if is_lost else AlertCode.MODEL_NOT_IN_USE
            ledger.raise_alert(_ALERT_KEY, code.code, why=why)
        else:
            ledger.clear_alert(_ALERT_KEY)


def kept_pointer(spool: Path) -> dict[str, str]:
    """The pointer in the file of a spool, as the ledger's table `meta` has it; or nothing."""
    try:
        values = json.loads(read_regular(spool / POINTER_NAME))
        keys = (_IN_USE, _BEFORE) if _BEFORE in values else (_IN_USE,)
        kept = {key: json.dumps(values[key]) for key in keys}
        for text in kept.values():
            _read(text)
            _named_then(text)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return kept


def _keep(ledger: Ledger) -> None:
    """Write the pointer into the file, where it has moved."""
    texts = {key: ledger.get_meta(key) for key in (_IN_USE, _BEFORE)}
    pointer = {key: text for key, text in texts.items() if text is not None}
    folder = ledger.path.parent
    if pointer and pointer != kept_pointer(folder):
        values = {key: json.loads(text) for key, text in pointer.items()}
        write_atomically(folder / POINTER_NAME, json.dumps(values).encode(), sync=True)
        sync(folder)


def use_model(config: CartConfig, ledger: Ledger, model: str, site: Path | None) -> dict[str, Any]:
    """Have another model assess from the next image on.

    Args:
        config: The configuration; its backend and variant hold for the new model too.
        ledger: The ledger.
        model: Shipped name, or a file.
        site: Site file of that model, or None.

    Returns:
        What its records say: name, SHA-256, backend, variant, limits.

    Raises:
        DeepCovidEdgeError: It cannot be loaded, is not verified, does not fit its site file, gives
            no number for a synthetic image, or lies where the cart's services do not see it.
    """
    return _move(config, ledger, ModelChoice(model, site), named_model(config.cart))


def roll_back(config: CartConfig, ledger: Ledger) -> dict[str, Any]:
    """Go back to the model before. What the configuration names since then stays without effect.

    Raises:
        UsageError: There is none.
        DeepCovidEdgeError: It cannot be loaded any more.
    """
    before, now = ledger.get_meta(_BEFORE), ledger.get_meta(_IN_USE)
    if before is None:
        raise UsageError("model: there was none before this one; name it with `cart model use`")
    return _move(config, ledger, _read(before), _named_then(now) if now else None)


def _move(
    config: CartConfig, ledger: Ledger, to: ModelChoice, named: ModelChoice | None
) -> dict[str, Any]:
    """Move the pointer to a model that proves itself; the one in use keeps what was before it."""
    model, site = to
    place = str(Path(model).absolute()) if Path(model).is_file() else model
    now = ModelChoice(place, site and site.absolute())
    for path in now.files() if is_installed(config) else ():
        check_visible(path)
    facts = _prove(config, model, site)
    before = model_in_use(config, ledger)
    with ledger.transaction():
        if not now.is_same(before):
            ledger.set_meta(_BEFORE, json.dumps(_values(before)))
        ledger.set_meta(
            _IN_USE, json.dumps({**_values(now), _NAMED_THEN: named and _values(named)})
        )
        ledger.event("model", model=model, sha256=facts["model_sha256"])
    settle_pointer(config.cart, ledger)
    return facts


def _prove(config: CartConfig, model: str, site: Path | None) -> dict[str, Any]:
    from deepcovid_edge.cart.work.assessor_child import loaded_assessor
    from deepcovid_edge.decision.record import Prediction
    from deepcovid_edge.reasons import WarningCode

    with loaded_assessor(config.cart, model, site) as assessor:
        if WarningCode.UNVERIFIED.code in assessor.model.facts.warnings:
            raise ModelFileError(
                f"{model}: is not verified; expected a model that decides as its parent: run "
                "`deepcovid-edge verify` first"
            )
        return Prediction("", assessor.model.facts).as_dict()


def _values(choice: ModelChoice) -> dict[str, str | None]:
    return {"model": choice.name, "site": str(choice.site) if choice.site else None}


def _read(text: str) -> ModelChoice:
    return _choice(json.loads(text))


def _named_then(text: str) -> ModelChoice | None:
    values = json.loads(text).get(_NAMED_THEN)
    return _choice(values) if values else None


def _choice(values: dict[str, Any]) -> ModelChoice:
    return ModelChoice(str(values["model"]), Path(values["site"]) if values["site"] else None)
