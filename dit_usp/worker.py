"""Worker: what a rank does when asked: load a pipeline, make pictures, clips or sounds, save them."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from dit_usp.signature import PROMPTS, Call, read_call

if TYPE_CHECKING:
    from dit_usp.config import ParallelConfig
    from dit_usp.saving import Target

Report = Callable[..., None]  # report(stage, step=0, total=0)


class Worker:
    """One rank's pipeline and what is done with it. Every rank gets the same calls in the same order.

    Args:
        report: told the stage whenever it changes, and the step in "denoise"; None: the pipeline shows its own progress bar.
    """

    def __init__(self, report: Report | None) -> None:
        self.report: Report = report or (lambda stage, step=0, total=0: None)
        self.shows_progress = report is None
        self.pipe: Any = None
        self.is_first = True

    def load(
        self,
        model: str,
        parallel: ParallelConfig | None,
        device: str | None,
        dtype: Any,
        options: Mapping[str, Any],
        pipeline: str | None = None,
    ) -> tuple[ParallelConfig, str]:
        """Load `model` on this rank, by default in the pipeline that it names itself; `options` go to from_pretrained.

        Returns:
            Its layout, and the name of diffusers' class.
        """
        self.report("load")
        if os.path.isdir(model) and not set(options) - {"compile", "graph"}:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all there is to load is here
        settings = {name: value for name, value in (("device_map", device), ("dtype", _torch_dtype(dtype))) if value is not None}
        with _uncollected():
            from dit_usp import pipelines

            load = getattr(pipelines, f"USP{pipeline}").from_pretrained if pipeline else pipelines.auto_pipeline
            self.pipe = load(model, parallel=parallel, on_stage=self.report, on_step=self._on_step, **settings, **options)
        self.is_first = self.pipe.mesh.is_first
        if not self.shows_progress:
            self.pipe.set_progress_bar_config(disable=True)
        self.report("idle")
        return self.pipe.mesh.config, self.call.name

    @property
    def call(self) -> Call:
        """What the pipeline's call takes and gives."""
        return read_call(type(self.pipe).__name__.removeprefix("USP"))

    def _on_step(self, step: int, total: int) -> None:
        self.report("denoise", step, total)

    def generate(self, prompt: Any, seeds: Sequence[int], targets: Sequence[Target], call: Mapping[str, Any]) -> Any:
        """Call the pipeline and save its results; the first rank returns the output's fields (tensors on the CPU), the others None."""
        output = self._called(prompt, seeds, call)
        self._save(output, targets, call)
        return _portable(output) if self.is_first else None

    def make_files(self, prompt: Sequence[Any], seeds: Sequence[int], targets: Sequence[Target], call: Mapping[str, Any]) -> list[str]:
        """One result a prompt, each from its own seed, each into its file; the first rank returns the paths, the others none."""
        alone = len(prompt) == 1 and isinstance(prompt[0], str)  # a text by itself: some pipelines take no list
        return self._save(self._called(prompt[0] if alone else list(prompt), seeds, call), targets, call)

    def _called(self, prompt: Any, seeds: Sequence[int], call: Mapping[str, Any]) -> Any:
        """The pipeline's output, the files that the call names opened. A pipeline without an argument for the prompt is given none."""
        from dit_usp.media import opened

        name = self.call.first(PROMPTS)
        return self.pipe(**({name: prompt} if name else {}), **_noise(seeds), **opened(self.pipe, call))

    def _save(self, output: Any, targets: Sequence[Target], call: Mapping[str, Any]) -> list[str]:
        """Write the results on the first rank; return the paths they got."""
        paths: list[str] = []
        if targets and self.is_first:
            from dit_usp.results import save_results

            self.report("save")
            paths = save_results(output, targets, self.pipe, self.call, call)
        self.report("idle")
        return paths


@contextmanager
def _uncollected() -> Iterator[None]:
    """Importing torch and diffusers makes a million lasting objects; looking for garbage among them takes 1.2 of 5.7 s (CPU time, torch 2.13)."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _noise(seeds: Sequence[int]) -> dict[str, Any]:
    """The pipeline's generator argument: one for each seed; no seed: another noise each time."""
    if not seeds:
        return {}
    import torch

    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    return {"generator": generators if len(generators) > 1 else generators[0]}


def _torch_dtype(name: Any) -> Any:
    """torch.bfloat16 for itself or "bfloat16"; None for None."""
    if not isinstance(name, str):
        return name
    import torch

    return getattr(torch, name)


def _portable(output: Any) -> Any:
    """The output without diffusers' class, which would take the parent 5 s to import, and with its tensors on the CPU."""
    if not isinstance(output, Mapping):
        return _on_cpu(output)
    return SimpleNamespace(**{name: _on_cpu(value) for name, value in output.items()})


def _on_cpu(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_on_cpu(item) for item in value)
    return value.cpu() if hasattr(value, "cpu") else value
