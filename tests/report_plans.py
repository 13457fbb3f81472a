"""python tests/report_plans.py: a table of every plan: its lines, worst error on two ranks, and collectives a forward and an attention."""

from __future__ import annotations

import ast
import sys
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from ranks import RankPool
from test_parity import error, forward
from tiny import TINY, build

from dit_usp import collectives, models
from dit_usp.config import ParallelConfig
from dit_usp.inject import parallelize, plan_of, unparallelize
from dit_usp.mesh import init_mesh

COLLECTIVES = ((dist, "all_to_all_single"), (collectives, "gather_into"), (dist, "all_reduce"))


def measured(name: str) -> tuple[str, float, list[int], int]:
    """On a rank: the model's plan, the worst error of both layouts, the collectives of each, and how many attentions exchange."""
    torch.set_num_threads(1)
    model, inputs = build(name)
    expected, worst, counts, attentions = forward(model, inputs), 0.0, [], 0
    for config in (ParallelConfig(2), ParallelConfig(1, 2)):
        parallelize(model, init_mesh(config, "cpu"))
        attentions = len(model._dit_usp_injection.attentions)
        forward(model, inputs)  # lengths are learnt and compared once
        with ExitStack() as stack:
            calls = [stack.enter_context(mock.patch.object(*call, wraps=getattr(*call))) for call in COLLECTIVES]
            out = forward(model, inputs)
        unparallelize(model)
        worst = max([worst, *(error(o, e) for o, e in zip(out, expected, strict=True))])
        counts.append(sum(call.call_count for call in calls))
    return plan_of(model).model, worst, counts, attentions


def plan_lines() -> dict[str, int]:
    """Lines inside each entry; classes that share one stand in a tuple, or in the loop around it."""
    lines = {}
    for file in Path(models.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.Call, ast.GeneratorExp)) and node.end_lineno:
                names = [leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)]
                for plan in models.PLANS:
                    if plan.model in names and "shard_plan" in ast.unparse(node):
                        lines[plan.model] = node.end_lineno - node.lineno - 1
    return lines


def main() -> None:
    pool, lines = RankPool(2), plan_lines()
    rows: dict[str, tuple[float, list[int], int]] = {}
    for name in sys.argv[1:] or TINY:
        for plan, worst, counts, attentions in pool(2, measured, name)[:1]:
            if plan not in rows or worst > rows[plan][0]:
                rows[plan] = (worst, counts, attentions)
    print("| class | plan lines | worst error | attentions | collectives: ulysses 2 | ring 2 |\n| --- | --- | --- | --- | --- | --- |")
    for plan, (worst, counts, attentions) in rows.items():
        print(f"| {plan} | {lines.get(plan, '-')} | {worst:.1e} | {attentions} | {counts[0]} | {counts[1]} |")
    print(f"\n{len(rows)} classes; median plan {sorted(lines.values())[len(lines) // 2]} lines, longest {max(lines.values())}")
    pool.close()


if __name__ == "__main__":
    main()
