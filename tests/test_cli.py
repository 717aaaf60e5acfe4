"""The command line as its users meet it: the real command on real processes, compared with the library."""

import contextlib
import csv
import dataclasses
import importlib.metadata
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import pagemap
from pagemap import PAGE_SIZE, Category, PageMap, Query, regions
from pagemap.cli import _workload, demo
from pagemap.cli._group import cli

COMMAND = [sys.executable, "-m", "pagemap"]
ESCAPE = "\x1b"


def run(*args, command=COMMAND, **kwargs):
    done = subprocess.run(
        [*command, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        **kwargs,
    )
    assert "Traceback" not in done.stderr
    return done


def children(pid):
    found = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, tasks.read_text().split())
    return found


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return result


@contextlib.contextmanager
def started(*command):
    """A process that ends with its standard input; gives it, and its first lines up to "ready"."""
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child:
        try:
            yield child, list(iter(child.stdout.readline, "ready\n"))
        finally:
            child.kill()


@pytest.fixture(scope="module")
def workload():
    """(pid, parts) of a program whose memory is known and holds still."""
    with started(sys.executable, "-P", _workload.__file__, "16") as (child, lines):
        yield child.pid, [json.loads(line) for line in lines]


@pytest.fixture
def pid(workload):
    return workload[0]


# scan: the same answer as the library


def documented(engine):
    known = pagemap.features().categories if engine == "scan" else pagemap.features().read_categories
    wanted = ("PRESENT", "SWAPPED", "HUGE", "FILE", "PFNZERO", "GUARD")
    report = Category(0)
    for name in wanted:
        report |= Category[name] & known
    return Query(any_of=Category.PRESENT | Category.SWAPPED, report=report)


def test_json_is_what_the_library_says(pid, engine):
    document = json.loads(run("scan", pid, "--json", "--engine", engine).stdout)
    query = documented(engine)
    with PageMap(pid, engine=engine) as pm:
        found, vmas = pm.scan(query), pm.vmas()
    names = [c.name for c in Category if c in Category(query.masks()[3])]
    assert (document["pid"], document["engine"], document["page_size"]) == (pid, engine, PAGE_SIZE)
    assert sorted(document["categories"]) == sorted(names)
    counts = regions.totals(found)
    assert document["totals"] == {
        "pages": regions.page_count(found),
        **{name: counts[Category[name]] for name in names},
    }
    assert len(document["vmas"]) == len(vmas) > 10
    for row, vma, record in zip(document["vmas"], vmas, regions.by_vma(found, vmas), strict=True):
        same = ("start", "end", "permissions", "offset", "dev", "inode", "name")
        assert {key: row.pop(key) for key in same} == {key: getattr(vma, key) for key in same}
        assert row == {name: record[name] for name in ["pages", *names]}


def test_csv_has_the_rows_of_json(pid):
    document = json.loads(run("scan", pid, "--json").stdout)
    rows = list(csv.DictReader(io.StringIO(run("scan", pid, "--csv").stdout)))
    assert rows == [{key: str(value) for key, value in vma.items()} for vma in document["vmas"]]


def test_regions_in_every_format_are_the_librarys(pid, engine):
    with PageMap(pid, engine=engine) as pm:
        expected = pm.scan(documented(engine)).tolist()
    document = json.loads(run("scan", pid, "--regions", "--json", "--engine", engine).stdout)
    named = [
        (r["start"], r["end"], sum(Category[name] for name in r["categories"])) for r in document["regions"]
    ]
    assert named == expected
    assert len(named) > 256

    rows = list(
        csv.DictReader(io.StringIO(run("scan", pid, "--regions", "--csv", "--engine", engine).stdout))
    )
    assert [(int(r["start"]), int(r["end"]), r["categories"]) for r in rows] == [
        (r["start"], r["end"], "|".join(r["categories"])) for r in document["regions"]
    ]

    lines = run("scan", pid, "--regions", "--engine", engine).stdout.splitlines()
    addresses = [tuple(int(a, 16) for a in line.split()[0].split("-")) for line in lines]
    assert addresses == [(start, end) for start, end, _ in expected]


