"""Engine: a model on several ranks, for plain scripts and notebooks; it starts the ranks itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dit_usp import __version__, prompts
from dit_usp.config import ParallelConfig
from dit_usp.embedded import located, suited
from dit_usp.errors import RankError
from dit_usp.launch import check_gpus, num_gpus, place
from dit_usp.media import given_fps
from dit_usp.request import Picture, Request, random_seed, told_of_call
from dit_usp.saving import Target, remove_unfinished, result_format
from dit_usp.signature import PER_PROMPT, RATES, Call, read_call
from dit_usp.status import Doing
from dit_usp.supervise import Ranks
from dit_usp.worker import Worker

__all__ = ["Engine", "RankError", "run"]

Files = str | Path | list[str] | list[Path]
OnProgress = Callable[[Doing, int], None]  # what rank 0 is doing, and how many pictures are done


class Engine:
    """Ranks that load a model once, stay warm between prompts and die with this process.

        with dit_usp.Engine("folder or hub id", nproc=2) as engine:
            image = engine.generate("a red heart", seed=1).images[0]

    Args:
        model: a hub id, a local diffusers folder, or the name of an embedded model ("emoji-pixart-256").
        parallel: the degrees; their product is the number of ranks.
        nproc: the number of ranks, laid out as the model allows (`.parallel` says how). With neither: one rank a GPU, or one.
        device: "cuda" or "cpu"; None: cuda where there is one.
        dtype: such as "bfloat16" or torch.bfloat16; None: float32, also where the files hold another.
        **from_pretrained: anything else the pipeline's from_pretrained takes; must pickle.

    Attributes:
        parallel: the layout.
        pipeline: the name of diffusers' class.

    Raises:
        ValueError: this process is itself a rank; parallel and nproc disagree; more ranks than GPUs; or the ranks refuse the model.
        RankError: a rank died or failed while loading.
    """

    def __init__(
        self,
        model: str,
        parallel: ParallelConfig | None = None,
        *,
        nproc: int | None = None,
        device: str | None = None,
        dtype: Any = None,
        **from_pretrained: Any,
    ) -> None:
        _refuse_inside_a_rank()
        self.model, self._suited = str(model), suited(model)
        self.dtype = str(dtype or "float32").removeprefix("torch.")
        self._lock = threading.Lock()
        self._ranks = Ranks(_world_size(parallel, nproc, device))
        try:
            self.parallel: ParallelConfig
            self.parallel, self.pipeline = self._ask("load", model=self.model, parallel=parallel, device=device, dtype=dtype, options=from_pretrained)
        except BaseException:
            self.close()
            raise

    def generate(
        self, prompt: str | list[str] = "", *, seed: int | list[int] | None = None, save: Files | None = None, fps: float | None = None, **call: Any
    ) -> SimpleNamespace | tuple[Any, ...]:
        """Make pictures, clips or sounds of `prompt`.

        Args:
            prompt: what to show; nothing for a pipeline that takes no text.
            seed: fixes the noise; a list: one for each picture; None: another picture each time, whose seed is
                in the file that it is saved in.
            save: a file, or a list of them, for the results, which the first rank writes; a name that is taken becomes heart-2.png. The suffix is
                the format (.png, .jpg, .webp; .mp4, .webm, .gif; .wav); .safetensors keeps the latents and decodes nothing.
            fps: pictures a second of a clip; None: that of the clip it starts from, or what suits the pipeline.
            **call: anything else the pipeline's call takes, such as num_inference_steps; must pickle. Where it takes pictures, clips or sounds, a
                file's path will do; where it takes a tensor, that of a .safetensors file.

        Returns:
            The fields of the pipeline's output as attributes, e.g. `.images`, a list of PIL images.

        Raises:
            ValueError, TypeError, UnsupportedError: the call is refused; the engine stays usable.
            RankError: a rank died, failed or stopped answering; the engine is closed.
        """
        made = read_call(self.pipeline)
        call = {name: value for name, value in self._suited.items() if name in made.parameters} | call
        if seed is None and "generator" in made.parameters and "generator" not in call:
            seed = random_seed()
        seeds = seed if isinstance(seed, list) else [] if seed is None else [seed]
        if fps is not None and (name := made.first(RATES)):
            call[name] = fps
        targets = self._targets(prompt, seeds, save, self._fps(fps, made, call), call)
        if targets:
            call |= made.output_type(latents=targets[0].wants_latents)
        return self._ask("generate", prompt=self._read(prompt), seeds=seeds, targets=targets, call=call)

    def _read(self, prompt: str | list[str]) -> Any:
        """The prompt as the model's word lists, if it has any, put it."""
        if isinstance(prompt, (list, tuple)):
            return [self._read(text) for text in prompt]
        return prompts.resolve(prompt, located(self.model)).prompt if isinstance(prompt, str) else prompt

    def _story(self, asked: str) -> dict[str, str]:
        """What a file tells of its prompt."""
        read = self._read(asked)
        return {"prompt": read} if read == asked else {"prompt": read, "asked": asked}

    def _fps(self, fps: float | None, made: Call, call: Mapping[str, Any]) -> float | None:
        """What the file is told."""
        if fps is None and made.kind == "clip" and not made.first(RATES):
            fps = given_fps(self.pipeline, call) or self._suited.get("fps")
        return fps and made.played(fps)

    def _targets(self, prompt: str | list[str], seeds: list[int], save: Files | None, fps: float | None, call: Mapping[str, Any]) -> list[Target]:
        if save is None:
            return []
        paths = [Path(path) for path in (save if isinstance(save, (list, tuple)) else [save])]
        each_prompt = next((call[name] for name in PER_PROMPT if name in call), 1)
        asked = [text for text in ([prompt] if isinstance(prompt, str) else prompt) for _ in range(each_prompt)]
        if len(paths) != len(asked):
            raise ValueError(f"save names {len(paths)} files, but {len(asked)} pictures are asked for; name one for each.")
        for name, needed in (("output_type", "pil"), ("return_dict", True)):
            if call.get(name, needed) != needed:
                raise ValueError(f"{name}={call[name]!r} gives no pictures to save; leave out save or {name}.")
        formats = {result_format(path, read_call(self.pipeline)) for path in paths}
        if "safetensors" in formats and len(formats) > 1:
            raise ValueError("latents (.safetensors) and decoded results cannot be saved from one call; make two.")
        each = [{"seed": own} for own in seeds] if len(seeds) == len(paths) else [self._part(seeds, index, len(paths)) for index in range(len(paths))]
        told = self._told(call)
        return [Target(str(path), {**self._story(text), **own, **told}, fps=fps) for path, text, own in zip(paths, asked, each, strict=True)]

    def _part(self, seeds: list[int], index: int, total: int) -> dict[str, Any]:
        """One seed for several pictures is the seed of all of them together: which of how many this one is belongs to it."""
        return {"seed": seeds[0] if seeds else None} | ({"index": index, "of": total} if total > 1 else {})

    def _told(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """What every file of a call says, beside its own prompt, seed and size."""
        model = {"model": self.model, "pipeline": self.pipeline, "dtype": self.dtype}
        layout = {"layout": str(self.parallel), "ranks": self.parallel.world_size, "versions": versions()}
        return model | told_of_call(read_call(self.pipeline), call) | layout

    def _ask(self, name: str, **arguments: Any) -> Any:
        with self._lock:
            if self._ranks.closed:
                raise ValueError("This engine is closed; make another one.")
            return _ask(self._ranks, name, arguments)

    def close(self) -> None:
        """End the ranks. Safe to call again; also done when the engine is collected and when this process ends."""
        self._ranks.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def versions() -> dict[str, str]:
    """Of the packages that decide how a picture looks; recorded in its file."""
    return {"dit-usp": __version__, **{package: version(package) for package in ("diffusers", "transformers", "torch")}}


def _ask(ranks: Ranks, name: str, arguments: dict[str, Any], on_doing: Callable[[Doing], None] = lambda doing: None) -> Any:
    """The first rank's answer; if the ranks come to an end, so does the file that was being written."""
    try:
        return ranks.ask(name, arguments, on_doing)[0]
    except BaseException:
        for target in arguments.get("targets", ()):
            remove_unfinished(Path(target.path).parent, ranks.members[0].process.pid)
        raise


def _refuse_inside_a_rank() -> None:
    if (here := place()) is not None:
        raise ValueError(
            f"Engine starts ranks itself, but this process is already rank {here.rank} of {here.world_size} (torchrun, srun or the like): "
            "use dit_usp.auto_pipeline or a class of dit_usp.pipelines here."
        )


def _world_size(parallel: ParallelConfig | None, nproc: int | None, device: str | None) -> int:
    if nproc is not None and nproc < 1:
        raise ValueError(f"nproc={nproc} ranks cannot make a picture; ask for at least 1.")
    if parallel is not None and nproc not in (None, parallel.world_size):
        raise ValueError(f"nproc={nproc}, but {parallel} needs {parallel.world_size} ranks; leave nproc out.")
    gpus = num_gpus() if device in (None, "cuda") else 0
    ranks = parallel.world_size if parallel is not None else nproc or max(1, gpus)
    if gpus or device == "cuda":
        check_gpus(ranks)
    return ranks


def run(request: Request, on_progress: OnProgress = lambda doing, done: None) -> list[str]:
    """Carry out a whole `generate`: on ranks started here, or, under a launcher, as one of its ranks.

    Args:
        request: what to make.
        on_progress: called ten times a second; not under a launcher, where the first rank's pipeline shows its own bar.

    Returns:
        The files written, in the order of request.pictures; under a launcher none on ranks other than the first.

    Raises:
        ValueError, OSError, UnsupportedError: every rank refuses the request.
        RankError: a rank died, failed or stopped answering; no process and no unfinished file is left.
        KeyboardInterrupt: after Ctrl-C, likewise.
    """
    if place() is not None:
        worker = Worker(None)
        return _carry_out(request, lambda name, arguments, done: getattr(worker, name)(**arguments))
    ranks = Ranks(request.config.world_size)
    try:
        return _carry_out(request, lambda name, arguments, done: _ask(ranks, name, arguments, lambda doing: on_progress(doing, done)))
    finally:
        ranks.close()


def _carry_out(request: Request, ask: Callable[[str, dict[str, Any], int], Any]) -> list[str]:
    """Load, then one call a round; `ask(name, arguments, pictures done)` has the ranks do each."""
    model = {"model": request.model, "pipeline": request.pipeline, "dtype": request.dtype, "options": request.speed}
    ask("load", {**model, "parallel": request.config, "device": request.device}, 0)
    files: list[str] = []
    done = 0
    for pictures in request.rounds():
        files += ask("make_files", _round(request, pictures), done)
        done += len(pictures)
    return files


def _round(request: Request, pictures: tuple[Picture, ...]) -> dict[str, Any]:
    return {
        "prompt": [picture.prompt for picture in pictures],
        "seeds": [picture.seed for picture in pictures],
        "targets": [request.target(picture) for picture in pictures],
        "call": dict(request.call),
    }
