"""What `cart check-config` looks at before the cart is used."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepcovid_edge.cart.config import CartConfig, CartSettings, PageSettings
from deepcovid_edge.cart.model_pointer import model_in_use, named_model, pointer_fault
from deepcovid_edge.cart.store.opening import open_ledger
from deepcovid_edge.cart.store.spool import Spool, SpoolSettings
from deepcovid_edge.device.ports import check_address
from deepcovid_edge.device.tls import load_certificate
from deepcovid_edge.errors import DeepCovidEdgeError, NotThereError, UsageError, one_line, require
from deepcovid_edge.files import read_regular

if TYPE_CHECKING:
    from deepcovid_edge.model import Model


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        what: The thing.
        is_right: Whether it is as it should be.
        detail: What was found.
        warns: Whether it is allowed, and something is lost by it.
    """

    what: str
    is_right: bool
    detail: str
    warns: bool = False

    @property
    def mark(self) -> str:
        """How it came out, in four letters."""
        return "FAIL" if not self.is_right else "warn" if self.warns else "ok  "


def check(config: CartConfig, *, asks: bool = True) -> Iterator[Check]:
    """Look at the spool, the model, what the cart listens with, and the destinations.

    Args:
        config: The configuration, read without an error.
        asks: Whether destinations are asked (C-ECHO, or a request over HTTP).
    """
    yield Check("configuration", True, str(config.path))
    yield _spool(config)
    yield from _model(config)
    if config.listens:
        yield _receive(config)
    for folder in config.receive.folders:
        found = folder.is_dir()
        missing = "is not there: make it or mount it, or correct receive.folders"
        yield Check(f"folder {folder}", found, "is there" if found else missing)
    yield from _only_copy(config)
    yield from _commitment(config)
    if config.page:
        yield _page(config.page)
    if asks:
        yield from _destinations(config)


def _only_copy(config: CartConfig) -> Iterator[Check]:
    """A warning where the cart deletes a file, and nothing else gets its answer."""
    receive = config.receive
    if receive.folders and receive.after == "delete" and not config.destinations:
        yield Check(
            "receive.after",
            True,
            "`delete` without a destination: the cart is no archive, and image and answer are gone "
            f"for good after {config.cart.keep_days} days (keep_days)",
            warns=True,
        )


def _commitment(config: CartConfig) -> Iterator[Check]:
    """A warning where storage commitment is offered, and nobody can be told of it."""
    if config.receive.commitment and all(one.port is None for one in config.peers):
        yield Check(
            "receive.commitment",
            True,
            "no [[peer]] has a port, so every request is refused: give `port` to each peer that "
            "asks, the port on which it takes the answer, or take `commitment` away",
            warns=True,
        )


def _spool(config: CartConfig) -> Check:
    settings = config.cart
    try:
        spool = Spool(settings.spool, SpoolSettings(settings.floor_mib, settings.floor_share))
        spool.check_room(0)
    except DeepCovidEdgeError as error:
        return Check("spool", False, one_line(error))
    return Check("spool", True, str(settings.spool))


def _model(config: CartConfig) -> Iterator[Check]:
    """The model that assesses, and whether it is the one that the configuration asks for."""
    from deepcovid_edge.model import Model

    settings, fault = config.cart, None
    try:
        try:
            with open_ledger(settings, read_only=True) as ledger:
                used, fault = model_in_use(config, ledger), pointer_fault(settings, ledger)
        except NotThereError:  # the cart never ran
            used = named_model(settings)
        with Model(
            used.name, variant=settings.variant, backend=settings.backend, site=used.site
        ) as model:
            runs = f"{model.facts.model} on {model.facts.backend}"
            yield Check("model", True, f"{runs} {used.site_words}")
            yield from _budget(model, settings)
    except DeepCovidEdgeError as error:
        yield Check("model", False, one_line(error))
    if fault:
        yield Check("model in use", False, fault)


