"""`dit-usp show`: how a picture was made."""

from __future__ import annotations

import json
from typing import Any

import click

from dit_usp.saving import read_metadata


@click.command("show")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a file.")
def command(files: tuple[str, ...], as_json: bool) -> None:
    """Print what pictures say about how they were made.

    \b
    dit-usp show heart.png
    """
    for file in files:
        told = _read(file)
        click.echo(json.dumps({"file": file, **told}) if as_json else f"{file}\n{_lines(told)}")


def _read(file: str) -> dict[str, Any]:
    """The metadata; what cannot be opened is the user's mistake, not a failure."""
    try:
        return read_metadata(file)
    except OSError as error:
        raise click.UsageError(f"{file} cannot be read: {error.strerror}.") from error


def _lines(told: dict[str, Any]) -> str:
    width = max(map(len, told))
    return "\n".join(f"  {name.ljust(width)}  {_value(value)}" for name, value in told.items())


def _value(value: Any) -> str:
    return ", ".join(f"{name} {item}" for name, item in value.items()) if isinstance(value, dict) else str(value)