def test_the_programs_own_count_of_its_pages(workload, engine):
    pid, parts = workload
    assert {part["name"] for part in parts} >= {"dense", "sparse", "huge", "zeros", "shared", "reserve"}
    for part in parts:
        limits = ["--start", hex(part["start"]), "--end", part["end"]]
        document = json.loads(run("scan", pid, *limits, "--engine", engine, "--json").stdout)
        assert document["totals"]["pages"] == part["pages"]
        assert all(v["end"] > part["start"] and v["start"] < part["end"] for v in document["vmas"])
        assert sum(v["pages"] for v in document["vmas"]) == part["pages"]


def test_category_selects_and_may_be_repeated(workload, need):
    need("scan")
    pid, parts = workload
    pages = {part["name"]: part["pages"] for part in parts}
    zero = json.loads(run("scan", pid, "--category", "ZERO", "--json").stdout)
    assert zero["categories"] == ["PFNZERO"]
    assert pages["zeros"] <= zero["totals"]["pages"] == zero["totals"]["PFNZERO"] < pages["zeros"] + 64
    both = json.loads(run("scan", pid, "-c", "pfnzero", "-c", "file", "--json").stdout)
    either = Query(any_of=Category.PFNZERO | Category.FILE)
    assert both["totals"]["pages"] == regions.page_count(pagemap.scan(either, pid=pid))
    assert both["totals"]["FILE"] >= pages["shared"]


