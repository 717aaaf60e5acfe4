"""Boots Debian's kernels under QEMU and runs the project's test suite, or any command, inside each.

    python tests/kernels/matrix.py                      the suite, as root and as a user, on every kernel
    python tests/kernels/matrix.py --kernel 6.12        on one
    python tests/kernels/matrix.py --list               what the archive has
    python tests/kernels/matrix.py --report             boots nothing: the table of the results that are kept
    python tests/kernels/matrix.py --facts              what each kernel does (facts.py), a line for each fact
    python tests/kernels/matrix.py -- COMMAND …         any command

The guest's root file system is the host's, read-only; the interpreter is the one that runs this program.
"""

from __future__ import annotations

import argparse
import compileall
import signal
import subprocess
import sys
from pathlib import Path

import claims
from guest import Boot, Job, boot, read_boot
from packages import Archive, GoneError, default_cache, natural, registry
from report import Row, is_good, read_suite, replace_section, table

CHECKOUT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
USERS = {"root": 0, "user": 65534}

# Left out, test_NAME.py of each: computation, texts, the interpreter and its memory, in which the kernel has
# no part, or none that the tests left in do not see more of …
INDEPENDENT = (
    "analysis bad_arguments bad_buffers cli cli_dirty docs examples fleet fuzz_corpus instructions "
    "interpreters leaks out_of_resources plot query record region_buffer regions span threads "
    "trace track_interrupted typed_contract vmas"
)
# … and what races for minutes, or runs whole programs under load: hours on an emulated processor.
ENDLESS = (
    "attach_inject attach_process examples_tracking lifecycles mirror soak targets_that_change threads_stress"
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
    archive = Archive(options.cache)
    archive.update()
    rows: list[Row] = []
    facts: dict[str, dict[str, claims.Fact]] = {}
    unfinished = False
    for series in options.kernel or registry():
        try:
            kernel = archive.newest(series) if options.list else archive.unpack(series)
        except GoneError as gone:
            print(gone, flush=True)
            continue
        if options.list:
            print(f"{series:6} {kernel:28} {registry().get(series, '')}")
            continue
        for name, jobs in boots(options):
            result = boot(
                kernel,
                jobs,
                options.results / kernel.release / name,
                directory=CHECKOUT,
                limit=options.limit,
                processors=options.processors,
            )
            if name in USERS:
                rows.append(
                    Row(kernel.release, name, read_suite(result.outcomes[name], result.timed_out), result)
                )
                print(table(rows[-1:]), flush=True)
                continue
            unfinished |= show(kernel.release, result)
            facts[kernel.release] = claims.parse("\n".join(job.output for job in result.outcomes.values()))
    if options.facts:
        finish("facts", claims.table(facts), options.write)
    return report(rows, options.write) if rows else int(unfinished)


def report(rows: list[Row], document: Path | None) -> int:
    """The exit status: 0 when there is something to report, and all of it good."""
    finish("matrix", table(rows), document)
    return int(not rows or any(not is_good(row.suite) for row in rows))


def kept(options: argparse.Namespace) -> list[Row]:
    """The suite's runs of which the folder of results holds the latest, oldest kernel first."""
    rows = []
    if not options.results.is_dir():
        raise SystemExit(f"no results in {options.results}")
    for folder in sorted(options.results.iterdir(), key=lambda folder: natural(folder.name)):
        for user in options.user:
            if (folder / user / "boot.json").exists():
                result = read_boot(folder / user)
                rows.append(
                    Row(folder.name, user, read_suite(result.outcomes[user], result.timed_out), result)
                )
    return rows


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


def show(release: str, result: Boot) -> bool:
    """Prints each job's output; true when a job did not end."""
    for name, outcome in result.outcomes.items():
        status = "did not end" if outcome.status is None else f"exit status {outcome.status}"
        print(f"== {release} {name}: {status}\n{outcome.output}", end="", flush=True)
    for line in result.complaints:
        print(f"== {release}, the kernel itself: {line}")
    return any(outcome.status is None for outcome in result.outcomes.values())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kernel", action="append", metavar="SERIES", help="only this series; may be repeated"
    )
    parser.add_argument("--user", action="append", choices=USERS, help="only this user; may be repeated")
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
    parser.add_argument("--cache", type=Path, default=default_cache(), help="%(default)s")
    parser.add_argument("--results", type=Path, default=CHECKOUT / "build" / "kernels", help="%(default)s")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="put the table into this document, between its markers"
    )
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="run this instead of the suite")
    options = parser.parse_args()
    options.user = options.user or list(USERS)
    return options


if __name__ == "__main__":
    sys.exit(main())
