"""Endurance: attach, collect and detach, over and over, on processes that churn their address space, while
descriptors, memory and threads of this process stay flat: `make soak`, or `python tests/soak.py SECONDS`.
"""

import contextlib
import gc
import os
import random
import sys
import time

import children

import pagemap
from pagemap import PageMap, Query

# Maps, grows, moves, protects, forks and unmaps, until its standard input ends.
CHURN = """
import mmap, os, random, select, sys
random.seed(int(sys.argv[1]))
print("ready", flush=True)
areas = []
while not select.select([sys.stdin], [], [], 0)[0]:
    dice = random.random()
    if dice < 0.4 or not areas:
        area = mmap.mmap(-1, random.randrange(1, 64) * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        areas.append(area)
    area = random.choice(areas)
    area[random.randrange(len(area))] = 1
    if dice > 0.9:
        areas.remove(area)
        area.close()
    elif dice > 0.8:
        area.resize(random.randrange(1, 128) * 4096)
    elif dice > 0.79:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    while len(areas) > 40:
        areas.pop(0).close()
"""


def measured():
    """Descriptors, threads, KiB resident, VMAs of this process."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as statm:
        resident = int(statm.read().split()[1]) * pagemap.PAGE_SIZE // 1024
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        vmas = sum(1 for _ in maps)
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), resident, vmas


def life(target, tracking):
    """One attachment, a few rounds, and the other questions."""
    if tracking:
        with pagemap.attach(target.pid) as tracker:
            for _ in range(3):
                tracker.collect()
                tracker.peek()
            tracker.collect(max_pages=5)
    with PageMap(target.pid) as pm:
        pm.scan(workers=2)
        for _ in pm.iter_scan(Query.PRESENT, batch_size=100):
            pass
        pm.vmas()


def soak(seconds, *, targets=2, lifetime=40, warm=0.3):
    """Lives until time is up; the measures after the warm-up and at the end, and how many lives there were.

    Each target ends after `lifetime` lives, now and then in the middle of one, and is replaced.
    """
    tracking = pagemap.features().scan and pagemap.features().wp_async
    dice = random.Random(0)
    begin, lives, first = time.monotonic(), 0, None
    with contextlib.ExitStack() as keep:
        running = []

        def replace():
            context = children.target(CHURN, dice.randrange(1 << 30))
            running.append((context, context.__enter__()))

        def retire(entry):
            running.remove(entry)
            entry[0].__exit__(None, None, None)

        keep.callback(lambda: [retire(entry) for entry in list(running)])
        for _ in range(targets):
            replace()
        while time.monotonic() - begin < seconds:
            entry = dice.choice(running)
            life(entry[1], tracking)
            lives += 1
            if lives % lifetime == 0:
                with pagemap.attach(entry[1].pid) if tracking else contextlib.nullcontext() as tracker:
                    entry[1].kill()
                    with contextlib.suppress(ProcessLookupError):
                        if tracker is not None:
                            tracker.collect()
                retire(entry)
                replace()
            if first is None and time.monotonic() - begin > seconds * warm:
                first = measured()
        last = measured()
    assert first is not None
    return first, last, lives


def check(first, last):
    names = ("descriptors", "threads", "KiB resident", "VMAs")
    slack = (0, 0, 1024, 8)
    grown = {n: (a, b) for n, a, b, s in zip(names, first, last, slack, strict=True) if b > a + s}
    assert not grown, f"grown: {grown}"


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    first, last, lives = soak(seconds)
    print(f"{lives} lives in {seconds:.0f} s; descriptors, threads, KiB resident, VMAs: {first} -> {last}")
    check(first, last)


if __name__ == "__main__":
    main()
