"""The Open Inference Protocol (KServe v2) over HTTP, with Triton's extension for binary data.

One input `film`, BYTES of shape [1]: an image file as it is. One output `record`, BYTES of shape
[1]: the record as JSON. Sources: kserve/open-inference-protocol, `inference_rest.md`;
triton-inference-server, `extension_binary_data.md` and `extension_model_configuration.md`.

Nothing here knows of sockets or of a web framework.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepcovid_edge.backends.remote.client import HEADER_LENGTH, INPUT, OUTPUT, PARAMETER

_SIZE = struct.Struct("<I")
MOST_HEADER = 1 << 16
_MOST_ID = 256
_LENGTH = re.compile("[0-9]{1,10}")


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

    image: bytes
    identity: str = ""
    wants_binary: bool = False


def parse_request(body: bytes, header_length: str | None) -> InferRequest:
    """Read a request.

    Args:
        body: Of the HTTP request.
        header_length: Value of the header `Inference-Header-Content-Length`: the number of bytes
            at the start of the body that are JSON; the rest is binary data. 0: the body is the
            image file. None: the whole body is JSON, with the image in base64.

    Raises:
        RequestError: It is not a request of this protocol, or has other inputs.
    """
    if header_length is None:
        return _parsed(_json(body), b"")
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
    return _parsed(_json(body[:length]), memoryview(body)[length:])


def _json(data: bytes) -> Mapping[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise RequestError(
            400,
            f"request: not JSON; expected the v2 protocol's, or the header {HEADER_LENGTH}: 0 with "
            "an image file",
        ) from None
    if not isinstance(values, dict):
        raise RequestError(400, "request: expected a JSON object with `inputs`")
    return values


def _parsed(values: Mapping[str, Any], binary: bytes | memoryview) -> InferRequest:
    tensor = _only(values.get("inputs"), "inputs", INPUT)
    if tensor.get("datatype") != "BYTES" or tensor.get("shape") not in ([1], [1, 1]):
        raise RequestError(400, f"{INPUT}: expected datatype BYTES and shape [1], one image file")
    identity = _or_nothing(values, "id", "")
    if not isinstance(identity, str) or len(identity) > _MOST_ID or not _is_unicode(identity):
        raise RequestError(400, f"id: expected a text of at most {_MOST_ID} letters")
    size = _parameters(tensor).get("binary_data_size")
    image = _decoded(tensor) if size is None else _unpacked(binary, size)
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


def _decoded(tensor: Mapping[str, Any]) -> bytes:
    """The image of a request that is all JSON, which has no bytes: they come in base64."""
    data = tensor.get("data")
    while isinstance(data, list) and len(data) == 1:
        data = data[0]
    if not isinstance(data, str):
        raise RequestError(400, f"{INPUT}.data: expected one text, the image file in base64")
    try:
        return _some(base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError):
        raise RequestError(400, f"{INPUT}.data: not base64; expected the image file") from None


def _unpacked(binary: bytes | memoryview, size: Any) -> bytes:
    """The one element of a BYTES tensor: four bytes of length, then the image."""
    if not isinstance(size, int) or isinstance(size, bool) or size != len(binary):
        raise RequestError(
            400, f"{INPUT}: {len(binary)} bytes came, binary_data_size says {str(size)[:20]}"
        )
    if size < _SIZE.size or _SIZE.unpack_from(binary)[0] != size - _SIZE.size:
        raise RequestError(400, f"{INPUT}: expected one element, with its length before it")
    return _some(bytes(binary[_SIZE.size :]))


def _some(image: bytes) -> bytes:
    if not image:
        raise RequestError(400, f"{INPUT}: is empty; expected an image file")
    return image


def _wants_binary(values: Mapping[str, Any]) -> bool:
    outputs = values.get("outputs")
    if outputs is None or outputs == []:
        return _parameters(values).get("binary_data_output") is True
    return _parameters(_only(outputs, "outputs", OUTPUT)).get("binary_data") is True


def format_response(model: str, request: InferRequest, record: bytes) -> tuple[bytes, int | None]:
    """The body of an answer, and how much of it is JSON where the rest is binary data.

    Args:
        model: Name of the model.
        request: What is answered.
        record: The record as JSON.
    """
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
