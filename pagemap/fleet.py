"""The analyses of series, over the traces of many processes and machines, on Dask (extra `fleet`).

The functions are those of pagemap.analysis. They take a Dask DataFrame with the columns of a trace (see
pagemap.trace; ``fleet.read(path)``, or ``dask.dataframe.read_parquet(path)`` of a directory), and give a
dictionary with an answer for each recording in it: the very answer that pagemap.analysis gives for that
recording alone, to the last digit, because partial results are integers and are joined in order of time.

Partitions are mapped where they are; what travels are partial results. They may come in any order, hold
any number of processes, and be cut anywhere but within a sample.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from . import analysis
from .analysis import Analysis, Series
from .categories import PAGE_SIZE

if TYPE_CHECKING:
    import dask.dataframe
    import pandas

    from .trace.reader import PathLike

Partial = TypeVar("Partial")
Result = TypeVar("Result")

SPLIT_EVERY = 8
"""So many partial results are joined by one task."""


class Process(NamedTuple):
    """Whose recording: the machine, the process, and the beginning, ns since 1970."""

    host: str
    pid: int
    begin_ns: int


@dataclass(frozen=True, slots=True)
class _Piece(Generic[Partial]):
    """The partial result for a stretch of one process's time."""

    host: str
    pid: int
    begin_ns: int
    end_ns: int
    partial: Partial


def _dask() -> Any:
    try:
        import dask
        import dask.dataframe
    except ImportError as error:
        raise ImportError("fleets need Dask: pip install 'pagemap-scan[fleet]'") from error
    return dask


def read(path: PathLike | list[PathLike]) -> dask.dataframe.DataFrame:
    """A trace as a Dask DataFrame, a partition for each of its files; what trace.open takes, lazily."""
    from . import trace

    frames = _dask().dataframe
    recordings = trace.open(path)
    parts = [(str(part.path), r.host, r.pid) for r in recordings for part in r.parts if part.rows]
    empty = [(str(r.parts[0].path), r.host, r.pid) for r in recordings][:1]
    frame: dask.dataframe.DataFrame = frames.from_map(
        _read_part, parts or empty, meta=_read_part(empty[0]).iloc[:0]
    )
    return frame


def _read_part(part: tuple[str, str, int]) -> pandas.DataFrame:
    from .trace.metadata import arrow

    path, host, pid = part
    frame = arrow().parquet.read_table(path, partitioning=None).to_pandas()
    named: pandas.DataFrame = frame.assign(host=host, pid=np.int32(pid)).astype({"host": "str"})
    return named


def run(
    question: Analysis[Any, Result], frame: dask.dataframe.DataFrame, *, page_size: int = PAGE_SIZE
) -> dict[Process, Result]:
    """The answer of an analysis for each recording in a Dask DataFrame, computed by the active scheduler.

    page_size: bytes in a page of the machines that were recorded. ValueError where a partition's rows are no
    trace, or where a sample was cut in two.
    """
    return _run(_Same(question), frame, page_size)


def _run(
    questions: Callable[[str, int, int], Analysis[Any, Any]], frame: Any, page_size: int
) -> dict[Process, Any]:
    delayed = _dask().delayed
    _check_columns(frame.columns)
    level = [delayed(_map)(part, questions, page_size) for part in frame.to_delayed()]
    while len(level) > 1:
        groups = (level[i : i + SPLIT_EVERY] for i in range(0, len(level), SPLIT_EVERY))
        level = [delayed(_join)(group, questions) for group in groups]
    answers: dict[Process, Any] = delayed(_finish)(level, questions).compute()
    return answers


@dataclass(frozen=True)
class _Same:
    """The same question to every process."""

    question: Analysis[Any, Any]

    def __call__(self, host: str, pid: int, begin_ns: int) -> Analysis[Any, Any]:
        return self.question


@dataclass(frozen=True)
class _Each:
    """A question for each recording: that which had begun last when a piece begins."""

    questions: Mapping[Process, Analysis[Any, Any]]

    def __call__(self, host: str, pid: int, begin_ns: int) -> Analysis[Any, Any]:
        mine = [key for key in self.questions if key[:2] == (host, pid) and key.begin_ns <= begin_ns]
        return self.questions[max(mine)]


# Tasks

_COLUMNS = ("time", "host", "pid", "start", "end", "categories", "begin")


def _check_columns(columns: Any) -> None:
    missing = [name for name in _COLUMNS if name not in columns]
    if missing:
        raise ValueError(f"the data frame is no trace: it has no column {', '.join(missing)}")


def _map(frame: pandas.DataFrame, questions: Any, page_size: int) -> list[_Piece[Any]]:
    pieces = []
    keys: Any
    for keys, rows in frame.groupby(["host", "pid"], observed=True, sort=False):
        host, pid = str(keys[0]), int(keys[1])
        for series in _series(rows, page_size):
            question = questions(host, pid, series.begin_ns)
            piece = _Piece(host, pid, series.begin_ns, series.timeline.end_ns, None)
            parts = [replace(piece, partial=question.map(c)) for c in series.chunks(analysis.base.CHUNK_ROWS)]
            for part in parts[1:]:
                parts[0] = replace(piece, partial=question.join(parts[0].partial, part.partial))
            pieces.append(parts[0])
    return pieces


