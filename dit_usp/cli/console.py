"""What the user sees: notes and progress on stderr, from one process alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from dit_usp import launch

if TYPE_CHECKING:
    from dit_usp.status import Doing


def talks() -> bool:
    """Whether this process speaks for its job: under a launcher every rank parses the command, and the first one talks."""
    try:
        here = launch.place()
    except ValueError:  # about to be refused, by a rank that does not know which it is
        return True
    return here is None or here.rank == 0


def note(text: str) -> None:
    """A line for the user."""
    if talks():
        click.echo(text, err=True)


def quieten() -> None:
    """No bars and notices of the libraries while a model loads in this process: the pipeline's own bar says enough."""
    os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error", DIFFUSERS_VERBOSITY="error")
    from diffusers.utils import logging

    logging.disable_progress_bar()


@contextmanager
def progress(pictures: int) -> Iterator[Callable[[Doing, int], Any]]:
    """Within it, a function that shows what is being done on the terminal's last line; without a terminal nothing is shown."""
    if not sys.stderr.isatty() or launch.under_launcher():
        yield lambda doing, done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[steps]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("start", total=None, steps="")

        def show(doing: Doing, done: int) -> None:
            which = f" {min(done + 1, pictures)}/{pictures}" if pictures > 1 and doing.stage != "load" else ""
            steps = f"{doing.step}/{doing.total}" if doing.total else ""
            bar.update(task, description=doing.stage + which, completed=doing.step, total=doing.total or None, steps=steps)

        yield show
