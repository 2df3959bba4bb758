"""Options that the workstation's commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def choice_option(*names: str, choices: tuple[str, ...], **settings: Any) -> Callable[[Any], Any]:
    """An option with a closed list of values, of which the first is the default."""
    kind = click.Choice(choices)
    return click.option(*names, type=kind, default=choices[0], show_default=True, **settings)
