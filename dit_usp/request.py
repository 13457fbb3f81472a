"""Request: everything one `generate` needs, made and checked before a process starts, then carried out by the ranks. No torch here."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dit_usp.config import ParallelConfig
from dit_usp.media import Clip
from dit_usp.saving import Target
from dit_usp.signature import Call

MAX_SEED = 2**63 - 1  # what torch.Generator.manual_seed takes and every format writes exactly
_RANDOM_SEEDS = 2**32  # short enough to be typed again
_OWN = ("num_inference_steps", "guidance_scale", "true_cfg_scale")
_NAMED = {"num_inference_steps": "steps", "guidance_scale": "guidance", "negative_prompt": "negative"}


def random_seed() -> int:
    """A seed for a picture that was asked for without one."""
    return secrets.randbelow(_RANDOM_SEEDS)


def told_of_call(call: Call, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a file tells of the call that made it: steps and guidance, if only the pipeline's own, and all plain values that were given."""
    own: dict[str, Any] = {name: call.parameters[name].default for name in _OWN if name in call.parameters}
    told = {name: _told(value) for name, value in {**own, **arguments}.items()}
    return {_NAMED.get(name, name): value for name, value in told.items() if value is not None and _is_plain(value)}


def _told(value: Any) -> Any:
    """Files by their paths; what a condition says beside its own too."""
    if isinstance(value, (list, tuple)):
        return [_told(item) for item in value]
    if isinstance(value, dict) and isinstance(value.get("frames"), (str, Path)):
        return " ".join(f"{name} {item}" for name, item in value.items())
    return str(value.path if isinstance(value, Clip) else value) if isinstance(value, (Clip, Path)) else value


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, list) else isinstance(value, (str, int, float))


@dataclass(frozen=True)
class Picture:
    """One picture, or clip, to make.

    Attributes:
        prompt: what the model reads: a text, or the number of a class.
        seed: of its noise alone: the same picture comes back from it whatever else is made beside it.
        path: the file to write.
        asked: what the user wrote, where that differs from the prompt ("puppy", read as "dog face").
    """

    prompt: str | int
    seed: int
    path: str
    asked: str = ""


@dataclass(frozen=True)
class Request:
    """A whole `generate`. Pickles; `dataclasses.asdict` of it is JSON.

    Attributes:
        model: a hub id or a local folder.
        pipeline: diffusers' class for it, if not the one that its model_index.json names.
        pictures: in the order they were asked for.
        call: arguments of the pipeline's call that all pictures share: what the user gave, nothing else; files to start from by their paths.
        told: what is recorded in every file beside the picture's own prompt, seed and size.
        config: the layout.
        dtype: torch's name of the type to compute in.
        device: "cpu" or "cuda".
        overwrite: replace existing files; else they get the next free name.
        fps: of clips; None: what suits the pipeline.
        speed: what from_pretrained is told of compiling and replaying.

    Raises:
        ValueError: no pictures, a seed out of range, two pictures for one file.
    """

    model: str
    pictures: tuple[Picture, ...]
    pipeline: str | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)
    config: ParallelConfig = field(default_factory=ParallelConfig)
    dtype: str = "float32"
    device: str = "cpu"
    overwrite: bool = False
    fps: float | None = None
    speed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.pictures:
            raise ValueError("There is nothing to make: give at least one prompt.")
        for picture in self.pictures:
            if not 0 <= picture.seed <= MAX_SEED:
                raise ValueError(f"seed {picture.seed} is out of range; use 0 to {MAX_SEED}.")
        paths = [picture.path for picture in self.pictures]
        if twice := next((path for path in paths if paths.count(path) > 1), None):
            raise ValueError(f"{twice} would be written twice; give each picture a name of its own.")

    def rounds(self) -> Iterator[tuple[Picture, ...]]:
        """The pictures of each pipeline call: one for every replica, so that memory does not grow with the number asked for."""
        pictures = iter(self.pictures)
        while some := tuple(itertools.islice(pictures, self.config.data_degree)):
            yield some

    def target(self, picture: Picture) -> Target:
        """Where a picture goes and what its file says."""
        asked = {"asked": picture.asked} if picture.asked else {}
        told = {"prompt": picture.prompt, **asked, "seed": picture.seed, **self.told, "layout": str(self.config), "ranks": self.config.world_size}
        return Target(picture.path, told, self.overwrite, self.fps)
