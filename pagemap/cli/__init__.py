"""The command ``pagemap``. One module for each command; see `_group` for how they are found."""

from __future__ import annotations

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
    from ._group import cli

    cli(prog_name="pagemap")
