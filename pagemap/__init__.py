"""Which pages of a process are resident, swapped, huge or written: Linux's PAGEMAP_SCAN in NumPy."""

from ._pagemap import pagemap_scan
from .buffers import span
from .categories import PAGE_SIZE, REGION_DTYPE, Category, ScanFlag
from .errors import StalledScanError, UnsupportedError
from .features import Features, features
from .maps import VMA_DTYPE, Vma, VmaTable
from .query import Query
from .scanner import PageMap, scan

__all__ = [
    "PAGE_SIZE",
    "REGION_DTYPE",
    "VMA_DTYPE",
    "Category",
    "Features",
    "PageMap",
    "Query",
    "ScanFlag",
    "StalledScanError",
    "UnsupportedError",
    "Vma",
    "VmaTable",
    "features",
    "pagemap_scan",
    "scan",
    "span",
]
