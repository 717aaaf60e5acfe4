"""record(): samples of a process's memory, written as they come."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self, SupportsIndex
from urllib.parse import quote

import numpy as np

from .. import regions
from ..categories import PAGE_SIZE, Category
from ..maps import VmaTable
from ..query import Query
from ..scanner import PageMap
from ..tracking import Tracker
from . import vmas as vma_files
from .metadata import METADATA_KEY, Metadata, Timing, arrow, from_numpy, schema

SECOND = 1_000_000_000

MAX_ROWS = 1 << 19
"""A part is full with so many regions: some 30 MiB in memory, of which there are two at most."""

FIRST_PART_S, MAX_PART_S, PART_SHARE = 1.0, 60.0, 0.01
"""A part is finished after 1 s, later after 1% of the recording's length, at last after 60 s: that much is
lost when the recorder is killed, and a day is some 1,500 files.
"""


@functools.cache
def warmed_up() -> ModuleType:
    """pyarrow, when it has done everything once.

    Its first array imports pandas, half a second; its first file loads codecs and starts threads: not while
    a recorder's clock runs.
    """
    pa = arrow()
    pa.parquet.write_table(pa.table({"first": [0]}), pa.BufferOutputStream(), compression="zstd")
    return pa


class Recorder:
    """Takes samples of one process and writes them into a trace. See record(), which runs one.

    A context manager. sample() takes one now; run() takes them at an interval. `ended` says why it ended,
    None until then: see Metadata.
    """

    def __init__(
        self,
        source: SupportsIndex | PageMap | Tracker,
        path: str | os.PathLike[str],
        *,
        query: Query = Query.POPULATED,
        interval: float = 0.1,
    ) -> None:
        if not 0 <= interval < 1e9:
            raise ValueError(f"interval must be 0 seconds or more, not {interval!r}")
        self._arrow, self._schema = warmed_up(), schema()
        self._query = query
        self._tracker = source if isinstance(source, Tracker) else None
        if isinstance(source, PageMap):
            self._pagemap, self._own = source, False
        else:
            self._pagemap, self._own = PageMap(source.pid if self._tracker else source), True  # type: ignore[union-attr, arg-type]
        try:
            self._vmas = self._pagemap.vmas()
            self.metadata = self._describe(interval)
            host, pid = quote(self.metadata.host, safe=""), self.metadata.pid
            self.directory = Path(path, f"host={host}", f"pid={pid}")
            self.directory.mkdir(parents=True, exist_ok=True)
        except BaseException:
            self._close_source()
            raise
        self._times: list[int] = []
        self._samples: list[regions.Regions] = []
        self._rows = 0
        self._writer = ThreadPoolExecutor(1, "pagemap-trace")
        self._writing: Future[None] | None = None
        self._failed: BaseException | None = None
        self.ended: str | None = None
        self._known = vma_files.as_regions([], [])
        self._fresh_vmas = True
        if self._tracker is not None:
            self._tracker.reset()
        self._wall = time.time_ns() - time.monotonic_ns()
        self._begin = self._last = self._before = time.monotonic_ns()
        self.metadata = replace(self.metadata, begin_ns=self._begin + self._wall)
        self._flushed = self._begin
        # A part without samples: from now on there is a trace to read, whatever happens.
        self._flush()

    def _describe(self, interval: float) -> Metadata:
        pid = self._pagemap.pid
        name, command = "", []
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text("utf-8", "backslashreplace").rstrip("\n")
            line = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0")
            command = [part.decode("utf-8", "backslashreplace") for part in line.split(b"\0")] if line else []
        system = os.uname()
        populated = self._pagemap.scan(Query(any_of=Category.PRESENT | Category.SWAPPED, report=Category(0)))
        category = self._tracker.category if self._tracker is not None else self._query.masks()[3]
        return Metadata(
            host=system.nodename,
            pid=pid,
            name=name,
            command=command,
            kind="resident" if self._tracker is None else "dirty",
            category=int(category),
            begin_ns=0,
            interval_ns=round(interval * SECOND),
            page_size=PAGE_SIZE,
            memory_bytes=regions.nbytes(populated),
            kernel=system.release,
        )

    @property
    def timing(self) -> Timing:
        """How well the recorder kept its time so far."""
        return self.metadata.timing

    # Samples

    def sample(self, *, late_ns: int = 0, missed: int = 0) -> regions.Regions:
        """Takes a sample and returns its regions; ProcessLookupError when the process has gone.

        Its time is that of the beginning of the scan. late_ns, missed: for the recorder's own timing error.
        """
        if self.ended is not None:
            raise ValueError("this recorder is closed")
        if self._failed is not None:
            raise ValueError("this recorder could not write a part, and records no more") from self._failed
        now = max(time.monotonic_ns(), self._last + 1)
        found = self._pagemap.scan(self._query) if self._tracker is None else self._tracker.collect()
        self.timing.add(late_ns, time.monotonic_ns() - now, missed)
        self._times.append(now)
        self._samples.append(found)
        self._rows += max(len(found), 1)
        self._last = now
        self._look_at_vmas(found)
        length = min(max(FIRST_PART_S * SECOND, PART_SHARE * (now - self._begin)), MAX_PART_S * SECOND)
        # A slow disk makes parts longer, not samples late, as long as there is memory for it.
        idle = self._writing is None or self._writing.done()
        if self._rows >= MAX_ROWS or (now - self._flushed >= length and idle):
            self._flush()
        return found

    def _look_at_vmas(self, found: regions.Regions) -> None:
        """Reads the list of VMAs when a region is in none that is known."""
        if len(regions.difference(found, self._known)) or not len(self._known):
            with contextlib.suppress(OSError):
                self._set_vmas(self._pagemap.vmas())

    def _set_vmas(self, table: VmaTable) -> None:
        if self._vmas.array.tobytes() != table.array.tobytes() or self._vmas.names != table.names:
            self._vmas, self._fresh_vmas = table, True
        self._known = regions.coalesce(vma_files.as_regions(table.array["start"], table.array["end"]))

    def run(
        self,
        duration: float | None = None,
        *,
        stop: threading.Event | None = None,
        on_sample: Callable[[Recorder, regions.Regions], None] | None = None,
    ) -> None:
        """Samples at the interval for `duration` seconds (None: until the process ends, or `stop` is set).

        Samples are due on a grid from now on, so one that is late does not delay the next; places on the
        grid that are over already are left out, and counted. Where `duration` is no multiple of the
        interval, the last one is due at its end.
        """
        stop = threading.Event() if stop is None else stop
        step = self.metadata.interval_ns
        begin = time.monotonic_ns()
        finish = None if duration is None else begin + round(duration * SECOND)
        tick = 1
        try:
            while True:
                due = begin + tick * step if step else time.monotonic_ns()
                last = finish is not None and due > finish
                if last and finish is not None:
                    # The grid has no place at the end: what comes after its last one is a sample, too.
                    if not step or finish <= max(self._last, begin):
                        self.close("duration")
                        return
                    due = finish
                if stop.wait(max(due - time.monotonic_ns(), 0) / SECOND):
                    self.sample()
                    self.close("stopped")
                    return
                late = max(time.monotonic_ns() - due, 0)
                behind = late // step if step and not last else 0
                if finish is not None and step:
                    behind = min(behind, (finish - due) // step)
                found = self.sample(late_ns=late - behind * step, missed=behind)
                tick += behind + 1
                if on_sample is not None:
                    on_sample(self, found)
        except ProcessLookupError:
            self.close("exited")
        except OSError as error:
            # UFFDIO_REGISTER says ENOMEM of memory whose process is just exiting.
            gone = error.errno == errno.ENOMEM and self._has_exited()
            self.close("exited" if gone else f"error: {error}")
            if not gone:
                raise
        except BaseException as error:
            self.close(f"error: {type(error).__name__}: {error}")
            raise

    def _has_exited(self) -> bool:
        try:
            self._pagemap.vmas()
        except ProcessLookupError:
            return True
        return False

    # Files

    def _flush(self, ended: str | None = None) -> None:
        """Hands what there is over to the writer, as a part; waits while the one before is still written."""
        self.timing.wall_step_ns = time.time_ns() - time.monotonic_ns() - self._wall
        part = replace(self.metadata, ended=ended, timing=replace(self.timing))
        table = self._table(part)
        vmas = vma_files.to_arrow(self._vmas) if self._fresh_vmas else None
        self._fresh_vmas = False
        self._flushed = time.monotonic_ns()
        self.metadata = replace(
            self.metadata, part=part.part + 1, first_sample=part.first_sample + len(self._times)
        )
        self._before = self._last
        self._times, self._samples, self._rows = [], [], 0
        self._wait()
        self._writing = self._writer.submit(self._write, part, table, vmas)

    def _table(self, part: Metadata) -> Any:
        pa = self._arrow
        counts = np.array([len(r) for r in self._samples], np.int64)
        rows = np.maximum(counts, 1)
        columns = {name: np.zeros(int(rows.sum()), np.uint64) for name in ("start", "end", "categories")}
        if self._samples:
            filled = np.repeat(counts > 0, rows)
            for name, column in columns.items():
                column[filled] = np.concatenate([r[name] for r in self._samples])
        times = np.array(self._times, np.int64) + self._wall
        begins = np.concatenate((np.array([self._before + self._wall]), times))[:-1]
        if part.kind == "resident" and not part.first_sample and len(times):
            begins[0] = times[0]  # what was resident before the first look is not known
        stamp = self._schema.field("time").type
        return pa.table(
            [
                from_numpy(stamp, np.repeat(times, rows)),
                *(from_numpy(pa.uint64(), columns[name]) for name in ("start", "end", "categories")),
                from_numpy(stamp, np.repeat(begins, rows)),
            ],
            schema=self._schema.with_metadata({METADATA_KEY: part.to_json()}),
        )

    def _write(self, part: Metadata, table: Any, vmas: Any) -> None:
        name = f"{part.recording}-{part.part:06d}"
        if vmas is not None:
            # Before the part that needs them: a reader of the part finds its VMAs.
            self._publish(vmas, f"_{name}.vmas")
        self._publish(table, f"{name}.parquet")

    def _publish(self, table: Any, name: str) -> None:
        """Writes a file completely before it gets its name."""
        hidden = self.directory / f".{name}.{os.getpid()}"
        plain = ["start", "end", "categories"] if name.startswith("_") else ["start", "end"]
        try:
            with open(hidden, "wb") as file:
                self._arrow.parquet.write_table(
                    table,
                    file,
                    row_group_size=max(table.num_rows, 1),
                    compression="zstd",
                    use_dictionary=[column for column in table.column_names if column not in plain],
                    column_encoding={"start": "DELTA_BINARY_PACKED", "end": "DELTA_BINARY_PACKED"},
                )
                file.flush()
                os.fsync(file.fileno())
            os.rename(hidden, self.directory / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                hidden.unlink()
            if error.errno is None:
                raise
            raise OSError(error.errno, os.strerror(error.errno), str(self.directory / name)) from error

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            try:
                writing.result()
            except BaseException as error:
                self._failed = error
                raise

    def close(self, ended: str = "stopped") -> None:
        """Writes what is left, as the last part, which says why the recording ended. Twice is once."""
        if self.ended is not None:
            return
        self.ended = ended
        try:
            if self._failed is not None:
                return  # a part is missing: none may follow it
            with contextlib.suppress(OSError):
                self._set_vmas(self._pagemap.vmas())
            self._flush(ended)
            self._wait()
        finally:
            self._writer.shutdown()
            self._close_source()

    def _close_source(self) -> None:
        if self._own:
            self._pagemap.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("stopped" if value is None else f"error: {type(value).__name__}: {value}")


def record(
    source: SupportsIndex | PageMap | Tracker,
    path: str | os.PathLike[str],
    *,
    interval: float = 0.1,
    duration: float | None = None,
    query: Query = Query.POPULATED,
    stop: threading.Event | None = None,
    on_sample: Callable[[Recorder, regions.Regions], None] | None = None,
) -> Path:
    """Records samples of a process into the trace at `path`, and returns the recording's directory.

    source: a tracker (track(), attach()): each sample holds the pages written since the one before; what
    was written earlier is forgotten. A pid, or a PageMap: each sample holds the pages that `query` selects,
    the populated ones by default. path: a directory, which is made; recordings of other processes and
    hosts, and earlier ones, may be in it already. interval, duration: seconds; 0: as fast as it goes; None:
    until the process ends. Whichever comes first ends the recording: duration, the process's end, `stop`
    being set (from a signal handler, say), or an exception, which leaves what there is in the trace and goes
    on to the caller. on_sample(recorder, regions) is called after each sample.

    Memory is bounded by two parts of half a million regions, or one sample each; files are written by a
    thread of its own. How late its samples were is in the trace (`Metadata.timing`).

    Raises ImportError without pyarrow (extra `trace`), ValueError for a bad interval, FileExistsError where
    `path` is a file, and what PageMap raises.
    """
    if duration is not None and not 0 <= duration < 1e9:
        raise ValueError(f"duration must be 0 seconds or more, or None, not {duration!r}")
    if os.path.exists(path) and not os.path.isdir(path):
        raise FileExistsError(errno.EEXIST, "a trace is a directory, and this is a file", os.fspath(path))
    with Recorder(source, path, query=query, interval=interval) as recorder:
        recorder.run(duration, stop=stop, on_sample=on_sample)
    return recorder.directory
