"""What the cart's services see: `ProtectHome=` and `PrivateTmp=` hide some folders from them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from deepcovid_edge.cart.config import CartConfig
from deepcovid_edge.cart.install.site import STATE, quote
from deepcovid_edge.device import shares
from deepcovid_edge.errors import UsageError

UNIT_FOLDER = Path("/etc/systemd/system")
_WORKER = "deepcovid-edge-work.service"
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")


def check_visible(place: Path, instead: Path = STATE) -> None:
    """Check that the services see a file or a folder.

    Args:
        place: The file or folder; links are followed.
        instead: A folder in which they would.

    Raises:
        UsageError: They do not.
    """
    for one in (Path(os.path.abspath(place)), shares.resolve(place)):  # noqa: PTH100
        if any(one.is_relative_to(hidden) for hidden in _HIDDEN):
            raise UsageError(
                f"{one}: the units see nothing below {', '.join(_HIDDEN)}; expected a place such "
                f"as {instead}: move it there and name that place"
            )


def named_places(config: CartConfig) -> Iterator[Path]:
    """Every file and folder that a configuration names."""
    for table in (config.cart, config.receive, *config.destinations, config.page):
        for field in fields(table) if table else ():
            value = getattr(table, field.name)
            values = value if isinstance(value, tuple) else (value,)
            yield from (one for one in values if isinstance(one, Path))
    if (model := Path(config.cart.model)).is_absolute():
        yield model


def is_installed(config: CartConfig) -> bool:
    """Whether the services of this machine run with a configuration."""
    try:
        text = (UNIT_FOLDER / _WORKER).read_text("utf-8")
    except OSError:
        return False
    return f" {argument(config.path.absolute())}\n" in text


def argument(config: Path) -> str:
    """A configuration's path as it stands in the command of a unit."""
    return quote(config).replace("$", "$$")
