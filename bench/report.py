"""docs/benchmarks.md, its figures and its numbers (benchmarks.json) from the results of one run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pagemap import PAGE_SIZE

from . import figures
from .figures import BARRIER, MINCORE, OURS, PYTHON, C, Line, times

Pair = dict[str, Any]
MIB = 1 << 20

COLUMNS = {
    "dense, 4 KiB pages": "dense",
    "dense, scattered frames": "dense,\nscattered frames",
    "dense, huge pages": "dense,\nhuge pages",
    "1 page in 1,000": "1 page\nin 1,000",
    "every second page": "every\nsecond page",
    "dense, 10,000 VMAs": "dense,\n10,000 VMAs",
    "dense, all categories reported": "dense, all\ncategories",
}
ROWS = {
    "C, ioctl in a loop": "the ioctl in C",
    "Python, fcntl.ioctl + NumPy": "the ioctl by fcntl, NumPy",
    "Python, ctypes + NumPy": "the ioctl by ctypes, NumPy",
    "C, mincore": "mincore in C",
    "C, pread of pagemap": "pread of pagemap in C",
    "Python, os.pread + NumPy": "pread of pagemap, NumPy",
    "Python, 8 bytes at a time": "8 bytes at a time, Python",
}
WRITTEN = [
    ("written: clean", "none"),
    ("written: 1 in 1,000 written", "1 in 1,000"),
    ("written: 1 in 100 written", "1 in 100"),
    ("written: 1 in 16 written", "1 in 16"),
    ("written: every second written", "1 in 2"),
    ("written: all written", "all"),
]


class Results:
    """The pairs of one run, found by what they compare."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.machine: dict[str, str] = data["machine"]
        self.quick: bool = data["quick"]
        self.pairs: list[Pair] = data["pairs"]
        self.peaks: list[dict[str, int]] = data["peaks"]

    def find(self, group: str, ours: str, other: str) -> Pair | None:
        return next(
            (p for p in self.pairs if (p["group"], p["ours"], p["other"]) == (group, ours, other)), None
        )

    def group(self, name: str) -> list[Pair]:
        return [p for p in self.pairs if p["group"] == name]

    def groups(self, prefix: str = "") -> list[str]:
        return list(dict.fromkeys(p["group"] for p in self.pairs if p["group"].startswith(prefix)))


@dataclass(frozen=True)
class Target:
    what: str
    group: str
    ours: str
    other: str
    limit: float
    faster: bool
    """Whether the ratio is other / ours and has to be large, or ours / other and has to be small."""

    def measure(self, results: Results) -> float | None:
        pair = results.find(self.group, self.ours, self.other)
        if pair is None:
            return None
        ratio = float(pair["ratio"]["median"])
        return ratio if self.faster else 1 / ratio

    def met(self, value: float) -> bool:
        return value >= self.limit if self.faster else value <= self.limit


