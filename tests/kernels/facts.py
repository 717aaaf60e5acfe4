"""What this kernel does, a line for each fact: `FACT <kernel> <uid> <name> <key>=<value> …`, all measured.

A value n/m says: n of the m pages in question were reported as written. The dangerous facts (--danger) may
stop the machine and run in a guest of the matrix only.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import facts_danger  # noqa: F401 (each module registers its facts)
import facts_drop  # noqa: F401
import facts_keep  # noqa: F401
from known_memory import DANGEROUS, FACTS, Skipped


def measure(function: Callable[[], dict[str, object]], limit: float) -> str:
    """Runs `function` in a child of its own; a child that SIGKILL does not end is left behind."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        for stream in (0, 1, 2):  # a child that stays behind must not keep the pipes of this process
            os.dup2(os.open(os.devnull, os.O_RDWR), stream)
        try:
            text = " ".join(f"{key}={value}" for key, value in function().items())
        except Skipped as skipped:
            text = f"skipped={skipped}"
        except OSError as error:
            text = f"error={errno.errorcode[error.errno]}"
        except BaseException as error:
            text = f"failed={error!r}".replace(" ", "_")
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    for attempt in ("ends", "killed"):
        deadline = time.monotonic() + (limit if attempt == "ends" else 3)
        while time.monotonic() < deadline:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                with os.fdopen(reader) as pipe:
                    text = pipe.read()
                if text and attempt == "ends":
                    return text
                return f"signal={os.WTERMSIG(status)}" if attempt == "ends" else "hangs=killable"
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
    state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
    return f"hangs=unkillable state={state}"


def main() -> None:
    facts, limit = FACTS, 30.0
    if "--danger" in sys.argv[1:]:
        if "pagemap.guest" not in Path("/proc/cmdline").read_text().split():
            raise SystemExit("--danger may stop the machine: only in a guest of the matrix")
        facts, limit = DANGEROUS, 10.0
    kernel = os.uname().release
    for name, function in facts.items():
        print(f"FACT {kernel} {os.getuid()} {name} {measure(function, limit)}", flush=True)


if __name__ == "__main__":
    main()
