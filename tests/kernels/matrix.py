"""Boots Debian's kernels under QEMU and runs the project's test suite, or any command, inside each.

    python tests/kernels/matrix.py                      the suite, as root and as a user, on every kernel
    python tests/kernels/matrix.py --kernel 6.12        on one
    python tests/kernels/matrix.py --quick              the oldest, the newest and one between, as root
    python tests/kernels/matrix.py --list               what the archive has
    python tests/kernels/matrix.py --report             boots nothing: the table of the results that are kept
    python tests/kernels/matrix.py --facts              what each kernel does (facts.py), a line for each fact
    python tests/kernels/matrix.py -- COMMAND …         any command

Exit status 1: a test failed, a guest did not end, or its kernel complained. 77: this machine cannot run it.
The guest's root file system is the host's, read-only; the interpreter is the one that runs this program.
"""

from __future__ import annotations

import argparse
import asyncio
import compileall
import os
import signal
import subprocess
import sys
from pathlib import Path

import claims
from guest import Boot, Job, boot, read_boot, tools
from packages import Archive, GoneError, Kernel, UnavailableError, default_cache, natural, registry
from report import Row, read_suite, replace_section, table

CHECKOUT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
USERS = {"root": 0, "user": 65534}

UNAVAILABLE = 77
"""The exit status of a machine that cannot run guests or get kernels, as GNU's test drivers have it."""

# Left out, test_NAME.py of each: computation, texts, the interpreter and its memory, in which the kernel has
# no part, or none that the tests left in do not see more of …
INDEPENDENT = (
    "analysis bad_arguments bad_buffers cli cli_dirty docs examples fleet fuzz_corpus instructions "
    "interpreters leaks out_of_resources plot query record region_buffer regions span threads "
    "trace track_interrupted typed_contract vmas"
)
# … and what races for minutes, or runs whole programs under load: hours on an emulated processor.
ENDLESS = (
    "attach_inject attach_process attach_random examples_tracking lifecycles mirror soak targets_that_change "
    "threads_stress"
)
# What `--quick` leaves in: what the library answers, on memory of each kind and by each way to track.
ANSWERS = (
    "continuation every_kind_of_memory features random_scans soft_dirty track_access track_exact track_life "
    "track_lossless"
)


def suite_command(selection: list[str]) -> list[str]:
    environment = [
        "PYTHONDONTWRITEBYTECODE=1",
        f"PYTHONPATH={CHECKOUT}:{HERE}",
        "HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis",
        "HYPOTHESIS_PROFILE=small",
    ]
    pytest = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "small_profile"]
    pytest += [
        "--benchmark-disable",
        "-o",
        "timeout=300",
        "--durations=50",
        "-o",
        "junit_family=xunit1",
        *(f"--ignore=tests/test_{name}.py" for name in f"{INDEPENDENT} {ENDLESS}".split()),
        *selection,
    ]
    return ["env", *environment, "sh", "-c", 'exec "$@" --junitxml="$RESULTS/junit.xml"', "sh", *pytest]


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the guest ends with this program
    if options.report:
        return report(kept(options), options.write)
    # The guests cannot write byte code: without it each process of a test compiles everything anew.
    for folder in ("pagemap", "tests"):
        compileall.compile_dir(CHECKOUT / folder, quiet=1)
    try:
        archive = Archive(options.cache)
        archive.update()
        if options.list:
            return list_kernels(archive, options)
        tools()
        kernels = unpack(archive, options)
    except UnavailableError as reason:
        print(f"The kernel matrix cannot run here. {reason}")
        return UNAVAILABLE
    rows: list[Row] = []
    facts: dict[str, dict[str, claims.Fact]] = {}
    unfinished = not kernels
    for kernel, name, result in asyncio.run(run(kernels, options)):
        if name in USERS:
            rows.append(row_of(kernel.release, name, result))
            continue
        unfinished |= any(job.status is None for job in result.outcomes.values())
        facts[kernel.release] = claims.parse("\n".join(job.output for job in result.outcomes.values()))
    if options.facts:
        finish("facts", claims.table(facts), options.write)
    return report(rows, options.write) if rows else int(unfinished)


def list_kernels(archive: Archive, options: argparse.Namespace) -> int:
    for series in options.kernel or registry():
        try:
            print(f"{series:6} {archive.newest(series):28} {registry().get(series, '')}")
        except GoneError as gone:
            print(gone)
    return 0


