"""What the files of a trace hold: columns, and metadata beside them."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

SCHEMA_VERSION = 1
METADATA_KEY = b"pagemap"


@functools.cache
def arrow() -> ModuleType:
    """pyarrow, imported when it is needed. ImportError that says what to install."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("traces need pyarrow: pip install 'pagemap-scan[trace]'") from error
    module: ModuleType = pyarrow
    return module


def from_numpy(kind: Any, array: npt.NDArray[Any]) -> Any:
    """A pyarrow.Array on the memory of a NumPy array of numbers."""
    pa = arrow()
    return pa.Array.from_buffers(kind, len(array), [None, pa.py_buffer(array)])


def to_numpy(array: Any) -> npt.NDArray[Any]:
    """The memory of a pyarrow.Array of times (int64) or uint64, none of them null, as a NumPy array.

    Array.to_numpy() does it too, but imports pandas first, half a second.
    """
    dtype = np.int64 if arrow().types.is_timestamp(array.type) else np.uint64
    _, data = array.buffers()
    return np.frombuffer(data or b"", dtype)[array.offset : array.offset + len(array)]


def schema() -> Any:
    """The columns of a part, as a pyarrow.Schema; host and pid are in its path (see the package)"""
    pa = arrow()
    time = pa.timestamp("ns", tz="UTC")
    columns = [
        ("time", time),
        ("start", pa.uint64()),
        ("end", pa.uint64()),
        ("categories", pa.uint64()),
        ("begin", time),
    ]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])


@dataclass(slots=True)
class Timing:
    """How well a recorder kept its own time; sums over the recording up to this part. All in ns.

    A sample's error is how late it began: its time less its place on the grid of intervals. missed: places
    on the grid that were left out because the sample before took too long. scan_*: how long the samples
    took. wall_step_ns: how far the wall clock has moved against the monotonic one since the beginning
    (somebody set it, or the machine was suspended).
    """

    samples: int = 0
    missed: int = 0
    late_sum_ns: int = 0
    late_max_ns: int = 0
    scan_sum_ns: int = 0
    scan_max_ns: int = 0
    wall_step_ns: int = 0

    def add(self, late_ns: int, scan_ns: int, missed: int) -> None:
        self.samples += 1
        self.missed += missed
        self.late_sum_ns += late_ns
        self.late_max_ns = max(self.late_max_ns, late_ns)
        self.scan_sum_ns += scan_ns
        self.scan_max_ns = max(self.scan_max_ns, scan_ns)


@dataclass(frozen=True, slots=True)
class Metadata:
    """What is known of a recording, in each of its parts.

    kind: "dirty" (each sample: pages written since the one before) or "resident" (each sample: the pages
    that a query selected). category: what dirty pages report, or what the query selects and reports.
    command: argv. begin_ns: the beginning, ns since 1970; interval_ns: as asked for. memory_bytes: populated
    at the beginning. part: 0, 1, … ; first_sample: how many samples the parts before have. ended: why the
    recording ended, in its last part only ("duration", "stopped", "exited", "error: …"): where that is
    missing, the recorder goes on, or was killed.
    """

    host: str
    pid: int
    name: str
    command: list[str]
    kind: str
    category: int
    begin_ns: int
    interval_ns: int
    page_size: int
    memory_bytes: int
    kernel: str
    part: int = 0
    first_sample: int = 0
    ended: str | None = None
    timing: Timing = field(default_factory=Timing)
    version: int = SCHEMA_VERSION

    @property
    def recording(self) -> str:
        """What the names of the recording's files begin with."""
        return str(self.begin_ns)

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes, path: str) -> Metadata:
        values = json.loads(text)
        if values.get("version") != SCHEMA_VERSION:
            raise ValueError(
                f"{path} is of version {values.get('version')} of the format, and this pagemap reads"
                f" version {SCHEMA_VERSION}"
            )
        return cls(**{**values, "timing": Timing(**values["timing"])})
