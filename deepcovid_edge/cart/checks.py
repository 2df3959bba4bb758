"""What `cart check-config` looks at before the cart is used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from deepcovid_edge.cart.config import CartConfig
from deepcovid_edge.cart.store.spool import Spool, SpoolSettings
from deepcovid_edge.errors import DeepCovidEdgeError, one_line


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        what: The thing.
        is_right: Whether it is as it should be.
        detail: What was found.
    """

    what: str
    is_right: bool
    detail: str


def check(config: CartConfig, *, asks: bool = True) -> Iterator[Check]:
    """Look at the spool, the model, the watched folders and the destinations.

    Args:
        config: The configuration, read without an error.
        asks: Whether destinations are asked (C-ECHO, or a request over HTTP).
    """
    yield Check("configuration", True, str(config.path))
    yield _spool(config)
    yield _model(config)
    for folder in config.receive.folders:
        found = folder.is_dir()
        yield Check(f"folder {folder}", found, "is there" if found else "is not there")
    if asks:
        yield from _destinations(config)


def _spool(config: CartConfig) -> Check:
    settings = config.cart
    try:
        spool = Spool(settings.spool, SpoolSettings(settings.floor_mib, settings.floor_share))
        spool.check_room(0)
    except DeepCovidEdgeError as error:
        return Check("spool", False, one_line(error))
    return Check("spool", True, str(settings.spool))


def _model(config: CartConfig) -> Check:
    from deepcovid_edge.model import Model

    settings = config.cart
    try:
        with Model(
            settings.model,
            variant=settings.variant,
            backend=settings.backend,
            site=settings.site,
        ) as model:
            return Check("model", True, repr(model))
    except DeepCovidEdgeError as error:
        return Check("model", False, one_line(error))


def _destinations(config: CartConfig) -> Iterator[Check]:
    from deepcovid_edge.cart.send.outbox import make_sender

    for one in config.destinations:
        place = one.url or f"{one.ae_title} at {one.host}:{one.port}"
        try:
            with make_sender(one, config.receive.ae_title) as sender:
                found, is_right = sender.echo(), True
        except DeepCovidEdgeError as error:
            found, is_right = one_line(error), False
        yield Check(f"destination {one.name}", is_right, f"{place}: {found}")
