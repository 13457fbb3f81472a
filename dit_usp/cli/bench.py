"""`dit-usp bench`: how long one transformer step takes, and where the time goes."""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from dit_usp.cli.console import talks

if TYPE_CHECKING:
    from dit_usp.bench.step import Result, Variant
    from dit_usp.config import ParallelConfig

MODES = ("eager", "compile", "graph", "compile+graph")
PEERS = {"diffusers-parallel": "diffusers", "cache-dit": "cache-dit", "cache-dit-async": "cache-dit-async"}
BASELINES = tuple(name + compiled for name in ("diffusers", *PEERS) for compiled in ("", "-compile"))


@click.command("bench")
@click.argument("cases", nargs=-1, metavar="CASE...")
@click.option("--share", type=int, metavar="P", help="One rank's work of P, on this device alone; copies stand for communication.")
@click.option("--ulysses", type=int, metavar="N", help="With --ring and --cfg: this layout only. Default: every pure one.")
@click.option("--ring", type=int, metavar="N")
@click.option("--cfg", type=int, metavar="N")
@click.option("--ring-method", type=click.Choice(["rotate", "gather"]), default="rotate", show_default=True)
@click.option("--mode", "modes", multiple=True, type=click.Choice(MODES), help="Several may be given. Default: eager.")
@click.option(
    "--baseline", "baselines", multiple=True, type=click.Choice(BASELINES), help="Run by turns with ours, cache-dit after. Default: diffusers."
)
@click.option("--layers", type=int, metavar="N", help="At most so many layers; default: the published model's.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), default="bfloat16", show_default=True)
@click.option("--runs", type=int, default=12, show_default=True, metavar="N", help="Steps of each variant.")
@click.option("--exact", is_flag=True, help="Errors against the model in float32, that of diffusers as well.")
@click.option("--profile", is_flag=True, help="Say how much is attention, other compute, exposed communication, gaps (GPUs).")
@click.option("--kernels", is_flag=True, help="Name the kernels that take longest as well; implies --profile.")
@click.option("--json", "json_file", metavar="FILE", help="Keep all figures.")
@click.option("--plot", metavar="FILE", help="An HTML page with bars; implies --profile.")
def command(cases: tuple[str, ...], **options: Any) -> None:
    """Time one step of real models with random weights; nothing is downloaded.

    \b
    dit-usp bench pixart-1024 --share 4 --mode compile+graph
    torchrun --nproc-per-node 2 -m dit_usp bench flux-1024 --baseline diffusers --baseline diffusers-parallel
    """
    from dit_usp.bench.cases import CASES

    unknown = [case for case in cases if case not in CASES]
    if unknown or not cases:
        raise ValueError(f"{f'there is no case {unknown[0]}' if unknown else 'name a case'}; there are {', '.join(CASES)}.")
    for option, least in (("share", 1), ("layers", 1), ("runs", 1)):
        if options[option] is not None and options[option] < least:
            raise ValueError(f"--{option} {options[option]}: use {least} or more.")
    if len(cases) > 1 and any(baseline.startswith("cache-dit") for baseline in options["baselines"]):
        raise ValueError("cache-dit replaces functions of diffusers for the whole process; with it, name one case.")
    _measure(cases, options)


def _measure(cases: tuple[str, ...], options: dict[str, Any]) -> None:
    import torch
    import torch.distributed as dist

    from dit_usp.bench import alone, step
    from dit_usp.bench.cases import CASES
    from dit_usp.config import ParallelConfig
    from dit_usp.launch import join, place

    here = place()
    if here and options["share"]:
        raise ValueError("--share measures one rank of many without the others; leave out torchrun.")
    if options["exact"] and (options["share"] or 1) > 1:
        raise ValueError("--share has no output to compare with float32; leave out --exact.")
    if here:
        device = join(ParallelConfig(ulysses_degree=here.world_size)).device
    else:
        alone.start(options["share"] or 1)
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    dtype = getattr(torch, options["dtype"])
    about, command = (
        step.environment(device, dtype, options["share"]),
        shlex.join(["dit-usp", "bench", *(argument for argument in sys.argv[1:] if argument != "bench")]),
    )
    if talks():
        click.echo(f"$ {command}\n{about}")
    table = _Table(about, command, options)
    with _choices_told():
        for name in cases:
            found = step.measure(
                name,
                _variants(dist.get_world_size(), CASES[name].halves, options),
                layers=options["layers"],
                dtype=dtype,
                device=device,
                runs=options["runs"],
                compare=(options["share"] or 1) == 1,
                exact=options["exact"],
                profile=options["profile"] or options["kernels"] or bool(options["plot"]),
                told=table.tell if talks() else lambda results: None,
            )
            table.close(found)
    if talks() and options["kernels"]:
        click.echo("\n".join(step.kernel_lines(table.results)))
    dist.destroy_process_group()


@contextlib.contextmanager
def _choices_told() -> Iterator[None]:
    """Print which attention kernels are taken meanwhile, and why: each choice once a process."""

    class Echo(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if talks():
                click.echo(record.getMessage())

    logger, echo = logging.getLogger("dit_usp.attention"), Echo()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(echo)
    try:
        yield
    finally:
        logger.removeHandler(echo)
        logger.setLevel(level)


class _Table:
    """What was measured so far, printed and written to the files that were asked for as it comes."""

    def __init__(self, about: str, command: str, options: dict[str, Any]) -> None:
        self.about, self.command, self.options = about, command, options
        self.results: list[Result] = []
        self.shown = 0  # lines of the case under way

    def tell(self, found: list[Result]) -> None:
        """More results of the case under way."""
        from dit_usp.bench import plot, step

        lines = step.as_lines(found)
        click.echo("\n".join(lines[self.shown :]))
        self.shown = len(lines)
        results = [*self.results, *found]
        texts = {self.options["json_file"]: step.as_json(results, self.about, self.command), self.options["plot"]: plot.page(results, self.about)}
        for file, text in texts.items():
            if file:
                with open(file, "w", encoding="utf-8") as out:
                    out.write(text)

    def close(self, found: list[Result]) -> None:
        """The case has ended with these."""
        self.results += found
        self.shown = 0


def _variants(ranks: int, halves: bool, options: dict[str, Any]) -> list[Variant]:
    from dit_usp.bench.peers import PEERS as PARALLEL
    from dit_usp.bench.step import Variant

    layouts = _layouts(ranks, halves, options)
    variants = []
    for baseline in options["baselines"] or ("diffusers",):
        peer, compiled = PEERS.get(baseline.removesuffix("-compile"), ""), baseline.endswith("-compile")
        fitting = [layout for layout in layouts if layout.cfg_degree == 1 and PARALLEL[peer].fits(layout)] if peer else [None]
        variants += [Variant(layout, peer, compile=compiled) for layout in fitting]
    for mode in options["modes"] or ("eager",):
        variants += [Variant(layout, compile="compile" in mode, graph="graph" in mode) for layout in layouts]
    return variants


def _layouts(ranks: int, halves: bool, options: dict[str, Any]) -> list[ParallelConfig]:
    from dit_usp.bench.step import layouts
    from dit_usp.config import ParallelConfig

    ulysses, ring, cfg = (options[axis] for axis in ("ulysses", "ring", "cfg"))
    if not (ulysses or ring or cfg):
        return layouts(ranks, halves)
    asked = ParallelConfig(ulysses_degree=ulysses or 1, ring_degree=ring or 1, cfg_degree=cfg or 1, ring_method=options["ring_method"])
    if asked.world_size != ranks:
        raise ValueError(f"{asked} is a layout of {asked.world_size} ranks; this is one of {ranks}.")
    return [asked]
