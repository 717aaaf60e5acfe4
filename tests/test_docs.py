"""The pages tell the truth: their code prints what they show, their commands exist, their links lead on.

Output is compared as it is, in a block ``text varies`` with the numbers blotted out; code without a block of
output prints nothing. ``<!-- needs: thp -->`` names what the code of a page needs besides the ioctl
and write protection.
"""

import os
import re
import shlex
import subprocess
import sys

import pages
import pytest
from click.testing import CliRunner
from pages import ROOT, shape

import pagemap
from pagemap import PAGE_SIZE
from pagemap.cli._group import cli

FILES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
FILES += sorted((ROOT / "docs").rglob("*.md"))
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in FILES}
PROGRAMS = [name for name, text in TEXTS.items() if pages.examples(text)]
COMMANDS = sorted({line for text in TEXTS.values() for line in pages.commands(text)})
OTHER_PROGRAMS = {"cd", "git", "pip"}


def test_the_pages_are_found():
    assert {"README.md", "docs/tutorial.md"} <= set(PROGRAMS)
    assert len(COMMANDS) >= 6
    assert len(pages.examples(TEXTS["README.md"])) == 4


@pytest.mark.parametrize("name", pagemap.__all__)
def test_every_public_name_is_in_the_api_pages(name):
    api = "".join(text for page, text in TEXTS.items() if page.startswith("docs/api/"))
    assert re.search(rf"^.. (auto|py:)\w+:: (pagemap\.)?{name}\b", api, re.MULTILINE)


@pytest.mark.parametrize("name", PROGRAMS)
def test_code_prints_what_the_page_shows(name, need, tmp_path):
    if PAGE_SIZE != 4096:
        pytest.skip("the numbers on the pages are for memory pages of 4096 bytes")
    need("scan", "wp_async", *" ".join(re.findall(r"<!-- needs: (.*?) -->", TEXTS[name])).split())
    done = subprocess.run(
        [sys.executable, "-W", "error", pages.__file__, str(ROOT / name)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    *printed, rest = done.stdout.split(pages.END_OF_BLOCK)
    assert rest == ""
    for (block, output), text in zip(pages.examples(TEXTS[name]), printed, strict=True):
        place = f"{name}:{block.line}"
        if output is None:
            assert (place, text) == (place, "")
        elif "varies" in output.words:
            assert (place, shape(text)) == (place, shape(output.text))
        else:
            assert (place, text) == (place, output.text)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_exist(line):
    words = shlex.split(line, comments=True)
    words = words[words[0] == "sudo" :]
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE)
    elif words[0] == "pagemap":
        shown = CliRunner().invoke(cli, [words[1], "-h"])
        assert shown.exit_code == 0
        assert all(word in shown.output for word in words[2:] if word.startswith("--"))
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    else:
        assert words[0] in OTHER_PROGRAMS


def test_the_demo_prints_what_the_readme_shows(need):
    need("scan", "thp")
    (shown,) = (
        block.text for block in pages.blocks(TEXTS["README.md"]) if block.text.startswith("$ pagemap demo\n")
    )
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


@pytest.mark.parametrize("name", TEXTS)
def test_links_to_files_lead_somewhere(name):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)[^)]*\)", TEXTS[name]):
        assert (ROOT / name).parent.joinpath(target).exists(), target
