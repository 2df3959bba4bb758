"""The application of the server, called as a server of ASGI calls it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("starlette", reason="the server needs extra serve")

from deepcovid_edge.serve.app import Service, build_app


class Broken(Service):
    """A service with a fault that nobody foresaw."""

    def __init__(self) -> None:
        self.assessors = cast(Any, SimpleNamespace(known=None))
        self.model = "squeezenet1_1"

    def caller(self, request: Any) -> str:
        """See `Service`."""
        raise RuntimeError("a value that nobody may read")


@pytest.mark.parametrize("version", ["", "/versions/1"], ids=["direct", "routed"])
def test_a_fault_is_answered_without_its_text_and_told_to_the_server(version: str) -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    path = f"/v2/models/squeezenet1_1{version}/infer"
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}
    with pytest.raises(RuntimeError, match="nobody may read"):
        asyncio.run(cast(Any, build_app(Broken()))(scope, receive, send))
    start, body = sent
    assert start["status"] == 500
    assert json.loads(body["body"]) == {"error": "the server failed: RuntimeError"}
