"""Requests and answers of the v2 protocol: what is read, and what is said to be wrong."""

from __future__ import annotations

import base64
import json
import random
import struct
import tracemalloc
from typing import Any

import pytest

from deepcovid_edge.serve import protocol
from deepcovid_edge.serve.protocol import (
    MOST_HEADER,
    RequestError,
    format_response,
    model_config,
    parse_request,
)

IMAGE = b"\x89PNG any bytes\x00\xff"


def header(**changes: Any) -> bytes:
    tensor: dict[str, Any] = {
        "name": "film",
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"binary_data_size": 4 + len(IMAGE)},
    }
    tensor.update({key: value for key, value in changes.items() if key in tensor or key == "data"})
    others = {key: value for key, value in changes.items() if key not in tensor}
    return json.dumps({"inputs": [tensor], **others}).encode()


def with_binary(head: bytes, image: bytes = IMAGE) -> tuple[bytes, str]:
    return head + struct.pack("<I", len(image)) + image, str(len(head))


def test_an_image_comes_as_binary_data() -> None:
    request = parse_request(*with_binary(header(id="a.png")))
    assert (request.image, request.identity, request.wants_binary) == (IMAGE, "a.png", False)


def test_the_whole_body_may_be_the_image() -> None:
    assert parse_request(IMAGE, "0").image == IMAGE


def test_an_image_comes_in_base64_where_all_is_json() -> None:
    body = header(parameters={}, data=["iVBORyBhbnkgYnl0ZXMA/w=="])
    assert parse_request(body, None).image == IMAGE


LARGE = random.Random(3).randbytes(200_000)
"""Of an image whose base64 text is no part of what is parsed as JSON."""


@pytest.mark.parametrize(
    "escaped",
    [
        {},
        {"/": "\\/"},
        {"+": "\\u002B", "=": "\\u003d", "/": "\\/"},
        {letter: f"\\u{ord(letter):04x}" for letter in "ABCDEFGHIJKLM"},
    ],
    ids=["plain", "PHP", "HTML", "many"],
)
@pytest.mark.parametrize("image", [LARGE, LARGE[:-1], LARGE[:-2]], ids=len)
def test_a_large_image_comes_in_base64_whatever_its_text_is_escaped_like(
    image: bytes, escaped: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_PIECE", 1009)
    text = "".join(escaped.get(letter, letter) for letter in base64.b64encode(image).decode())
    body = header(parameters={}, data=["CUT"], id='a "b".png').replace(b"CUT", text.encode())
    request = parse_request(bytearray(body), None)
    assert request.image == image
    assert request.identity == 'a "b".png'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("A" * 80_001, "not base64"),
        ("A" * 40_000 + "=" + "A" * 40_003, "not base64"),
        ("A" * 40_000 + "\\" + "A" * 40_000, "not base64"),
        ("A" * 80_000 + "====", "not base64"),
        ("A" * 80_000 + " ", "not base64"),
        ("ü" * 80_000, "not base64"),
    ],
)
def test_a_large_text_that_is_no_base64_is_said(text: str, why: str) -> None:
    body = header(parameters={}, data=["CUT"]).replace(b"CUT", text.encode())
    with pytest.raises(RequestError, match=why):
        parse_request(body, None)


def test_the_sign_for_a_text_that_was_cut_out_is_no_image() -> None:
    with pytest.raises(RequestError, match="not base64"):
        parse_request(header(parameters={}, data=["*"]), None)


def peak_of(body: bytes) -> int:
    """Bytes of memory that parsing takes beside the body."""
    tracemalloc.start()
    try:
        parse_request(body, None)
    except RequestError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":[' + b"[]," * 700_000 + b"[]]}",
        b'{"inputs":["' + b'","' * 700_000 + b'"]}',
        b'{"inputs":["' + b"A" * 2_000_000 + b'",' + b"[]," * 700_000 + b"[]]}",
        b'{"inputs":[0,' + b"1," * 1_000_000 + b'"AA"]}',
    ],
    ids=["lists", "texts", "a text beside lists", "numbers"],
)
def test_what_is_beside_an_image_takes_little_memory(body: bytes) -> None:
    with pytest.raises(RequestError, match="not JSON, or more than 65536 bytes beside its image"):
        parse_request(body, None)
    assert peak_of(body) < 30 * MOST_HEADER


