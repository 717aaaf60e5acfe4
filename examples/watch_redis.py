"""How fast does redis-server write its memory, and where? Watched from outside, in five rounds.

Starts a redis-server of its own (Debian: redis-server, redis-tools) and loads it meanwhile.

    python examples/watch_redis.py
"""

import subprocess

from own_redis import own_redis

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
    with own_redis() as (pid, port):
        client = f"redis-benchmark -p {port} -q -t set -n 300000 -r 50000 -d 200"
        load = subprocess.Popen(client.split(), stdout=subprocess.DEVNULL)
        try:
            watch(pid)
        finally:
            load.terminate()
            load.wait()


if __name__ == "__main__":
    main()
