"""Which model assesses: a pointer in the ledger that moves only to a model that has proved itself.

The configuration names the first model. `cart model use` loads another one, has it assess a drawn
image whose answer must be a number, and only then moves the pointer. `cart model rollback` moves it
back. Images in work are finished by the old model, and every result names the SHA-256 of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deepcovid_edge.cart.config import CartConfig
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.errors import ModelFileError, UsageError

_IN_USE, _BEFORE = "model", "model before"


def model_in_use(config: CartConfig, ledger: Ledger) -> tuple[str, Path | None]:
    """Name or file of the model that assesses, and its site file or None."""
    text = ledger.get_meta(_IN_USE)
    if text is None:
        return config.cart.model, config.cart.site
    return _read(text)


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
        DeepCovidEdgeError: It cannot be loaded, is not verified, does not fit its site file, or
            gives no number for a drawn image.
    """
    facts = _prove(config, model, site)
    before = model_in_use(config, ledger)
    place = str(Path(model).absolute()) if Path(model).is_file() else model
    with ledger.transaction():
        ledger.set_meta(_BEFORE, _text(*before))
        ledger.set_meta(_IN_USE, _text(place, site and site.absolute()))
        ledger.event("model", model=model, sha256=facts["model_sha256"])
    return facts


def roll_back(config: CartConfig, ledger: Ledger) -> dict[str, Any]:
    """Go back to the model before.

    Raises:
        UsageError: There is none.
        DeepCovidEdgeError: It cannot be loaded any more.
    """
    text = ledger.get_meta(_BEFORE)
    if text is None:
        raise UsageError("model: there was none before this one; name it with `cart model use`")
    return use_model(config, ledger, *_read(text))


def _prove(config: CartConfig, model: str, site: Path | None) -> dict[str, Any]:
    from deepcovid_edge.cart.work.assessor_child import loaded_assessor
    from deepcovid_edge.decision.record import Prediction
    from deepcovid_edge.reasons import WarningCode

    with loaded_assessor(config, model, site) as assessor:
        if WarningCode.UNVERIFIED.code in assessor.model.facts.warnings:
            raise ModelFileError(
                f"{model}: is not verified; expected a model that decides as its parent: run "
                "`deepcovid-edge verify` first"
            )
        return Prediction("", assessor.model.facts).as_dict()


def _text(model: str, site: Path | None) -> str:
    return json.dumps({"model": model, "site": str(site) if site else None})


def _read(text: str) -> tuple[str, Path | None]:
    values = json.loads(text)
    return values["model"], Path(values["site"]) if values["site"] else None
