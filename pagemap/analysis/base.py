"""What the analyses have in common: maps over chunks, joined in order; results that are tables."""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    cast,
    overload,
)

import numpy as np
import numpy.typing as npt

from .._sweep import I64
from .series import Series

if TYPE_CHECKING:
    from ..fleet import Process

Partial = TypeVar("Partial")
Result = TypeVar("Result")
Found = TypeVar("Found")
Answer = TypeVar("Answer")
Arguments = ParamSpec("Arguments")

Source: TypeAlias = Series | Iterable[Series]
"""A series, or its chunks: Series in order of time, each beginning where the one before ended."""

CHUNK_ROWS = 1 << 19
"""Regions that are worked on at once: some 100 MiB of intermediate arrays."""

MS, SECOND = 1_000_000, 1_000_000_000


class Analysis(ABC, Generic[Partial, Result]):
    """A question to a series, as a map over its chunks and an associative join of neighbours.

    ``finish(join(map(c0), join(map(c1), …)))`` is the same to the last digit however the series is cut into
    chunks and in whatever shape they are joined, as long as their order in time is kept: partial results
    are integers. So a chunk can be mapped anywhere. Analyses and partial results can be pickled. An empty
    chunk changes nothing.
    """

    @abstractmethod
    def map(self, chunk: Series) -> Partial:
        """The partial result for a chunk of whole samples."""

    @abstractmethod
    def join(self, earlier: Partial, later: Partial) -> Partial:
        """The partial result for two neighbouring chunks, of those for each. Neither is changed."""

    @abstractmethod
    def finish(self, partial: Partial) -> Result:
        """The answer."""


class Frame(Protocol):
    """A Dask DataFrame, for type checkers that do not find Dask either."""

    @property
    def npartitions(self) -> int: ...
    @property
    def columns(self) -> Any: ...
    def to_delayed(self) -> Any: ...


class Question(Protocol[Arguments, Answer]):
    """A function that answers for a series; for a Dask DataFrame, once for each recording in it."""

    @overload
    def __call__(
        self, source: Frame, /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> dict[Process, Answer]: ...
    @overload
    def __call__(self, source: Source, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer: ...


def question(function: Callable[Concatenate[Source, Arguments], Result]) -> Question[Arguments, Result]:
    """Says the type of a function that asks its source nothing but through run(), for_each() and in_order():
    these know what to do with a Dask DataFrame.
    """
    return cast(Question[Arguments, Result], function)


def is_frame(source: object) -> bool:
    """Whether it is a Dask DataFrame. Never imports Dask: where there is one, it has been imported."""
    frames = sys.modules.get("dask.dataframe")
    return frames is not None and isinstance(source, frames.DataFrame)


def for_each(found: Found, function: Callable[[Found], Result]) -> Result:
    """function(found): with what run() gives for a Dask DataFrame, for each recording."""
    if isinstance(found, dict):
        return cast(Result, {process: function(one) for process, one in found.items()})
    return function(found)


def in_order(ask: Callable[[Source], Result], source: Source) -> Result:
    """ask(source), for what has to read a series in order. Of a Dask DataFrame, the rows of a recording are
    collected by one worker. `ask` can be pickled.
    """
    return run(_InOrder(ask), source) if is_frame(source) else ask(source)


class _InOrder(Analysis[list[Series], Result]):
    def __init__(self, ask: Callable[[Source], Result]) -> None:
        self.ask = ask

    def map(self, chunk: Series) -> list[Series]:
        return [chunk]

    def join(self, earlier: list[Series], later: list[Series]) -> list[Series]:
        return earlier + later

    def finish(self, partial: list[Series]) -> Result:
        return self.ask(partial)


@overload
def run(
    analysis: Analysis[Partial, Result] | Mapping[Process, Analysis[Partial, Result]], source: Frame
) -> dict[Process, Result]: ...
@overload
def run(analysis: Analysis[Partial, Result], source: Source) -> Result: ...
def run(analysis: Any, source: Any) -> Any:
    """The answer for a series of any length, in memory for a chunk and for log2(chunks) partial results.

    For a Dask DataFrame: the answer for each recording in it, see pagemap.fleet; `analysis` may then be a
    dictionary with one for each.
    """
    if is_frame(source):
        from .. import fleet

        return fleet.ask(analysis, source)
    # A counter in binary: like joins like, so that no partial result is copied more than log2(chunks) times.
    joined: list[tuple[int, Any]] = []
    for chunk in chunks(source):
        size, partial = 1, analysis.map(chunk)
        while joined and joined[-1][0] == size:
            partial = analysis.join(joined.pop()[1], partial)
            size *= 2
        joined.append((size, partial))
    if not joined:
        return analysis.finish(analysis.map(EMPTY))
    _, total = joined.pop()
    while joined:
        total = analysis.join(joined.pop()[1], total)
    return analysis.finish(total)


def chunks(source: Source) -> Iterator[Series]:
    """The series as chunks of bounded size. TypeError for what is no series."""
    for series in (source,) if isinstance(source, Series) else source:
        if not isinstance(series, Series):
            raise TypeError(f"a source is a Series or an iterable of Series, not of {type(series)}")
        yield from series.chunks(CHUNK_ROWS)


class Table(ABC):
    """A result as columns of equal length."""

    @abstractmethod
    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Name to array, in order."""

    def to_pandas(self) -> Any:
        """A pandas.DataFrame on the memory of `columns()`, without a copy. Needs pandas (extra `trace`)."""
        return _extra("pandas").DataFrame(self.columns(), copy=False)

    def to_arrow(self) -> Any:
        """A pyarrow.Table on the memory of `columns()`, without a copy. Needs pyarrow (extra `trace`)."""
        return _extra("pyarrow").table(self.columns())


def _extra(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"this needs {name}: pip install 'pagemap-scan[trace]'") from error


def tally(table: I64, row: I64, column: I64, amount: I64 | int) -> None:
    """Adds to table[row, column], as often as a cell occurs. `table`: int64, contiguous."""
    np.add.at(table.reshape(-1), row * table.shape[1] + column, amount)


def ladder(low_ns: int, high_ns: int) -> I64:
    """Round durations, 1, 2, 5, 10, 20, 50 … ns, those from low_ns to high_ns inclusive: int64."""
    steps = [step * 10**power for power in range(19) for step in (1, 2, 5)]
    return np.array([step for step in steps if low_ns <= step <= high_ns and step < 1 << 63], np.int64)


def increasing(values_ns: npt.ArrayLike, name: str) -> I64:
    """`values_ns` as int64. TypeError unless integers, ValueError unless positive and strictly increasing."""
    array = np.atleast_1d(np.asarray(values_ns))
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be a sequence of whole nanoseconds")
    array = array.astype(np.int64)
    if array[0] <= 0 or (np.diff(array) <= 0).any():
        raise ValueError(f"{name} must be positive and strictly increasing: {array.tolist()}")
    return array


EMPTY = Series.from_samples([])
