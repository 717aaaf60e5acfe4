"""What deadlocks in some kernels cannot be reached through the package: every public way that protects, over
hugetlb memory that nobody touched, in a gigabyte of address space without page tables.

There the bare ioctl hangs for good (facts_danger.py, hugetlb.*.hole.none), so this runs in guests only.
"""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    "pagemap.guest" not in Path("/proc/cmdline").read_text().split(),
    reason="may hang the machine for good: in a guest of the kernel matrix only",
)

LIMIT = 120

AREA = """
import sys
from kernel_api import DIRECTORY, Area
area = Area(2 * 512, shared=sys.argv[1] == "shared", hugetlb=True, align=DIRECTORY)
"""

ALL_METHODS = """
def methods(tracker, write):
    def pages(found):
        return pagemap.regions.page_count(pagemap.regions.clip(found, *bounds))
    tracker.peek()
    tracker.collect(1)
    tracker.collect()
    tracker.reset()
    for page in (0, 512):
        write(page)
        assert pages(tracker.peek()) == 512
        assert pages(tracker.collect()) == 512
        assert pages(tracker.collect()) == 0
    tracker.reset()
"""

TRACK = """
import pagemap
bounds = area.start, area.end
with pagemap.track(bounds, granularity=sys.argv[2]) as tracker:
    methods(tracker, lambda page: area.write(page, 1))
"""

ATTACH = """
import subprocess, pagemap
with subprocess.Popen(
    [sys.executable, "-c", sys.argv[3], sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
) as target:
    def ask(page):
        print(page, file=target.stdin, flush=True)
        target.stdout.readline()
    try:
        bounds = tuple(map(int, target.stdout.readline().split()))
        with pagemap.attach(target.pid, granularity=sys.argv[2]) as tracker:
            methods(tracker, ask)
    finally:
        target.kill()
"""

TARGET = """
print(area.start, area.end, flush=True)
for line in sys.stdin:
    area.write(int(line), 1)
    print("written", flush=True)
"""

PAGEMAP_SCAN = """
import itertools, numpy, pagemap
from kernel_api import Userfault
from pagemap import Category, ScanFlag
bits = Category.WPALLOWED, Category.WRITTEN, Category.PRESENT, Category.HUGE
masks = [sum(chosen) for count in range(len(bits) + 1) for chosen in itertools.combinations(bits, count)]
vec = numpy.zeros(16, pagemap.REGION_DTYPE)
userfault = Userfault()
done = refused = 0
with open("/proc/self/pagemap", "rb") as fd:
    for mask, inverted, anyof, report in itertools.product(masks, masks, (0, *bits), (0, *bits)):
        if mask & ~inverted & Category.WRITTEN:
            area.map()  # what was asked before has protected it: no hole any more
            userfault.register(area)
        try:
            pagemap.pagemap_scan(
                fd, area.start, area.end, vec, flags=ScanFlag.WP_MATCHING, category_mask=mask,
                category_inverted=inverted, category_anyof_mask=anyof, return_mask=report,
            )
            done += 1
        except ValueError:
            refused += 1
print(done, refused)
"""


def survive(code, *arguments):
    """Runs Python code that may never end, not even when it is killed; what it printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        pytest.fail(f"{arguments[0]}: does not end")
    assert process.returncode == 0, errors
    return output


@pytest.fixture(autouse=True)
def asynchronous(need):
    need("wp_async")


@pytest.mark.parametrize("granularity", ["native", "page"])
@pytest.mark.parametrize("kind", ["private", "shared"])
@pytest.mark.parametrize("way", ["track", "attach"])
def test_trackers(way, kind, granularity):
    code = AREA + ALL_METHODS + (TRACK if way == "track" else ATTACH)
    survive(code, kind, granularity, AREA + TARGET)


@pytest.mark.parametrize("kind", ["private", "shared"])
def test_pagemap_scan_with_every_choice_of_masks(kind):
    assert survive(AREA + PAGEMAP_SCAN, kind).split() == ["1600", "4800"]
