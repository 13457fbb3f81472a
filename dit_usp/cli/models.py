"""`dit-usp models`: what can be run."""

from __future__ import annotations

import json
from typing import Any

import click


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(as_json: bool) -> None:
    """List the models that can be run.

    cfg: whether --cfg 2 can compute the two halves of guidance on different ranks. streams: the tokens that are shared out.
    """
    from dit_usp.embedded import embedded

    table = {"embedded": sorted(embedded()), "transformers": _transformers()}
    click.echo(json.dumps(table, indent=2) if as_json else _text(table))


def _transformers() -> list[dict[str, Any]]:
    """The plans, those with a pipeline first."""
    from dit_usp.models import PLANS
    from dit_usp.pipelines.table import PIPELINES

    return [
        {
            "transformer": plan.model,
            "pipelines": list(PIPELINES.get(plan.model, ())),
            "cfg": plan.guidance == "batch",
            "streams": list(plan.streams),
        }
        for plan in sorted(PLANS, key=lambda plan: plan.model not in PIPELINES)
    ]


def _text(table: dict[str, Any]) -> str:
    rows = [("transformer", "cfg", "streams", "pipelines")]
    for entry in table["transformers"]:
        pipelines = ", ".join(entry["pipelines"]) or "(from Python: parallelize)"
        rows.append((entry["transformer"], "yes" if entry["cfg"] else "no", " ".join(entry["streams"]), pipelines))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows]
    return "\n".join([f"embedded models: {', '.join(table['embedded']) or 'none'}", "", *lines])
