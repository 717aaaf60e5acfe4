"""What does redis-server write while clients write to it, and could it be moved to another machine meanwhile?

Starts a redis-server of its own (Debian: redis-server, redis-tools), loads it, and records it from outside:
no cooperation, no restart, no option of Redis's.

    python examples/redis_under_load.py [PICTURE.png]
"""

import subprocess
import sys
import tempfile
import threading
import time

from own_redis import own_redis

import pagemap
from pagemap import analysis, plot, trace


def load(port):
    client = ["redis-benchmark", "-p", port, "-q", "-d", "400", "-P", "8", "-t"]
    time.sleep(1)
    subprocess.run([*client, "set", "-n", "60000", "-r", "50000"], stdout=subprocess.DEVNULL)
    time.sleep(1)
    subprocess.run([*client, "get", "-n", "60000", "-r", "50000"], stdout=subprocess.DEVNULL)
    time.sleep(1)
    subprocess.run([*client, "set", "-n", "60000", "-r", "10000"], stdout=subprocess.DEVNULL)
    time.sleep(1)


def main(picture):
    with own_redis() as (pid, port), tempfile.TemporaryDirectory() as traces:
        finished = threading.Event()
        threading.Thread(target=lambda: (load(port), finished.set())).start()

        # The five lines.
        with pagemap.attach(pid) as tracker:
            trace.record(tracker, traces, interval=0.05, stop=finished)
        recording = trace.open(traces).only()
        peak = analysis.dirty_rate(recording).bytes_per_s.max()
        memory = pagemap.regions.nbytes(pagemap.scan(pid=pid))
        move = analysis.migrate(recording, memory_bytes=memory, bandwidth=125_000_000)

        print(f"{len(recording.timeline.time_ns)} samples; at most {peak / 1e6:.0f} MB/s were written.")
        print(f"A live migration over 1 Gbit/s: {move.why}; {move.sent_bytes / 1e6:.0f} MB would be sent.")
        print("GET writes, too (the middle third): Redis notes in each object when it was last used.")
        plot.heatmap(recording).figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "redis_under_load.png")
