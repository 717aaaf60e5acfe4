"""How a question is asked: of a series chunk by chunk, of a Dask DataFrame for each recording in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from .base import EMPTY, Analysis, Partial, Result, Source, chunks
from .frames import Frame, Process, ask, is_frame
from .series import Series

Found = TypeVar("Found")
Answer = TypeVar("Answer")
Arguments = ParamSpec("Arguments")


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
        return ask(analysis, source)
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
