"""The group of commands, and what they have in common: finding them, errors, exit codes.

A command is a module of this package: NAME.py, which defines `command`, a click.Command. Modules whose name
starts with an underscore are shared rooms. A module is imported when its command is used or listed, so
what is heavy (matplotlib, pyarrow) is imported inside its functions.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import sys
from collections.abc import Iterator
from typing import Any

import click
from click.exceptions import Exit

from pagemap.errors import UnsupportedError
from pagemap.maps import printable

from . import EXIT_UNSUPPORTED

EXIT_REFUSED = 1
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
"""As a shell reports a program that SIGPIPE ended: 128 + 13."""


class Failure(click.ClickException):
    """Ends a command with a message: the process refused, or has gone."""

    exit_code = EXIT_REFUSED


class Unsupported(Failure):
    """Ends a command with a message: this kernel, or this installation, cannot do it."""

    exit_code = EXIT_UNSUPPORTED


class Commands(click.Group):
    """Finds its commands in the modules of this package, and turns what the kernel refuses into messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        found = pkgutil.iter_modules(sys.modules[__package__].__path__)
        return sorted(module.name for module in found if not module.name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"{__package__}.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with errors_as_messages():  # --help and --version print here
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with errors_as_messages():
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result


@contextlib.contextmanager
def errors_as_messages() -> Iterator[None]:
    """What goes wrong in here ends the command with a message, or with the code of a signal."""
    try:
        yield
    except BrokenPipeError:
        raise Exit(EXIT_BROKEN_PIPE) from None  # the reader has gone
    except KeyboardInterrupt:
        raise Exit(EXIT_INTERRUPTED) from None
    except UnsupportedError as error:
        raise Unsupported(describe(error)) from error
    except OSError as error:
        raise Failure(describe(error)) from error


def describe(error: OSError) -> str:
    """An OSError as a sentence: what was wrong, and with which file."""
    text = error.strerror or str(error)
    if isinstance(error.filename, str | bytes):
        text += f" ({os.fsdecode(error.filename)})"
    return printable(text)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  pagemap demo                the main job, on a process of its own
  pagemap scan self           which pages of this very command are resident
  sudo pagemap scan 1         those of another user's process
  pagemap doctor              what this kernel and this user can do

\b
Exit codes:
  0  done
  1  the process refused, or has gone
  2  wrong usage
  3  not supported by this kernel or installation
  130  interrupted with Ctrl-C
  141  whoever read the output has gone

`pagemap COMMAND -h` explains each command.""",
)
@click.version_option(package_name="pagemap-scan", message="pagemap %(version)s")
def cli() -> None:
    """Which pages of a process are resident, swapped, huge or written."""
