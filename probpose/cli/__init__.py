"""The command line: `probpose sample | draw | evaluate | train | adapt | calibrate | convert | info | models | push | demo`.

Heavy imports happen inside the commands, so that `probpose --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import typer

# every module registers its command with the application
from . import adapt, calibrate, convert, demo, draw, evaluate, info, models, push, sample, train  # noqa: F401
from .options import app


def _spelt_out(arguments: list[str]) -> Iterator[str]:
    """`--json` and `--latex` without a file mean the screen, written `-`."""
    for argument, following in zip(arguments, [*arguments[1:], "--"]):
        yield argument
        if argument in ("--json", "--latex") and following.startswith("-") and following != "-":
            yield "-"


def main() -> None:
    """Entry point: expected failures are one line on stderr and exit code 2."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through the clean-up of unfinished files
    try:
        app(args=list(_spelt_out(sys.argv[1:])))
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("PROBPOSE_DEBUG"):
            raise
        typer.echo(f"probpose: {error}", err=True)
        sys.exit(2)
