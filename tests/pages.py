"""The Markdown pages of this project: what stands in their blocks, and their Python as one program a page.

    python pages.py PAGE    runs the Python blocks of a page in order, in one namespace

A block that is ``python raises`` ends with an exception, whose last line is its output.
"""

import re
import sys
import traceback
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
END_OF_BLOCK = "\x1e"


class Block(NamedTuple):
    """A fenced block: ```python raises is of the kind python, with the words {raises}."""

    kind: str
    words: frozenset
    text: str
    line: int


def blocks(text):
    """The fenced blocks of a page, in order; `line` is that of the fence."""
    found = []
    for match in re.finditer(r"^(`{3,})(?!`)([^\n]*)\n(.*?)^\1$", text, re.MULTILINE | re.DOTALL):
        kind, *words = match[2].split() or [""]
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(kind, frozenset(words), match[3], line))
    return found


def examples(text):
    """(the Python block, the block of its output or None) for each of a page."""
    return [
        (block, after if after is not None and after.kind == "text" else None)
        for block, after in pairwise([*blocks(text), None])
        if block.kind == "python"
    ]


def commands(text):
    """The lines that a page tells its reader to type."""
    return [
        line[2:]
        for block in blocks(text)
        if block.kind == "console"
        for line in block.text.splitlines()
        if line.startswith("$ ")
    ]


def shape(text):
    """Text with its measured numbers and cells blotted out: what stays the same from run to run."""
    text = re.sub(r"\d+(\.\d+)? (B|KiB|MiB|GiB)\b|(?<= )-(?= )", "SIZE", text)
    text = re.sub(r"\d+(\.\d+)?", "N", text)
    return [re.sub(r" +|─+", " ", line).strip() for line in text.splitlines()]


def run(path):
    text = Path(path).read_text(encoding="utf-8")
    namespace = {"__name__": "__main__"}
    for block, _ in examples(text):
        # Blank lines in front: a traceback names the line of the page.
        code = compile("\n" * block.line + block.text, path, "exec")
        try:
            exec(code, namespace)
        except Exception as error:
            if "raises" not in block.words:
                raise
            print(*traceback.format_exception_only(error), sep="", end="")
        else:
            if "raises" in block.words:
                raise SystemExit(f"{path}:{block.line}: nothing was raised")
        print(end=END_OF_BLOCK, flush=True)


if __name__ == "__main__":
    run(sys.argv[1])
