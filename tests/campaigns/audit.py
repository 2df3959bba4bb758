"""What a cart has lost, assessed twice or altered, by the word of the console and of the PACS."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deepcovid_edge.cart.store.image_header import read_image_header
from deepcovid_edge.cart.store.intake import content_hash
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.imaging.dicom.syntaxes import file_meta_end
from deepcovid_edge.reasons import Reason

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Counts:
    """What came of a campaign.

    Attributes:
        cycles: Faults.
        seed: Of the campaign.
        sent: Images that the console had.
        acknowledged: Images that got 0x0000.
        answers: What the console was answered, and how often.
        lost: Acknowledged images without file, row, answer, or with an object that is not there.
        assessed_twice: Images with more than one result.
        other_bytes: Objects that came, or lie in the spool, with other bytes than were built.
        objects: Objects that the PACS has.
        sent_again: Times that an object came which had come before.
        retried: Images that were claimed more than once.
        quarantined: Images that were refused because no assessor survived them.
        tracebacks: In the log of the cart.
        is_chained: Whether the events' hashes hold together.
        seconds: How long it took.
        detail: What a campaign tells besides.
    """

    cycles: int
    seed: int
    sent: int
    acknowledged: int
    answers: Mapping[str, int]
    lost: int
    assessed_twice: int
    other_bytes: int
    objects: int
    sent_again: int
    retried: int
    quarantined: int
    tracebacks: int
    is_chained: bool
    seconds: float
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_kept(self) -> bool:
        """Whether the promise of the cart was kept."""
        return not (self.lost or self.assessed_twice or self.other_bytes) and self.is_chained

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "is_kept": self.is_kept}


def assert_kept(counts: Counts) -> None:
    """What a test asks of a campaign: all that was sent was acknowledged, and nothing lost."""
    assert counts.acknowledged
    assert (counts.lost, counts.assessed_twice, counts.other_bytes) == (0, 0, 0)
    assert counts.acknowledged == counts.sent
    assert counts.is_kept


class Audit:
    """Looks into a spool, beside what console and PACS say.

    Args:
        spool: The spool folder, with its ledger.
        acknowledged: SOP instance UID -> content hash of each image that got 0x0000.
        arrived: SOP instance UID -> SHA-256 of each data set that the PACS took under it.
    """

    def __init__(
        self,
        spool: Path,
        acknowledged: Mapping[str, str],
        arrived: Mapping[str, Sequence[str]],
    ) -> None:
        self._spool, self._acknowledged, self._arrived = spool, acknowledged, arrived
        with Ledger(spool, read_only=True) as ledger:
            images = ledger.rows("SELECT * FROM image")
            self.images: list[Row] = [dict(row) for row in images]
            self._objects: list[Row] = [
                dict(row)
                for row in ledger.rows(
                    "SELECT object.*, image_id, outbox.state FROM object"
                    " JOIN result ON result.id = result_id"
                    " LEFT JOIN outbox ON outbox.object_id = object.id"
                )
            ]
            self._objects_of: defaultdict[int, list[Row]] = defaultdict(list)
            for row in self._objects:
                if row["state"]:
                    self._objects_of[row["image_id"]].append(row)
            results = ledger.rows("SELECT image_id FROM result")
            events = ledger.rows(
                "SELECT image_id FROM event WHERE kind IN ('assessed', 'not_assessed')"
            )
            self._results = Counter(row["image_id"] for row in results)
            self._verdicts = Counter(row["image_id"] for row in events)
            self.is_chained = ledger.broken_event() is None

    def lost(self) -> list[str]:
        """Acknowledged images that the promise was not kept for: UID and why."""
        images = {row["sop_uid"]: row for row in self.images}
        return [
            f"{uid}: {why}"
            for uid, digest in self._acknowledged.items()
            if (why := self._lack(images.get(uid), digest))
        ]

    def _lack(self, image: Row | None, digest: str) -> str:
        """Why an image is lost; empty where it is not."""
        if image is None:
            return "not in the ledger"
        if image["content_sha256"] != digest:
            return "another content"
        path = self._spool / "images" / digest[:2] / f"{digest}{image['suffix']}"
        if not path.exists():
            return "no file"
        data = path.read_bytes()
        if content_hash(image["syntax"], data[file_meta_end(data) :]) != digest:
            return "a damaged file"
        return self._lack_of_answer(image)

    def _lack_of_answer(self, image: Row) -> str:
        if image["state"] not in ("assessed", "not_assessed"):
            return f"state {image['state']}"
        objects = self._objects_of[image["id"]]
        if not objects or any(row["sop_uid"] not in self._arrived for row in objects):
            return "an object is not at the PACS"
        return ""

    def assessed_twice(self) -> list[int]:
        """Images with more than one result, or whose assessment was written twice."""
        return sorted(
            number
            for number in self._results.keys() | self._verdicts.keys()
            if self._results[number] > 1 or self._verdicts[number] > 1
        )

    def other_bytes(self) -> list[str]:
        """UIDs of objects whose bytes are not those that were built."""
        return sorted(set(self._other()))

    def _other(self) -> Iterator[str]:
        for uid, digests in self._arrived.items():
            if len(set(digests)) > 1:
                yield uid
        known = set()
        for row in self._objects:
            uid = row["sop_uid"]
            known.add(uid)
            if not self._is_as_built(row):
                yield uid
        yield from self._arrived.keys() - known

    def _is_as_built(self, row: Row) -> bool:
        """Whether an object's file, and what came of it at the PACS, are what was built."""
        path = self._spool / row["path"]
        if not path.exists():
            return False
        data = path.read_bytes()
        sent = hashlib.sha256(data[file_meta_end(data) :]).hexdigest()
        is_built = hashlib.sha256(data).hexdigest() == row["sha256"]
        is_sent = {*self._arrived.get(row["sop_uid"], ())} <= {sent}
        return is_built and is_sent and read_image_header(data).sop_uid == row["sop_uid"]

    def counts(self) -> dict[str, Any]:
        """The counts that come from ledger, spool and PACS alone."""
        return {
            "acknowledged": len(self._acknowledged),
            "lost": len(self.lost()),
            "assessed_twice": len(self.assessed_twice()),
            "other_bytes": len(self.other_bytes()),
            "objects": len(self._arrived),
            "sent_again": sum(map(len, self._arrived.values())) - len(self._arrived),
            "retried": sum(row["tries"] > 1 for row in self.images),
            "quarantined": sum(row["reason"] == Reason.DECODE.code for row in self.images),
            "is_chained": self.is_chained,
        }


def left_in(spool: Path) -> int:
    """Images of a spool without a verdict, and objects that are not sent."""
    with Ledger(spool, read_only=True) as ledger:
        row = ledger.row(
            "SELECT (SELECT count(*) FROM image WHERE state IN ('received', 'assessing')) +"
            " (SELECT count(*) FROM outbox WHERE state != 'sent') AS n"
        )
    return int(row["n"]) if row else 0
