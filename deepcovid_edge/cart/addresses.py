"""Addresses in the configuration: what is none is named with its key."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from urllib.parse import urlsplit

_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,254}}$)(?!(.*\.)?\d+\.?$){_LABEL}(\.{_LABEL})*\.?")
"""A name as a resolver takes it (RFC 1123, 2.1), with the underscores that some have; one whose
last part is a number is a mistyped address."""
_PATH = re.compile("[!-~]*")


def check_address(name: str, address: str, *, network: bool = False) -> None:
    """Check an IP address.

    Args:
        name: Of the key.
        address: Its value.
        network: Whether a network will do.

    Raises:
        ValueError: It is none.
    """
    try:
        if network:
            ipaddress.ip_network(address, strict=False)
        else:
            ipaddress.ip_address(address)
    except ValueError:
        kind = "an IP address or a network" if network else "an IP address"
        raise ValueError(f"{name}: got {address!r}, expected {kind}") from None


def overlap(one: str, other: str) -> bool:
    """Whether two programs that listen at these IP addresses cannot have the same port.

    `::` takes IPv4 too where the system does not say otherwise (Linux, ipv6(7)).
    """
    first, second = map(ipaddress.ip_address, (one, other))
    takers = [address for address in (first, second) if address.is_unspecified]
    if first.version != second.version:
        takers = [address for address in takers if address.version == 6]
    return first == second or bool(takers)


def check_host(name: str, host: str) -> None:
    """Check a name or an address; one of other letters than ASCII is looked up in IDNA.

    Raises:
        ValueError: It is none.
    """
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return
    with contextlib.suppress(UnicodeError):
        if _HOST.fullmatch(host.encode("idna").decode("ascii")):
            return
    raise ValueError(f"{name}: got {host!r}, expected an IP address, or a name such as pacs.clinic")


def check_url(url: str) -> None:
    """Check the address of a service over HTTP.

    Raises:
        ValueError: It is none.
    """
    expected = "expected http://HOST/... or https://HOST:PORT/..."
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"url: got {url!r} ({error}), {expected}") from None
    if not re.match(r"https?://", url) or not parts.hostname or port == 0:
        raise ValueError(f"url: got {url!r}, {expected}")
    if not _PATH.fullmatch(parts.path) or parts.query or parts.fragment or parts.username:
        raise ValueError(f"url: got {url!r}, {expected}, without blanks, ?, # and @")
    check_host("url", parts.hostname)
