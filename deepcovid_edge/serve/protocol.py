"""The Open Inference Protocol (KServe v2) over HTTP, with Triton's extension for binary data.

One input `film`, BYTES of shape [1]: an image file as it is. One output `record`, BYTES of shape
[1]: the record as JSON. Sources: kserve/open-inference-protocol, `inference_rest.md`;
triton-inference-server, `extension_binary_data.md` and `extension_model_configuration.md`.

Nothing here knows of sockets or of a web framework.
"""

from __future__ import annotations

import binascii
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from deepcovid_edge.backends.remote.client import HEADER_LENGTH, INPUT, OUTPUT, PARAMETER

_SIZE = struct.Struct("<I")
MOST_HEADER = 1 << 16
"""Bytes of a request beside its image: JSON takes up to 24 bytes of memory for each of its own."""
_MOST_ID = 256
_LENGTH = re.compile("[0-9]{1,10}")
_CUT = "*"
"""What stands in a request for the text of its image; no base64 text is equal to it."""
_PIECE = 1 << 18
"""Bytes of a text that are decoded at once."""
_ESCAPE = 6
"""Bytes of the longest escape in a JSON text: `u002B` after a backslash."""
_DIGITS, _LAST = re.compile("[A-Za-z0-9+/]*"), re.compile("[A-Za-z0-9+/]*={0,2}")

ImageData: TypeAlias = bytes | bytearray | memoryview
"""An image file in memory: the body of a request, or a part of it that is not copied."""


class RequestError(Exception):
    """Raised when a request is not answered with a record.

    Attributes:
        status: Of the HTTP response.
        retry: Seconds after which a caller may try again; None where that gains nothing.
    """

    def __init__(self, status: int, why: str, *, retry: int | None = None) -> None:
        super().__init__(why)
        self.status, self.retry = status, retry


@dataclass(frozen=True)
class InferRequest:
    """A request for a record.

    Attributes:
        image: The image file.
        identity: The request's id; the record's `path`.
        wants_binary: Whether the record comes back as binary data.
    """

    image: ImageData
    identity: str = ""
    wants_binary: bool = False


def parse_request(body: bytes | bytearray, header_length: str | None) -> InferRequest:
    """Read a request.

    Args:
        body: Of the HTTP request; the image may be a part of it.
        header_length: Value of the header `Inference-Header-Content-Length`: the number of bytes
            at the start of the body that are JSON; the rest is binary data. 0: the body is the
            image file. None: the whole body is JSON, with the image in base64.

    Raises:
        RequestError: It is not a request of this protocol, or has other inputs.
    """
    if header_length is None:
        begin, end = _longest_text(body)
        if len(body) - (end - begin) > MOST_HEADER:
            raise _not_json()
        head = b"".join((body[:begin], _CUT.encode(), body[end:])) if end else body
        return _parsed(_json(head), text=memoryview(body)[begin:end])
    if not _LENGTH.fullmatch(header_length):
        raise RequestError(400, f"{HEADER_LENGTH}: got {header_length[:20]!r}, expected a number")
    length = int(header_length)
    if length == 0:
        return InferRequest(_some(body))
    if length > min(len(body), MOST_HEADER):
        raise RequestError(
            400,
            f"{HEADER_LENGTH}: got {length}, expected at most {min(len(body), MOST_HEADER)}",
        )
    return _parsed(_json(body[:length]), binary=memoryview(body)[length:])


def _longest_text(body: bytes | bytearray) -> tuple[int, int]:
    """Begin and end of the longest text of a large request: that of the image, or it is wrong.

    A request that is parsed as a whole has none: 0 and 0.
    """
    longest = 0, 0
    if len(body) <= MOST_HEADER:
        return longest
    begin = body.find(b'"') + 1
    while 0 < begin <= MOST_HEADER:
        end = body.find(b'"', begin)
        longest = max(longest, (begin, end), key=lambda text: text[1] - text[0])
        begin = end + 1
    return longest


