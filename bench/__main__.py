"""python -m bench: runs all benchmarks, shows how far it is, and renders the report."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import pytest

from .machine import describe
from .report import render

HERE = Path(__file__).parent
RAW = HERE.parent / "build" / "bench" / "raw.json"


class Progress:
    """One line for each pair, and the whole story of what failed."""

    def __init__(self) -> None:
        self.total = self.done = self.failed = 0
        self.began = time.monotonic()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.total = len(session.items)

    def _say(self, text: str) -> None:
        seconds = int(time.monotonic() - self.began)
        line = f"{seconds // 60:2d}:{seconds % 60:02d} {self.done:4d}/{self.total} {text}"
        if sys.stdout.isatty():
            print(f"\r\x1b[K{line[:110]}", end="", flush=True)
        else:
            print(line, flush=True)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.done += 1
        self._say(nodeid.removeprefix("bench/"))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed += 1
            print(f"\n{report.nodeid} failed in {report.when}:\n{report.longreprtext}", flush=True)


def compact(raw: dict[str, object], quick: bool) -> dict[str, object]:
    """What the report needs, and what a reader may want to compute with."""
    benchmarks = raw["benchmarks"]
    assert isinstance(benchmarks, list)
    pairs = [{"group": b["group"], **b["extra_info"]} for b in benchmarks]
    return {"machine": describe(), "quick": quick, "pairs": pairs, "peaks": raw["peaks"]}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small memory, few rounds; under a minute")
    parser.add_argument("--docs", type=Path, help="where the report goes; docs, or build/bench with --quick")
    parser.add_argument(
        "--realtime", action="store_true", help="SCHED_FIFO (root): for a machine that others use, too"
    )
    parser.add_argument("--only", metavar="EXPRESSION", help="pytest -k: some of it, without a report")
    options = parser.parse_args()
    if options.realtime:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    RAW.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress()
    arguments = [
        str(HERE),
        "-o",
        "addopts=",
        "-p",
        "no:terminalreporter",
        "-o",
        "timeout=0",
        "-p",
        "no:cacheprovider",
        "--benchmark-disable-gc",
        f"--benchmark-json={RAW}",
        *(["--quick"] if options.quick else []),
        *(["-k", options.only] if options.only else []),
    ]
    status = pytest.main(arguments, plugins=[progress])
    print()
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or not progress.total:
        return int(status)
    results = compact(json.loads(RAW.read_text()), options.quick)
    (RAW.parent / "results.json").write_text(json.dumps(results, indent=1))
    if not options.only and not progress.failed:
        docs = options.docs or (RAW.parent if options.quick else HERE.parent / "docs")
        for path in render(results, docs):
            print(path)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
