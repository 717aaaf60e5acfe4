"""Recording series of scans, and reading them back: of one process, or of a fleet.

A trace is a directory of Parquet files, which any reader of Parquet understands without this package::

    PATH/host=HOST/pid=PID/RECORDING-000000.parquet         a part: whole samples, one row group
    PATH/host=HOST/pid=PID/RECORDING-000001.parquet         …
    PATH/host=HOST/pid=PID/_RECORDING-000001.vmas           the VMAs, when they had changed: Parquet too

Parquet keeps its index at the end of a file, so a file that is being written cannot be read. That is why a
recording is many of them: each is complete before it gets its name (fsync, then rename), so what a killed
recorder leaves behind is readable, all but the last seconds; nothing is ever rewritten. Readers of whole
directories (Arrow, Spark, Dask, pandas) pass by names that begin with a dot or an underscore, or do not end
in .parquet.

The columns are:

    time        timestamp[ns, UTC]  when the sample was taken: a monotonic clock, counted from the wall clock
                                    at the beginning. It never goes back, whatever the wall clock does.
    host, pid   string, int32       whose memory it is: hive partitions, in the path and not in the file
    start, end  uint64              a region, in bytes, end exclusive; start = end = 0 marks a sample without
    categories  uint64              pagemap.Category of all its pages
    begin       timestamp[ns, UTC]  start of the sample's interval: the time of the sample before, or of the
                                    beginning. What a sample of dirty pages holds was written after it.

Rows are in order of time, those of a sample in order of address, regions disjoint. What is known besides is
JSON in the metadata of each part (`Metadata`).
"""

from .metadata import SCHEMA_VERSION, Metadata, Timing
from .reader import Recording, Trace
from .reader import open_trace as open
from .recorder import Recorder, record
from .vmas import VMA_COLUMNS

__all__ = [
    "SCHEMA_VERSION",
    "VMA_COLUMNS",
    "Metadata",
    "Recorder",
    "Recording",
    "Timing",
    "Trace",
    "open",
    "record",
]
