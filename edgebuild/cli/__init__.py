"""The command line: the only place that prints, and where errors become exit codes."""

import errno
import json
import os
import sys
import traceback
from typing import Annotated

import typer

from edgebuild.cli import build, bundles, delta, keys, lists, measure, release, trust
from edgebuild.cli.common import app
from edgebuild.core.errors import EdgebuildError, EnvironmentProblem, UsageError

__all__ = ["build", "bundles", "delta", "keys", "lists", "main", "measure", "release", "trust"]

DEBUG_VARIABLE = "EDGEBUILD_DEBUG"

INTERNAL_ERROR = 70

INTERRUPTED = 130


def main() -> None:
    """Runs the command line; every way out is an exit code of `EXIT_CODES`."""
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer's translation of KeyboardInterrupt
            _complain("interrupted", "", INTERRUPTED)
        sys.stdout.flush()
    except EdgebuildError as error:
        code = _complain(error.message, error.hint, error.exit_code)
    except typer.TyperException as error:
        code = _complain(_usage_message(error), "edgebuild --help", UsageError.exit_code)
    except BrokenPipeError:
        _drop_output()  # whoever reads it may stop before its end
        code = 0
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _drop_output()
            where = error.filename or "standard output"
            code = _complain(f"{where}: no room left on the disk", "free some space", EnvironmentProblem.exit_code)
        else:
            hint = f"this is a bug in edgebuild; {DEBUG_VARIABLE}=1 shows where"
            code = _complain(f"internal error: {type(error).__name__}: {error}", hint, INTERNAL_ERROR)
    sys.exit(code if isinstance(code, int) else 0)


def _drop_output() -> None:
    """Keep the interpreter from writing the rest of standard output as it ends, which would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage_message(error: typer.TyperException) -> str:
    format_message = getattr(error, "format_message", None)
    return format_message() if format_message else str(error)


def _complain(message: str, hint: str, code: int) -> int:
    if "--json" in sys.argv:
        sys.stderr.write(json.dumps({"error": message, "hint": hint, "exit_code": code}) + "\n")
    else:
        sys.stderr.write(f"error: {message}\n" + (f"hint: {hint}\n" if hint else ""))
    return code


def _version(asked: bool) -> None:
    if asked:
        from edgebuild.core.digest import package_version  # noqa: PLC0415 - --help answers at once

        sys.stdout.write(f"edgebuild {package_version('edgebuild')}\n")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    _asked: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")
