"""The examples that need nothing but tracking run, and what they print is right."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def tracking(need):
    need("wp_async")


def run(name):
    command = [sys.executable, "-W", "error", EXAMPLES / name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_the_readme_says_what_each_shows():
    text = (EXAMPLES / "README.md").read_text("utf-8")
    listed = re.findall(r"^\| \[(.+)\]\(\1\) \| .{20,} \|$", text, re.MULTILINE)
    there = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")]
    assert sorted(listed) == sorted(there)


def test_mirror():
    """A row is 32 KiB on no page's boundary: it touches at most nine pages."""
    first, *steps = run("mirror.py")
    assert first == "an array of 128 MiB"
    pattern = r"step \d: +(\d+) rows written, +([\d.]+) MiB copied, equal: True"
    found = [re.fullmatch(pattern, step).groups() for step in steps]
    assert [int(rows) for rows, _ in found] == [0, 1, 16, 256, 4096]
    for rows, copied in ((int(rows), float(copied)) for rows, copied in found):
        assert rows * 8 / 256 - 0.01 <= copied <= rows * 9 / 256 + 0.01
    assert float(found[-1][1]) == 128


def test_write_watch():
    lines = [line.partition(":")[2].strip() for line in run("write_watch.py")]
    assert lines == ["[]", "[3, 4, 200]", "[3, 4]", "[200]", "[]"]


@pytest.mark.slow
def test_watch_redis():
    if not (shutil.which("redis-server") and shutil.which("redis-benchmark")):
        pytest.skip("needs redis-server and redis-benchmark (Debian: redis-server, redis-tools)")
    first, *rounds = run("watch_redis.py")
    assert re.fullmatch(r"process \d+ stood still for \d+ µs", first)
    pattern = r"round (\d): +(\d+) pages, +([\d.]+) MiB/s; hottest: (\d+) pages at 0x[0-9a-f]+ \S+"
    found = [re.fullmatch(pattern, line).groups() for line in rounds]
    assert [int(number) for number, *_ in found] == [1, 2, 3, 4, 5]
    for _, pages, rate, hottest in found:
        assert 0 < int(hottest) <= int(pages)
        assert float(rate) == pytest.approx(int(pages) * 4096 / 2**20 / 0.5, abs=0.06)
