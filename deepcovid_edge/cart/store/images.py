"""The work on images: which is next, what became of it. Each step is one transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepcovid_edge.cart.store.clock import now_utc
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.schema import ASSESSED, ASSESSING, NOT_ASSESSED, RECEIVED
from deepcovid_edge.cart.store.spool import Spool


@dataclass(frozen=True)
class ClaimedImage:
    """An image that is assessed now.

    Attributes:
        image_id: Its row.
        content_sha256: What it is known by.
        path: The file.
        is_dicom: Whether it belongs to a study, so that its result is one or more DICOM objects.
        tries: How often it has been claimed, this time included.
    """

    image_id: int
    content_sha256: str
    path: Path
    is_dicom: bool
    tries: int


@dataclass(frozen=True)
class BuiltObject:
    """A DICOM object of a result, `sr` or `sc`, whose file is on the disk already."""

    kind: str
    sop_class: str
    sop_uid: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Settled:
    """What became of an image.

    Attributes:
        record: The record, as `infer` writes it.
        objects: The DICOM objects that were built of it.
        destinations: Name of each destination, with the kinds of objects it gets.
        made: When the objects were made, as they state it, ISO 8601.
    """

    record: Mapping[str, Any]
    objects: Sequence[BuiltObject] = ()
    destinations: Mapping[str, Sequence[str]] = field(default_factory=dict)
    made: str = field(default_factory=now_utc)


class Images:
    """The images of a ledger."""

    def __init__(self, ledger: Ledger, spool: Spool) -> None:
        self.ledger, self.spool = ledger, spool

    def release(self, *, counts: bool = True) -> int:
        """Give back images that were being assessed when the assessor ended; how many there were.

        Only the one process that assesses calls this, while it assesses none.

        Args:
            counts: Whether the try counts; not where the disk was full.
        """
        with self.ledger.transaction() as now:
            return now.execute(
                "UPDATE image SET state = ?, tries = tries - ? WHERE state = ?",
                (RECEIVED, 0 if counts else 1, ASSESSING),
            ).rowcount

    def claim(self, *, untried: bool = False) -> ClaimedImage | None:
        """Take the oldest image that waits, and count the try; None where none waits.

        Args:
            untried: Take none either where the oldest one has been tried before.
        """
        with self.ledger.transaction() as now:
            row = now.execute(
                "UPDATE image SET state = ?, tries = tries + 1 WHERE id ="
                " (SELECT id FROM image WHERE state = ? ORDER BY id LIMIT 1)"
                " AND (tries = 0 OR NOT ?)"
                " RETURNING id, content_sha256, suffix, sop_uid, tries",
                (ASSESSING, RECEIVED, untried),
            ).fetchone()
        if row is None:
            return None
        return ClaimedImage(
            image_id=row["id"],
            content_sha256=row["content_sha256"],
            path=self.spool.image(row["content_sha256"], row["suffix"]),
            is_dicom=bool(row["sop_uid"]),
            tries=row["tries"],
        )

    def give_back(self, image: ClaimedImage, why: str, *, counts: bool = True) -> None:
        """Have an image assessed again later.

        Args:
            image: The image.
            why: For the events.
            counts: Whether the try counts; not where the assessor was stopped on purpose.
        """
        with self.ledger.transaction() as now:
            now.execute(
                "UPDATE image SET state = ?, tries = tries - ? WHERE id = ? AND state = ?",
                (RECEIVED, 0 if counts else 1, image.image_id, ASSESSING),
            )
            self.ledger.event("given back", image.image_id, why=why)

    def settle(self, image: ClaimedImage, settled: Settled) -> None:
        """Write a result, its objects and where they go, in one transaction.

        It replaces an earlier result of the same model and site file, and holds from now on. An
        earlier object whose file was deleted is forgotten: it was sent before.
        """
        record = settled.record
        reason = record["reason"]
        with self.ledger.transaction() as now:
            by = (
                image.image_id,
                record["model_sha256"],
                (record["site"] or {}).get("sha256") or "",
            )
            now.execute(
                "INSERT INTO result (image_id, model_sha256, site_sha256, decision, record,"
                " made_utc, settling) VALUES (?, ?, ?, ?, ?, ?,"
                " (SELECT coalesce(max(settling), 0) + 1 FROM result))"
                " ON CONFLICT (image_id, model_sha256, site_sha256) DO UPDATE SET"
                " decision = excluded.decision, record = excluded.record,"
                " made_utc = excluded.made_utc, settling = excluded.settling",
                (*by, record["decision"], json.dumps(record, allow_nan=False), settled.made),
            )
            (result_id,) = now.execute(
                "SELECT id FROM result WHERE image_id = ? AND model_sha256 = ? AND site_sha256 = ?",
                by,
            ).fetchone()
            self._insert_objects(result_id, settled)
            self._forget_deleted(image.image_id)
            now.execute(
                "UPDATE image SET state = ?, reason = ?, settled_utc = ?, result_bytes = ?"
                " WHERE id = ?",
                (
                    *(NOT_ASSESSED if reason else ASSESSED, reason, now_utc()),
                    *(self.spool.results_size(image.content_sha256), image.image_id),
                ),
            )
            self.ledger.event(
                "not_assessed" if reason else "assessed",
                image.image_id,
                reason=reason,
                decision=record["decision"],
                model_sha256=record["model_sha256"],
            )

    def _insert_objects(self, result_id: int, settled: Settled) -> None:
        urgent = settled.record["decision"] == "positive"
        with self.ledger.transaction() as now:
            for one in settled.objects:
                columns = {
                    "result_id": result_id,
                    "kind": one.kind,
                    "sop_class": one.sop_class,
                    "sop_uid": one.sop_uid,
                    "path": self.spool.relative(one.path),
                    "sha256": one.sha256,
                }
                known = now.execute(
                    "UPDATE object SET path = ?, sha256 = ? WHERE sop_uid = ? RETURNING id",
                    (columns["path"], one.sha256, one.sop_uid),
                ).fetchone()
                object_id = known["id"] if known else self.ledger.insert("object", columns)
                now.executemany(
                    "INSERT INTO outbox (object_id, destination, urgent, changed_utc)"
                    " VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    [
                        (object_id, destination, urgent and one.kind == "sc", now_utc())
                        for destination, kinds in settled.destinations.items()
                        if one.kind in kinds
                    ],
                )

    def delete_unnamed(self, image: ClaimedImage, settled: Settled) -> None:
        """Delete objects of tries that ended before their result was written: nothing names them.

        Only the worker calls this, before it settles the image.
        """
        rows = self.ledger.rows(
            "SELECT path FROM object JOIN result ON result.id = result_id WHERE image_id = ?",
            image.image_id,
        )
        named = {Path(row["path"]).name for row in rows}
        named |= {one.path.name for one in settled.objects}
        for path in self.spool.results(image.content_sha256).glob("*.dcm"):
            if path.name not in named:
                with suppress(OSError):  # the room is not worth the result
                    path.unlink()

    def _forget_deleted(self, image_id: int) -> None:
        """Forget objects of an image whose files were deleted: they cannot be sent any more."""
        rows = self.ledger.rows(
            "SELECT object.id, path FROM object JOIN result ON result.id = result_id"
            " WHERE image_id = ?",
            image_id,
        )
        gone = [(row["id"],) for row in rows if not (self.spool.folder / row["path"]).exists()]
        with self.ledger.transaction() as now:
            now.executemany("DELETE FROM outbox WHERE object_id = ?", gone)
            now.executemany("DELETE FROM object WHERE id = ?", gone)

    def waiting(self) -> int:
        """How many images wait or are being assessed."""
        row = self.ledger.row(
            "SELECT count(*) AS n FROM image WHERE state IN (?, ?)", RECEIVED, ASSESSING
        )
        return int(row["n"]) if row else 0
