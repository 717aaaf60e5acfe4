"""Answers from series of scans, as arrays: how much is written, how often, where, and what it costs to copy.

Each function takes a `Series`, or an iterable of Series that are its chunks in order, and works chunk by
chunk in bounded memory; the classes behind them (`Analysis`) map chunks anywhere and join what comes out,
exactly. Whatever regions a series holds are what is analysed: ``series.select(Query.WRITTEN)`` takes the
written ones.

Each takes a Dask DataFrame of traces as well (`pagemap.fleet`), and then returns a dictionary: the same
answer, to the last digit, for each recording in it.
"""

from .asking import run
from .base import Analysis, Source, Table, ladder
from .heat import VMA_HEAT_DTYPE, Heat, HeatAxes, HeatCount, HeatGrid, HeatMap, heat, heatmap
from .rate import Contiguity, DirtyRate, Rate, RunLengths, dirty_rate, run_lengths
from .reuse import (
    Intervals,
    RedirtyIntervals,
    WorkingSet,
    WorkingSets,
    default_taus,
    redirty_intervals,
    working_set,
)
from .rounds import Migration, Rounds, migrate, snapshots
from .series import Series, Timeline

__all__ = [
    "VMA_HEAT_DTYPE",
    "Analysis",
    "Contiguity",
    "DirtyRate",
    "Heat",
    "HeatAxes",
    "HeatCount",
    "HeatGrid",
    "HeatMap",
    "Intervals",
    "Migration",
    "Rate",
    "RedirtyIntervals",
    "Rounds",
    "RunLengths",
    "Series",
    "Source",
    "Table",
    "Timeline",
    "WorkingSet",
    "WorkingSets",
    "default_taus",
    "dirty_rate",
    "heat",
    "heatmap",
    "ladder",
    "migrate",
    "redirty_intervals",
    "run",
    "run_lengths",
    "snapshots",
    "working_set",
]
