"""CPython's garbage collector: which pages does gc.collect() write, when nothing is garbage?

After a fork, pages that are written are copied: a server that forks workers loses what they share to the
collector, which keeps its counts in the objects' headers. ``gc.freeze()`` is there for that. The program
collects three times, freezes, and collects three times again.

    python examples/cpython_gc.py [PICTURE.png]
"""

import subprocess
import sys
import tempfile

import pagemap
from pagemap import analysis, plot, trace

PROGRAM = """
import gc, time
gc.disable()
heap = [[i] for i in range(600_000)]
print("ready", flush=True)
time.sleep(1.5)
for freeze in (False, True):
    if freeze:
        time.sleep(0.5)
        gc.freeze()
    for _ in range(3):
        time.sleep(0.5)
        gc.collect()
time.sleep(0.5)
"""


def main(picture):
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE)
    program.stdout.readline()
    with program, tempfile.TemporaryDirectory() as traces:
        # The five lines.
        with pagemap.attach(program.pid) as tracker:
            trace.record(tracker, traces, interval=0.05)
        recording = trace.open(traces).only()
        rounds = analysis.snapshots(recording, every_ns=5 * 10**8)

        print("MiB written in each half second (the last: the program ends):")
        print(", ".join(f"{nbytes / 2**20:.0f}" for nbytes in rounds.nbytes))
        print("gc.collect() writes the heap that it only looks at; after gc.freeze() it leaves it alone.")
        plot.heatmap(recording).figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpython_gc.png")
