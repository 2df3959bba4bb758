"""What the units may do at this site: addresses and folders that the configuration names.

The shipped units reach this machine alone. Who sends, where results go and where files lie differ
from site to site, so a drop-in of each unit (systemd.unit(5)) is made of the configuration.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from deepcovid_edge.backends.settings import is_address
from deepcovid_edge.cart.config import CartConfig, Destination
from deepcovid_edge.errors import UsageError

ROLES = ("receive", "work", "page")
STATE = Path("/var/lib/deepcovid-edge")
"""The units' StateDirectory: what lies in it needs no permission."""
_NAMESERVER = re.compile(r"^nameserver\s+(\S+)", re.MULTILINE)
_RESOLVER = Path("/etc/resolv.conf")
_UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_ANY = "any"
_SOMEBODY = Destination("somebody", "ANY", "127.0.0.1")
_HEAD = "# Made by `deepcovid-edge cart install` of {config}; run it again after a change there."


def drop_in(role: str, config: CartConfig) -> str:
    """The drop-in of a role's unit.

    Raises:
        UsageError: The backend is no address of a server, or a path cannot stand in a unit.
    """
    unit, service = ["[Unit]"], ["[Service]"]
    if addresses := _addresses(role, config):
        service.append(f"IPAddressAllow={' '.join(addresses)}")
    if places := _folders(role, config):
        unit += [f"RequiresMountsFor={quote(place)}" for place in places]
        service += [f"ReadWritePaths={quote(place, may_lack=True)}" for place in places]
    if role == "work" and config.cart.backend == "openvino":
        service.append("MemoryDenyWriteExecute=no")  # OpenVINO compiles a model to code
    parts = [part for part in (unit, service) if len(part) > 1]
    return "\n".join(
        [_HEAD.format(config=config.path), *(line for part in parts for line in part), ""]
    )


def unknown_names(config: CartConfig) -> list[str]:
    """Who has a name that is not known now, so that the services cannot reach it."""
    found = [f"destination {one.name}" for one in config.destinations if not _known(_host(one))]
    if is_address(config.cart.backend) and not _known(_server(config.cart.backend)):
        found.append("cart.backend")
    return found


def _addresses(role: str, config: CartConfig) -> list[str]:
    """Addresses and networks that a role may talk with, beside this machine's own."""
    if role == "page":
        is_open = config.page is not None and not config.page.is_local
        return [_ANY] if is_open else []
    destinations = config.committing if role == "receive" else config.destinations
    hosts = [_host(one) for one in destinations]
    if role == "work" and is_address(config.cart.backend):
        hosts.append(_server(config.cart.backend))
    found = {address for host in hosts for address in _known(host)}
    if not all(map(_is_address, hosts)):
        found |= _name_servers()
    if role == "receive":
        found |= {peer.address for peer in config.peers}
    plain = {address.partition("%")[0] for address in found}
    return sorted(one for one in plain if not ipaddress.ip_network(one, strict=False).is_loopback)


def _known(host: str) -> frozenset[str]:
    """Addresses of a host; none where its name is not known now."""
    return replace(_SOMEBODY, host=host).addresses()


def _host(destination: Destination) -> str:
    return destination.host or urlsplit(destination.url or "").hostname or ""


def _server(backend: str) -> str:
    """The host of a backend that is a server."""
    from deepcovid_edge.backends.remote.client import Address

    host = Address.of(backend).host
    try:
        replace(_SOMEBODY, host=host)
    except ValueError as error:
        raise UsageError(f"cart.backend: got {backend!r}: {error}") from error
    return host


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _name_servers() -> set[str]:
    """Where names of destinations are asked for; they may move to another address."""
    try:
        text = _RESOLVER.read_text("utf-8")
    except OSError:
        return set()
    return {address for address in _NAMESERVER.findall(text) if _is_address(address)}


def _folders(role: str, config: CartConfig) -> list[Path]:
    """Folders outside the units' own that a role writes to."""
    places = [config.cart.spool]
    if role == "receive" and config.receive.after != "keep":
        places += config.receive.folders
    if role == "work" and config.cart.backup:
        places.append(config.cart.backup)
    return sorted({place for place in places if STATE not in (place, *place.parents)})


def quote(place: Path, *, may_lack: bool = False) -> str:
    """A path as systemd.syntax(7) reads it; in a command `$` is to be doubled too.

    Args:
        place: The path.
        may_lack: Whether the unit starts without it.

    Raises:
        UsageError: It has a letter that cannot stand in a unit.
    """
    if _UNWRITABLE.search(str(place)):
        raise UsageError(f"{str(place)!r}: has a control letter, or none of UTF-8; rename it")
    text = str(place).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{"-" if may_lack else ""}{text}"'
