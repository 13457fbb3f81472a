"""What both trainings do: options, sittings, the two parts one after the other, and the loop around a part's steps."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from emoji.optim import Clock

PROGRESS_SECONDS = 15
CHECKPOINT_SECONDS = 240


class Part(Protocol):
    """What is trained in one go: it owns its modules and optimisers."""

    name: str
    batch: int

    def step(self, step: int, share: float) -> Tensor:
        """Take one step, `share` of the budget being spent; the loss, on the device."""

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...

    def finish(self) -> dict[str, Any]:
        """Write the result into the model's folder; figures for stats.json."""


@dataclass(frozen=True)
class Recipe:
    """Everything that must be the same in all sittings of a training."""

    pixels: int
    batch: int
    vae_batch: int
    vae_seconds: float
    denoiser_seconds: float
    bank: int
    subjects: int | None
    alone: float
    colour: float
    seed: int

    @classmethod
    def of(cls, options: Namespace) -> Self:
        """The options of these names."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})


class Sitting:
    """One run of the script: its log, its end, and its checkpoint file."""

    def __init__(self, folder: Path, recipe: Recipe, minutes: float | None, device: torch.device) -> None:
        self.folder, self.recipe, self.device = folder, recipe, device
        self.began = time.monotonic()
        self.ends = self.began + 60 * minutes if minutes is not None else math.inf
        self.file = folder / "checkpoint.pt"
        self.checkpoint: dict[str, Any] = torch.load(self.file, map_location=device, weights_only=True) if self.file.exists() else {}
        if self.checkpoint and self.checkpoint["recipe"] != asdict(recipe):
            raise ValueError(
                f"{folder} holds a training with {self.checkpoint['recipe']}; this is {asdict(recipe)}. Choose another OUT, or the same options."
            )

    def say(self, *words: object) -> None:
        print(f"[{time.monotonic() - self.began:6.0f}s]", *words, flush=True)

    def note(self, figures: dict[str, Any]) -> None:
        """Add figures to stats.json."""
        file = self.folder / "stats.json"
        before = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(before | figures, indent=1))
        self.say(figures)

    @property
    def over(self) -> bool:
        return time.monotonic() > self.ends

    def save(self, part: Part, step: int, spent: float, loss: float) -> None:
        """Write the checkpoint under another name, then rename it: a killed run leaves the old one."""
        rng = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None}
        content = {"recipe": asdict(self.recipe), "part": part.name, "step": step, "spent": spent, "loss": loss, "state": part.state(), "rng": rng}
        torch.save(content, self.file.with_suffix(".new"))
        os.replace(self.file.with_suffix(".new"), self.file)
        self.say(f"checkpoint: {part.name} step {step}, {spent:.0f} s spent")

    def resume(self, part: Part) -> tuple[int, float, float]:
        """Step, seconds spent and last mean loss of this part; its state and the random numbers are put back."""
        if self.checkpoint.get("part") != part.name:
            return 0, 0.0, math.nan
        part.load_state(self.checkpoint["state"])
        rng = self.checkpoint["rng"]
        torch.set_rng_state(rng["cpu"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(rng["cuda"].cpu(), self.device)
        self.say(f"going on with {part.name} at step {self.checkpoint['step']}, {self.checkpoint['spent']:.0f} s spent")
        return self.checkpoint["step"], self.checkpoint["spent"], self.checkpoint["loss"]


def train(part: Part, budget: float, sitting: Sitting) -> dict[str, Any] | None:
    """Train a part until its budget is spent; its figures, or None when the sitting ended first.

    Raises:
        ArithmeticError: the loss is not finite.
    """
    step, spent, loss = sitting.resume(part)
    clock, meter = Clock(budget, spent), _Meter(sitting, part, loss)
    saved = time.monotonic()
    while clock.share < 1:
        if sitting.over:
            sitting.save(part, step, clock.spent, meter.tell(step, clock, now=True))
            return None
        meter.add(part.step(step, clock.share))
        step += 1
        clock.step()
        meter.tell(step, clock)
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            sitting.save(part, step, clock.spent, meter.tell(step, clock, now=True))
            saved = time.monotonic()
    sitting.save(part, step, clock.spent, meter.tell(step, clock, now=True))
    return {f"{part.name}_steps": step, f"{part.name}_seconds": round(clock.spent), f"{part.name}_loss": meter.mean, **part.finish()}


class _Meter:
    """The mean loss since the last progress line, kept on the device so that no step waits for it."""

    def __init__(self, sitting: Sitting, part: Part, mean: float) -> None:
        self.sitting, self.part = sitting, part
        self.total, self.count, self.told, self.mean = torch.zeros((), device=sitting.device), 0, time.monotonic(), mean

    def add(self, loss: Tensor) -> None:
        self.total += loss
        self.count += 1

    def tell(self, step: int, clock: Clock, now: bool = False) -> float:
        """Print a progress line when one is due; the last mean loss."""
        if self.count and (now or time.monotonic() - self.told > PROGRESS_SECONDS):
            self.mean = (self.total / self.count).item()
            if not math.isfinite(self.mean):
                raise ArithmeticError(f"the loss of {self.part.name} is {self.mean} at step {step}")
            rate = clock.steps_per_second * self.part.batch
            self.sitting.say(f"{self.part.name} step {step} {clock.share:.0%} loss {self.mean:.4f} {rate:.0f}/s")
            self.total.zero_()
            self.count, self.told = 0, time.monotonic()
        return self.mean


def cached(file: Path, make: Callable[[], dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    """Tensors made in the first sitting and read by the later ones."""
    if file.exists():
        return torch.load(file, map_location=device, weights_only=True)
    tensors = make()
    torch.save(tensors, file.with_suffix(".new"))
    os.replace(file.with_suffix(".new"), file)
    return tensors


def options(description: str | None, start: str, **defaults: Any) -> ArgumentParser:
    """The options of both scripts.

    Args:
        start: what becomes of the model that --start names.
        defaults: of those that differ.
    """
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path, help="the npz that scripts/emoji/pack.py writes")
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=Path, help=f"folder of a saved model: {start}")
    parser.add_argument("--minutes", type=float, help="end this sitting after so many minutes, with a checkpoint")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--pixels", type=int)
    parser.add_argument("--subjects", type=int, help="learn only the first so many, for a dry run")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--vae-batch", type=int)
    parser.add_argument("--vae-seconds", type=float, help="of training, compilation not counted")
    parser.add_argument("--denoiser-seconds", type=float)
    parser.add_argument("--bank", type=int, help="captions drawn for each picture or clip")
    parser.add_argument("--alone", type=float, help="share of captions that name the subject by a lone keyword")
    parser.add_argument("--colour", type=float, help="share of pictures or clips on a colour")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(**defaults)
    return parser


def begin(args: Namespace, recipe: type[Recipe]) -> Sitting:
    """A sitting in OUT, which has a folder for the model from then on."""
    (args.out / "model").mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return Sitting(args.out, recipe.of(args), args.minutes, torch.device(args.device))


def prepare_vae(args: Namespace, sitting: Sitting, kept: bool, training: Callable[[], Part]) -> bool:
    """Put a VAE into OUT/model: the one already there, --start's if it is `kept`, or the one that is trained; False when the sitting ended first."""
    folder = args.out / "model" / "vae"
    if folder.exists():
        return True
    if kept:
        shutil.copytree(args.start / "vae", folder)
        return True
    torch.manual_seed(args.seed)
    figures = train(training(), args.vae_seconds, sitting)
    sitting.note(figures or {})
    return figures is not None


def train_denoiser(
    args: Namespace, sitting: Sitting, networks: Callable[[], tuple[nn.Module, nn.Module]], training: Callable[[nn.ModuleDict], Part]
) -> None:
    """Train a transformer and its text encoder, as `networks` makes or reads them, in one part."""
    torch.manual_seed(args.seed)
    transformer, text_encoder = networks()
    denoiser = nn.ModuleDict({"transformer": transformer, "text_encoder": text_encoder}).to(sitting.device).train()
    if figures := train(training(denoiser), args.denoiser_seconds, sitting):
        sitting.note(figures)
