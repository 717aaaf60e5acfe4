"""An analysis of a Dask DataFrame of traces: the answer for each recording in it.

Partitions are mapped where they are; what travels are partial results. They may come in any order, hold
any number of processes, and be cut anywhere but within a sample.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol

import numpy as np

from ..categories import PAGE_SIZE
from .base import CHUNK_ROWS, Analysis, Partial
from .series import Series

if TYPE_CHECKING:
    import pandas

SPLIT_EVERY = 8
"""So many partial results are joined by one task."""


class Process(NamedTuple):
    """Whose recording: the machine, the process, and the beginning, ns since 1970."""

    host: str
    pid: int
    begin_ns: int


class _Recorded(Process):
    """A Process that knows which of its recordings it is: several may overlap."""

    recording: int


@dataclass(frozen=True, slots=True)
class _Piece(Generic[Partial]):
    """The partial result for a stretch of one recording's time."""

    host: str
    pid: int
    recording: int
    begin_ns: int
    end_ns: int
    partial: Partial


class Frame(Protocol):
    """A Dask DataFrame, for type checkers that do not find Dask either."""

    @property
    def npartitions(self) -> int: ...
    @property
    def columns(self) -> Any: ...
    def to_delayed(self) -> Any: ...


def is_frame(source: object) -> bool:
    """Whether it is a Dask DataFrame. Never imports Dask: where there is one, it has been imported."""
    frames = sys.modules.get("dask.dataframe")
    return frames is not None and isinstance(source, frames.DataFrame)


def dask_modules() -> Any:
    try:
        import dask
        import dask.dataframe
    except ImportError as error:
        raise ImportError("fleets need Dask: pip install 'pagemap-scan[fleet]'") from error
    return dask


def ask(
    question: Analysis[Any, Any] | Mapping[Process, Analysis[Any, Any]], frame: Frame
) -> dict[Process, Any]:
    """What analysis.run() gives for a Dask DataFrame: the answer for each recording in it.

    One question to all, or one for each. ValueError where the frame is no trace, or where a sample was cut
    in two.
    """
    missing = [name for name in _COLUMNS if name not in frame.columns]
    if missing:
        raise ValueError(f"the data frame is no trace: it has no column {', '.join(missing)}")
    delayed = dask_modules().delayed
    choose = _Each.of(question) if isinstance(question, Mapping) else _Same(question)
    level = [delayed(_map)(part, choose) for part in frame.to_delayed()]
    while len(level) > 1:
        groups = (level[i : i + SPLIT_EVERY] for i in range(0, len(level), SPLIT_EVERY))
        level = [delayed(_join)(group, choose) for group in groups]
    answers: dict[Process, Any] = {}
    for host, pid, begin_ns, recording, answer in delayed(_finish)(level, choose).compute():
        key = _Recorded(host, pid, begin_ns)
        key.recording = recording
        answers[key] = answer
    return answers


@dataclass(frozen=True)
class _Same:
    """The same question to every process."""

    question: Analysis[Any, Any]

    def __call__(self, host: str, pid: int, recording: int, begin_ns: int) -> Analysis[Any, Any]:
        return self.question


@dataclass(frozen=True)
class _Each:
    """A question for each recording: that which had begun last when a piece begins."""

    questions: list[tuple[str, int, int | None, int, Analysis[Any, Any]]]
    """Host, pid, recording (None where that is not known), beginning, question: a cluster would send a
    dictionary item by item, and its keys as mere tuples.
    """

    @classmethod
    def of(cls, questions: Mapping[Process, Analysis[Any, Any]]) -> _Each:
        return cls(
            [
                (key.host, key.pid, getattr(key, "recording", None), key.begin_ns, question)
                for key, question in questions.items()
            ]
        )

    def __call__(self, host: str, pid: int, recording: int, begin_ns: int) -> Analysis[Any, Any]:
        mine = [
            one
            for one in self.questions
            if (one[0], one[1]) == (host, pid) and one[2] in (None, recording) and one[3] <= begin_ns
        ]
        return max(mine, key=lambda one: one[3])[4]


# Tasks

_COLUMNS = ("time", "host", "pid", "start", "end", "categories", "begin")


def _map(frame: pandas.DataFrame, questions: Any) -> list[_Piece[Any]]:
    pieces = []
    keys: Any
    by = ["host", "pid", *(name for name in ("recording",) if name in frame)]
    for keys, rows in frame.groupby(by, observed=True, sort=False):
        host, pid, recording = str(keys[0]), int(keys[1]), int(keys[2]) if len(keys) > 2 else 0
        for series in _series(rows):
            question = questions(host, pid, recording, series.begin_ns)
            piece = _Piece(host, pid, recording, series.begin_ns, series.timeline.end_ns, None)
            parts = [replace(piece, partial=question.map(c)) for c in series.chunks(CHUNK_ROWS)]
            for part in parts[1:]:
                parts[0] = replace(piece, partial=question.join(parts[0].partial, part.partial))
            pieces.append(parts[0])
    return pieces


def _series(rows: pandas.DataFrame) -> list[Series]:
    """A process's rows as Series, one for each stretch without a gap."""
    page_size = int(rows["page_size"].iloc[0]) if "page_size" in rows else PAGE_SIZE
    if not rows["time"].is_monotonic_increasing:
        rows = rows.sort_values(["time", "start"])
    time, begin = (
        np.ascontiguousarray(rows[name].dt.as_unit("ns").astype(np.int64).to_numpy())
        for name in ("time", "begin")
    )
    columns = [rows[name].to_numpy(np.uint64) for name in ("start", "end", "categories")]
    # A gap is where a sample's interval does not begin with the time of the sample before.
    heads = np.flatnonzero((time[1:] != time[:-1]) & (begin[1:] != time[:-1])) + 1
    cuts = [0, *heads.tolist(), len(time)]
    return [
        Series.from_rows(
            time[a:b], *(column[a:b] for column in columns), begin_ns=int(begin[a]), page_size=page_size
        )
        for a, b in itertools.pairwise(cuts)
        if b > a
    ]


def _join(groups: list[list[_Piece[Any]]], questions: Any) -> list[_Piece[Any]]:
    """Neighbours in time are joined; what is between two pieces may still come."""
    pieces = sorted(
        (piece for group in groups for piece in group),
        key=lambda p: (p.host, p.pid, p.recording, p.begin_ns, p.end_ns),
    )
    joined: list[_Piece[Any]] = []
    for piece in pieces:
        before = joined[-1] if joined else None
        if before is None or (before.host, before.pid, before.recording) != (
            piece.host,
            piece.pid,
            piece.recording,
        ):
            joined.append(piece)
        elif before.end_ns == piece.begin_ns:
            question = questions(piece.host, piece.pid, piece.recording, before.begin_ns)
            joined[-1] = replace(
                before, end_ns=piece.end_ns, partial=question.join(before.partial, piece.partial)
            )
        elif before.end_ns < piece.begin_ns:
            joined.append(piece)
        else:
            raise ValueError(
                f"process {piece.pid} on {piece.host}: the rows of one sample are in two partitions, or are"
                " there twice; keep the partitions that the files of the trace have, and read overlapping"
                " recordings of a process by fleet.read()"
            )
    return joined


def _finish(groups: list[list[_Piece[Any]]], questions: Any) -> list[tuple[str, int, int, int, Any]]:
    """Host, pid, beginning, recording, answer."""
    return [
        (
            piece.host,
            piece.pid,
            piece.begin_ns,
            piece.recording,
            questions(piece.host, piece.pid, piece.recording, piece.begin_ns).finish(piece.partial),
        )
        for piece in _join(groups, questions)
    ]
