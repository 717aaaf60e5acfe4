"""Traces: what was recorded is what is read, whoever was killed meanwhile."""

import os
import signal
import subprocess
import sys
import threading
import time

import children
import numpy as np
import pytest

import pagemap
from pagemap import PAGE_SIZE, REGION_DTYPE, Category, analysis, regions

pytest.importorskip("pyarrow", reason="traces need pyarrow")

from pagemap import trace

WRITER = """
import mmap, sys, time
memory = mmap.mmap(-1, 64 * 4096)
import ctypes
at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
print(at, flush=True)
i = 0
while True:
    memory[i % 64 * 4096] = i % 255
    i += 1
    time.sleep(0.001)
"""


class Script:
    """Stands in for a tracker's rounds: samples that the test has chosen."""

    def __init__(self, monkeypatch, samples):
        self.samples = iter(samples)
        self.memory = np.zeros(PAGE_SIZE * 2, np.uint8)
        self.tracker = pagemap.track(self.memory)
        monkeypatch.setattr(self.tracker, "collect", lambda: next(self.samples))


def region_array(*rows):
    return np.array([(s * PAGE_SIZE, e * PAGE_SIZE, c) for s, e, c in rows], REGION_DTYPE)


@pytest.fixture
def script(monkeypatch, need):
    need("wp_async")
    made = []

    def make(samples):
        made.append(Script(monkeypatch, samples))
        return made[-1].tracker

    yield make
    for one in made:
        one.tracker.close()


def samples_of(recording):
    return [chunk.regions(i) for chunk in recording for i in range(len(chunk))]


