"""Which pages of a process are resident, swapped, huge or written: Linux's PAGEMAP_SCAN in NumPy."""

from . import regions
from ._pagemap import pagemap_scan
from .attach import attach
from .buffers import span
from .categories import PAGE_SIZE, REGION_DTYPE, Category, ScanFlag
from .errors import StalledScanError, UnsupportedError
from .features import Features, features
from .maps import VMA_DTYPE, Vma, VmaTable
from .query import Query
from .scanner import PageMap, scan
from .softdirty import SoftDirtyTracker
from .track import track
from .tracker import DirtyTracker
from .tracking import Tracker

__all__ = [
    "PAGE_SIZE",
    "REGION_DTYPE",
    "VMA_DTYPE",
    "Category",
    "DirtyTracker",
    "Features",
    "PageMap",
    "Query",
    "ScanFlag",
    "SoftDirtyTracker",
    "StalledScanError",
    "Tracker",
    "UnsupportedError",
    "Vma",
    "VmaTable",
    "attach",
    "features",
    "pagemap_scan",
    "regions",
    "scan",
    "span",
    "track",
]
