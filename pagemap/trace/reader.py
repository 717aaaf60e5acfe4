"""open(): traces read back, lazily, as the chunks of Series."""

from __future__ import annotations

import contextlib
import errno
import glob
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from .._sweep import I64, U64
from ..analysis import Series, Timeline
from ..maps import VmaTable
from . import vmas as vma_files
from .metadata import METADATA_KEY, Metadata, Timing, arrow, to_numpy

PathLike: TypeAlias = str | os.PathLike[str]

REGION_COLUMNS = ("time", "begin", "start", "end", "categories")


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a recording."""

    path: Path
    metadata: Metadata
    rows: int


class Recording:
    """One recording of one process: an iterable of Series, which every analysis takes, again and again.

    Nothing is held but the list of its parts, which are read one at a time. Each is decompressed once, into
    columns that the Series uses where they are.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)

    @property
    def metadata(self) -> Metadata:
        """That of the last part: what the recorder knew last."""
        return self.parts[-1].metadata

    @property
    def host(self) -> str:
        return self.metadata.host

    @property
    def pid(self) -> int:
        return self.metadata.pid

    @property
    def name(self) -> str:
        """The program's name, /proc/PID/comm."""
        return self.metadata.name

    @property
    def timing(self) -> Timing:
        """How well the recorder kept its time."""
        return self.metadata.timing

    @property
    def rows(self) -> int:
        """Rows in all parts: regions, and samples without any."""
        return sum(part.rows for part in self.parts)

    @property
    def ended(self) -> str:
        """Why the recording ended; "killed" where the recorder did not say (or it goes on still)."""
        return self.metadata.ended or "killed"

    def __iter__(self) -> Iterator[Series]:
        """A Series for each part that has samples, in order of time."""
        self._check_complete()
        for part in self.parts:
            if part.rows:
                yield read_series(part)

    def _check_complete(self) -> None:
        """OSError where a file is missing between those that are there."""
        for before, part in itertools.pairwise(self.parts):
            expected = before.metadata.part + 1
            if part.metadata.part != expected:
                name = f"{part.metadata.recording}-{expected:06d}.parquet"
                text = f"a file of the recording of {self._whose()} is missing, or is there twice"
                raise OSError(errno.EIO, text, str(part.path.with_name(name)))

    def _whose(self) -> str:
        return f"{self.name or 'process'} {self.pid} on {self.host}"

    @cached_property
    def timeline(self) -> Timeline:
        """When the samples were taken: reads the times alone. Times are ns since 1970."""
        self._check_complete()
        timeline = Timeline(np.empty(0, np.int64), self.metadata.begin_ns, self.metadata.page_size)
        for part in self.parts:
            if part.rows:
                with _damage(part):
                    timeline = timeline.then(read_times(part))
        return timeline

    @cached_property
    def vmas(self) -> VmaTable:
        """All VMAs that were seen, as one table; where they changed, the newest. Empty where the files that
        are beside the parts are missing, or cannot be read.
        """
        paths = (part.path.with_name(f"_{part.path.stem}.vmas") for part in self.parts)
        tables = (vma_files.read(path) for path in paths if path.exists())
        return vma_files.merged([table for table in tables if table is not None])

    def __repr__(self) -> str:
        what = f"{self.name or '?'} (pid {self.pid} on {self.host})"
        return f"<Recording of {what}: {self.timing.samples} samples, {self.rows} rows>"


class Trace(Sequence[Recording]):
    """The recordings behind a path, in order of host, pid and beginning: a sequence of Recording."""

    def __init__(self, recordings: Sequence[Recording]) -> None:
        self.recordings = tuple(recordings)

    def __getitem__(self, index: Any) -> Any:
        return self.recordings[index]

    def __len__(self) -> int:
        return len(self.recordings)

    @property
    def files(self) -> list[Path]:
        """All parts, for other readers of Parquet: ``dask.dataframe.read_parquet``, ``pyarrow.dataset``."""
        return [part.path for recording in self for part in recording.parts]

    def only(self) -> Recording:
        """The one recording of the trace; ValueError, which lists them, unless there is just one."""
        if len(self) == 1:
            return self.recordings[0]
        listed = "; ".join(f"pid {r.pid} on {r.host} ({r.name})" for r in self)
        raise ValueError(f"the trace has {len(self)} recordings, choose one: {listed}")

    def __repr__(self) -> str:
        return f"<Trace of {len(self)} recordings>"