def _json(data: bytes | bytearray) -> Mapping[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise _not_json() from None
    if not isinstance(values, dict):
        raise RequestError(400, "request: expected a JSON object with `inputs`")
    return values


def _not_json() -> RequestError:
    return RequestError(
        400,
        f"request: not JSON, or more than {MOST_HEADER} bytes beside its image; expected the v2 "
        f"protocol's, or the header {HEADER_LENGTH}: 0 with an image file",
    )


def _parsed(
    values: Mapping[str, Any], *, binary: ImageData = b"", text: ImageData = b""
) -> InferRequest:
    tensor = _only(values.get("inputs"), "inputs", INPUT)
    if tensor.get("datatype") != "BYTES" or tensor.get("shape") not in ([1], [1, 1]):
        raise RequestError(400, f"{INPUT}: expected datatype BYTES and shape [1], one image file")
    identity = _or_nothing(values, "id", "")
    if not isinstance(identity, str) or len(identity) > _MOST_ID or not _is_unicode(identity):
        raise RequestError(400, f"id: expected a text of at most {_MOST_ID} letters")
    size = _parameters(tensor).get("binary_data_size")
    image = _decoded(tensor, text) if size is None else _unpacked(binary, size)
    return InferRequest(image, identity, _wants_binary(values))


def _or_nothing(thing: Mapping[str, Any], name: str, nothing: Any) -> Any:
    """A member that may be away, or null: some clients write all that the protocol knows."""
    found = thing.get(name)
    return nothing if found is None else found


def _is_unicode(text: str) -> bool:
    """Whether it can be written: JSON may hold halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _only(tensors: Any, where: str, name: str) -> Mapping[str, Any]:
    """The one tensor of that name."""
    if (
        isinstance(tensors, list)
        and len(tensors) == 1
        and isinstance(tensors[0], dict)
        and tensors[0].get("name") == name
    ):
        return tensors[0]
    raise RequestError(400, f"{where}: expected one tensor with the name `{name}`")


def _parameters(thing: Mapping[str, Any]) -> Mapping[str, Any]:
    found = _or_nothing(thing, "parameters", {})
    if not isinstance(found, dict):
        raise RequestError(400, "parameters: expected an object")
    return found


def _decoded(tensor: Mapping[str, Any], text: ImageData) -> ImageData:
    """The image of a request that is all JSON, which has no bytes: they come in base64.

    Args:
        tensor: The input.
        text: The text that was cut out of the request, if it was large.
    """
    data = tensor.get("data")
    while isinstance(data, list) and len(data) == 1:
        data = data[0]
    if not isinstance(data, str):
        raise RequestError(400, f"{INPUT}.data: expected one text, the image file in base64")
    try:
        return _some(_from_base64(_pieces(text) if text and data == _CUT else [data]))
    except ValueError:  # `binascii.Error` is one
        raise RequestError(400, f"{INPUT}.data: not base64; expected the image file") from None


def _pieces(text: ImageData) -> Iterator[str]:
    """A JSON text piece by piece: as a whole it would be in memory several times."""
    at = 0
    while at < len(text):
        piece = bytes(text[at : at + _PIECE])
        escape = piece.rfind(b"\\", -_ESCAPE)
        if escape > 0 and at + len(piece) < len(text):  # it may go on in the next piece
            piece = piece[:escape]
        at += len(piece)
        yield json.loads(b'"%b"' % piece)


def _from_base64(pieces: Iterable[str]) -> bytearray:
    """Bytes from the pieces of a base64 text.

    Raises:
        ValueError: It is none.
    """
    found, rest = bytearray(), ""
    for piece in pieces:
        rest += piece
        whole = max(0, len(rest) - 1) // 4 * 4  # the last digits may be padded
        if not _DIGITS.fullmatch(rest, 0, whole):
            raise ValueError("not base64")
        found += binascii.a2b_base64(rest[:whole])
        rest = rest[whole:]
    if not _LAST.fullmatch(rest):
        raise ValueError("not base64")
    found += binascii.a2b_base64(rest)
    return found


def _unpacked(binary: ImageData, size: Any) -> ImageData:
    """The one element of a BYTES tensor: four bytes of length, then the image."""
    if not isinstance(size, int) or isinstance(size, bool) or size != len(binary):
        raise RequestError(
            400, f"{INPUT}: {len(binary)} bytes came, binary_data_size says {str(size)[:20]}"
        )
    if size < _SIZE.size or _SIZE.unpack_from(binary)[0] != size - _SIZE.size:
        raise RequestError(400, f"{INPUT}: expected one element, with its length before it")
    return _some(binary[_SIZE.size :])


def _some(image: ImageData) -> ImageData:
    if not image:
        raise RequestError(400, f"{INPUT}: is empty; expected an image file")
    return image


def _wants_binary(values: Mapping[str, Any]) -> bool:
    """By the parameter of the output; where it has none, by that of the request."""
    wanted = _parameters(values).get("binary_data_output")
    outputs = values.get("outputs")
    if outputs not in (None, []):
        output = _parameters(_only(outputs, "outputs", OUTPUT))
        wanted = _or_nothing(output, "binary_data", wanted)
    return wanted is True


def format_response(model: str, request: InferRequest, record: bytes) -> tuple[bytes, int | None]:
    """The body of an answer, and how much of it is JSON where the rest is binary data."""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "BYTES", "shape": [1]}
    answer: dict[str, Any] = {"model_name": model, "model_version": "1", "outputs": [output]}
    if request.identity:
        answer["id"] = request.identity
    if not request.wants_binary:
        output["data"] = [record.decode()]
        return json.dumps(answer).encode(), None
    output["parameters"] = {"binary_data_size": _SIZE.size + len(record)}
    header = json.dumps(answer).encode()
    return b"".join((header, _SIZE.pack(len(record)), record)), len(header)


def server_metadata(version: str) -> dict[str, Any]:
    """What the server is."""
    return {
        "name": "deepcovid-edge",
        "version": version,
        "extensions": ["binary_tensor_data", "model_configuration"],
    }


def model_metadata(model: str) -> dict[str, Any]:
    """What the model takes and gives."""
    return {
        "name": model,
        "versions": ["1"],
        "platform": "deepcovid_edge",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [1]}],
        "outputs": [{"name": OUTPUT, "datatype": "BYTES", "shape": [1]}],
    }


def model_config(model: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The model's configuration, as Triton gives it; `facts` stand among its parameters."""
    return {
        "name": model,
        "platform": "deepcovid_edge",
        "max_batch_size": 0,
        "input": [{"name": INPUT, "data_type": "TYPE_STRING", "dims": ["1"]}],
        "output": [{"name": OUTPUT, "data_type": "TYPE_STRING", "dims": ["1"]}],
        "parameters": {PARAMETER: {"string_value": json.dumps(facts)}},
    }
