"""An attached process does at random what can be done to memory: a copy of what is reported stays true.

One step at a time: in test_mirror.py threads race.
"""

import random

import children
import pytest
from mirror import MemoryOf, Mirror
from witness import PAGE

import pagemap

STEPS = 500
BASE = 0x2A00_0000_0000
ROOM = 16 << 20
AREAS = 8
KINDS = ("private", "private", "growsdown", "shared", "file")
OF_FILE = b"page" * (PAGE // 4)

# Answers each line, an expression.
TARGET = """
import ctypes, os, sys, tempfile

PAGE, READ, WRITE, FIXED, MAYMOVE, TO, DONTUNMAP = 4096, 1, 2, 0x10, 1, 2, 4
FLAGS = {"private": 0x22, "growsdown": 0x122, "shared": 0x21, "file": 0x2}
libc = ctypes.CDLL(None)

def call(name, address, *arguments):
    function = getattr(libc, name)
    function.restype = ctypes.c_ssize_t
    return function(ctypes.c_void_p(address), *map(ctypes.c_size_t, arguments)) != -1

def place(address, pages, kind):
    with tempfile.TemporaryFile() as file:
        if kind == "file":
            file.write(b"page" * (pages * PAGE // 4))
            file.flush()
        fd = file.fileno() if kind == "file" else -1
        return call("mmap", address, pages * PAGE, READ | WRITE, FLAGS[kind] | FIXED, fd, 0)

def scribble(address, *pages):
    for page in pages:
        ctypes.memmove(address + page * PAGE + page % 500 * 8, os.urandom(8), 8)

def look(address, *pages):
    for page in pages:
        ctypes.string_at(address + page * PAGE, 1)

def fill(address, count):
    with open("/dev/urandom", "rb", buffering=0) as source:
        source.readinto((ctypes.c_char * count).from_address(address))

def blink(address, length):
    call("mprotect", address, length, READ)
    call("mprotect", address, length, READ | WRITE)

def fork(address, *pages):
    # Both write to what they share until then.
    child = os.fork()
    if child == 0:
        scribble(address, *pages)
        os._exit(0)
    scribble(address, *pages)
    os.waitpid(child, 0)

print("ready", flush=True)
for line in sys.stdin:
    print(eval(line), flush=True)
"""

ADVICE = {"cold": 20, "populate": 23, "nohugepage": 15, "hugepage": 14, "collapse": 25, "mergeable": 12}
ADVICE |= {"unmergeable": 13, "dontfork": 10, "dofork": 11, "wipeonfork": 18, "keeponfork": 19}
# Shared memory keeps its pages in its file, where no tracker sees them: docs/concepts/losses.md.
DROPS = {"dontneed": 4, "free": 8, "pageout": 21}


class Deeds:
    """What a target does next, and which areas it has: (address, pages, kind) by number.

    What the kernel refuses is as good as anything, but may have been begun: mremap(2) unmaps first, and fails
    then. Areas that it may have changed are left alone.
    """

    def __init__(self, seed):
        self.pick = random.Random(seed)
        self.areas = {}
        self.log = []

    def one(self, target):
        number = self.pick.randrange(AREAS)
        deeds = self._of_area(number) if number in self.areas else [self._new(number)]
        line, then = self.pick.choice(deeds)
        answer = target.ask(line)
        self.log.append((line, answer))
        if answer == "False":
            then = dict.fromkeys(then)
        self.areas = {at: area for at, area in (self.areas | then).items() if area}

    def _new(self, number):
        pick = self.pick
        at = BASE + number * ROOM + pick.choice([0, 17 * PAGE, 2 << 20])
        pages, kind = pick.choice([3, 64, 520]), pick.choice(KINDS)
        return f"place({at}, {pages}, {kind!r})", {number: (at, pages, kind)}

    def _of_area(self, number):
        pick = self.pick
        at, pages, kind = self.areas[number]
        first = pick.randrange(pages)
        count = min(pick.choice([1, 20, 300]), pages - first)
        inside, length = at + first * PAGE, count * PAGE
        some = sorted({pick.randrange(pages) for _ in range(pick.choice([1, 5, 60]))})
        other = pick.choice([other for other in range(AREAS) if other != number])
        there, size = BASE + other * ROOM, pick.choice([pages, max(1, pages // 2)])
        advice = pick.choice([*ADVICE.values()])
        deeds = [
            *2 * [(f"scribble({at}, *{some})", {})],
            (f"look({at}, *{some})", {}),
            (f"fill({inside + 5}, {length - 9})", {}),
            (f"blink({inside}, {length})", {}),
            (f"call('mlock', {inside}, {length})", {}),
            (f"call('munlock', {inside}, {length})", {}),
            (f"call('madvise', {inside}, {length}, {advice})", {}),
            (f"call('madvise', {at}, {pages * PAGE}, {advice})", {}),
            (f"call('munmap', {inside}, {length})", {number: None}),
            (f"place({inside}, {count}, {pick.choice(KINDS)!r})", {number: (at, pages, "mixed")}),
            self._new(number),
            (
                self._mremap(at, pages, size, "MAYMOVE | TO", there),
                {number: None, other: (there, size, kind)},
            ),
            (self._mremap(at, pages, size, "0"), {number: (at, size, kind)}),
        ]
        if kind == "private":
            longer = pages + 7
            deeds += [
                (self._mremap(at, pages, longer, "0"), {number: (at, longer, kind)}),
                (
                    self._mremap(at, pages, pages, "MAYMOVE | TO | DONTUNMAP", there),
                    {other: (there, pages, kind)},
                ),
            ]
        if kind not in ("shared", "mixed"):
            drop = pick.choice([*DROPS.values()])
            deeds += 2 * [(f"call('madvise', {inside}, {length}, {drop})", {}), (f"fork({at}, *{some})", {})]
        return deeds

    def _mremap(self, at, pages, size, flags, there=0):
        return f"call('mremap', {at}, {pages * PAGE}, {size * PAGE}, {flags}, {there})"


def areas_of(pid):
    """What is there, and readable, be it what is left of an area."""
    with pagemap.PageMap(pid) as pm:
        return [(v.start, v.end) for v in pm.vmas() if v.prot & 1 and BASE <= v.start < BASE + AREAS * ROOM]


def to_compare(mirror, areas):
    """All pages but those of the file that were never reported: nobody has written to them."""
    for start, end in areas:
        for page in range(start, end, PAGE):
            if page in mirror.pages or mirror.copy(page, page + PAGE) != OF_FILE:
                yield page, page + PAGE


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("granularity", ["native", "page"])
def test_a_copy_of_what_is_reported_stays_true(need, granularity, swap):
    need("wp_async", *["swap"] * swap)
    deeds = Deeds(f"{granularity} {swap}")
    with children.target(TARGET) as target, MemoryOf(target.pid) as copy:
        with pagemap.attach(target.pid, granularity=granularity) as tracker:
            mirror = Mirror(copy)
            for step in range(STEPS):
                deeds.one(target)
                dice = deeds.pick.random()
                if dice < 0.1:
                    tracker.peek()
                elif dice < 0.5:
                    mirror.update(tracker.collect(None if dice > 0.2 else deeds.pick.choice([0, 1, 100])))
                    mirror.forget_unmapped(tracker.vmas)
                # Looking populates what it looks at: seldom, then.
                if step % 25 == 24:
                    mirror.update(tracker.collect())
                    mirror.forget_unmapped(tracker.vmas)
                    wrong = mirror.wrong_pages(to_compare(mirror, areas_of(target.pid)))
                    assert wrong == [], (wrong[:3], deeds.log)
        assert mirror.copied > STEPS