def open_trace(path: PathLike | Sequence[PathLike]) -> Trace:
    """The recordings in a file, a directory, whatever a glob matches (``traces/host=*/pid=*``), or several.

    Reads the metadata of each part, and no data. Raises ImportError without pyarrow, FileNotFoundError where
    there is no trace, ValueError for files that are none, or of a later version.
    """
    arrow()
    given = [path] if isinstance(path, str | os.PathLike) else list(path)
    found: dict[tuple[str, int, int], list[Part]] = {}
    for file in dict.fromkeys(file for one in given for file in _files(os.fspath(one))):
        part = read_part(file)
        key = (part.metadata.host, part.metadata.pid, part.metadata.begin_ns)
        found.setdefault(key, []).append(part)
    for parts in found.values():
        parts.sort(key=lambda part: part.metadata.part)
    return Trace([Recording(found[key]) for key in sorted(found)])


def _files(path: str) -> Iterator[Path]:
    matches = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
    files: list[Path] = []
    for match in map(Path, matches):
        inside = sorted(match.rglob("*.parquet")) if match.is_dir() else [match]
        files += [file for file in inside if not file.name.startswith(("_", "."))]
    if not files:
        what = "no such file or directory" if not matches else "no trace: there is no Parquet file in it"
        raise FileNotFoundError(2, what, path)
    yield from files


def read_part(path: Path) -> Part:
    """The metadata of a part. ValueError where it is none."""
    pa = arrow()
    try:
        footer = pa.parquet.read_metadata(path)
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is no Parquet file, or was cut short: {reason}") from error
    text = (footer.metadata or {}).get(METADATA_KEY)
    if text is None:
        raise ValueError(f"{path} was not written by pagemap: it has no metadata of a trace")
    try:
        metadata = Metadata.from_json(text, str(path))
    except (TypeError, KeyError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: its metadata cannot be read") from error
    return Part(path, metadata, footer.num_rows)


@contextlib.contextmanager
def _damage(part: Part) -> Iterator[None]:
    """What cannot be in a file that a recorder wrote is an OSError that names the file."""
    try:
        yield
    except (
        arrow().ArrowException,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OverflowError,
        OSError,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        known = part.metadata
        whose = f"{known.name or 'process'} {known.pid} on {known.host}"
        reason = str(error).partition("\n")[0]
        text = f"the file is damaged: {reason} (recording of {whose})"
        raise OSError(errno.EIO, text, str(part.path)) from error


def _columns(part: Part, names: Sequence[str]) -> list[Any]:
    pa = arrow()
    # Not read_table(): that imports what reads whole data sets, and pandas.
    with pa.parquet.ParquetFile(part.path, memory_map=True) as file:
        table = file.read(list(names))
    columns = []
    for name in names:
        column = table.column(name)
        # One row group, one chunk: no copy.
        array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        columns.append(to_numpy(array))
    return columns


def read_series(part: Part) -> Series:
    """The samples of a part."""
    with _damage(part):
        time, begin, start, end, categories = _columns(part, REGION_COLUMNS)
        columns: tuple[U64, U64, U64] = (start, end, categories)
        return Series.from_rows(time, *columns, begin_ns=int(begin[0]), page_size=part.metadata.page_size)


def read_times(part: Part) -> Timeline:
    """When the samples of a part were taken."""
    with _damage(part):
        time, begin = _columns(part, ("time", "begin"))
        last = np.append(time[1:] != time[:-1], np.ones(min(time.size, 1), np.bool_))
        times: I64 = time[last]
        return Timeline(times, int(begin[0]), part.metadata.page_size)
