"""The command ``pagemap``. One module for each command; see `_group` for how they are found."""

from __future__ import annotations

import os
import sys

EXIT_UNSUPPORTED = 3
"""This kernel, or this installation, cannot do it."""


def main() -> None:
    """Runs the command line and leaves by SystemExit; `pagemap -h` lists the exit codes."""
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        print(
            f"pagemap: the command line needs the package {error.name}, which is not installed.\n"
            "Install it with:  pip install 'pagemap-scan[cli]'\n"
            "The library works without: python -c 'import pagemap; print(pagemap.scan())'",
            file=sys.stderr,
        )
        raise SystemExit(EXIT_UNSUPPORTED) from None
    open_streams()
    from ._group import cli

    try:
        cli(prog_name="pagemap")
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            # What is still buffered must not be tried again at exit, whose code would be 120.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def open_streams() -> None:
    """Puts something in the place of standard streams that are closed.

    A file that is opened next would have their number, and what is printed would go there. Writing to
    the standard output that was closed remains an error: EBADF.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            flags = os.O_WRONLY if name == "stderr" else os.O_RDONLY
            null = os.open(os.devnull, flags)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, mode, encoding="utf-8"))  # noqa: SIM115