def table_rows(text):
    """The cells of a table: its headings, its rows."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if set(line.strip()) == {"─"})
    body = list(iter(lines[at + 1 :]))
    end = next(i for i, line in enumerate(body) if line.rstrip().endswith("total"))
    return re.split(r"  +", lines[at - 1].strip()), [
        re.split(r"  +", x.strip()) for x in body[:end] if x.strip()
    ]


def as_bytes(text):
    units = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    number, unit = text.split()
    return float(number) * units[unit]


def test_table_is_sorted_and_says_what_it_leaves_out(pid):
    done = run("scan", pid, "--limit", 5)
    heading, rows = table_rows(done.stdout)
    assert heading[:4] == ["address", "perm", "size", "present"]
    assert len(rows) == 5
    sizes = [as_bytes(row[3]) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert re.search(r"in \d+ smaller VMAs \(--limit 0 shows them\)", done.stdout)
    everything = run("scan", pid, "--limit", 0).stdout
    assert "smaller VMAs" not in everything
    vmas = json.loads(run("scan", pid, "--json").stdout)["vmas"]
    largest = max(vmas, key=lambda vma: vma["pages"])
    first = table_rows(everything)[1][0]
    assert int(first[0], 16) == largest["start"]
    assert as_bytes(first[3]) == pytest.approx(largest["pages"] * PAGE_SIZE, rel=0.06)
    assert len(table_rows(everything)[1]) == sum(1 for vma in vmas if vma["pages"])


def test_self_is_the_command():
    process = subprocess.Popen([*COMMAND, "scan", "self", "--json"], stdout=subprocess.PIPE, text=True)
    document = json.loads(process.communicate(timeout=60)[0])
    assert document["pid"] == process.pid
    assert document["totals"]["pages"] > 1000


def test_names_that_are_no_utf8_and_look_like_markup(tmp_path):
    name = os.fsencode(tmp_path) + b"/\x1b[2J[red]\xff"
    Path(os.fsdecode(name)).write_bytes(b"x" * PAGE_SIZE)
    program = (
        "import mmap, sys; f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, prot=1); m[0];"
        " print('ready', flush=True); sys.stdin.read()"
    )
    with started(sys.executable, "-c", program, name) as (child, _):
        shown = run("scan", child.pid, "--limit", 0).stdout
        assert "\\x1b[2J[red]\\udcff" in shown
        assert ESCAPE not in shown
        assert "[red]\\udcff" in run("scan", child.pid, "--csv").stdout
        found = [vma["name"] for vma in json.loads(run("scan", child.pid, "--json").stdout)["vmas"]]
        assert os.fsdecode(name) in found
        plain = {**os.environ, "PYTHONIOENCODING": "ascii"}
        assert "[red]\\udcff" in run("scan", child.pid, "--limit", 0, env=plain).stdout


# Refusals: a sentence, an exit code, no traceback


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["scan"], "Missing argument 'PID|self'"),
        (["scan", "redis"], "'redis' is no process id"),
        (["scan", "0"], "positive, not 0"),
        (["scan", "self", "--json", "--csv"], "exclude each other"),
        (["scan", "self", "--start", "0x1001"], "no multiple of the page size"),
        (["scan", "self", "--start", "here"], "'here' is no address"),
        (["scan", "self", "--start", "0x2000", "--end", "0x1000"], "--start 0x2000 is above --end 0x1000"),
        (["scan", "self", "--end", hex(1 << 63)], "beyond the address space"),
        (["scan", "self", "--regions", "--end", hex(1 << 63)], "beyond the address space"),
        (["scan", "self", "--engine", "magic"], "'magic' is not one of"),
        (["scan", "self", "--limit", "-1"], "-1"),
        (["walk"], "No such command 'walk'"),
        (["_group"], "No such command '_group'"),
        (["demo", "--size", "1"], "1 is not in the range"),
        (["demo", "--size", "99999999"], "more than this machine has"),
        (["bench", "--size", "99999999999999"], "more than this machine has"),
        *(([name, "9" * 20], "a process id is at most") for name in ("scan", "dirty", "record", "wss")),
        (["top", "--attach", "-5"], "positive, not -5"),
        (["top", "--attach", "0"], "positive, not 0"),
        (["top", "--attach", "9" * 20], "a process id is at most"),
        (["top", "--attach", "self"], "give another process"),
        (["top", "-i", "10000000000000d"], "is too long"),
        (["dirty", "1", "-i", "99999999999d"], "is too long"),
        (["record", "-i", "100000d", "--", "true"], "is too long"),
        (["wss", "1", "-i", "2s", "-d", "1s"], "--duration must be --interval or more"),
        (["wss", "self"], "give another process"),
        (["wss", "some.trace", "-d", "1s"], "--duration is for a process, not for a trace"),
        (["wss", "some.trace", "-i", "1s"], "--interval is for a process, not for a trace"),
        (["wss", "1", "--pid", "1"], "--pid is for a trace"),
        (["heatmap", "some.trace", "-o", "picture"], "'picture' needs a suffix"),
        (["heatmap", "some.trace", "-o", "picture.doc"], "'picture.doc' needs a suffix"),
    ],
)
def test_wrong_usage(args, says):
    done = run(*args)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""


def test_unknown_category_lists_the_known():
    done = run("scan", "self", "--category", "dirty")
    assert done.returncode == 2
    listed = done.stderr.partition("the categories are: ")[2].split()
    assert len(listed) == len(Category)
    assert {"present,", "zero,", "huge,"} <= set(listed)


def test_no_such_process():
    gone = subprocess.Popen(["true"])
    gone.wait()
    done = run("scan", gone.pid)
    assert done.returncode == 1
    assert f"process {gone.pid} does not exist" in done.stderr


def test_zombie():
    child = subprocess.Popen(["true"])
    try:
        wait_until(lambda: not is_running(child.pid))
        done = run("scan", child.pid)
        assert done.returncode == 1
        assert "zombie" in done.stderr
    finally:
        child.wait()


def test_kernel_thread():
    with contextlib.suppress(OSError):
        if Path("/proc/2/comm").read_text() == "kthreadd\n" and os.geteuid() == 0:
            done = run("scan", 2)
            assert done.returncode == 1
            assert "kernel thread" in done.stderr
            return
    pytest.skip("needs root, and kernel threads in this pid namespace")


def test_what_an_engine_cannot_tell_is_unsupported():
    done = run("scan", "self", "--engine", "read", "--category", "huge")
    assert done.returncode == 3
    assert "HUGE" in done.stderr


NOBODY = """
import ctypes, os, sys
import click.testing, pagemap.cli._group
warm = click.testing.CliRunner().invoke(pagemap.cli._group.cli, ["scan", "self"])
assert warm.exit_code == 0, warm.output
os.setgroups([]); os.setgid(65534); os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: as after execve
pagemap.cli._group.cli(prog_name="pagemap")
"""


def test_another_users_process(pid):
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    package = Path(pagemap.__file__).resolve().parent
    if not all(folder.stat().st_mode & 0o005 == 0o005 for folder in (package, *package.parents)):
        pytest.skip(f"{package} is not readable by others")
    nobody = [sys.executable, "-c", NOBODY]
    done = run("scan", pid, command=nobody)
    assert done.returncode == 1
    assert f"may not look at process {pid}" in done.stderr
    assert "sudo" in done.stderr
    assert done.stdout == ""
    own = run("scan", "self", "--json", command=nobody)
    assert own.returncode == 0, own.stderr
    assert json.loads(own.stdout)["totals"]["pages"] > 1000


def test_broken_pipe(pid):
    process = subprocess.Popen(
        [*COMMAND, "scan", str(pid), "--regions"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 141


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_extra_missing(missing):
    program = f"import sys; sys.modules['{missing}'] = None; import pagemap.cli; pagemap.cli.main()"
    done = run("doctor", command=[sys.executable, "-c", program])
    assert done.returncode == 3
    assert "pip install 'pagemap-scan[cli]'" in done.stderr


def test_another_import_error_is_not_hidden():
    program = "import sys; sys.modules['rich.table'] = None; import pagemap.cli; pagemap.cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "scan", "self"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "rich.table" in done.stderr
    assert "pip install" not in done.stderr


# The group


def test_entry_point_is_the_command():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="pagemap")
    assert script.load() is pagemap.cli.main
    done = run("--version")
    assert done.stdout == f"pagemap {importlib.metadata.version('pagemap-scan')}\n"


def test_every_command_has_help_with_examples():
    runner = CliRunner()
    overview = runner.invoke(cli, ["-h"])
    assert overview.exit_code == 0
    names = cli.list_commands(None)
    assert {"scan", "doctor", "demo"} <= set(names)
    for name in names:
        assert re.search(rf"^  {name} +\S", overview.output, re.MULTILINE)
        shown = runner.invoke(cli, [name, "-h"])
        assert shown.exit_code == 0
        assert f"  pagemap {name}" in shown.output.partition("Examples:")[2]
    for code in (0, 1, 2, 3, 130, 141):
        assert re.search(rf"^    {code}  \S", overview.output, re.MULTILINE)


def test_a_new_module_is_a_new_command(tmp_path, monkeypatch):
    (tmp_path / "hello.py").write_text("import click\n@click.command()\ndef command():\n    print('hello')\n")
    monkeypatch.setattr(pagemap.cli, "__path__", [*pagemap.cli.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "pagemap.cli.hello", raising=False)
    assert CliRunner().invoke(cli, ["hello"]).output == "hello\n"


def on_a_terminal(*args):
    """The output of a command whose stdout is a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen([*COMMAND, *args], stdout=theirs, stderr=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    output = b""
    with contextlib.suppress(OSError):  # EIO: the other side is closed
        while chunk := os.read(ours, 65536):
            output += chunk
    os.close(ours)
    assert process.wait(60) == 0
    return output.decode()


def test_colours_on_a_terminal_only():
    assert ESCAPE in on_a_terminal("doctor")
    assert ESCAPE not in run("doctor").stdout
    assert ESCAPE not in on_a_terminal("scan", "self", "--json")
    forced = {**os.environ, "FORCE_COLOR": "1"}
    assert ESCAPE not in run("scan", "self", env=forced).stdout


# doctor


def yes_or_no(features):
    names = [field.name for field in dataclasses.fields(features) if field.type in (bool, "bool")]
    assert {"scan", "wp_async", "rwp_async", "soft_dirty", "procmap_query", "pfn"} <= set(names)
    return names


def test_doctor_shows_every_feature_and_reason():
    features = pagemap.features()
    done = run("doctor")
    assert done.returncode == 0
    text = done.stdout
    for name in yes_or_no(features):
        assert re.search(rf"^{'yes' if getattr(features, name) else 'no '} +{name}: ", text, re.MULTILINE)
    for category in Category:
        known = category in features.categories | features.read_categories
        name = "zero" if category is Category.PFNZERO else category.name.lower()
        assert re.search(rf"^{'yes' if known else 'no '} +category {name}\b", text, re.MULTILINE)
    assert features.why
    assert all(reason in text for reason in features.why.values())


def test_doctor_json():
    features = pagemap.features()
    document = json.loads(run("doctor", "--json").stdout)
    assert document["kernel"] == os.uname().release
    assert document["why"] == dict(features.why)
    assert sum(Category[name] for name in document["categories"]) == features.categories & sum(Category)
    assert sum(Category[name] for name in document["read_categories"]) == features.read_categories
    assert sum(pagemap.ScanFlag[name] for name in document["flags"]) == features.flags & sum(pagemap.ScanFlag)
    for name in yes_or_no(features):
        assert document[name] is getattr(features, name)


def test_doctor_fails_where_nothing_works():
    hide = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    if os.geteuid() != 0 or subprocess.run([*hide, "true"], capture_output=True).returncode:
        pytest.skip("needs root, unshare and mount to hide /proc")
    done = run("doctor", command=[*hide, *COMMAND])
    assert done.returncode == 3
    assert "neither engine works" in done.stderr


# demo


def test_demo(need):
    need("scan")
    done = run("demo", "--size", 32)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert re.search(r"Both engines agree on all \d{3,} regions", done.stdout)
    faster = re.search(r"the ioctl was ([\d.]+) times faster", done.stdout)
    assert float(faster[1]) > 1
    heading, rows = table_rows(done.stdout)
    assert heading[:2] == ["size", "present"]
    by_name = {row[-1].partition(":")[0]: row for row in rows}
    assert by_name["dense"][:2] == ["8 MiB", "8 MiB"]
    assert by_name["sparse"][:2] == ["8 MiB", "4 MiB"]
    assert by_name["huge"][:2] == ["16 MiB", "12 MiB"]
    assert by_name["reserve"][:2] == ["32 MiB", "-"]


@pytest.fixture
def lying(monkeypatch):
    """lying(engine, change): PageMap.scan of that engine answers with `change` of the truth."""
    honest = PageMap.scan

    def lie(engine, change):
        def scan(self, *args, **kwargs):
            found = honest(self, *args, **kwargs)
            return change(found) if self.engine == engine else found

        monkeypatch.setattr(PageMap, "scan", scan)

    return lie


def last_recategorised(found):
    changed = found.copy()
    changed["categories"][-1] ^= int(Category.FILE)
    return changed


@pytest.mark.parametrize("change", [lambda found: found[1:], last_recategorised])
def test_demo_notices_engines_that_disagree(lying, change, need):
    need("scan")
    lying("read", change)
    result = CliRunner().invoke(cli, ["demo", "--size", "16"])
    assert result.exit_code == 1
    assert "disagree" in result.output
    assert "faster" not in result.output


def test_demo_notices_that_both_are_wrong(lying, monkeypatch, need):
    need("scan")
    monkeypatch.setattr(demo, "check_agreement", lambda scan, read: scan.scan()[:-200])
    result = CliRunner().invoke(cli, ["demo", "--size", "16"])
    assert result.exit_code == 1
    assert re.search(r"the program touched \d+ pages, found \d+", result.output)


def test_demo_says_when_the_program_cannot_start(monkeypatch):
    monkeypatch.setattr(demo.sys, "executable", "/bin/false")
    result = CliRunner().invoke(cli, ["demo", "--size", "16"])
    assert result.exit_code == 1
    assert "ended with code 1 before it was ready" in result.output


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_demo_leaves_nothing_behind(how):
    process = subprocess.Popen([*COMMAND, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    (child,) = wait_until(lambda: children(process.pid))
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    assert process.returncode == (130 if how is signal.SIGINT else -how)
    wait_until(lambda: not is_running(child))


def test_workload_is_what_it_says():
    """The demo's third witness, against a fourth: smaps, which does not count the zero page."""
    with started(sys.executable, "-P", _workload.__file__, "16") as (child, lines):
        parts = [json.loads(line) for line in lines]
        smaps = Path(f"/proc/{child.pid}/smaps").read_text()
    rss = sum(int(kib) for kib in re.findall(r"^Rss: +(\d+) kB", smaps, re.MULTILINE)) * 1024
    touched = sum(part["pages"] for part in parts if part["name"] != "zeros") * PAGE_SIZE
    assert touched < rss < touched + (64 << 20)
