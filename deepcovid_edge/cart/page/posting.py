"""Forms: where one comes from, that it is of this page, and the files that it brings."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

MOST_FILES = 16
_MOST_FORM_BYTES = 4096
_URL_ENCODED, _MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"
_MOST_FIELDS = 16
_OVERHEAD = 1 << 16
"""Bytes of boundaries and names in a form with files."""


class PostRejectedError(Exception):
    """Raised when a form may not be used.

    Attributes:
        status: Of the response.
        word: Key of the sentence that says why.
        names: Of several files those that were not taken.
        taken: How many of the others were.
    """

    def __init__(
        self, status: int, word: str, *, names: Sequence[str] = (), taken: int = 0
    ) -> None:
        super().__init__(word)
        self.status, self.word, self.names, self.taken = status, word, names, taken


@dataclass(frozen=True)
class SentFile:
    """A file of a form, and what its sender calls it."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Posted:
    """A form of this page: the values of its fields by their names, and its files."""

    fields: dict[str, str]
    files: Sequence[SentFile] = ()


Handler = Callable[[Request, Posted], Awaitable[Response]]


@dataclass(frozen=True)
class PostReader:
    """Reads the forms of the page, and no others.

    Attributes:
        origins: Where forms may come from.
        most_bytes: Of all files of one form.
        seconds: Longest time that a form may take to arrive.
    """

    origins: frozenset[str]
    most_bytes: int
    seconds: float = 120.0

    def __call__(
        self, handler: Handler, *, with_files: bool = False
    ) -> Callable[[Request], Awaitable[Response]]:
        """A route's end that gets forms of this page alone.

        Args:
            handler: Is given the form.
            with_files: Whether it may bring files; any other form is some hundred bytes.
        """

        async def checked(request: Request) -> Response:
            return await handler(request, await self.read(request, with_files=with_files))

        return checked

    async def read(self, request: Request, *, with_files: bool) -> Posted:
        """Read a form.

        Raises:
            PostRejectedError: It comes from another page, lacks the token, or is too large.
        """
        if request.headers.get("origin", "").lower() not in self.origins:
            raise PostRejectedError(403, "error.origin")
        try:
            posted = await asyncio.wait_for(self._body(request, with_files), self.seconds)
        except ClientDisconnect:
            raise PostRejectedError(400, "error.form") from None  # nobody reads it
        except asyncio.TimeoutError:
            raise PostRejectedError(408, "error.slow") from None
        token = posted.fields.get("token", "")
        if not hmac.compare_digest(token.encode(), request.scope["visitor"].token.encode()):
            raise PostRejectedError(403, "error.token")
        return posted

    async def _body(self, request: Request, with_files: bool) -> Posted:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == _MULTIPART and with_files:
            return await self._with_files(request)
        if kind != _URL_ENCODED:
            raise PostRejectedError(415, "error.form")
        body = b"".join([part async for part in _limited(request, _MOST_FORM_BYTES)])
        try:
            fields = parse_qsl(
                body.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST_FIELDS
            )
        except ValueError:
            raise PostRejectedError(400, "error.form") from None
        return Posted(_each_once(fields))

    async def _with_files(self, request: Request) -> Posted:
        most = self.most_bytes + _OVERHEAD
        stream = _limited(request, most)
        parser = MultiPartParser(
            request.headers, stream, max_files=MOST_FILES, max_fields=4, max_part_size=1024
        )
        parser.spool_max_size = most  # images belong into the spool alone, never into /tmp
        try:
            items = (await parser.parse()).multi_items()
        except MultiPartException as error:
            is_too_many = error.message.startswith("Too many files")
            raise PostRejectedError(400, "error.files" if is_too_many else "error.form") from None
        except (ValueError, KeyError, UnicodeError):
            raise PostRejectedError(400, "error.form") from None
        fields = _each_once([(name, value) for name, value in items if isinstance(value, str)])
        files = []
        for _, value in items:
            if isinstance(value, UploadFile):
                files.append(SentFile(value.filename or "", await value.read()))
                await value.close()
        # A browser sends a file without a name where none was chosen.
        return Posted(fields, [one for one in files if one.data or one.name])


def _each_once(fields: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The fields of a form; one of this page has none twice."""
    if len(found := dict(fields)) < len(fields):
        raise PostRejectedError(400, "error.form")
    return found


async def _limited(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > most:
        raise PostRejectedError(413, "error.large")
    total = 0
    async for part in request.stream():
        total += len(part)
        if total > most:
            raise PostRejectedError(413, "error.large")
        yield part
