"""Raw samples: one row for each query, in nanoseconds since the run began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Values = NDArray[np.float64]


class Query(NamedTuple):
    """One query as it was answered.

    Attributes:
        arrived: When it came; before `started` where it had to wait (`server`).
        started: When work on it began.
        ended: When its last result was there.
        film: Number of its first film in the data.
        films: How many films it has.
    """

    arrived: int
    started: int
    ended: int
    film: int
    films: int


@dataclass(frozen=True)
class Samples:
    """Queries as columns, each of shape (N,), int64; see `Query`."""

    arrived: Numbers
    started: Numbers
    ended: Numbers
    film: Numbers
    films: Numbers

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

    def __len__(self) -> int:
        return len(self.ended)

    @property
    def latency_ms(self) -> Values:
        """From arrival to result, milliseconds, waiting included."""
        return (self.ended - self.arrived) / 1e6

    @property
    def service_ms(self) -> Values:
        """From the beginning of the work to the result, milliseconds."""
        return (self.ended - self.started) / 1e6

    @property
    def gaps_ms(self) -> Values:
        """Milliseconds a film between one result and the next; the first counts from zero."""
        return np.diff(self.ended, prepend=0) / 1e6 / self.films

    @property
    def seconds(self) -> float:
        """From the first arrival to the last result."""
        return float(self.ended.max() - self.arrived.min()) / 1e9 if len(self) else 0.0

    def as_dict(self) -> dict[str, list[int]]:
        """Columns as plain lists."""
        return {name: getattr(self, name).tolist() for name in Query._fields}

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
