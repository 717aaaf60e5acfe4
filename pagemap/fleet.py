"""The traces of many processes and machines as one Dask DataFrame (extra `fleet`), for pagemap.analysis.

The functions of pagemap.analysis take a Dask DataFrame with the columns of a trace (see pagemap.trace):
``fleet.read(path)``, or ``dask.dataframe.read_parquet(path)`` of a directory. They give a dictionary with an
answer for each recording in it, by `Process`: the very answer that they give for that recording alone, to
the last digit, because partial results are integers and are joined in order of time::

    frame = fleet.read("traces")
    for process, rate in analysis.dirty_rate(frame).items():
        print(process.host, process.pid, rate.pages.sum())

Partitions are mapped where they are; what travels are partial results. They may come in any order, hold
any number of processes, and be cut anywhere but within a sample. The machines may differ in the size of
their pages: read() adds it as the column `page_size` (bytes); without that column it is this machine's.
Recordings of one process may overlap, its writes and its residency, say: read() adds the column `recording`
(when it began, ns since 1970), by which they are told apart; without it, none may overlap another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .analysis.frames import Process, dask_modules

if TYPE_CHECKING:
    import dask.dataframe
    import pandas

    from .trace.reader import Part, PathLike

__all__ = ["Process", "read"]


def read(path: PathLike | list[PathLike]) -> dask.dataframe.DataFrame:
    """A trace as a Dask DataFrame, a partition for each of its files; what trace.open takes, lazily.

    Columns: those of a trace, page_size and recording. Raises ImportError without Dask, and what
    trace.open raises.
    """
    from . import trace

    frames = dask_modules().dataframe
    recordings = trace.open(path)
    parts = [part for recording in recordings for part in recording.parts if part.rows]
    empty = [recording.parts[0] for recording in recordings][:1]
    frame: dask.dataframe.DataFrame = frames.from_map(
        _read_part, parts or empty, meta=_read_part(empty[0]).iloc[:0]
    )
    return frame


def _read_part(part: Part) -> pandas.DataFrame:
    from .trace.metadata import arrow

    frame = arrow().parquet.read_table(part.path, partitioning=None).to_pandas()
    known = part.metadata
    named: pandas.DataFrame = frame.assign(
        host=known.host,
        pid=np.int32(known.pid),
        page_size=np.int32(known.page_size),
        recording=np.int64(known.begin_ns),
    ).astype({"host": "str"})
    return named
