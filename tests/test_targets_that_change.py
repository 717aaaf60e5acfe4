"""A process that maps, unmaps, forks, exits or execs meanwhile: a valid picture or a clear error."""

import contextlib
import os
import sys
import time

import children
import machine
import numpy as np
import pytest
import witness
from memory import Memory

import pagemap
from pagemap import Category, PageMap, Query

CHURN = """
import mmap, os, sys, select
print("ready", flush=True)
kept = []
turn = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    turn += 1
    pages = 1 + turn * 37 % 400
    memory = mmap.mmap(-1, pages * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, pages, 1 + turn % 3):
        memory[page * 4096] = 1
    memory.madvise(mmap.MADV_DONTNEED, 0, 4096)
    kept.append(memory)
    if len(kept) > 50:
        kept.pop(turn * 7 % 50).close()
    if turn % 20 == 0:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def churning():
    with children.target(CHURN) as target:
        yield target


def is_valid(answer, allowed):
    found = answer.tolist()
    assert witness.is_canonical(found)
    assert all(start % witness.PAGE == 0 and end % witness.PAGE == 0 for start, end, _ in found)
    assert not np.bitwise_or.reduce(answer["categories"], initial=0) & ~np.uint64(allowed)
    return True


@pytest.mark.parametrize("workers", [1, 3])
def test_a_process_that_maps_unmaps_and_forks(churning, engine, workers):
    """Smeared over the time of the scan, but sorted, disjoint and of the asked categories alone."""
    with PageMap(churning.pid, engine=engine) as pm:
        query = Query.POPULATED
        sizes = set()
        deadline = time.monotonic() + 0.7
        while time.monotonic() < deadline:
            answer = pm.scan(query, workers=workers)
            assert is_valid(answer, query.masks()[3])
            sizes.add(len(answer))
            batches = list(pm.iter_scan(query, batch_size=5))
            assert is_valid(np.concatenate(batches), query.masks()[3])
            vmas = pm.vmas().array
            assert (vmas["start"] < vmas["end"]).all()
            assert (vmas["end"][:-1] <= vmas["start"][1:]).all()
        assert len(sizes) > 1, "the target did not change: this proves nothing"


def test_what_does_not_change_is_whole_in_every_picture(engine):
    """Another thread of this process maps and unmaps; the memory that stands still is always all there."""
    import threading

    stop = threading.Event()

    def churn():
        while not stop.is_set():
            with Memory(64) as other:
                other.write(*range(0, 64, 2))

    with Memory(300) as memory, PageMap(engine=engine) as pm:
        memory.write(*range(0, 300, 2))
        truth = witness.regions(witness.pages(memory.start, memory.end), require=witness.PRESENT)
        thread = threading.Thread(target=churn)
        thread.start()
        try:
            for turn in range(30):
                answer = pm.scan(Query.PRESENT, workers=1 + turn % 2)
                assert is_valid(answer, 8)
                inside = answer[(answer["start"] >= memory.start) & (answer["end"] <= memory.end)]
                assert inside.tolist() == truth
        finally:
            stop.set()
            thread.join()


MANY_REGIONS = """
import mmap, sys
memory = mmap.mmap(-1, 16 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
for page in range(0, 4096, 2):
    memory[page * 4096] = 1
print("ready", flush=True)
sys.stdin.readline()
"""


def test_one_that_exits_between_two_batches(engine):
    with children.target(MANY_REGIONS) as target, PageMap(target.pid, engine=engine) as pm:
        batches = pm.iter_scan(Query.PRESENT, batch_size=100)
        first = next(batches)
        assert len(first) == 100
        before = first.copy()
        target.kill()
        with pytest.raises(ProcessLookupError, match=f"process {target.pid}"):
            for _ in batches:
                pass
        assert np.array_equal(first, before)
        for ask in (pm.scan, pm.vmas, lambda: pm.scan(workers=2), lambda: pm.entries(0, 4096)):
            with pytest.raises(ProcessLookupError):
                ask()


def watch_it_go(pm, pages):
    """Its memory goes page by page: never more than there was."""
    while True:
        answer = pm.scan(Query.PRESENT)
        assert is_valid(answer, 8)
        assert pagemap.regions.page_count(answer) <= pages


def test_one_that_exits_at_any_moment(engine):
    """Killed after a random time: every scan answers in full before, and says ProcessLookupError after."""
    for delay in (0, 0.0005, 0.002, 0.005):
        with children.target(MANY_REGIONS) as target, PageMap(target.pid, engine=engine) as pm:
            target.stands_still()
            killer = os.fork()
            if killer == 0:
                try:
                    time.sleep(delay)
                    os.kill(target.pid, 9)
                finally:
                    os._exit(0)
            try:
                with pytest.raises(ProcessLookupError):
                    watch_it_go(pm, pagemap.regions.page_count(pm.scan(Query.PRESENT)))
            finally:
                os.waitpid(killer, 0)


EXECS = """
import os, sys
print("ready", flush=True)
sys.stdin.readline()
again = "import sys; print('again', flush=True); sys.stdin.readline()"
os.execv(sys.executable, [sys.executable, "-S", "-E", "-c", again])
"""


def test_one_that_becomes_another_program(engine):
    """The descriptor belongs to the memory that is gone: the new program never shows."""
    with children.target(EXECS) as target, PageMap(target.pid, engine=engine) as pm:
        assert len(pm.scan())
        batches = pm.iter_scan(batch_size=1)
        next(batches)
        assert target.ask("go") == "again"
        for ask in (pm.scan, pm.vmas, lambda: list(batches), lambda: pm.entries(1 << 30, 1 << 31)):
            with pytest.raises(ProcessLookupError, match=r"has exited or replaced its program .execve."):
                ask()
        with PageMap(target.pid, engine=engine) as anew:
            assert len(anew.scan())


def test_a_pid_that_was_given_out_again(engine, need):
    """Really recycled, by the sysctl that checkpointing uses: the new process never shows."""
    need("root")
    with children.idle() as target:
        pm = PageMap(target.pid, engine=engine)
        pid = target.pid
        target.reap()
        with contextlib.ExitStack() as ends:
            ends.enter_context(pm)
            try:
                again = ends.enter_context(machine.next_pid(pid))
            except machine.Missing as missing:
                pytest.skip(str(missing))
            assert again == pid
            assert pagemap.scan(pid=pid, engine=engine).size
            for ask in (pm.scan, pm.vmas, lambda: list(pm.iter_scan()), lambda: pm.entries(0, 1 << 20)):
                with pytest.raises(ProcessLookupError):
                    ask()


def test_after_a_fork_the_childs_answer_is_an_error_and_not_the_parent():
    """RuntimeError from the parent's PageMap, right answers from a new one; the parent's lives on."""
    children.run(
        """
import os, sys, mmap, signal, numpy, pagemap
from pagemap import PageMap, Query

memory = mmap.mmap(-1, 16 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[0] = 1
start, end = pagemap.span(memory)

for engine in ("scan", "read") if pagemap.features().scan else ("read",):
    with PageMap(engine=engine) as pm:
        batches = pm.iter_scan(batch_size=1)
        next(batches)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(30)
                memory[5 * 4096] = 1  # in the child alone
                for ask in (pm.scan, pm.vmas, pm.fileno, pm.iter_scan, lambda: next(batches),
                            lambda: pm.entries(start, end), lambda: pm.scan(max_pages=0), pm.__enter__):
                    try:
                        ask()
                    except RuntimeError as error:
                        assert f"belongs to process {os.getppid()}" in str(error), error
                        assert "open a new PageMap here" in str(error), error
                    else:
                        raise AssertionError("the parent was shown")
                with PageMap(engine=engine) as mine:
                    found = mine.scan(Query.PRESENT, start=start, end=end)["start"].tolist()
                    assert found == [start, start + 5 * 4096], found
                assert pm.close() is None
                grandchild = os.fork()
                if grandchild == 0:
                    try:
                        with PageMap(engine=engine) as mine:
                            assert mine.pid == os.getpid()
                            assert len(mine.scan(Query.PRESENT, start=start, end=end)) == 2
                    except BaseException:
                        sys.excepthook(*sys.exc_info())
                        os._exit(1)
                    os._exit(0)
                status = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
            except BaseException:
                sys.excepthook(*sys.exc_info())
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(pm.scan(Query.PRESENT, start=start, end=end)) == 1
        assert sum(map(len, batches))
"""
    )


def test_a_pagemap_of_another_process_works_after_a_fork_too(engine):
    """It shows what it showed before: only a PageMap of the process itself changes its meaning."""
    with children.idle() as target:
        target.stands_still()
        children.run(
            """
import os, sys, pagemap
pid, engine = int(sys.argv[1]), sys.argv[2]
with pagemap.PageMap(pid, engine=engine) as pm:
    truth = pm.scan().tolist()
    child = os.fork()
    if child == 0:
        os._exit(pm.scan().tolist() != truth)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
""",
            target.pid,
            engine,
        )


def test_a_fork_while_another_thread_lists_the_vmas():
    """A lock that a thread held that is not in the child is not waited for there."""
    with children.idle() as target:
        target.stands_still()
        children.run(
            """
import os, signal, sys, threading, pagemap
with pagemap.PageMap(int(sys.argv[1])) as pm:
    truth = pm.vmas().array.tolist()
    inside, done = threading.Event(), threading.Event()
    read_text = pagemap.scanner.read_text
    def slow(fd, pid):
        inside.set()
        done.wait()
        return read_text(fd, pid)
    pagemap.scanner.read_text = slow
    thread = threading.Thread(target=pm.vmas)
    thread.start()
    inside.wait()
    pagemap.scanner.read_text = read_text
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        os._exit(pm.vmas().array.tolist() != truth)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
""",
            target.pid,
        )


def test_memory_that_goes_away_in_the_middle_of_a_walk(engine):
    """Batch by batch, with the rest of the range unmapped after the first: what is gone is not found."""
    with Memory(64) as memory, PageMap(engine=engine) as pm:
        memory.write(*range(0, 64, 2))
        batches = pm.iter_scan(Query.PRESENT, start=memory.start, end=memory.end, batch_size=4)
        first = next(batches)
        memory.unmap(32, 32)
        rest = list(batches)
        found = [region for batch in [first, *rest] for region in batch["start"].tolist()]
        assert found == [memory.at(page) for page in range(0, 32, 2)]


def test_the_scan_of_this_process_does_not_find_holes_where_its_own_buffer_grows(engine):
    """The answer's memory is in the answer: a scan that grows it stays canonical."""
    with Memory(30_000) as memory, PageMap(engine=engine) as pm:
        memory.write(*range(0, 30_000, 2))
        answer = pm.scan(Query(report=Category.PRESENT))
        assert is_valid(answer, 8)
        assert pagemap.regions.page_count(pagemap.regions.clip(answer, memory.start, memory.end)) == 30_000
        assert sys.getrefcount(answer) == 2
