"""Peak memory: what a scan needs beyond its answer, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from .conftest import Scale
from .memory import GIB

CHILD = """
import json, sys
from pagemap import PageMap, Query
from bench.memory import anonymous

def status(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))

def peak(run):
    with open("/proc/self/clear_refs", "w") as clear_refs:
        clear_refs.write("5")  # VmHWM starts anew
    before = status("VmRSS")
    answer = run()
    return status("VmHWM") - before, answer

size = int(sys.argv[1])
with anonymous(size, step=2) as memory:
    where = {"start": memory.start, "end": memory.end}
    with PageMap() as pm:
        pm.scan(Query.PRESENT, start=memory.start, end=memory.start + (64 << 20))
        scan, result = peak(lambda: pm.scan(Query.PRESENT, **where))
        answer = result.nbytes
        del result
    with PageMap() as pm:
        iterated, n = peak(lambda: sum(len(b) for b in pm.iter_scan(Query.PRESENT, **where)))
    assert n * 24 == answer, (n, answer)
print(json.dumps({"size": size, "answer": answer, "scan": scan - answer, "iter_scan": iterated}))
"""


@pytest.mark.parametrize("gib", [1, 2, 4])
def test_peak(scale: Scale, peaks: list[dict[str, Any]], gib: int) -> None:
    """Every second page is populated: as much answer as there can be."""
    size = scale.size(gib * GIB)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(size)], capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == 0, child.stderr
    peaks.append(json.loads(child.stdout))
