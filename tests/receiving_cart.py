"""`cart receive` in a process of its own, and the bytes of DICOM that attack it."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cart_peers import HOST, Server, free_port


class ReceivingCart(Server):
    """The role `cart receive` in a process of its own, on a free port of 127.0.0.1.

    Args:
        folder: For configuration, spool and log; the spool is `folder / "spool"`.
        peers: AE title, address and port for answers of each named peer.
        cart: Keys of the table `[cart]`, as TOML writes them.
        receive: Keys of the table `[receive]`, likewise.
        destinations: Keys of each `[[destination]]`, likewise.
    """

    def __init__(
        self,
        folder: Path,
        *,
        peers: Sequence[tuple[str, str, int | None]] = (("CONSOLE", HOST, None),),
        cart: Mapping[str, object] | None = None,
        receive: Mapping[str, object] | None = None,
        destinations: Sequence[Mapping[str, object]] = (),
    ) -> None:
        self.port = int(str((receive or {}).get("port") or free_port()))
        self.spool = folder / "spool"
        tables = {
            "cart": {
                "spool": str(self.spool),
                "floor_mib": 1,
                "floor_share": 0.0,
                "ballast_mib": 0,
                **(cart or {}),
            },
            "receive": {"port": self.port, **(receive or {})},
        }
        lines = [line for name, keys in tables.items() for line in (f"[{name}]", *_toml(keys))]
        for title, address, port in peers:
            keys = {"ae_title": title, "address": address, **({"port": port} if port else {})}
            lines += ["[[peer]]", *_toml(keys)]
        for one in destinations:
            lines += ["[[destination]]", *_toml(one)]
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "cart.toml"
        self.config.write_text("\n".join(lines) + "\n")
        super().__init__(
            [sys.executable, "-c", _RECEIVE, self.config],
            folder / "receive.log",
            lambda: '"listening"' in self.said(),
        )

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """Lines of its log so far; those of one kind."""
        lines = (json.loads(line) for line in self.said().splitlines() if line.startswith("{"))
        return [line for line in lines if kind in ("", line["event"])]

    def rss_mib(self) -> float:
        """Its memory now, MiB."""
        return self._status("VmRSS:") / 1024

    def threads(self) -> int:
        """Its threads now."""
        return self._status("Threads:")

    def _status(self, name: str) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1])

    def open_files(self) -> int:
        """Its file descriptors now."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


_RECEIVE = (
    "import sys, pathlib;"
    "from deepcovid_edge.cart.config import read_config;"
    "from deepcovid_edge.device.service import stop_event;"
    "from deepcovid_edge.cart.receive.role import receive;"
    "receive(read_config(pathlib.Path(sys.argv[1])), stop_event())"
)


def _toml(keys: Mapping[str, object]) -> list[str]:
    """Lines of a table; JSON writes texts, numbers, truth values and lists as TOML does."""
    return [f"{key} = {json.dumps(value, default=str)}" for key, value in keys.items()]


CR, EXPLICIT = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.1.2.1"


def association_request(calling: str = "CONSOLE", called: str = "CART") -> bytes:
    """A-ASSOCIATE-RQ with one presentation context: CR, explicit VR (DICOM PS3.8, 9.3.2)."""
    context = bytes([1, 0, 0, 0]) + _item(0x30, CR.encode()) + _item(0x40, EXPLICIT.encode())
    user = _item(0x51, struct.pack(">I", 16384)) + _item(0x52, b"1.2.3")
    body = struct.pack(">HH16s16s32x", 1, 0, called.ljust(16).encode(), calling.ljust(16).encode())
    body += _item(0x10, b"1.2.840.10008.3.1.1.1") + _item(0x20, context) + _item(0x50, user)
    return struct.pack(">BBI", 1, 0, len(body)) + body


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def p_data(fragment: bytes, control: int) -> bytes:
    """P-DATA-TF with one fragment (PS3.8, 9.3.5 and E.2).

    Args:
        fragment: Of a command set or a data set.
        control: 1 for a command set, and 2 for a last fragment.
    """
    value = struct.pack(">IBB", len(fragment) + 2, 1, control) + fragment
    return struct.pack(">BBI", 4, 0, len(value)) + value


def store_command(uid: str | None = "1.2.3.4", sop_class: str = CR) -> bytes:
    """Command set of a C-STORE request (PS3.7, 9.3.1), whatever its UID is."""
    numbers = {0x0100: 1, 0x0110: 1, 0x0700: 0, 0x0800: 1}
    values = {tag: struct.pack("<H", number) for tag, number in numbers.items()}
    values[0x0002] = sop_class.encode()
    if uid is not None:
        values[0x1000] = uid.encode()
    return command_set(values)


def command_set(values: Mapping[int, bytes]) -> bytes:
    """A command set (PS3.7, 6.3): implicit VR, group 0000.

    Args:
        values: Element number -> value.
    """
    elements = b""
    for tag, value in sorted(values.items()):
        even = value + b"\0" * (len(value) % 2)
        elements += struct.pack("<HHI", 0, tag, len(even)) + even
    return struct.pack("<HHII", 0, 0, 4, len(elements)) + elements


def status_in(answer: bytes) -> int:
    """The status in a P-DATA-TF with a response (PS3.7, E.1: element 0900)."""
    at = answer.index(struct.pack("<HHI", 0, 0x0900, 2))
    (status,) = struct.unpack_from("<H", answer, at + 8)
    return int(status)