DENSE, ALTERNATING = "dense, 4 KiB pages", "every second page"
IOCTL, PREAD, GET = "C, ioctl in a loop", "C, pread of pagemap", "C, ioctl that gets and protects"
NUMPY, NUMPY_LOOK = "Python, os.pread + NumPy", "Python, os.pread + NumPy, no reset"
READ = "scan, read engine"
TARGETS = [
    Target("`scan(PRESENT)`, dense / C", DENSE, "scan", IOCTL, 1.03, False),
    Target("`scan(PRESENT)`, every second page / C, warm buffer", ALTERNATING, "scan", IOCTL, 1.15, False),
    Target("`iter_scan`, every second page / C, warm buffer", ALTERNATING, "iter_scan", IOCTL, 1.05, False),
    Target("`scan(workers=2)`, dense: faster than one", DENSE, "scan, 2 workers", "scan", 1.7, True),
    Target("`collect`, clean / C get + protect", "written: clean", "collect", GET, 1.05, False),
    Target(
        "`collect`, 1 in 1,000 written / C get + protect",
        "written: 1 in 1,000 written",
        "collect",
        GET,
        1.05,
        False,
    ),
    Target(
        "`collect`, clean: faster than `pread` + NumPy", "written: clean", "collect", NUMPY_LOOK, 20, True
    ),
    Target("the same, scattered frames", "written: clean, scattered frames", "collect", NUMPY_LOOK, 20, True),
    Target("`scan(PRESENT)`, dense: faster than `pread` + NumPy", DENSE, "scan", NUMPY, 3, True),
    Target("the same, scattered frames", "dense, scattered frames", "scan", NUMPY, 3, True),
    Target(
        "`scan(PRESENT)`, huge pages: faster than `pread` + NumPy",
        "dense, huge pages",
        "scan",
        NUMPY,
        30,
        True,
    ),
    Target("`read` engine, dense / C `pread` + decode", DENSE, READ, PREAD, 1.05, False),
    Target(
        "`read` engine, two workers, dense: faster than one", DENSE, f"{READ}, 2 workers", READ, 1.7, True
    ),
    Target("`pagemap_scan`, one page / C", "one page", "pagemap_scan", "C, ioctl", 1.25, False),
    Target("`PageMap.scan`, one page / C", "one page", "PageMap.scan", "C, ioctl", 2.5, False),
    Target(
        "`vmas()`, 10,000 VMAs / C",
        "list of 10,000 VMAs",
        "vmas",
        "C, read and parse /proc/PID/maps",
        1.5,
        False,
    ),
    Target(
        "`vmas()`, 10,000 VMAs: faster than the obvious Python",
        "list of 10,000 VMAs",
        "vmas",
        "Python, split each line",
        4,
        True,
    ),
]


