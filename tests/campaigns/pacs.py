"""A PACS that writes down what arrives, and answers as a campaign says; a process of its own.

    python -m campaigns.pacs FOLDER PORT

Each object is a line of FOLDER/arrived.jsonl before it is answered: UID, SHA-256 of its data set,
and the answer. The answer stands in FOLDER/answer: a status such as `0xA700`, or `reject` or
`reject for good` for the whole association.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cart_peers import HOST, Server, free_port, is_listening
from dicom_files import EXPLICIT, JPEG_LS

from campaigns.paths import environment

SUCCESS = "0x0000"
REJECT, REJECT_FOR_GOOD = "reject", "reject for good"
_REJECTIONS = {REJECT: (0x02, 0x03, 0x02), REJECT_FOR_GOOD: (0x01, 0x01, 0x07)}
"""Result, source and reason (PS3.8, table 9-21): local limit exceeded; AE title not recognised."""
_CLASSES = ("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.88.33")
"""Secondary Capture, Comprehensive SR."""


class Pacs(Server):
    """The PACS, from the campaign's side.

    Args:
        folder: For its files. One that is there already goes on.
        port: Its port; None for a free one.
    """

    def __init__(self, folder: Path, port: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, port or free_port()
        self.answer(SUCCESS)
        command = [sys.executable, "-m", "campaigns.pacs", folder, self.port]
        log = folder / "pacs.log"
        super().__init__(command, log, lambda: is_listening(self.port), env=environment())

    def answer(self, answer: str) -> None:
        """Have it answer otherwise from the next object or association on."""
        passing = self.folder / "answer.part"
        passing.write_text(answer)
        passing.replace(self.folder / "answer")

    def arrived(self) -> dict[str, list[str]]:
        """SOP instance UID -> SHA-256 of each data set that came under it and was taken."""
        found: dict[str, list[str]] = defaultdict(list)
        for one in self._lines():
            if one["answer"] == SUCCESS:
                found[one["uid"]].append(one["sha256"])
        return found

    def refusals(self) -> int:
        """How often it has refused an object or an association."""
        return sum(one["answer"] != SUCCESS for one in self._lines())

    def _lines(self) -> Iterator[dict[str, str]]:
        path = self.folder / "arrived.jsonl"
        for line in path.read_text().splitlines() if path.exists() else []:
            with suppress(ValueError):  # the last line of one that was killed may be half
                yield json.loads(line)


def serve(folder: Path, port: int) -> None:
    """Take objects until killed."""
    from pynetdicom import AE, evt

    arrived = (folder / "arrived.jsonl").open("a")

    def answer() -> str:
        return (folder / "answer").read_text()

    def note(**line: str) -> None:
        arrived.write(json.dumps(line) + "\n")
        arrived.flush()

    def requested(event: Any) -> None:
        said = answer()
        if rejection := _REJECTIONS.get(said):
            note(answer=said)
            event.assoc.acse.send_reject(*rejection)
            event.assoc.kill()

    def stored(event: Any) -> int:
        request, said = event.request, answer()
        status = said if said.startswith("0x") else SUCCESS
        digest = hashlib.sha256(request.DataSet.getvalue()).hexdigest()
        note(uid=str(request.AffectedSOPInstanceUID), sha256=digest, answer=status)
        return int(status, 16)

    entity = AE("PACS")
    for name in _CLASSES:
        entity.add_supported_context(name, [EXPLICIT, JPEG_LS])
    handlers: list[Any] = [(evt.EVT_REQUESTED, requested), (evt.EVT_C_STORE, stored)]
    entity.start_server((HOST, port), block=True, evt_handlers=handlers)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
