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

    Of each transformer: what is shared (by ulysses and ring its attention, by cfg the halves of guidance, by data the prompts), the tokens that are
    shared out, what stays whole on every rank and why, and its pipelines.
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
    from dit_usp.pipelines.table import MODULAR, NOT_HALVED, PIPELINES
    from dit_usp.plan import Exchange, Reduce, Replicate

    pipelines = PIPELINES.get(plan.model, ())
    attends = bool(plan.of(Exchange) or plan.of(Reduce))
    without_cfg = {name: NOT_HALVED[name] for name in pipelines if name in NOT_HALVED}
    without_data = {name: why for name in pipelines if (why := _not_dealt(name))}
    return {
        "transformer": plan.model,
        "kind": kind,
        "ulysses": attends,
        "ring": attends,
        "cfg": plan.guidance != "" and (len(without_cfg) < len(pipelines) or not pipelines),
        "data": len(without_data) < len(pipelines),
        "streams": list(plan.streams),
        "whole": {module: word.why for word in plan.of(Replicate) for module in word.modules},
        "pipelines": list(pipelines),
        "modular": MODULAR.get(plan.model),
        "without_cfg": without_cfg,
        "without_data": without_data,
    }


def _not_dealt(pipeline: str) -> str | None:
    """Why a pipeline's calls are not dealt to replicas; None: those with prompts alone are."""
    from dit_usp.cli.inputs import FROM_PYTHON, needed
    from dit_usp.pipelines.table import NOT_DEALT
    from dit_usp.signature import read_call

    needs_file = pipeline in FROM_PYTHON or any(needed(read_call(pipeline)))
    return NOT_DEALT.get(pipeline) or ("starts from a picture, a clip or a sound" if needs_file else None)


def _text(table: dict[str, Any]) -> str:
    from dit_usp.pipelines.table import BY_HAND

    lines = [f"embedded models: {', '.join(table['embedded']) or 'none'}"]
    for entry in table["transformers"]:
        axes = [axis for axis in ("ulysses", "ring", "cfg", "data") if entry[axis]] + ["attention whole"] * (not entry["ulysses"])
        lines += ["", f"{entry['transformer']}: {' '.join(axes)}; shares {', '.join(entry['streams'])}"]
        lines += [f"  {entry['modular']} {BY_HAND}"] if entry["modular"] else []
        lines += textwrap.wrap(", ".join(entry["pipelines"]), 120, initial_indent="  ", subsequent_indent="  ")
        lines += [f"  whole on every rank: {module}: {why}" for module, why in entry["whole"].items()]
        lines += [f"  no cfg: {name}: {why}" for name, why in entry["without_cfg"].items()]
        lines += [f"  no data: {name} {why}" for name, why in entry["without_data"].items()]
    return "\n".join([*lines, "", "cannot be shared:", *(f"  {name}: {why}" for name, why in table["refused"].items())])
