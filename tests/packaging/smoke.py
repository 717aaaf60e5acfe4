"""What an installed package must do, in an environment that holds it and NumPy: run by tools/wheels.sh."""

import importlib.metadata
import mmap
import sys
from pathlib import Path

import pagemap
from pagemap import PageMap, Query, _pagemap

assert Path(pagemap.__file__).is_relative_to(sys.prefix), pagemap.__file__
assert Path(_pagemap.__file__).name == "_pagemap.abi3.so", _pagemap.__file__
assert (Path(pagemap.__file__).parent / "py.typed").exists()
assert importlib.metadata.metadata("pagemap-scan")["License-Expression"] == "MIT"

memory = mmap.mmap(-1, 64 * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(0, 64, 2):
    memory[page * mmap.PAGESIZE] = 1
start, end = pagemap.span(memory)
engines = ["read", "scan"] if pagemap.features().scan else ["read"]
for engine in engines:
    with PageMap(engine=engine) as pm:
        found = pm.scan(Query.PRESENT, start=start, end=end)
        assert [(int(r["start"]) - start) // mmap.PAGESIZE for r in found] == list(range(0, 64, 2)), found
        assert pm.vmas().find(start) is not None
if pagemap.features().wp_async:
    with pagemap.track(memory) as tracker:
        memory[5 * mmap.PAGESIZE] = 1
        (region,) = tracker.collect()
        assert (int(region["start"]) - start) // mmap.PAGESIZE == 5
print("works:", importlib.metadata.version("pagemap-scan"), *engines)