def test_an_image_in_base64_takes_as_much_memory_as_is_counted() -> None:
    """The body is there already; `BASE64_COST` counts it once more for all that is made of it."""
    image = random.Random(4).randbytes(1 << 24)
    body = header(parameters={}, data=[base64.b64encode(image).decode()])
    assert parse_request(body, None).image == image
    assert len(image) < peak_of(body) < len(body)


def test_binary_data_is_not_copied() -> None:
    body, length = with_binary(header(parameters={"binary_data_size": 4 + len(LARGE)}), LARGE)
    assert isinstance(parse_request(body, length).image, memoryview)
    assert parse_request(body, "0").image is body


@pytest.mark.parametrize(
    ("more", "wants"),
    [
        (
            {"outputs": [{"name": "record"}], "parameters": {"binary_data_output": True}},
            True,
        ),
        (
            {
                "outputs": [{"name": "record", "parameters": {"binary_data": False}}],
                "parameters": {"binary_data_output": True},
            },
            False,
        ),
        (
            {
                "outputs": [{"name": "record", "parameters": {"binary_data": None}}],
                "parameters": {"binary_data_output": True},
            },
            True,
        ),
        ({"outputs": [{"name": "record", "parameters": {"binary_data": True}}]}, True),
        ({"outputs": [{"name": "record"}]}, False),
        ({"parameters": {"binary_data_output": True}}, True),
        ({}, False),
        ({"id": None, "parameters": None, "outputs": None}, False),
        ({"outputs": [], "parameters": {"binary_data_output": True}}, True),
    ],
)
def test_the_record_comes_back_as_it_is_asked_for(more: dict[str, Any], wants: bool) -> None:
    values = {**json.loads(header()), **more}
    request = parse_request(*with_binary(json.dumps(values).encode()))
    assert request.wants_binary is wants
    body, length = format_response("m", request, b'{"a": 1}')
    if wants:
        assert length is not None
        size = json.loads(body[:length])["outputs"][0]["parameters"]["binary_data_size"]
        assert body[length:] == struct.pack("<I", 8) + b'{"a": 1}'
        assert size == len(body) - length
    else:
        assert length is None
        assert json.loads(body)["outputs"][0]["data"] == ['{"a": 1}']


@pytest.mark.parametrize(
    ("body", "length", "why"),
    [
        (b"", None, "not JSON"),
        (b"[]", None, "expected a JSON object"),
        (b"{" * 100_000, None, "not JSON"),
        (b"{}", None, "expected one tensor with the name `film`"),
        (header(name="images"), None, "expected one tensor with the name `film`"),
        (header(datatype="UINT8"), None, "datatype BYTES and shape"),
        (header(shape=[2]), None, "datatype BYTES and shape"),
        (header(parameters=[]), None, "parameters: expected an object"),
        (header(parameters={}, data=["?"]), None, "not base64"),
        (header(parameters={}, data=[[]]), None, "expected one text"),
        (header(parameters={}, data=[""]), None, "is empty"),
        (header(id=5, parameters={}, data=["AA=="]), None, "id: expected a text"),
        (header(id="a" * 257, parameters={}, data=["AA=="]), None, "id: expected a text"),
        (header(id="\ud800", parameters={}, data=["AA=="]), None, "id: expected a text"),
        (b"", "0", "is empty"),
        (b"abc", "1" * 5000, "expected a number"),
        (b"abc", "-1", "expected a number"),
        (b"abc", "9", "expected at most 3"),
        (*with_binary(header(parameters={"binary_data_size": 9})), "binary_data_size says 9"),
        (*with_binary(header(parameters={"binary_data_size": True})), "binary_data_size says True"),
        (with_binary(header())[0][:-1], with_binary(header())[1], "bytes came"),
        (header(outputs=[{"name": "logits"}], parameters={}, data=["AA=="]), None, "`record`"),
    ],
)
def test_what_is_wrong_is_said(body: bytes, length: str | None, why: str) -> None:
    with pytest.raises(RequestError, match=why) as caught:
        parse_request(body, length)
    assert caught.value.status == 400


def test_a_length_that_lies_within_a_tensor_is_seen() -> None:
    body, length = with_binary(header())
    at = int(length)
    lying = body[:at] + struct.pack("<I", len(IMAGE) + 1) + body[at + 4 :]
    with pytest.raises(RequestError, match="expected one element"):
        parse_request(lying, length)


def test_the_configuration_has_what_clients_check() -> None:
    config = model_config("m", {"model_sha256": "0" * 64})
    value = config["parameters"]["deepcovid_edge"]["string_value"]
    assert json.loads(value) == {"model_sha256": "0" * 64}
