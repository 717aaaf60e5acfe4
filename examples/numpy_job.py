"""A NumPy job: does an in-place update save memory traffic, and what would a checkpoint each second cost?

The job smooths a field of 32 MiB, first with temporaries (``a = 0.5 * (a + b)``), then in place
(``np.add(a, b, out=a)``). It is an ordinary program and knows nothing of being watched.

    python examples/numpy_job.py [PICTURE.png]
"""

import subprocess
import sys
import tempfile

import pagemap
from pagemap import analysis, plot, trace

JOB = """
import time
import numpy as np
a, b = np.random.default_rng(1).random((2, 4 << 20))
print("ready", flush=True)
for _ in range(14):
    a = 0.5 * (a + b)
    time.sleep(0.15)
for _ in range(14):
    np.add(a, b, out=a)
    np.multiply(a, 0.5, out=a)
    time.sleep(0.15)
"""


def main(picture):
    job = subprocess.Popen([sys.executable, "-c", JOB], stdout=subprocess.PIPE)
    job.stdout.readline()
    with job, tempfile.TemporaryDirectory() as traces:
        # The five lines.
        with pagemap.attach(job.pid) as tracker:
            trace.record(tracker, traces, interval=0.05)
        recording = trace.open(traces).only()
        rounds = analysis.snapshots(recording, every_ns=10**9)
        runs = analysis.run_lengths(recording)

        print("MiB that an incremental checkpoint each second has to write:")
        print(", ".join(f"{nbytes / 2**20:.0f}" for nbytes in rounds.nbytes))
        long = runs.pages[runs.edges[:-1] >= 512].sum() / runs.pages.sum()
        print(f"{long:.0%} of what is written is in runs of 2 MiB and more: huge pages would pay.")
        print("With temporaries two buffers take turns: twice the memory, twice the checkpoint.")
        plot.heatmap(recording, min_hole=1 << 20).figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "numpy_job.png")
