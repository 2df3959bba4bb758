"""The cart's configuration: one TOML file, read into frozen and checked settings.

    [cart]
    spool = "spool"
    model = "squeezenet1_1"
    [receive]
    ae_title = "CART"
    [[peer]]
    ae_title = "CONSOLE"
    address = "192.168.1.20"
    [[destination]]
    name = "pacs"
    ae_title = "ORTHANC"
    host = "192.168.1.30"
    port = 4242

Paths are relative to the file's folder. An unknown key is an error. No secret stands in it: keys of
TLS are files.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from deepcovid_edge.backends import AUTO, BACKENDS
from deepcovid_edge.backends.settings import is_address
from deepcovid_edge.cart.addresses import check_address, check_host, check_url, overlap
from deepcovid_edge.cart.toml_tables import Settings, build_settings, parse_toml
from deepcovid_edge.device import shares
from deepcovid_edge.errors import NotThereError, UsageError
from deepcovid_edge.models import shipped_models

_AE_TITLE = re.compile(r"[ -\[\]-~]{1,16}")
"""DICOM PS3.5, 6.2: AE, without backslash and control letters."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_MODEL_FILE = re.compile(r".*/.*|.+\.(onnx|engine)", re.IGNORECASE)
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")


@dataclass(frozen=True)
class ReceiveSettings:
    """How images come in.

    Attributes:
        ae_title: What the cart calls itself.
        host: Address that it listens on.
        port: Port; 104 needs a privilege.
        folders: Folders that are watched for images; apart from the spool and its backup.
        after: What becomes of a watched file once its image is in the ledger: `keep`, `move` (into
            `done` beside it) or `delete`. With `delete` the image is gone for good after
            `keep_days`.
        max_image_mib: Largest image, MiB.
        max_associations: Most senders at once.
        other_images: `refuse`: images of other kinds than CR, DX and SC are refused when a sender
            asks; `record`: they are taken and answered with a reason.
        commitment: Answer requests for storage commitment: assessed, and sent to every destination.
        certificate: Certificate of TLS, PEM; with `key` the cart takes nothing without TLS.
        key: Its private key, PEM.
        authority: Certificates of which one must have signed a sender's; None for any sender.
    """

    ae_title: str = "CART"
    host: str = "127.0.0.1"
    port: int = 11112
    folders: tuple[Path, ...] = ()
    after: Literal["keep", "move", "delete"] = "keep"
    max_image_mib: int = 64
    max_associations: int = 8
    other_images: Literal["refuse", "record"] = "refuse"
    commitment: bool = False
    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None

    def __post_init__(self) -> None:
        _check_ae_title(self.ae_title)
        check_address("host", self.host)
        _check_port(self.port)
        _check("max_image_mib", self.max_image_mib, 1, 1024)
        _check("max_associations", self.max_associations, 1, 64)
        _check_tls(self.certificate, self.key)
        if self.authority is not None and self.certificate is None:
            raise ValueError(
                "authority: got it without certificate and key; expected all three: without TLS no "
                "sender shows a certificate"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the receiver."""
        return ipaddress.ip_address(self.host).is_loopback


@dataclass(frozen=True)
class Peer:
    """Who may send images.

    Attributes:
        ae_title: What it calls itself.
        address: Its IP address, or a network such as `192.168.1.0/24`.
        port: Port on which it takes answers about storage commitment; None for none.
    """

    ae_title: str
    address: str
    port: int | None = None

    def __post_init__(self) -> None:
        _check_ae_title(self.ae_title)
        check_address("address", self.address, network=True)
        if self.port is not None:
            _check_port(self.port)

    @property
    def is_local(self) -> bool:
        """Whether it can only be on this machine."""
        return ipaddress.ip_network(self.address, strict=False).is_loopback

    def is_at(self, address: str) -> bool:
        """Whether an address is this peer's."""
        try:
            return ipaddress.ip_address(address) in ipaddress.ip_network(self.address, strict=False)
        except ValueError:
            return False


@dataclass(frozen=True)
class Destination:
    """Where results go.

    Attributes:
        name: Of the destination, for the ledger and the page.
        ae_title: What it calls itself; needed without `url`.
        host: Its address or name; needed without `url`.
        port: Its port.
        objects: What it gets: `sr` (structured report), `sc` (picture).
        find: Whether it answers C-FIND: after an uncertain end it is asked before sending again.
        commitment: Ask it for storage commitment, and count a result as done only then.
        certificate: The cart's certificate of TLS, PEM; with `key`, and with `authority` to know
            the destination by.
        key: Its private key.
        authority: Certificates of which one must have signed the destination's.
        url: Address of a STOW-RS service (DICOM PS3.18, 10.5) instead of an AE.
    """

    name: str
    ae_title: str = ""
    host: str = ""
    port: int = 104
    objects: tuple[Literal["sr", "sc"], ...] = ("sr", "sc")
    find: bool = False
    commitment: bool = False
    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name: got {self.name!r}, expected small letters, digits, - and _")
        if self.url is None:
            for key in ("ae_title", "host"):
                if not getattr(self, key):
                    raise ValueError(f"{key}: is missing; expected ae_title and host, or a url")
            _check_ae_title(self.ae_title)
            check_host("host", self.host)
        else:
            self._check_stow(self.url)
        _check_port(self.port)
        if not self.objects:
            raise ValueError("objects: got none, expected sr, sc or both")
        _check_tls(self.certificate, self.key)

    def _check_stow(self, url: str) -> None:
        check_url(url)
        of_an_ae = ("ae_title", "host", "port", "find", "commitment")
        defaults = {field.name: field.default for field in fields(self)}
        for key in of_an_ae:
            if getattr(self, key) != defaults[key]:
                raise ValueError(f"{key}: is of an AE; expected it without url")
        for key in ("certificate", "key", "authority"):
            if getattr(self, key) is not None and url.startswith("http://"):
                raise ValueError(f"{key}: got it with {url}; expected https:// for TLS")

    @property
    def place(self) -> str:
        """Where it is: what two destinations of one place have in common comes twice."""
        return self.url or f"{self.ae_title} at {self.host.lower()}:{self.port}"

    def addresses(self) -> frozenset[str]:
        """Its IP addresses; none where its name is not known now."""
        try:
            return frozenset(str(entry[4][0]) for entry in socket.getaddrinfo(self.host, None))
        except (OSError, UnicodeError):
            return frozenset()

    @property
    def is_local(self) -> bool:
        """Whether it can only be on this machine, as far as its name is known now."""
        return all(ipaddress.ip_address(one).is_loopback for one in self.addresses())


@dataclass(frozen=True)
class PageSettings:
    """Where the page is served, and to whom.

    Attributes:
        host: Address that it listens on; one beyond this machine needs `certificate`, `key` and
            `pin_file`.
        port: Port.
        certificate: Certificate of TLS, PEM.
        key: Its private key, PEM.
        pin_file: Hash of the PIN, which `cart set-pin` writes; with it nothing is shown before the
            PIN.
        hosts: Further names by which browsers may ask for the page, such as `cart.clinic.example`.
        names: Whose images are shown: `after_pin` with names once the PIN was given, `never`, or
            `always`, which an address of this machine alone may have.
        language: Language of the page until a reader chooses another one.
        upload: Whether images may be put onto the page.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    certificate: Path | None = None
    key: Path | None = None
    pin_file: Path | None = None
    hosts: tuple[str, ...] = ()
    names: Literal["after_pin", "never", "always"] = "after_pin"
    language: Literal["en", "es", "ro", "fa", "zh", "ko"] = "en"
    upload: bool = True

    def __post_init__(self) -> None:
        check_address("host", self.host)
        _check_port(self.port)
        _check_tls(self.certificate, self.key)
        for name in self.hosts:
            if not _HOST_NAME.fullmatch(name):
                raise ValueError(f"hosts: got {name!r}, expected names or addresses without a port")
        if self.is_local:
            return
        if self.certificate is None or self.pin_file is None:
            raise ValueError(
                f"host: got {self.host!r} without certificate, key and pin_file; expected all "
                "three for an address beyond this machine, or 127.0.0.1"
            )
        if self.names == "always":
            raise ValueError("names: got 'always', expected it with an address of this machine")
        if ipaddress.ip_address(self.host).is_unspecified and not self.hosts:
            raise ValueError(f"hosts: is missing; expected the cart's names with host {self.host}")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the page."""
        return ipaddress.ip_address(self.host).is_loopback


@dataclass(frozen=True)
class CartSettings:
    """The spool, the model, and what is kept: the table `[cart]`.

    Attributes:
        spool: Folder of images, results and ledger; on a disk of this machine.
        model: Shipped name, .onnx or .engine file; `cart model use` changes it later.
        variant: As `infer --variant`.
        backend: As `infer --backend`.
        site: Site file of `site-check`, or None.
        heatmap: `activation`, `occlusion` (within `budget`) or `none`.
        budget: Most seconds for an occlusion. Where one pass takes longer, images get a report
            without heat map and picture; `check-config` warns of it.
        assess_seconds: Longest time for one image; the assessor is ended and started again.
        report: Kind of structured report: `comprehensive` or `comprehensive3d`.
        keep_days: Images and results are kept this many days after every destination has the
            results.
        quota_mib: Most room for images and results, MiB; 0 for no limit.
        floor_mib: No image is taken while the disk has less free, MiB.
        floor_share: Nor while less than this share of the disk is free, 0 to 1.
        ballast_mib: Room kept aside for the last results on a full disk, MiB.
        no_image_hours: An alert is raised when no image has come for this many hours; 0 for never.
        backup: Folder of the nightly copies of the ledger; None for `backup` in the spool.
        backup_keep: How many copies are kept; 0 for no backup.
    """

    spool: Path
    model: str = "squeezenet1_1"
    variant: str = "auto"
    backend: str = "auto"
    site: Path | None = None
    heatmap: Literal["activation", "occlusion", "none"] = "activation"
    budget: float = 1.0
    assess_seconds: float = 120.0
    report: Literal["comprehensive", "comprehensive3d"] = "comprehensive"
    keep_days: int = 30
    quota_mib: int = 0
    floor_mib: int = 1024
    floor_share: float = 0.05
    ballast_mib: int = 64
    no_image_hours: int = 0
    backup: Path | None = None
    backup_keep: int = 7

    def __post_init__(self) -> None:
        if self.backend not in (AUTO, *BACKENDS) and not is_address(self.backend):
            names = ", ".join((AUTO, *BACKENDS))
            raise ValueError(
                f"backend: got {self.backend!r}, expected one of {names}, or a server's address"
            )
        _check("budget", self.budget, 0.05, 60)
        _check("assess_seconds", self.assess_seconds, 5, 3600)
        _check("keep_days", self.keep_days, 0, 36500)
        _check("quota_mib", self.quota_mib, 0, 1 << 30)
        _check("floor_mib", self.floor_mib, 0, 1 << 30)
        _check("floor_share", self.floor_share, 0, 0.9)
        _check("ballast_mib", self.ballast_mib, 0, 1 << 16)
        _check("no_image_hours", self.no_image_hours, 0, 24 * 366)
        _check("backup_keep", self.backup_keep, 0, 366)


@dataclass(frozen=True)
class CartConfig:
    """The whole configuration.

    Attributes:
        path: The file.
        cart: Spool, model, what is kept.
        receive: How images come in.
        peers: Who may send; nobody else gets in.
        destinations: Where results go.
        page: Where the page is served; None where the table `[page]` is missing.
    """

    path: Path
    cart: CartSettings
    receive: ReceiveSettings = field(default_factory=ReceiveSettings)
    peers: tuple[Peer, ...] = ()
    destinations: tuple[Destination, ...] = ()
    page: PageSettings | None = None

    def __post_init__(self) -> None:
        _check_once("destination: got the name {!r}", [one.name for one in self.destinations])
        places = [f"{kind} for {one.place}" for one in self.destinations for kind in one.objects]
        _check_once("destination: got {}", places)
        folders = [str(shares.resolve(folder)) for folder in self.receive.folders]
        _check_once("receive.folders: got {!r}", folders)
        if not self.peers and not self.receive.folders:
            raise ValueError(
                "peer: is missing, and receive.folders too; expected who may send images, or a "
                "folder to watch: nothing is accepted without one"
            )
        for folder in self.receive.folders:
            _check_apart(folder, "cart.spool", self.cart.spool)
            if self.cart.backup is not None:
                _check_apart(folder, "cart.backup", self.cart.backup)
        if self.page and self.listens:
            _check_ports(self.receive, self.page)

    @property
    def committing(self) -> tuple[Destination, ...]:
        """Destinations that are asked for storage commitment."""
        return tuple(one for one in self.destinations if one.commitment)

    @property
    def listens(self) -> bool:
        """Whether the cart listens: to peers, or to answers about storage commitment."""
        return bool(self.peers or self.committing)


_TABLES = {"cart", "receive", "peer", "destination", "page"}


def read_config(path: Path) -> CartConfig:
    """Read a configuration file.

    Raises:
        NotThereError: It cannot be read.
        UsageError: It is not TOML, or a value is wrong; the message names the file, the key, what
            was received and what was expected.
    """
    return parse_config(path, config_bytes(path))


def config_bytes(path: Path) -> bytes:
    """What a configuration holds: a file, or a pipe such as the shell makes of `<(COMMAND)`.

    Raises:
        NotThereError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotThereError(f"{path}: {error.strerror or error}") from error


def parse_config(path: Path, data: bytes) -> CartConfig:
    """The configuration that a file held.

    Raises:
        UsageError: As `read_config`.
    """
    values = parse_toml(path, data)
    try:
        return _config(path, values)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error


def _config(path: Path, values: Mapping[str, Any]) -> CartConfig:
    if unknown := sorted(set(values) - _TABLES):
        raise ValueError(f"{unknown[0]}: no such table; expected {', '.join(sorted(_TABLES))}")
    base = path.absolute().parent
    if "cart" not in values:
        raise ValueError("cart: is missing; expected a table [cart] with spool = FOLDER")

    def one(name: str, kind: type[Settings]) -> Settings:
        return build_settings(kind, values.get(name, {}), name, base)

    def several(name: str, kind: type[Settings]) -> tuple[Settings, ...]:
        tables = values.get(name, [])
        if not isinstance(tables, list):
            raise ValueError(f"{name}: got one table, expected [[{name}]] for each")
        return tuple(
            build_settings(kind, each, f"{name} {at}", base) for at, each in enumerate(tables, 1)
        )

    cart = one("cart", CartSettings)
    return CartConfig(
        path,
        replace(cart, model=_find_beside(base, cart.model)),
        one("receive", ReceiveSettings),
        several("peer", Peer),
        several("destination", Destination),
        one("page", PageSettings) if "page" in values else None,
    )


def _find_beside(base: Path, model: str) -> str:
    """A model's file beside the configuration, or the name of a shipped model as it stands."""
    is_file = _MODEL_FILE.fullmatch(model) or (base / model).is_file()
    return str(base / model) if is_file and model not in shipped_models() else model


def _check_once(got: str, values: Sequence[str]) -> None:
    """Check that no value is there twice."""
    if twice := sorted({value for value in values if values.count(value) > 1}):
        raise ValueError(f"{got.format(twice[0])} twice, expected each once")


def _check(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name}: got {value}, expected {least} to {most}")


def _check_port(port: int) -> None:
    _check("port", port, 1, 65535)


def _check_ae_title(title: str) -> None:
    if not _AE_TITLE.fullmatch(title) or not title.strip():
        raise ValueError(f"ae_title: got {title!r}, expected 1 to 16 letters (ASCII)")


def _check_apart(folder: Path, key: str, own: Path) -> None:
    """Check that the cart is never given its own files as images."""
    watched, kept = shares.resolve(folder), shares.resolve(own)
    if watched.is_relative_to(kept) or kept.is_relative_to(watched):
        raise ValueError(
            f"receive.folders: got {str(folder)!r}, and {key} is {str(own)!r}: one lies in the "
            "other; expected folders apart, or the cart takes its own files for new images"
        )


def _check_ports(receive: ReceiveSettings, page: PageSettings) -> None:
    if page.port == receive.port and overlap(page.host, receive.host):
        raise ValueError(
            f"page.port: got {page.port} at {page.host}, and receive.port is the same at "
            f"{receive.host}; expected two ports: only one program can listen on a port"
        )


def _check_tls(certificate: Path | None, key: Path | None) -> None:
    if (certificate is None) != (key is None):
        raise ValueError("certificate and key: got one of them, expected both or neither")
