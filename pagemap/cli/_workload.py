"""The program that `pagemap demo` looks at: NumPy arrays touched in different ways. Knows nothing of pagemap.

Usage: python _workload.py MIB. Prints a line of JSON for each array as it is made: name, start and end in
bytes, how many pages it touched, and how. Then a line "ready". It holds still but for its input: for each
line it writes to every STRIDEth page of `dense`, the first among them, and says STRIDE. It ends when its
input does: no way of ending the parent leaves it behind.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

PAGE = mmap.PAGESIZE
HUGE = 2 << 20
STRIDE = 100
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
SHARED = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS


def array(nbytes: int, flags: int, advice: int | None) -> npt.NDArray[Any]:
    memory = mmap.mmap(-1, nbytes, flags)
    if advice is not None:
        try:
            memory.madvise(advice)
        except OSError:
            print(f"this kernel refuses madvise({advice})", file=sys.stderr)
    return np.frombuffer(memory, np.uint8)


def say(line: str) -> None:
    try:
        os.write(sys.stdout.fileno(), f"{line}\n".encode())
    except BrokenPipeError:
        raise SystemExit(0) from None  # nobody is there any more


def tell(name: str, memory: npt.NDArray[Any], touched: int, how: str) -> None:
    start = memory.ctypes.data
    part = {"name": name, "start": start, "end": start + memory.nbytes, "pages": touched, "how": how}
    say(json.dumps(part))


def main() -> None:
    unit = int(sys.argv[1]) * (1 << 20) // 8 // HUGE * HUGE
    count = unit // PAGE
    keep = []

    dense = array(2 * unit, PRIVATE, mmap.MADV_NOHUGEPAGE)
    dense[::PAGE] = 1
    tell("dense", dense, 2 * count, "every page written")
    keep.append(dense)

    sparse = array(2 * unit, PRIVATE, mmap.MADV_NOHUGEPAGE)
    sparse[:: 2 * PAGE] = 1
    tell("sparse", sparse, count, "every second page written")
    keep.append(sparse)

    huge = array(4 * unit + HUGE, PRIVATE, mmap.MADV_HUGEPAGE)
    huge = huge[-huge.ctypes.data % HUGE :][: 4 * unit]
    huge[: 3 * unit : PAGE] = 1
    # Where no huge page is to be had, the kernel gives small ones: written is what was written.
    tell("huge", huge, 3 * count, "three quarters written, huge pages wanted")
    keep.append(huge)

    zeros = array(unit, PRIVATE, mmap.MADV_NOHUGEPAGE)
    zeros[::PAGE].sum()
    tell("zeros", zeros, count, "read, never written")
    keep.append(zeros)

    shared = array(unit, SHARED, None)
    shared[::PAGE] = 1
    tell("shared", shared, count, "shared memory, every page written")
    keep.append(shared)

    tell("reserve", reserve := array(8 * unit, PRIVATE, mmap.MADV_NOHUGEPAGE), 0, "never touched")
    keep.append(reserve)

    say("ready")
    for _ in sys.stdin:
        dense[:: STRIDE * PAGE] += 1
        say(str(STRIDE))


if __name__ == "__main__":
    main()
