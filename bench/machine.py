"""What the numbers depend on."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import numpy as np


def _first(path: str, field: str) -> str:
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(field):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return "unknown"


def _commit() -> str:
    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "../src", "../pagemap")
        return git("rev-parse", "--short=10", "HEAD") + (", with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe() -> dict[str, str]:
    memory_kib = int(_first("/proc/meminfo", "MemTotal").split()[0])
    cpu = _first("/proc/cpuinfo", "model name")
    virtual = " (virtual machine)" if "hypervisor" in _first("/proc/cpuinfo", "flags").split() else ""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "kernel": platform.release(),
        "processor": f"{cpu}, {os.cpu_count()} cores{virtual}",
        "memory": f"{memory_kib / (1 << 20):.0f} GiB",
        "Python": f"{platform.python_version()}, NumPy {np.__version__}",
        "load": f"{os.getloadavg()[1]:.1f} (the benchmark itself is 1)",
        "scheduling": "real time" if os.sched_getscheduler(0) == os.SCHED_FIFO else "ordinary",
    }
