"""A redis-server of one's own, for the examples that look at one (Debian: redis-server, redis-tools)."""

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time


@contextlib.contextmanager
def own_redis():
    """A server that nobody else uses: its process id and its port."""
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
            yield server.pid, port
        finally:
            server.terminate()
            server.wait()
