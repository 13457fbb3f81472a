"""`dit-usp models`: what can be run."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dit_usp.plan import ShardPlan


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(as_json: bool) -> None:
    """List the models that can be run.

    Of each transformer: the layouts that work (ulysses, ring, cfg, data), the tokens that are shared out, what stays whole on every rank and why, and
    its pipelines.
    """
    from dit_usp.embedded import embedded
    from dit_usp.models.refused import REFUSED

    table = {"embedded": sorted(embedded()), "transformers": transformers(), "refused": REFUSED}
    click.echo(json.dumps(table, indent=2) if as_json else _text(table))


def transformers() -> list[dict[str, Any]]:
    """An entry for every plan, by kind."""
    from dit_usp.models import KINDS

    return [_entry(kind, plan) for kind, plans in KINDS.items() for plan in plans]


def _entry(kind: str, plan: ShardPlan) -> dict[str, Any]:
    from dit_usp.pipelines.table import NOT_DEALT, NOT_HALVED, PIPELINES
    from dit_usp.plan import Replicate

    pipelines = PIPELINES.get(plan.model, ())
    cfg, data = plan.guidance == "batch", any(name not in NOT_DEALT for name in pipelines)
    return {
        "transformer": plan.model,
        "kind": kind,
        "ulysses": True,
        "ring": True,
        "cfg": cfg,
        "data": data,
        "streams": list(plan.streams),
        "whole": {module: word.why for word in plan.of(Replicate) for module in word.modules},
        "pipelines": list(pipelines),
        "without_cfg": {name: NOT_HALVED[name] for name in pipelines if name in NOT_HALVED},
        "without_data": {name: NOT_DEALT[name] for name in pipelines if name in NOT_DEALT},
    }


def _text(table: dict[str, Any]) -> str:
    lines = [f"embedded models: {', '.join(table['embedded']) or 'none'}"]
    for entry in table["transformers"]:
        axes = " ".join(axis for axis in ("ulysses", "ring", "cfg", "data") if entry[axis])
        lines += ["", f"{entry['transformer']}: {axes}; shares {', '.join(entry['streams'])}"]
        lines += textwrap.wrap(", ".join(entry["pipelines"]), 120, initial_indent="  ", subsequent_indent="  ")
        lines += [f"  whole on every rank: {module}: {why}" for module, why in entry["whole"].items()]
        lines += [f"  no cfg: {name}: {why}" for name, why in entry["without_cfg"].items()]
        lines += [f"  no data: {name} {why}" for name, why in entry["without_data"].items()]
    return "\n".join([*lines, "", "cannot be shared:", *(f"  {name}: {why}" for name, why in table["refused"].items())])
