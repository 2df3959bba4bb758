"""What every handler needs: the ledger twice, the words, the templates."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse

from deepcovid_edge.cart.config import CartConfig, PageSettings
from deepcovid_edge.cart.page import health, images
from deepcovid_edge.cart.page.access import Access
from deepcovid_edge.cart.page.changes import Changes
from deepcovid_edge.cart.page.guard import Visitor
from deepcovid_edge.cart.page.languages import LANGUAGES, catalogue
from deepcovid_edge.cart.status import raised_alerts
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.spool import Spool
from deepcovid_edge.errors import OutputError
from deepcovid_edge.manifest import VERSION

HERE = Path(__file__).parent
STATIC_TYPES = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_MOST_KEPT = 16


@dataclass
class Context:
    """What the handlers share.

    Attributes:
        config: The configuration.
        settings: That of the page.
        reading: The ledger, which this connection cannot write.
        writing: The ledger, for what a person asks for.
        spool: Its spool folder.
        access: PIN and sessions.
        changes: Tells open pages of changes.
        files: The page's own style, script and icon.
    """

    config: CartConfig
    settings: PageSettings
    reading: Ledger
    writing: Ledger
    spool: Spool
    access: Access
    changes: Changes = field(init=False)
    files: dict[str, bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.changes = Changes(self.reading, self._state)
        self.files = {name: (HERE / "static" / name).read_bytes() for name in STATIC_TYPES}
        digest = hashlib.sha256(b"".join(self.files.values())).hexdigest()[:12]
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,  # all that comes from an image is hostile text
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._templates.filters |= {
            "local_time": images.local_time,
            "detail_pairs": images.detail_pairs,
            "named_values": images.named_values,
        }
        self._templates.globals |= {
            "version": VERSION,
            "signs": health.SIGNS,
            "static": f"/static/{digest}/",
            "languages": [catalogue(name) for name in LANGUAGES],
        }
        self._kept: dict[Hashable, Markup] = {}
        self._kept_state: Hashable = None

    def _state(self) -> Hashable:
        return tuple(self.lights())

    def lights(self) -> list[health.Light]:
        """The lights at the head of the page; none while the ledger cannot be read."""
        try:
            return health.lights(self.config, self.reading, self.spool)
        except OutputError:
            return []

    def render(
        self, request: Request, template: str, status: int = 200, **values: Any
    ) -> HTMLResponse:
        """A page in the visitor's language.

        Args:
            request: Who asks.
            template: Name of the template, without its suffix.
            status: Of the response.
            values: For the template.
        """
        visitor: Visitor = request.scope["visitor"]
        text = self._templates.get_template(f"{template}.html").render(
            t=catalogue(visitor.language),
            visitor=visitor,
            path=request.scope["path"],
            lights=self.lights() if visitor.is_in else [],
            alert_count=self._alert_count() if visitor.is_in else 0,
            **values,
        )
        return HTMLResponse(text, status)

    def _alert_count(self) -> int:
        try:
            return len(raised_alerts(self.reading))
        except OutputError:
            return 0

    def part(self, visitor: Visitor, template: str, read: Callable[[], Any], name: str) -> Markup:
        """A part of a page that is the same for all readers of a language, until something changes.

        Args:
            visitor: Who reads: a language, and whether names are shown.
            template: Name of the template.
            read: Gives the template's `found`.
            name: What tells this part from others of the template.
        """
        self.changes.look(with_lights=False)
        if self._kept_state != self.changes.state or len(self._kept) > _MOST_KEPT:
            self._kept, self._kept_state = {}, self.changes.state
        key = (template, name, visitor.language, visitor.sees_names)
        if key not in self._kept:
            text = self._templates.get_template(f"{template}.html").render(
                t=catalogue(visitor.language), visitor=visitor, found=read()
            )
            self._kept[key] = Markup(text)  # a template has escaped it
        return self._kept[key]
