"""The README tells the truth: its code prints what it shows, its commands exist and print what it shows."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pagemap import PAGE_SIZE
from pagemap.cli._group import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
EXAMPLES = [
    (code, output)
    for (kind, code), (next_kind, output) in zip(BLOCKS, [*BLOCKS[1:], ("", "")], strict=True)
    if kind == "python" and next_kind == "text"
]
COMMANDS = [
    line[2:]
    for kind, text in BLOCKS
    if kind == "console"
    for line in text.splitlines()
    if line.startswith("$ ")
]


def test_every_code_block_has_its_output():
    assert len(EXAMPLES) == sum(kind == "python" for kind, _ in BLOCKS) >= 2
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize(("code", "output"), EXAMPLES)
def test_code_prints_what_the_readme_shows(code, output):
    if PAGE_SIZE != 4096:
        pytest.skip("the README's numbers are for pages of 4096 bytes")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == output


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_exist(line):
    words = shlex.split(line, comments=True)
    words = words[words[0] == "sudo" :]
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE)
    else:
        assert words[0] == "pagemap"
        shown = CliRunner().invoke(cli, [words[1], "-h"])
        assert shown.exit_code == 0
        assert all(word in shown.output for word in words[2:] if word.startswith("--"))


def shape(text):
    """Text with its measured numbers and cells blotted out: what stays the same from run to run."""
    text = re.sub(r"\d+(\.\d+)? (B|KiB|MiB|GiB)\b|(?<= )-(?= )", "SIZE", text)
    text = re.sub(r"\d+(\.\d+)?", "N", text)
    return [re.sub(r" +|─+", " ", line).strip() for line in text.splitlines()]


def test_the_demo_prints_what_the_readme_shows(need):
    need("scan", "thp")
    (shown,) = (text for kind, text in BLOCKS if kind == "console" and text.startswith("$ pagemap demo\n"))
    done = subprocess.run(
        [sys.executable, "-m", "pagemap", "demo"],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert done.returncode == 0, done.stderr
    assert shape(done.stdout) == shape(shown.partition("\n")[2])
    arrays = re.compile(r"^.*: (?:every|three|read|shared|never).*$", re.MULTILINE)
    assert [line.split() for line in arrays.findall(done.stdout)] == [
        line.split() for line in arrays.findall(shown)
    ]


def test_links_to_files_lead_somewhere():
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / target).is_file()
