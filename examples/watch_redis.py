"""How fast does redis-server write its memory, and where? Watched from outside, in five rounds.

Starts a redis-server of its own (Debian: redis-server, redis-tools) and loads it meanwhile.

    python examples/watch_redis.py
"""

import shutil
import socket
import subprocess
import sys
import tempfile
import time

import pagemap
from pagemap import regions

INTERVAL, ROUNDS = 0.5, 5


def watch(pid):
    with pagemap.attach(pid) as tracker:
        print(f"process {pid} stood still for {tracker.stopped_us:.0f} µs")
        for number, (_, written) in enumerate(tracker.rounds(INTERVAL, ROUNDS), 1):
            pages, size = regions.page_count(written), regions.nbytes(written)
            by_vma = regions.by_vma(written, tracker.vmas)
            hottest = int(by_vma["pages"].argmax())
            vma = tracker.vmas[hottest]
            print(
                f"round {number}: {pages:6} pages, {size / INTERVAL / 2**20:7.1f} MiB/s;"
                f" hottest: {by_vma['pages'][hottest]} pages at {vma.start:#x} {vma.name or '(anonymous)'}"
            )


def main():
    if not (shutil.which("redis-server") and shutil.which("redis-benchmark")):
        sys.exit(
            "this example needs redis-server and redis-benchmark: apt-get install redis-server redis-tools"
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as directory:
        server = subprocess.Popen(
            ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", directory],
            stdout=subprocess.DEVNULL,
        )
        try:
            while subprocess.run(["redis-cli", "-p", port, "ping"], capture_output=True).returncode:
                if server.poll() is not None:
                    sys.exit("redis-server does not start")
                time.sleep(0.05)
            load = subprocess.Popen(
                [
                    "redis-benchmark",
                    "-p",
                    port,
                    "-q",
                    "-t",
                    "set",
                    "-n",
                    "300000",
                    "-r",
                    "50000",
                    "-d",
                    "200",
                ],
                stdout=subprocess.DEVNULL,
            )
            try:
                watch(server.pid)
            finally:
                load.terminate()
                load.wait()
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