def unpack(archive: Archive, options: argparse.Namespace) -> list[Kernel]:
    """The kernels that are asked for and not gone."""
    there = []
    for series in options.kernel or registry():
        try:
            archive.newest(series)
            there.append(series)
        except GoneError as gone:
            print(gone, flush=True)
    if options.quick:
        there = sorted({there[0], there[len(there) // 2], there[-1]}, key=natural) if there else []
    return [archive.unpack(series) for series in there]


async def run(kernels: list[Kernel], options: argparse.Namespace) -> list[tuple[Kernel, str, Boot]]:
    """Boots each for each of its jobs, a few at a time, and shows what came of it as soon as it is there."""
    free = asyncio.Semaphore(options.parallel)

    async def one(kernel: Kernel, name: str, jobs: list[Job]) -> tuple[Kernel, str, Boot]:
        async with free:
            result = await boot(
                kernel,
                jobs,
                options.results / kernel.release / name,
                directory=CHECKOUT,
                limit=options.limit,
                processors=options.processors,
            )
        if name in USERS:
            print(table([row_of(kernel.release, name, result)]), flush=True)
        else:
            show(kernel.release, result)
        return kernel, name, result

    async with asyncio.TaskGroup() as guests:
        tasks = [
            guests.create_task(one(kernel, name, jobs)) for kernel in kernels for name, jobs in boots(options)
        ]
    return [task.result() for task in tasks]


def row_of(release: str, user: str, result: Boot) -> Row:
    return Row(release, user, read_suite(result.outcomes[user], result.timed_out), result)


def report(rows: list[Row], document: Path | None) -> int:
    """The exit status: 0 when there is something to report, and all of it good."""
    finish("matrix", table(rows), document)
    return int(not rows or any(not row.good() for row in rows))


def kept(options: argparse.Namespace) -> list[Row]:
    """The suite's runs of which the folder of results holds the latest, oldest kernel first."""
    if not options.results.is_dir():
        raise SystemExit(f"no results in {options.results}")
    return [
        row_of(folder.name, user, read_boot(folder / user))
        for folder in sorted(options.results.iterdir(), key=lambda folder: natural(folder.name))
        for user in options.user
        if (folder / user / "boot.json").exists()
    ]


def finish(section: str, text: str, document: Path | None) -> None:
    print(text)
    if document:
        replace_section(document, section, text)


def boots(options: argparse.Namespace) -> list[tuple[str, list[Job]]]:
    """What each kernel is booted for, by name: a guest of its own for each user of the suite."""
    if options.facts:
        return [("facts", fact_jobs())]
    if options.command:
        return [("command", [Job(user, options.command, USERS[user]) for user in options.user])]
    return [(user, [Job(user, suite_command(options.select), USERS[user])]) for user in options.user]


def fact_jobs() -> list[Job]:
    """facts.py as both users, the reproducer, and last what the guest may not survive."""
    program = CHECKOUT / "build" / "stale_walk_end"
    program.parent.mkdir(exist_ok=True)
    compiler = ["cc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program)]
    subprocess.run([*compiler, str(HERE / "stale_walk_end.c")], check=True)
    facts = [sys.executable, str(HERE / "facts.py")]
    return [
        Job("1-root", facts),
        Job("2-user", facts, 65534),
        Job("3-stale_walk_end", [str(program)]),
        Job("4-danger", [*facts, "--danger"]),
    ]


def show(release: str, result: Boot) -> None:
    for name, outcome in result.outcomes.items():
        status = "did not end" if outcome.status is None else f"exit status {outcome.status}"
        print(f"== {release} {name}: {status}\n{outcome.output}", end="", flush=True)
    for line in result.complaints:
        print(f"== {release}, the kernel itself: {line}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kernel", action="append", metavar="SERIES", help="only this series; may be repeated"
    )
    parser.add_argument("--user", action="append", choices=USERS, help="only this user; may be repeated")
    parser.add_argument("--quick", action="store_true", help="three kernels, fewer tests, as root")
    parser.add_argument("--list", action="store_true", help="only list the kernels")
    parser.add_argument("--report", action="store_true", help="only the table of the results that are kept")
    parser.add_argument("--facts", action="store_true", help="run facts.py instead of the suite")
    parser.add_argument(
        "--select", action="append", default=[], metavar="ARG", help="a further argument for pytest"
    )
    parser.add_argument(
        "--limit", type=float, default=3600, metavar="SECONDS", help="for each guest (%(default)s)"
    )
    parser.add_argument("--processors", type=int, default=1, metavar="N", help="of each guest (%(default)s)")
    parser.add_argument(
        "--parallel", type=int, default=os.cpu_count(), metavar="N", help="guests at a time (%(default)s)"
    )
    parser.add_argument("--cache", type=Path, default=default_cache(), help="%(default)s")
    parser.add_argument("--results", type=Path, default=CHECKOUT / "build" / "kernels", help="%(default)s")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="put the table into this document, between its markers"
    )
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="run this instead of the suite")
    options = parser.parse_args()
    if options.quick:
        options.user, options.select = ["root"], [f"tests/test_{name}.py" for name in ANSWERS.split()]
    options.user = options.user or list(USERS)
    return options


if __name__ == "__main__":
    sys.exit(main())
