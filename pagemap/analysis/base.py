"""What the analyses have in common: maps over chunks, joined in order; results that are tables."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from .._sweep import I64
from .series import Series

Partial = TypeVar("Partial")
Result = TypeVar("Result")

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