def random_samples(rng, count):
    for _ in range(count):
        bounds = np.sort(rng.choice(5000, 2 * rng.integers(0, 40), replace=False)).astype(np.uint64)
        r = np.zeros(bounds.size // 2, REGION_DTYPE)
        r["start"], r["end"] = bounds[::2] * PAGE_SIZE, bounds[1::2] * PAGE_SIZE
        r["categories"] = rng.integers(1, 8, r.size)
        yield r


def test_what_was_recorded_is_read(tmp_path, script, monkeypatch):
    """Random samples, empty ones among them, over many parts; each part on its own, too."""
    monkeypatch.setattr(trace.recorder, "MAX_ROWS", 100)
    given = list(random_samples(np.random.default_rng(7), 60))
    with trace.Recorder(script(given), tmp_path / "t") as recorder:
        for _ in given:
            recorder.sample()
    (recording,) = trace.open(tmp_path / "t")
    found = samples_of(recording)
    assert len(found) == len(given)
    for mine, theirs in zip(given, found, strict=True):
        solid = theirs[theirs["end"] > theirs["start"]]
        assert np.array_equal(mine, solid)
    assert recording.ended == "stopped"
    assert recording.timing.samples == 60
    assert len(recording.parts) > 5
    timeline = recording.timeline
    assert timeline.begin_ns == recording.metadata.begin_ns
    assert timeline.time_ns.size == 60
    assert np.array_equal(timeline.time_ns, np.concatenate([chunk.time_ns for chunk in recording]))
    singles = [one for part in recording.parts for one in trace.open(part.path)]
    assert [len(r.parts) for r in singles] == [1] * len(recording.parts)
    assert sum(len(samples_of(one)) for one in singles) == 60
    again = trace.open([part.path for part in reversed(recording.parts)]).only()
    assert np.array_equal(again.timeline.time_ns, timeline.time_ns)
    whole = analysis.Series.from_samples(
        zip(timeline.time_ns.tolist(), given, strict=True), begin_ns=timeline.begin_ns
    )
    assert np.array_equal(analysis.dirty_rate(recording).pages, analysis.dirty_rate(whole).pages)
    assert analysis.heat(recording).to_pandas().equals(analysis.heat(whole).to_pandas())


def test_the_columns_are_those_that_are_documented(tmp_path, script):
    dataset = pytest.importorskip("pyarrow.dataset")
    pandas = pytest.importorskip("pandas")
    given = [region_array((1, 3, 2)), region_array(), region_array((2, 3, 2), (9, 10, 6))]
    with trace.Recorder(script(given), tmp_path) as recorder:
        for _ in given:
            recorder.sample()
    names = {"time", "host", "pid", "start", "end", "categories", "begin"}
    table = dataset.dataset(tmp_path, partitioning="hive").to_table()
    assert set(table.column_names) == names
    frame = pandas.read_parquet(tmp_path).sort_values(["time", "start"])
    assert set(frame.columns) == names
    assert set(frame.host.astype(str)) == {os.uname().nodename}
    assert set(frame.pid.astype(int)) == {os.getpid()}
    assert (frame.start // PAGE_SIZE).tolist() == [1, 0, 2, 9]
    assert (frame.end // PAGE_SIZE).tolist() == [3, 0, 3, 10]
    assert frame.categories.tolist() == [2, 0, 2, 6]
    assert frame.time.nunique() == 3
    assert frame.begin.iloc[1] == frame.time.iloc[0]


def test_dirty_pages_of_another_process(tmp_path, need):
    """Each page that the program writes is found, and nothing of that array besides; its VMAs are known."""
    need("wp_async")
    with children.target(WRITER) as target, pagemap.attach(target.pid) as tracker:
        start = int(target.first_words)
        directory = trace.record(tracker, tmp_path, interval=0.02, duration=0.6)
    recording = trace.open(directory).only()
    assert recording.metadata.kind == "dirty"
    assert recording.ended == "duration"
    heat = analysis.heat(recording)
    inside = [
        (s, e)
        for s, e in zip(heat.start.tolist(), heat.end.tolist(), strict=True)
        if start <= s < start + 64 * PAGE_SIZE
    ]
    assert sum(e - s for s, e in inside) == 64 * PAGE_SIZE
    vma = recording.vmas[recording.vmas.find(start)]
    assert vma.end >= start + 64 * PAGE_SIZE
    assert recording.name.startswith("python")
    assert any(name == "[stack]" for name in recording.vmas.names)
    timing = recording.timing
    assert timing.samples + timing.missed == 30
    assert 0 < timing.late_sum_ns / timing.samples <= timing.late_max_ns < 10**9


def test_residency_of_another_process(tmp_path):
    with children.idle() as target:
        target.stands_still()
        trace.record(target.pid, tmp_path, interval=0.01, duration=0.05)
        with pagemap.PageMap(target.pid) as pm:
            now = pm.scan(pagemap.Query.POPULATED)
            trace.record(pm, tmp_path, interval=0.01, duration=0.05, query=pagemap.Query.PRESENT)
            assert not pm.closed
    populated, present = trace.open(tmp_path)
    assert np.array_equal(samples_of(populated)[-1], now)
    assert populated.metadata.kind == "resident"
    assert populated.metadata.category == Category.PRESENT | Category.SWAPPED
    assert present.metadata.category == Category.PRESENT
    assert regions.page_count(samples_of(present)[0]) > 100
    with pytest.raises(ValueError, match="2 recordings"):
        trace.open(tmp_path).only()


KILLED = """
import sys
from pagemap import attach, trace
trace.recorder.FIRST_PART_S = float(sys.argv[3])
with attach(int(sys.argv[1])) as tracker:
    print("recording", flush=True)
    trace.record(tracker, sys.argv[2], interval=0.005)
"""


@pytest.mark.parametrize(
    ("seconds", "part"),
    [(0.0, 1.0), (0.09, 0.1), (0.13, 0.1), (0.45, 0.1), pytest.param(2.2, 1.0, marks=pytest.mark.slow)],
)
def test_a_killed_recorder_leaves_a_readable_trace(tmp_path, need, seconds, part):
    """Whenever it is killed; with its own parts of a second, and with shorter ones."""
    need("wp_async")
    path = tmp_path / "trace"
    with children.target(WRITER) as target:
        command = [sys.executable, "-c", KILLED, str(target.pid), str(path), str(part)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as recorder:
            assert recorder.stdout.readline() == "recording\n"
            deadline = time.monotonic() + 30
            while not list(path.rglob("*-000000.parquet")):
                assert time.monotonic() < deadline
                time.sleep(0.005)
            begun = time.monotonic_ns()
            time.sleep(seconds)
            recorder.kill()
        assert recorder.returncode == -signal.SIGKILL
        lived = time.monotonic_ns() - begun
    recording = trace.open(path).only()
    assert recording.ended == "killed"
    timeline = recording.timeline
    # What was lost is the last part, and what a busy machine adds to it.
    assert lived - (timeline.end_ns - timeline.begin_ns) < part * 10**9 + 1_500_000_000
    if seconds > 4 * part:
        assert timeline.time_ns.size > 3
    if seconds > 2:
        assert timeline.time_ns.size > 20
        assert analysis.heat(recording).pages.sum() >= 64
    assert len(recording.vmas) > 5


def test_the_target_exits(tmp_path, need):
    need("wp_async")
    with children.target(WRITER) as target, pagemap.attach(target.pid) as tracker:
        killer = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {target.pid}"])
        trace.record(tracker, tmp_path, interval=0.02)
        killer.wait()
    recording = trace.open(tmp_path).only()
    assert recording.ended == "exited"
    assert recording.timeline.time_ns.size > 2
    assert len(recording.vmas) > 5
    with pytest.raises(ProcessLookupError):
        trace.record(target.pid, tmp_path)


def test_a_clock_that_jumps(tmp_path, script, monkeypatch):
    """The wall clock goes back by an hour, then forward by a day: the times do not, and the trace says so."""
    given = [region_array((i, i + 1, 2)) for i in range(6)]
    honest, shift = time.time_ns, 0
    with trace.Recorder(script(given), tmp_path) as recorder:
        monkeypatch.setattr(time, "time_ns", lambda: honest() + shift)
        for i in range(6):
            shift = -3600 * 10**9 if i < 3 else 86400 * 10**9
            recorder.sample()
    recording = trace.open(tmp_path).only()
    timeline = recording.timeline
    assert timeline.time_ns.size == 6
    assert (np.diff(timeline.time_ns) > 0).all()
    assert timeline.end_ns - timeline.begin_ns < 60 * 10**9
    assert abs(recording.timing.wall_step_ns - 86400 * 10**9) < 10**9
    assert analysis.dirty_rate(recording).pages.tolist() == [1] * 6


def test_a_monotonic_clock_that_stands_still(tmp_path, script, monkeypatch):
    given = [region_array((i, i + 1, 2)) for i in range(5)]
    with trace.Recorder(script(given), tmp_path) as recorder:
        now = time.monotonic_ns()
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic_ns", lambda: now)
            for _ in given:
                recorder.sample()
    assert (np.diff(trace.open(tmp_path).only().timeline.time_ns) > 0).all()


class Time:
    """A clock that only waiting moves on, each time by a bit too much."""

    def __init__(self, monkeypatch, late_ns):
        self.now, self.late_ns = 10**15, late_ns
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.now)

    def wait(self, seconds):
        self.now += round(seconds * 10**9) + self.late_ns
        return False


def test_a_slow_start_costs_no_sample(tmp_path, monkeypatch):
    """The clock starts when there can be a sample; each one's error is in the trace."""
    with pagemap.PageMap() as pm:
        clock = Time(monkeypatch, late_ns=3_000_000)
        with trace.Recorder(pm, tmp_path, interval=0.02) as recorder:
            clock.now += 5 * 10**9
            begin = clock.now
            recorder.run(0.2, stop=clock)
    recording = trace.open(tmp_path).only()
    assert (recording.timing.samples, recording.timing.missed) == (10, 0)
    assert (recording.timing.late_sum_ns, recording.timing.late_max_ns) == (30_000_000, 3_000_000)
    times = recording.timeline.time_ns - (recording.metadata.begin_ns + 5 * 10**9)
    assert times.tolist() == [20_000_000 * i + 3_000_000 for i in range(1, 11)]
    assert begin == clock.now - 203_000_000


def test_samples_that_are_left_out_are_counted(tmp_path, monkeypatch):
    """Of ten places on the grid two are left out after the first sample, and after the third the other five,
    but none that would be after the end.
    """
    with pagemap.PageMap() as pm:
        clock = Time(monkeypatch, late_ns=55_000_000)
        with trace.Recorder(pm, tmp_path, interval=0.02) as recorder:
            recorder.run(
                0.2,
                stop=clock,
                on_sample=lambda r, _: setattr(clock, "late_ns", 500_000_000 * (r.timing.samples > 1)),
            )
    timing = trace.open(tmp_path).only().timing
    assert (timing.samples, timing.missed) == (3, 7)
    assert timing.late_max_ns == 500_000_000 - 5 * 20_000_000


def test_the_last_sample_is_at_the_end(tmp_path, monkeypatch):
    """Where the duration is no multiple of the interval; the time from the last place on is no sample's."""
    ends = []
    for interval, duration in ((0.02, 0.05), (10, 3), (0.02, 0.04), (1, 0)):
        with pagemap.PageMap() as pm:
            clock = Time(monkeypatch, late_ns=1_000_000)
            with trace.Recorder(pm, tmp_path / f"{interval} {duration}", interval=interval) as recorder:
                begin = clock.now
                recorder.run(duration, stop=clock)
        recording = trace.open(recorder.directory).only()
        assert recording.ended == "duration"
        assert recording.timing.missed == 0
        ends.append(((recording.timeline.time_ns - recording.metadata.begin_ns) // 10**6).tolist())
        assert clock.now - begin == (duration * 10**9 + 1_000_000 if duration else 0)
    assert ends == [[21, 41, 51], [3001], [21, 41], []]


def test_a_slow_disk_makes_no_sample_late(tmp_path, monkeypatch, script):
    """While a part is written, others wait in memory, and become one when it is done."""
    given = [region_array((i, i + 1, 2)) for i in range(9)]
    monkeypatch.setattr(trace.recorder, "FIRST_PART_S", 0)
    monkeypatch.setattr(trace.recorder, "PART_SHARE", 0)
    write, done = trace.Recorder._write, threading.Event()

    def slow(self, part, table, vmas):
        assert done.wait(60)
        write(self, part, table, vmas)

    with monkeypatch.context() as patch, trace.Recorder(script(given), tmp_path) as recorder:
        recorder._wait()
        patch.setattr(trace.Recorder, "_write", slow)
        for _ in given[:-1]:
            recorder.sample()
        done.set()
        recorder._wait()
        recorder.sample()
    recording = trace.open(tmp_path).only()
    assert [len(chunk) for chunk in recording][-1] > 1
    assert sum(len(chunk) for chunk in recording) == 9
    assert analysis.dirty_rate(recording).pages.tolist() == [1] * 9


def test_an_empty_trace(tmp_path, script):
    trace.Recorder(script([]), tmp_path).close()
    recording = trace.open(tmp_path).only()
    assert list(recording) == []
    assert recording.timeline.time_ns.size == 0
    assert analysis.dirty_rate(recording).pages.size == 0
    assert analysis.heat(recording).pages.size == 0
    assert analysis.heatmap(recording).counts.size == 0


def test_one_sample(tmp_path, script):
    with trace.Recorder(script([region_array((3, 8, 2))]), tmp_path) as recorder:
        recorder.sample()
    recording = trace.open(tmp_path).only()
    assert analysis.dirty_rate(recording).pages.tolist() == [5]
    assert analysis.heatmap(recording).counts.sum() == 5


def test_several_processes_by_glob(tmp_path):
    with children.idle() as one, children.idle() as two:
        for target in (one, two):
            trace.record(target.pid, tmp_path / "t", interval=0.01, duration=0.03)
        pids = {one.pid, two.pid}
    for path in (tmp_path, tmp_path / "t", f"{tmp_path}/t/host=*/pid=*", f"{tmp_path}/**/*.parquet"):
        found = trace.open(path)
        assert {r.pid for r in found} == pids
        assert all(len(r.vmas) for r in found)
    assert trace.open(f"{tmp_path}/t/host=*/pid={one.pid}").only().pid == one.pid
    with pytest.raises(ValueError, match=r"cannot follow|differ"):
        analysis.dirty_rate([chunk for r in found for chunk in r])


def test_vmas_that_change(tmp_path):
    """Memory that is mapped while the recorder runs is known afterwards, and so is what has gone again."""
    code = """
    import mmap, sys, ctypes
    print("ready", flush=True)
    kept = []
    for line in sys.stdin:
        if line == "map\\n":
            kept.append(mmap.mmap(-1, 1 << 24))
            kept[-1].write(b"x" * (1 << 24))
            print(ctypes.addressof(ctypes.c_char.from_buffer(kept[-1])), flush=True)
        else:
            kept.pop().close()
            print("gone", flush=True)
    """
    with children.target(code) as target, trace.Recorder(target.pid, tmp_path) as recorder:
        recorder.sample()
        first = int(target.ask("map"))
        recorder.sample()
        recorder._flush()
        target.ask("unmap")
        recorder.sample()
    recording = trace.open(tmp_path).only()
    index = recording.vmas.find(first)
    assert index is not None
    array = recording.vmas.array
    assert (array["end"][:-1] <= array["start"][1:]).all()
    pages = analysis.heat(recording).by_vma(recording.vmas)["pages"][index]
    assert pages >= (1 << 24) // PAGE_SIZE


def test_a_damaged_file_is_named(tmp_path, script):
    with trace.Recorder(script([region_array((1, 3, 2))]), tmp_path) as recorder:
        recorder.sample()
    recording = trace.open(tmp_path).only()
    path = recording.parts[-1].path
    good = path.read_bytes()
    path.write_bytes(good[:4] + bytes(len(good) // 3) + good[4 + len(good) // 3 :])
    with pytest.raises(OSError, match=f"the file is damaged: .*{path.name}"):
        analysis.dirty_rate(recording)


def recorded_parts(script, path, count=4):
    """A recording of so many parts, with some samples in each."""
    given = list(random_samples(np.random.default_rng(7), 3 * count))
    with trace.Recorder(script(given), path) as recorder:
        for i in range(len(given)):
            recorder.sample()
            if i % 3 == 2:
                recorder._flush()
    return trace.open(path).only()


def test_a_file_that_is_missing_is_named(tmp_path, script):
    recording = recorded_parts(script, tmp_path)
    missing = recording.parts[2].path
    missing.unlink()
    for question in (analysis.dirty_rate, analysis.working_set, lambda r: r.timeline):
        with pytest.raises(OSError, match=rf"of the recording of .* is missing.*{missing.name}"):
            question(trace.open(tmp_path).only())
    assert trace.open(recording.parts[-1].path).only().timing.samples == 12  # one file alone is a trace, too


def test_flipped_bits_are_an_error_that_says_where(tmp_path, script):
    """Or nothing that anybody would notice: never another exception."""
    recording = recorded_parts(script, tmp_path)
    path = recording.parts[1].path
    good = path.read_bytes()
    rng = np.random.default_rng(8)
    errors = []
    for _ in range(150):
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        path.write_bytes(bad)
        try:
            found = trace.open(tmp_path)
            for one in found:
                one.timeline  # noqa: B018
                analysis.dirty_rate(one)
        except (OSError, ValueError) as error:
            errors.append(str(error))
    assert len(errors) > 20
    # Where its neighbour does not fit it, either may be wrong.
    assert all(str(path.parent) in error for error in errors)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"])
def test_vmas_that_cannot_be_read_are_missing(tmp_path, script, content):
    recording = recorded_parts(script, tmp_path)
    assert len(recording.vmas) > 0
    for path in recording.parts[0].path.parent.glob("*.vmas"):
        path.write_bytes(content)
    assert len(trace.open(tmp_path).only().vmas) == 0


def test_after_a_part_that_could_not_be_written_none_follows(tmp_path, script, monkeypatch):
    recorder = trace.Recorder(script(list(random_samples(np.random.default_rng(9), 6))), tmp_path)
    recorder.sample()
    recorder._flush()
    recorder._wait()
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        recorder.sample()
        recorder._flush()
        with pytest.raises(OSError, match=r"No space left .*\.parquet"):
            recorder._wait()
    with pytest.raises(ValueError, match="could not write a part"):
        recorder.sample()
    recorder.close()
    recording = trace.open(tmp_path).only()
    assert recording.ended == "killed"
    assert len(recording.timeline.time_ns) == 1
    assert not list(tmp_path.rglob(".*"))


def test_what_is_no_trace(tmp_path):
    pa = pytest.importorskip("pyarrow")
    with pytest.raises(FileNotFoundError, match="no such file"):
        trace.open(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no Parquet file"):
        trace.open(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"a\.parquet is no Parquet file, or was cut short"):
        trace.open(tmp_path)
    pa.parquet.write_table(pa.table({"time": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="not written by pagemap"):
        trace.open(tmp_path)
    with pytest.raises(FileExistsError, match="directory"):
        trace.record(os.getpid(), tmp_path / "a.parquet", duration=0)


@pytest.mark.parametrize(
    "bad", [{"interval": -1}, {"interval": float("nan")}, {"duration": -1}, {"duration": float("nan")}]
)
def test_bad_arguments_make_nothing(tmp_path, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        trace.record(os.getpid(), tmp_path / "t", **bad)
    assert not (tmp_path / "t").exists()


def test_the_callers_error_leaves_the_trace(tmp_path):
    def fail(recorder, found):
        if recorder.timing.samples == 3:
            raise KeyError("mine")

    with children.idle() as target, pytest.raises(KeyError, match="mine"):
        trace.record(target.pid, tmp_path, interval=0.01, on_sample=fail)
    recording = trace.open(tmp_path).only()
    assert recording.timeline.time_ns.size == 3
    assert recording.ended.startswith("error: KeyError")


LONG = """
import itertools, resource, sys, time
import numpy as np
import pagemap
from pagemap import analysis, trace

ROWS, EACH, SIZE = 10_000_000, 1000, np.uint64(pagemap.PAGE_SIZE)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

class Synthetic(pagemap.PageMap):
    count = 0
    def vmas(self):
        return pagemap.VmaTable.parse(b"00000000-10000000 rw-p 00000000 00:00 0 [synthetic]\\n")
    def scan(self, query):
        r = np.full(EACH, 2, pagemap.REGION_DTYPE)
        r["start"] = (np.arange(EACH, dtype=np.uint64) * np.uint64(4) + np.uint64(self.count % 3)) * SIZE
        r["end"] = r["start"] + SIZE
        self.count += 1
        return r

with Synthetic() as pm:
    recorder = trace.Recorder(pm, sys.argv[1], interval=8.64)
    before = peak()
    real, clock = time.monotonic_ns, itertools.count(time.monotonic_ns(), 4_320_000_000)
    time.monotonic_ns = lambda: next(clock)  # two looks at the clock a sample, 8.64 s: a day
    for _ in range(ROWS // EACH):
        recorder.sample()
    recorder.close()
    time.monotonic_ns = real
recording = trace.open(sys.argv[1]).only()
assert recording.rows == ROWS
rate = analysis.dirty_rate(recording)
assert rate.pages.sum() == ROWS
heat = analysis.heat(recording)
assert heat.pages.sum() == 3 * EACH
assert analysis.heatmap(recording).counts.sum() == ROWS
assert analysis.run_lengths(recording).runs.tolist() == [ROWS]
print(peak() - before, (rate.timeline.end_ns - rate.timeline.begin_ns) / 86400e9)
"""


@pytest.mark.slow
def test_a_day_of_samples_in_bounded_memory(tmp_path):
    """Ten million rows, recorded and analysed: 400 MB of columns in a fraction of that."""
    grown, days = map(float, children.run(LONG, tmp_path).split())
    assert 0.9 < days < 1.2
    assert grown < 250
