"""A guard against regressions that no noise disturbs: instructions of the hot paths, counted by callgrind.

What the kernel executes is not counted. The values are those of one CPython, one architecture and the
compiler's usual options. Where a path was made faster, or the price of something was accepted, they are
recorded anew, in a minute, on RECORDED_ON: this prints the lines that take the place of those in RECORDED.

    PYTHONPATH=. .venv/bin/python tests/test_instructions.py
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

RECORDED_ON = ("CPython", "3.11", "x86_64")
# path: instructions for each call, region, entry, line or page
RECORDED = {
    "pagemap_scan, a call": 1595,
    "scan_small, a call": 979,
    "RegionBuffer.scan, a region": 5.6,
    "RegionBuffer.read, a page": 46.6,
    "RegionBuffer.append, a region": 29.1,
    "decode_entries, an entry": 42.6,
    "parse_maps, a line": 1069,
    "PageMap.scan, a call": 10161,
}
TOLERANCE = 0.15
CALLS = 400
LIMIT = 100

CHILD = """
import collections, functools, gc, itertools, mmap, sys
import numpy as np
from pagemap import REGION_DTYPE, PageMap, Query, _pagemap, pagemap_scan, span

gc.disable()
rounds = int(sys.argv[1])
PAGES, CALLS = 2048, 400
masks = Query.PRESENT.masks()
memory = mmap.mmap(-1, PAGES * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
np.frombuffer(memory, np.uint8)[:: 2 * 4096] = 1
start, end = span(memory)
ranges = np.array([[start, end]], np.uint64)
entries = np.zeros(1 << 16, np.uint64)
entries[::2] = 1 << 63
line = "7f%07x000-7f%07x000 rw-p 00000000 fe:01 26723                      /usr/lib/libexample.so\\n"
text = "".join(line % (2 * k, 2 * k + 1) for k in range(2000)).encode()
vec, out = np.zeros(1, REGION_DTYPE), np.zeros(1 << 16, REGION_DTYPE)
buffer, other = _pagemap.RegionBuffer(PAGES), _pagemap.RegionBuffer(PAGES)
with PageMap() as pm:
    fd = pm.fileno()
    for _ in range(rounds):
        for _ in range(CALLS):
            pagemap_scan(fd, start, start + 4096, vec, category_mask=8, return_mask=8)
            _pagemap.scan_small(fd, start, start + 4096, masks)
        assert buffer.scan(0, fd, start, end, 0, 0, *masks)[0] == PAGES // 2
        assert buffer.read(0, fd, ranges, start, end, 0, *masks)[0] == PAGES // 2
        assert other.append(0, buffer, 0, PAGES // 2) == PAGES // 2
        assert _pagemap.decode_entries(entries, 0, out, 0, *masks)[0] == 1 << 15
        assert len(_pagemap.parse_maps(text)) == 2000 * 56
        page = functools.partial(pm.scan, start=start, end=start + 4096)
        collections.deque(itertools.starmap(page, itertools.repeat((Query.PRESENT,), CALLS)), 0)
"""
# path: the function in C, and how many units one round of the child puts through it
FUNCTIONS = {
    "pagemap_scan, a call": ("pagemap_scan", CALLS),
    "scan_small, a call": ("pagemap_scan_small", 2 * CALLS),  # by itself, and by PageMap.scan
    "RegionBuffer.scan, a region": ("region_buffer_scan", 1024),
    "RegionBuffer.read, a page": ("region_buffer_read", 2048),
    "RegionBuffer.append, a region": ("region_buffer_append", 1024),
    "decode_entries, an entry": ("pagemap_decode_entries", 1 << 16),
    "parse_maps, a line": ("pagemap_parse_maps", 2000),
    "PageMap.scan, a call": ("starmap_next", CALLS),
}


def callgrind(rounds):
    """Starts the child."""
    directory = tempfile.TemporaryDirectory()
    out = Path(directory.name) / "callgrind.out"
    valgrind = ["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={out}"]
    child = subprocess.Popen(
        [*valgrind, sys.executable, "-c", CHILD, str(rounds)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "0"},
    )
    return child, out, directory


def counts(child, out, directory):
    """Instructions by function: with what it calls."""
    with directory:
        try:
            errors = child.communicate(timeout=LIMIT)[1]
        finally:
            child.kill()
        assert child.returncode == 0, errors
        annotate = ["callgrind_annotate", "--inclusive=yes", "--threshold=100", str(out)]
        text = subprocess.run(annotate, check=True, timeout=LIMIT, capture_output=True, text=True).stdout
    found = re.findall(r"^ *([\d,]+) \([ \d.]+%\)  \S*?:(\w+) \[", text, re.MULTILINE)
    return {name: int(count.replace(",", "")) for count, name in found}


def measure():
    """Instructions by path: the difference of two runs, so that what happens once does not count."""
    once, twice = (counts(*run) for run in [callgrind(1), callgrind(2)])
    return {
        path: (twice[function] - once[function]) / units
        for path, (function, units) in FUNCTIONS.items()
        if function in once
    }


def why_not():
    here = (
        platform.python_implementation(),
        ".".join(platform.python_version_tuple()[:2]),
        platform.machine(),
    )
    if here != RECORDED_ON:
        return f"recorded on {' '.join(RECORDED_ON)}, this is {' '.join(here)}"
    if not (shutil.which("valgrind") and shutil.which("callgrind_annotate")):
        return "no valgrind"
    return None


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.timeout(3 * LIMIT)
def test_the_hot_paths_take_no_more_instructions_than_recorded():
    counted = measure()
    assert counted.keys() == RECORDED.keys(), "is the extension stripped of its symbols?"
    slower = {p: n for p, n in counted.items() if n > RECORDED[p] * (1 + TOLERANCE)}
    assert not slower, f"more instructions than recorded: {slower}; recorded: {RECORDED}"
    faster = {p: n for p, n in counted.items() if n < RECORDED[p] * (1 - 2 * TOLERANCE)}
    assert not faster, f"far fewer instructions: record {faster}, so that they stay so few"


if __name__ == "__main__":
    for name, instructions in measure().items():
        print(f'    "{name}": {instructions:.1f},')