def _budget(model: Model, settings: CartSettings) -> Iterator[Check]:
    """A warning where no image gets a heat map: its time budget is too short on this machine."""
    import numpy as np

    from deepcovid_edge.heatmaps.heatmap import OCCLUSION
    from deepcovid_edge.heatmaps.occlusion import BudgetError, Occluder
    from deepcovid_edge.heatmaps.windows import OcclusionSettings

    if settings.heatmap != OCCLUSION:
        return
    chosen, spec = OcclusionSettings(budget_ms=settings.budget * 1000.0), model.manifest.input
    with Occluder(model.backend, chosen, workers=1) as occluder:
        for is_last in (False, True):  # the first one also loads what the others have
            try:
                occluder.explain(np.zeros((spec.height, spec.width), np.uint8))
            except BudgetError as error:
                if is_last:
                    yield Check(
                        "budget",
                        True,
                        f"got {settings.budget:g} s, one pass takes about "
                        f"{error.needed_ms / 1000:.2f} s here, so images get a report without "
                        'heat map and picture: raise it, or name `heatmap = "activation"`',
                        warns=True,
                    )


def _receive(config: CartConfig) -> Check:
    """Whether images can be sent to the cart: its address, its files of TLS."""
    settings = config.receive
    try:
        require("pynetdicom", extra="cart")
        check_address("receive.host", settings.host)
        _check_reached(config)
        _check_tls("receive", settings.certificate, settings.key, settings.authority)
    except DeepCovidEdgeError as error:
        return Check("receive", False, one_line(error))
    return Check("receive", True, _place(settings.host, settings.port, settings.certificate))


def _page(settings: PageSettings) -> Check:
    """Whether the page can be served: its address, its files of TLS, its PIN."""
    from deepcovid_edge.cart.page import LIBRARIES
    from deepcovid_edge.cart.page.access import Pin

    try:
        for library in LIBRARIES:
            require(library, extra="cart")
        check_address("page.host", settings.host)
        _check_tls("page", settings.certificate, settings.key)
        if settings.pin_file:
            Pin.read(settings.pin_file)
    except DeepCovidEdgeError as error:
        return Check("page", False, one_line(error))
    return Check("page", True, _place(settings.host, settings.port, settings.certificate))


def _place(host: str, port: int, certificate: Path | None) -> str:
    return f"{host}, port {port}, {'with' if certificate else 'without'} TLS"


def _check_reached(config: CartConfig) -> None:
    """Check that nobody who calls is elsewhere where only this machine can reach the cart.

    Raises:
        UsageError: A peer is, or a destination that is asked for storage commitment.
    """
    if not config.receive.is_local:
        return
    away = [f"peer {one.ae_title} is at {one.address}" for one in config.peers if not one.is_local]
    away += [
        f"destination {one.name}, which answers about storage commitment, is at {one.host}"
        for one in config.committing
        if not one.is_local
    ]
    if away:
        raise UsageError(
            f"receive.host: got {config.receive.host}, which only this machine reaches, and the "
            f"{away[0]}: name the cart's own address"
        )


def _check_tls(
    table: str, certificate: Path | None, key: Path | None, authority: Path | None = None
) -> None:
    """Load the files of TLS as a server does.

    Raises:
        NotThereError: One cannot be read, is none of TLS, or the key is encrypted.
    """
    named = {"certificate": certificate, "key": key, "authority": authority}
    for name, path in named.items():
        try:
            if path:
                read_regular(path)
        except OSError as error:
            raise NotThereError(f"{table}.{name}: {path}: {error.strerror or error}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        if certificate and key:
            load_certificate(context, f"{table}.key", certificate, key)
        if authority:
            context.load_verify_locations(authority)
    except (OSError, ValueError) as error:  # `ssl.SSLError` is the former
        files = ", ".join(str(path) for path in named.values() if path)
        raise NotThereError(f"{table}.certificate: cannot be used: {files}: {error}") from error


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