def _series(rows: pandas.DataFrame, page_size: int) -> list[Series]:
    """A process's rows as Series, one for each stretch without a gap."""
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
        (piece for group in groups for piece in group), key=lambda p: (p.host, p.pid, p.begin_ns, p.end_ns)
    )
    joined: list[_Piece[Any]] = []
    for piece in pieces:
        before = joined[-1] if joined else None
        if before is None or (before.host, before.pid) != (piece.host, piece.pid):
            joined.append(piece)
        elif before.end_ns == piece.begin_ns:
            question = questions(piece.host, piece.pid, before.begin_ns)
            joined[-1] = replace(
                before, end_ns=piece.end_ns, partial=question.join(before.partial, piece.partial)
            )
        elif before.end_ns < piece.begin_ns:
            joined.append(piece)
        else:
            raise ValueError(
                f"process {piece.pid} on {piece.host}: the rows of one sample are in two partitions, or are"
                " there twice; keep the partitions that the files of the trace have"
            )
    return joined


def _finish(groups: list[list[_Piece[Any]]], questions: Any) -> dict[Process, Any]:
    return {
        Process(piece.host, piece.pid, piece.begin_ns): questions(
            piece.host, piece.pid, piece.begin_ns
        ).finish(piece.partial)
        for piece in _join(groups, questions)
    }


# The functions of pagemap.analysis


def dirty_rate(
    frame: dask.dataframe.DataFrame, *, page_size: int = PAGE_SIZE
) -> dict[Process, analysis.Rate]:
    """analysis.dirty_rate of each recording."""
    return run(analysis.DirtyRate(), frame, page_size=page_size)


def run_lengths(
    frame: dask.dataframe.DataFrame, *, page_size: int = PAGE_SIZE
) -> dict[Process, analysis.RunLengths]:
    """analysis.run_lengths of each recording."""
    return run(analysis.Contiguity(), frame, page_size=page_size)


def heat(frame: dask.dataframe.DataFrame, *, page_size: int = PAGE_SIZE) -> dict[Process, analysis.Heat]:
    """analysis.heat of each recording."""
    return run(analysis.HeatCount(), frame, page_size=page_size)


def heatmap(
    frame: dask.dataframe.DataFrame,
    *,
    rows: int = 256,
    columns: int = 256,
    min_hole: int = 2 << 20,
    page_size: int = PAGE_SIZE,
) -> dict[Process, analysis.HeatMap]:
    """analysis.heatmap of each recording: two passes, the first for the axes."""
    fit = analysis.HeatAxes.fit
    grids = {
        key: analysis.HeatGrid(fit(found, rows=rows, columns=columns, min_hole=min_hole))
        for key, found in heat(frame, page_size=page_size).items()
    }
    return _run(_Each(grids), frame, page_size)


def working_set(
    frame: dask.dataframe.DataFrame, taus_ns: npt.ArrayLike | None = None, *, page_size: int = PAGE_SIZE
) -> dict[Process, analysis.WorkingSet]:
    """analysis.working_set of each recording; by default with its analysis.default_taus, a pass more."""
    if taus_ns is not None:
        question = analysis.WorkingSets(tuple(np.atleast_1d(taus_ns).tolist()))
        return run(question, frame, page_size=page_size)
    questions = {
        key: analysis.WorkingSets(tuple(analysis.default_taus(found.timeline).tolist()))
        for key, found in dirty_rate(frame, page_size=page_size).items()
    }
    return _run(_Each(questions), frame, page_size)


def redirty_intervals(
    frame: dask.dataframe.DataFrame, edges_ns: npt.ArrayLike | None = None, *, page_size: int = PAGE_SIZE
) -> dict[Process, analysis.Intervals]:
    """analysis.redirty_intervals of each recording."""
    question = analysis.RedirtyIntervals()
    if edges_ns is not None:
        question = analysis.RedirtyIntervals(tuple(np.atleast_1d(edges_ns).tolist()))
    return run(question, frame, page_size=page_size)


@dataclass(frozen=True)
class _InOrder(Analysis[list[Series], Any]):
    """What has to read a series in order: its chunks are collected by one worker."""

    ask: Callable[..., Any]
    arguments: Mapping[str, Any]

    def map(self, chunk: Series) -> list[Series]:
        return [chunk]

    def join(self, earlier: list[Series], later: list[Series]) -> list[Series]:
        return earlier + later

    def finish(self, partial: list[Series]) -> Any:
        return self.ask(partial, **self.arguments)


def snapshots(
    frame: dask.dataframe.DataFrame, every_ns: int, *, page_size: int = PAGE_SIZE
) -> dict[Process, analysis.Rounds]:
    """analysis.snapshots of each recording. Rounds follow one another: one worker reads all the rows."""
    return run(_InOrder(analysis.snapshots, {"every_ns": every_ns}), frame, page_size=page_size)


def migrate(
    frame: dask.dataframe.DataFrame, *, page_size: int = PAGE_SIZE, **arguments: Any
) -> dict[Process, analysis.Migration]:
    """analysis.migrate of each recording, with its arguments. One worker reads all the rows."""
    return run(_InOrder(analysis.migrate, arguments), frame, page_size=page_size)
