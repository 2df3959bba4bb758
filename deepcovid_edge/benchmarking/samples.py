"""Raw samples: one row per query, in nanoseconds since the run began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.decision.results import PlainResult

Numbers = NDArray[np.int64]
Values = NDArray[np.float64]


class Query(NamedTuple):
    """One query as it was answered.

    Attributes:
        arrived: When it arrived; before `started` where it had to wait (`server`).
        started: When work on it began.
        ended: When its last result was there.
        image: Index of its first image in the data.
        images: How many images it has.
    """

    arrived: int
    started: int
    ended: int
    image: int
    images: int


@dataclass(frozen=True)
class Samples(PlainResult):
    """Queries as columns, each of shape (N,), int64; see `Query`."""

    arrived: Numbers
    started: Numbers
    ended: Numbers
    image: Numbers
    images: Numbers

    @classmethod
    def of(cls, queries: Sequence[Query], *, zero: int = 0) -> Samples:
        """Columns of queries in the order in which they ended.

        Args:
            queries: In any order.
            zero: The moment from which times are counted.
        """
        rows = np.array(sorted(queries, key=lambda query: query.ended), np.int64).reshape(-1, 5)
        moments = rows[:, :3] - zero
        return cls(moments[:, 0], moments[:, 1], moments[:, 2], rows[:, 3], rows[:, 4])

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """Samples one after another, as if no time lay between them."""
        zeros = np.cumsum([0, *(int(part.ended.max(initial=0)) for part in parts)])
        moved = [
            (part.arrived + zero, part.started + zero, part.ended + zero, part.image, part.images)
            for part, zero in zip(parts, zeros[:-1], strict=True)
        ]
        return cls(*map(np.concatenate, zip(*moved, strict=True)))

    def cut(self, counts: Sequence[int]) -> list[Samples]:
        """The opposite of `joined`: parts of these sizes, each counted from its own zero."""
        ends = np.cumsum(counts)
        found = []
        for start, stop in zip(ends - counts, ends, strict=True):
            zero = int(self.ended[start - 1]) if start else 0
            rows = slice(start, stop)
            arrived, started, ended = (
                part[rows] - zero for part in (self.arrived, self.started, self.ended)
            )
            found.append(Samples(arrived, started, ended, self.image[rows], self.images[rows]))
        return found

    def __len__(self) -> int:
        return len(self.ended)

    @property
    def latency_ms(self) -> Values:
        """From arrival to result, milliseconds, waiting included."""
        return (self.ended - self.arrived) / 1e6

    @property
    def service_ms(self) -> Values:
        """From the start of the work to the result, milliseconds."""
        return (self.ended - self.started) / 1e6

    @property
    def gaps_ms(self) -> Values:
        """Milliseconds per image between one result and the next; the first counts from zero."""
        return np.diff(self.ended, prepend=0) / 1e6 / self.images

    @property
    def seconds(self) -> float:
        """From the beginning of the run to the last result: all images are answered in it."""
        return float(self.ended.max(initial=0)) / 1e9

    @classmethod
    def from_dict(cls, columns: Mapping[str, Any]) -> Samples:
        """The samples that `as_dict` wrote.

        Raises:
            ValueError: A column is missing, or they are of different lengths.
        """
        values = [np.asarray(columns.get(name), np.int64) for name in Query._fields]
        if any(value.shape != values[0].shape or value.ndim != 1 for value in values):
            raise ValueError(f"samples: expected columns {', '.join(Query._fields)} of one length")
        return cls(*values)
