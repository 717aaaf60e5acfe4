"""A fleet on Dask: several processes, hosts and workers; each answer is that of the process alone."""

import dataclasses
import subprocess
import sys
import textwrap

import children
import numpy as np
import pytest

import pagemap
from pagemap import PAGE_SIZE, REGION_DTYPE, analysis

pytest.importorskip("dask.dataframe", reason="fleets need Dask")
pytest.importorskip("distributed", reason="fleets need Dask")
pytest.importorskip("pyarrow", reason="traces need pyarrow")

from pagemap import fleet, trace

pytestmark = pytest.mark.filterwarnings("default")

QUESTIONS = {
    "dirty_rate": {},
    "run_lengths": {},
    "heat": {},
    "heatmap": {"rows": 20, "columns": 30, "min_hole": 1 << 16},
    "working_set": {"taus_ns": [10**6, 10**7, 10**9]},
    "redirty_intervals": {},
    "snapshots": {"every_ns": 3 * 10**6},
    "migrate": {"memory_bytes": 1 << 24, "bandwidth": 1 << 30},
}


class Walk(pagemap.PageMap):
    """A process whose written pages are a random walk: synthetic, with the interface of the real one."""

    def __init__(self, seed):
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.at = 1000

    def scan(self, query, **kwargs):
        self.at = max(self.at + int(self.rng.integers(-40, 41)), 0)
        starts = self.at + np.cumsum(self.rng.integers(2, 9, int(self.rng.integers(0, 12)))) * 4
        r = np.zeros(starts.size, REGION_DTYPE)
        r["start"] = starts * PAGE_SIZE
        r["end"] = r["start"] + self.rng.integers(1, 5, starts.size).astype(np.uint64) * PAGE_SIZE
        r["categories"] = 2
        return r


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Traces of three processes on two hosts, one of them recorded twice, each in several parts."""
    root = tmp_path_factory.mktemp("fleet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace.recorder, "MAX_ROWS", 60)
        for seed, (host, pid) in enumerate([("web1", 11), ("web1", 12), ("web2", 11), ("web2", 11)]):
            with Walk(seed) as pm:
                describe = trace.Recorder._describe

                def described(self, interval, host=host, pid=pid, describe=describe):
                    return dataclasses.replace(describe(self, interval), host=host, pid=pid)

                with pytest.MonkeyPatch.context() as inner:
                    inner.setattr(trace.Recorder, "_describe", described)
                    with trace.Recorder(pm, root, interval=0) as recorder:
                        for _ in range(50):
                            recorder.sample()
    assert all(len(recording.parts) > 3 for recording in trace.open(root))
    return root


def same(mine, theirs):
    """Equal to the last digit, through and through."""
    assert type(mine) is type(theirs)
    if dataclasses.is_dataclass(mine):
        for field in dataclasses.fields(mine):
            same(getattr(mine, field.name), getattr(theirs, field.name))
    elif isinstance(mine, np.ndarray):
        assert mine.dtype == theirs.dtype
        assert np.array_equal(mine, theirs)
    else:
        assert mine == theirs


def alone(path, name, arguments):
    answers = {}
    for recording in trace.open(path):
        begin = recording.timeline.begin_ns
        answers[recording.host, recording.pid, begin] = getattr(analysis, name)(recording, **arguments)
    return answers


@pytest.mark.parametrize("name", QUESTIONS)
def test_each_answer_is_that_of_the_process_alone(path, name):
    import dask

    with dask.config.set(scheduler="synchronous"):
        found = getattr(analysis, name)(fleet.read(path), **QUESTIONS[name])
    expected = alone(path, name, QUESTIONS[name])
    assert set(found) == set(expected)
    assert len(found) == 4
    for key, answer in expected.items():
        same(found[key], answer)


def test_default_windows_are_those_of_the_process(path):
    import dask

    with dask.config.set(scheduler="synchronous"):
        found = analysis.working_set(fleet.read(path))
    for recording in trace.open(path):
        taus = analysis.default_taus(recording.timeline)
        key = (recording.host, recording.pid, recording.timeline.begin_ns)
        same(found[key], analysis.working_set(recording, taus))


def test_partitions_in_any_order_and_by_other_readers(path):
    import dask
    import dask.dataframe

    plain = dask.dataframe.read_parquet(path)
    mine = fleet.read(path)
    order = np.random.default_rng(3).permutation(mine.npartitions).tolist()
    shuffled = dask.dataframe.concat([mine.partitions[i] for i in order])
    assert shuffled.npartitions == mine.npartitions
    frames = [plain, shuffled, mine.repartition(npartitions=1)]
    expected = alone(path, "heat", {})
    with dask.config.set(scheduler="synchronous"):
        for frame in frames:
            found = analysis.heat(frame)
            assert set(found) == set(expected)
            for key, answer in expected.items():
                same(found[key], answer)


CLUSTER = """
import os, sys
import dask
from distributed import Client, LocalCluster
from test_fleet import QUESTIONS, alone, same
from pagemap import analysis, fleet

