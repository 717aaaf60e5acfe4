"""What the commands around traces share: durations, what to open, names for VMAs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagemap.maps import printable

from ._group import Failure, Unsupported

if TYPE_CHECKING:
    from pagemap.trace import Recording, Trace

_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}


LONGEST = 1e9
"""Seconds; what the clocks of a recorder can count, and time.sleep() takes."""


class Duration(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.5
    """Seconds, or a number with a unit: 100ms, 2.5s, 10m, 1h."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)", str(value))
        if not match or match[2] not in _UNITS:
            self.fail(f"{value!r} is no duration: give seconds, or 100ms, 10m, 1h", param, ctx)
        seconds = float(match[1]) * _UNITS[match[2]]
        if seconds >= LONGEST:
            self.fail(f"{value!r} is too long: at most {LONGEST / 365.25 / 86400:.0f} years", param, ctx)
        return seconds


def open_trace(path: str | Path) -> Trace:
    """The trace at a path, or the command's end with a message."""
    from pagemap import trace

    try:
        found = trace.open(path)
    except ImportError as error:
        raise Unsupported(str(error)) from error
    except ValueError as error:
        raise Failure(printable(str(error))) from error
    return found


def choose(path: str | Path, pid: int | None) -> list[Recording]:
    """The recordings of a trace, or those of one process; Failure where there is none."""
    recordings = [r for r in open_trace(path) if pid is None or r.pid == pid]
    if not recordings:
        raise Failure(f"{path} has no recording of process {pid}")
    return recordings


def choose_one(path: str | Path, pid: int | None) -> Recording:
    """The longest recording of a trace, or of a process in it; stderr says so where there are more."""
    recordings = choose(path, pid)
    chosen = max(recordings, key=lambda r: (r.timing.samples, r.metadata.begin_ns))
    if len(recordings) > 1:
        click.echo(
            f"{path} has {len(recordings)} recordings: this is the longest, {process_of(chosen)};"
            " --pid chooses",
            err=True,
        )
    return chosen


def process_of(recording: Recording) -> str:
    """Whose recording: "redis-server 1234 on web1", printable."""
    return printable(f"{recording.name or 'process'} {recording.pid} on {recording.host}")


def seconds(ns: float) -> str:
    """Nanoseconds for people: "850 µs", "12 ms", "3.2 s", "5 min"."""
    if ns != ns:
        return "-"
    value, unit = ns / 1e9, "s"
    if not value:
        return "0 s"
    if abs(value) < 1:
        value, unit = ns / 1e6, "ms"
        if abs(value) < 1:
            value, unit = ns / 1e3, "µs"
    elif value >= 7200:
        value, unit = value / 3600, "h"
    elif value >= 120:
        value, unit = value / 60, "min"
    text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}"