def duration(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    right = "| " + " | ".join("---" if k == 0 else "---:" for k in range(len(head))) + " |"
    lines = ["| " + " | ".join(head) + " |", right]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def pair_rows(pairs: Iterable[Pair]) -> list[list[str]]:
    rows = []
    for p in pairs:
        ratio = p["ratio"]
        name = p["other"] + (" (extrapolated)" if p["part"] < 1 else "")
        rows.append(
            [
                name,
                p["ours"],
                f"**{times(ratio['median'])}**",
                f"{times(ratio['min'])} – {times(ratio['max'])}",
                duration(p["other_seconds"]["median"]),
                duration(p["ours_seconds"]["median"]),
                str(p["rounds"]),
            ]
        )
    return rows


PAIR_HEAD = ["this", "takes so many times as long as", "median", "min – max", "this", "that", "rounds"]


def targets_table(results: Results) -> str:
    rows = []
    for target in TARGETS:
        value = target.measure(results)
        sign = "≥" if target.faster else "≤"
        if value is not None:
            verdict = "yes" if target.met(value) else "**no**"
            rows.append([target.what, f"{sign} {target.limit:g}", f"{value:.3g}", verdict])
    if results.peaks:
        scan = max(p["scan"] for p in results.peaks) / MIB
        iterated = max(p["iter_scan"] for p in results.peaks) / MIB
        rows.append(["`scan`: peak beyond its result", "≤ 2 MiB", f"{scan:.2f} MiB", verdict_of(scan <= 2)])
        rows.append(["`iter_scan`: peak", "≤ 4 MiB", f"{iterated:.2f} MiB", verdict_of(iterated <= 4)])
    return table(["what", "target", "measured", "met"], rows)


def verdict_of(met: bool) -> str:
    return "yes" if met else "**no**"


SLOWER = 0.9
"""Below this, an alternative counts as faster than this library: less is noise."""


def not_faster(results: Results) -> str:
    """Every alternative that took less time than `scan`, `collect`, `pagemap_scan` or `vmas`."""
    rows = []
    for p in results.pairs:
        ratio = p["ratio"]["median"]
        main = p["ours"] in ("scan", "collect", "PageMap.scan", "pagemap_scan", "vmas")
        if ratio < SLOWER and main and not p["group"].startswith("growth"):
            rows.append([p["group"], p["other"], f"`{p['ours']}`", times(ratio)])
    return table(["what", "this", "is faster than", "it takes"], rows)


def matrix_figure(results: Results, path: Path) -> Path:
    columns = [g for g in COLUMNS if results.group(g)]
    ratios = np.full((len(ROWS), len(columns)), np.nan)
    for k, group in enumerate(columns):
        for i, other in enumerate(ROWS):
            pair = results.find(group, "scan", other)
            if pair is not None:
                ratios[i, k] = pair["ratio"]["median"]
    return figures.matrix(
        path,
        list(ROWS.values()),
        [COLUMNS[g] for g in columns],
        ratios,
        "Which pages are present? Every way to ask, next to scan()",
    )


def series(
    results: Results,
    groups: Sequence[str],
    x: Sequence[float],
    names: Sequence[tuple[str, str, str]],
    per: Callable[[Pair], float],
) -> list[Line]:
    """names: (label, ours or other as the pairs call it, colour). Ours is the first, from any pair."""
    drawn = []
    for label, name, colour in names:
        points = []
        for at, group in zip(x, groups, strict=True):
            for p in results.group(group):
                if name in (p["ours"], p["other"]):
                    side = "ours_seconds" if name == p["ours"] else "other_seconds"
                    points.append((at, p[side]["median"] / per(p) * 1e9))
                    break  # ours stands in every pair: the first, that with C, is drawn beside it
        if points:
            drawn.append(Line(label, colour, [at for at, _ in points], [y for _, y in points]))
    return drawn


def written_figure(results: Results, path: Path) -> Path:
    groups = [g for g, _ in WRITTEN if results.group(g)]
    lines = series(
        results,
        groups,
        range(len(groups)),
        [
            ("collect()", "collect", OURS),
            ("the same ioctl in C", GET, C),
            ("pread + NumPy, looks only", NUMPY_LOOK, PYTHON),
            ("mprotect + SIGSEGV in C", "C, mprotect + SIGSEGV", BARRIER),
        ],
        lambda p: float(p["pages"]),
    )
    axes = figures.lines(
        path,
        "What was written? A round of dirty tracking costs as much as in C",
        "time of one round, by how many of the pages were written since the last one",
        "pages written between two rounds",
        "time per tracked page (logarithmic)",
        lines,
    )
    axes.set_xticks(range(len(groups)), [label for g, label in WRITTEN if g in groups])
    axes.set_yticks([0.1, 1, 10, 100, 1000], ["0.1 ns", "1 ns", "10 ns", "100 ns", "1 µs"])
    axes.minorticks_off()
    figures.name_ends(axes, lines)
    return figures.finish(axes, path)


def growth_figure(results: Results, path: Path) -> Path:
    groups = results.groups("growth: ")
    pages = [int(g.split()[1]) for g in groups]
    lines = series(
        results,
        groups,
        pages,
        [
            ("scan()", "scan", OURS),
            ("the ioctl in C", IOCTL, C),
            ("pread + NumPy", NUMPY, PYTHON),
            ("mincore in C", "C, mincore", MINCORE),
        ],
        lambda p: 1.0,
    )
    axes = figures.lines(
        path,
        "How cost grows: two microseconds at least, then as in C",
        "scan(PRESENT) of dense memory in 4 KiB pages",
        "size of the range (logarithmic)",
        "time (logarithmic)",
        lines,
    )
    axes.set_xscale("log")
    shown = [n for n in pages if n * PAGE_SIZE not in (4 << 30, 8 << 30)]  # their names would overlap
    axes.set_xticks(shown, [size(n * PAGE_SIZE) for n in shown], rotation=0)
    axes.minorticks_off()
    axes.set_yticks([1e3, 1e4, 1e5, 1e6, 1e7, 1e8], ["1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms"])
    figures.name_ends(axes, lines)
    return figures.finish(axes, path)


def size(nbytes: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= factor:
            return f"{nbytes // factor} {unit}"
    return f"{nbytes} B"


WRITERS = {
    "not tracked": ("store, not tracked", C),
    "tracked by this library": ("first store, tracked", OURS),
    "mprotect + SIGSEGV": ("first store, mprotect + SIGSEGV", BARRIER),
}


def writer_figure(results: Results, path: Path) -> Path:
    groups = results.groups("writer: ")
    found: dict[str, tuple[str, Sequence[float]]] = {
        label: (
            colour,
            [line.y[0] for g in groups for line in series(results, [g], [0], [(label, name, colour)], one)],
        )
        for label, (name, colour) in WRITERS.items()
    }
    return figures.bars(
        path,
        "What tracking costs the writer",
        "the first store to a page after a round; every later one is free",
        [g.removeprefix("writer: ").replace(", ", ",\n") for g in groups],
        found,
    )


def one(_: Pair) -> float:
    return 1.0


def page(results: Results) -> str:
    machine = table(["", ""], [[k, v] for k, v in results.machine.items()])
    by_group = "\n\n".join(
        f"### {group[0].upper() + group[1:]}\n\n{table(PAIR_HEAD, pair_rows(results.group(group)))}"
        for group in results.groups()
    )
    peaks = table(
        ["every second page of", "answer", "`scan`, beyond its answer", "`iter_scan`, in all"],
        [
            [size(p["size"]), *(f"{p[k] / MIB:.2f} MiB" for k in ("answer", "scan", "iter_scan"))]
            for p in results.peaks
        ],
    )
    quick = "\n\n**A quick run: small memory, few rounds.**" if results.quick else ""
    return f"""# Benchmarks

Written by `make bench` (`python -m bench`); the numbers are in [benchmarks.json](benchmarks.json).{quick}

{machine}

Each line compares two ways to the same answer, on the same memory, in turns (A B A B …) in one process:
what disturbs one disturbs the other, and the ratio holds on a noisy machine. Each is timed right after an
untimed run of its own, or after the writes of its round. Ratios are medians over the rounds, with the least
and the largest. The answers are compared with each other once, outside the timing. Set-up, writing and
freeing are not timed. `pagemap bench` does a part of this on your machine, without a compiler.

![Ratios](benchmarks-resident.png)

*Scattered frames*: neighbouring pages were not populated one after the other, as in a program that has run
for long. Reading pagemap looks at the descriptor of each page's frame, and finds few of them in the cache.
`mincore` knows residency, and that for one's own memory only. The loop that reads 8 bytes at a time ran on
4,096 pages and is extrapolated.

## Where it is not faster

{not_faster(results)}

What the numbers mean, and what a scan costs whom, is told in [What it costs](cost.md).

## Targets

{targets_table(results)}

## Written pages

![A round of dirty tracking](benchmarks-written.png)

`mprotect` needs a VMA for each run of pages: where more than half of `vm.max_map_count` would be written, it
has no line.

![The writer](benchmarks-writer.png)

## Growth

![Growth](benchmarks-growth.png)

## Memory

{peaks}

Growth of the resident set at its peak (`VmHWM`), in a process of its own.

## All pairs

{by_group}
"""


def render(data: dict[str, Any], docs: Path) -> list[Path]:
    results = Results(data)
    docs.mkdir(parents=True, exist_ok=True)
    numbers, text = docs / "benchmarks.json", docs / "benchmarks.md"
    numbers.write_text(json.dumps(rounded(data), separators=(",", ":"), ensure_ascii=False) + "\n")
    text.write_text(page(results), encoding="utf-8")
    drawn = [
        matrix_figure(results, docs / "benchmarks-resident.png"),
        growth_figure(results, docs / "benchmarks-growth.png"),
    ]
    if results.groups("written: "):
        drawn += [
            written_figure(results, docs / "benchmarks-written.png"),
            writer_figure(results, docs / "benchmarks-writer.png"),
        ]
    return [text, numbers, *drawn]


def rounded(value: Any) -> Any:
    """Four digits: more is noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value