if __name__ == "__main__":
    with dask.config.set({"distributed.admin.tick.limit": "60s"}), LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit="1GiB",
        host="127.0.0.1", local_directory=sys.argv[2],
    ) as cluster, Client(cluster) as client:
        pids = client.run(os.getpid)
        assert len(set(pids.values()) | {os.getpid()}) == 3
        frame = fleet.read(sys.argv[1])
        for name, arguments in QUESTIONS.items():
            found = getattr(analysis, name)(frame, **arguments)
            expected = alone(sys.argv[1], name, arguments)
            assert set(found) == set(expected) and len(found) == 4
            for process in found:
                assert (process.host, process.pid, process.begin_ns) in expected
                same(found[process], expected[process])
    print("equal")
"""


@pytest.mark.slow
def test_on_a_cluster_of_two_processes(path, tmp_path):
    script = tmp_path / "cluster.py"
    script.write_text(textwrap.dedent(CLUSTER))
    done = subprocess.run(
        [sys.executable, script, path, tmp_path],
        capture_output=True,
        text=True,
        timeout=100,
        env=children._environment(),
    )
    assert done.stdout.strip().endswith("equal"), done.stderr


def test_what_is_no_trace(path):
    import dask

    frame = fleet.read(path)
    with pytest.raises(ValueError, match="no column categories"):
        analysis.heat(frame.drop(columns="categories"))
    with dask.config.set(scheduler="synchronous"), pytest.raises(ValueError, match="there twice"):
        analysis.heat(dask.dataframe.concat([frame, frame]))


def test_machines_with_pages_of_their_own_size(path):
    """A frame says whose pages are how large: half the size, twice the pages."""
    import dask

    frame = fleet.read(path)
    halved = frame.assign(page_size=(frame.page_size // 2).where(frame.host == "web2", frame.page_size))
    with dask.config.set(scheduler="synchronous"):
        whole, half = analysis.dirty_rate(frame), analysis.dirty_rate(halved)
    assert {process.host for process in whole} == {"web1", "web2"}
    for process, rate in whole.items():
        factor = 2 if process.host == "web2" else 1
        assert half[process].timeline.page_size * factor == PAGE_SIZE
        assert half[process].pages.tolist() == (rate.pages * factor).tolist()


def test_recordings_of_one_process_that_overlap(tmp_path):
    """Its writes and its residency, say: each is asked what is fit for it, and answers for itself."""
    import dask

    with Walk(5) as one, Walk(6) as other, pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace.recorder, "MAX_ROWS", 60)
        with (
            trace.Recorder(one, tmp_path, interval=0) as first,
            trace.Recorder(other, tmp_path, interval=0) as second,
        ):
            for i in range(50):
                first.sample()
                if i % 3 == 0:
                    second.sample()
    with dask.config.set(scheduler="synchronous"):
        rates = analysis.dirty_rate(fleet.read(tmp_path))
        sets = analysis.working_set(fleet.read(tmp_path))
    recordings = trace.open(tmp_path)
    assert len(rates) == len(sets) == len(recordings) == 2
    for recording in recordings:
        key = (recording.host, recording.pid, recording.timeline.begin_ns)
        same(rates[key], analysis.dirty_rate(recording))
        same(sets[key], analysis.working_set(recording))


def test_without_a_frame_dask_stays_where_it_is():
    code = """
import sys
from pagemap import analysis
series = analysis.Series.from_samples([])
analysis.heatmap(series), analysis.snapshots(series, 1), analysis.working_set([series])
sys.exit("dask" in sys.modules or "pagemap.fleet" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], env=children._environment()).returncode == 0
