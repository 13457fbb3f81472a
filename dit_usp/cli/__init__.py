"""The command line: it parses and checks, the library works. One module a command, imported when it is asked for; no torch here."""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from dit_usp import __version__
from dit_usp.cli.console import talks

COMMANDS = ("generate", "models", "topo", "bench", "show")

REFUSED, FAILED, INTERRUPTED = 2, 1, 130  # exit codes; the last is what shells give for Ctrl-C


class LazyGroup(click.Group):
    """A group whose commands are `command` in the modules of their names."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            raise click.UsageError(f"there is no command {name}; {_nearest(name, COMMANDS)}")
        return importlib.import_module(f"dit_usp.cli.{name}").command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="dit-usp %(version)s")
def group() -> None:
    """Pictures from diffusion transformers, made by several GPUs or CPU processes together.

    \b
    dit-usp generate "a red heart" -o heart.png --nproc 2
    """


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The `dit-usp` command: run it and leave with its exit code."""
    sys.exit(run(sys.argv[1:] if args is None else args))


def run(args: Sequence[str]) -> int:
    """Run the command and return its exit code: 0, 2 for what is refused, 1 for what failed on the way. Errors are one line on stderr."""
    try:
        return group.main(list(args) or ["--help"], prog_name="dit-usp", standalone_mode=False) or 0
    except click.NoSuchOption as error:
        known = [option for parameter in error.ctx.command.params for option in parameter.opts] if error.ctx else []
        return _end(error, f"there is no option {error.option_name}; {_nearest(error.option_name, known)}", REFUSED, args)
    except (click.ClickException, ValueError, TypeError) as error:
        return _end(error, error.format_message() if isinstance(error, click.ClickException) else str(error), REFUSED, args)
    except (click.Abort, KeyboardInterrupt) as error:  # before RuntimeError, which Abort is too
        return _end(error, "interrupted.", INTERRUPTED, args)
    except (OSError, RuntimeError) as error:
        return _end(error, str(error), FAILED, args)


def _nearest(name: str, known: Sequence[str]) -> str:
    """Words like "did you mean --steps?"."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}."


def _end(error: BaseException, text: str, code: int, args: Sequence[str]) -> int:
    """Say why in one line. Under a launcher all ranks refuse alike, and the first one talks; a failure is its rank's own."""
    if "--debug" in args:
        traceback.print_exception(error)
    if talks() or code == FAILED:
        click.echo(f"dit-usp: {' '.join(text.split())}", err=True)
    return code
