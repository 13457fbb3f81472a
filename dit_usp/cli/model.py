"""What a model's JSON files tell before a weight is loaded: its pipeline, its plan, its sizes."""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dit_usp.cli import sizes
from dit_usp.embedded import embedded, suited
from dit_usp.models import find_plan
from dit_usp.pipelines.table import BY_HAND, NAMES
from dit_usp.plan import ShardPlan
from dit_usp.signature import FRAMES, Call, Parameter, read_call

DEFAULT = "emoji-pixart-256"

_TRANSFORMERS = ("transformer", "transformer_2")  # Wan 2.2 may have the second alone
_OTHERS = {"vae": "config.json", "scheduler": "scheduler_config.json"}

Read = Callable[[str], dict[str, Any]]  # a JSON file of the model by its path in the model's folder


@dataclass(frozen=True)
class Model:
    """A model as its files describe it.

    Attributes:
        name: as the user knows it.
        source: what from_pretrained is given: a hub id or a folder.
        folder: where it lies, if it lies here.
        index: model_index.json.
        part: the transformer's name in it.
        transformer, vae, scheduler: the components' configs; empty where there is no such component.
        calls: the arguments that suit it, and "fps", where they are not the pipeline's own.
    """

    name: str
    source: str
    folder: Path | None
    index: Mapping[str, Any]
    part: str
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    calls: Mapping[str, Any]

    @property
    def pipeline(self) -> str:
        """The diffusers pipeline's class name."""
        return self.index["_class_name"]

    @property
    def transformer_class(self) -> str:
        """The transformer's class name."""
        return self.index[self.part][1]

    @cached_property
    def plan(self) -> ShardPlan:
        """How its transformer is sharded."""
        plan = find_plan(self.transformer_class)
        if plan is None:
            raise ValueError(f"{self.transformer_class} of {self.name} has no shard plan; CONTRIBUTING shows how to add one in ten lines.")
        return plan

    @property
    def call(self) -> Call:
        """What its pipeline's call takes and gives."""
        return read_call(self.pipeline)

    @property
    def parameters(self) -> dict[str, Parameter]:
        """What its pipeline's call takes."""
        return self.call.parameters

    @property
    def fps(self) -> float:
        """Frames a second of its clips when the user does not say."""
        return self.calls.get("fps", self.call.fps_of(self.index))

    @property
    def unit(self) -> int | None:
        """Height and width are multiples of so many pixels: those of one token. None: not known."""
        pixels, latents = sizes.pixels_a_latent(self.vae), sizes.latents_a_token(self.transformer, self.vae)
        return pixels * latents if pixels and latents else None

    def default(self, side: str) -> int | None:
        """Height or width in pixels when the user names none; None: not known, or the given picture's."""
        if isinstance(default := self.parameters[side].default if side in self.parameters else None, int):
            return default
        config, pixels = self.transformer, sizes.pixels_a_latent(self.vae)
        latents = config.get(f"sample_{side}", config.get("sample_size", self.call.sample_size))
        if self.pipeline in sizes.SAMPLES_ARE_TOKENS and latents:
            latents *= 2
        return latents * pixels if pixels and isinstance(latents, int) else None

    def default_frames(self) -> int | None:
        """Frames of a clip when the user names no number; None: not known."""
        if self.pipeline in sizes.OWN_FRAMES:
            return None
        name = self.call.first(FRAMES)
        default = self.parameters[name].default if name else None
        return default or self.transformer.get("sample_frames")

    def tokens(self, height: int, width: int, frames: int | None) -> int | None:
        """Image or video tokens of one picture or clip, without text; None: not known."""
        step = sizes.frames_a_latent(self.vae)
        if not self.unit or (self.call.kind == "clip" and not (frames and step)) or self.call.kind == "sound":
            return None
        planes = (frames - 1) // step + 1 if frames and step else 1
        return (height // self.unit) * (width // self.unit) * -(-planes // sizes.latent_frames_a_token(self.transformer))


def find_model(name: str) -> Model:
    """The model `name`: one that comes with us, a local folder, or a hub id.

    Raises:
        ValueError: it cannot be found or read, or its pipeline is none of ours.
    """
    ours = embedded()
    folder = ours.get(name) or Path(name).expanduser()
    if folder.exists():
        return _model(name, str(folder), folder, lambda file: _read_local(folder, file))
    if _is_hub_id(name):
        return _model(name, name, None, lambda file: _read_hub(name, file))
    nearest = difflib.get_close_matches(name, ours, n=1, cutoff=0.3) or list(ours)
    known = f"; did you mean {nearest[0]}?" if nearest else "."
    raise ValueError(f"--model {name}: there is no such folder, and a hub id reads owner/name{known}")


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def _model(name: str, source: str, folder: Path | None, read: Read) -> Model:
    index = _index(read)
    part = _check_pipeline(name, index)
    if folder is not None:
        _check_components(name, folder, index, part)
    transformer = read(f"{part}/config.json")
    vae, scheduler = (read(f"{other}/{file}") if is_there(index.get(other)) else {} for other, file in _OTHERS.items())
    return Model(name, source, folder, index, part, transformer, vae, scheduler, suited(source))


def _index(read: Read) -> dict[str, Any]:
    """model_index.json, or a modular pipeline's."""
    try:
        return read("model_index.json")
    except ValueError:
        with suppress(ValueError):
            return read("modular_model_index.json")
        raise


def is_there(entry: Any) -> bool:
    """Whether an entry of model_index.json names a component: ["diffusers", "AutoencoderKL"], and not [null, null]."""
    return isinstance(entry, list) and len(entry) == 2 and all(entry)


def _check_pipeline(name: str, index: Mapping[str, Any]) -> str:
    """The name of the transformer that is sharded."""
    pipeline, part = index.get("_class_name"), next((part for part in _TRANSFORMERS if is_there(index.get(part))), None)
    if isinstance(pipeline, str) and pipeline.endswith("ModularPipeline"):
        raise ValueError(f"--model {name}: {pipeline} {BY_HAND}.")
    if isinstance(pipeline, str) and pipeline not in NAMES and "transformer" in index:
        nearest = difflib.get_close_matches(pipeline, NAMES, n=3, cutoff=0.3) or NAMES
        raise ValueError(f"--model {name}: {pipeline} is not supported. The nearest that are: {', '.join(nearest)}.")
    if not isinstance(pipeline, str) or part is None:
        raise ValueError(f"--model {name}: its model_index.json names no pipeline with a transformer.")
    return part


def _check_components(name: str, folder: Path, index: Mapping[str, Any], part: str) -> None:
    """Every part that model_index.json lists is there, and the transformer with weights: told now, not after a minute of loading."""
    for other, entry in index.items():
        if is_there(entry) and not (folder / other).is_dir():
            raise ValueError(f"--model {name}: its model_index.json lists {other}, but there is no folder {folder / other}.")
    if not any((folder / part).glob("diffusion_pytorch_model*.*")):
        raise ValueError(f"--model {name}: there are no weights in {folder / part} (diffusion_pytorch_model.safetensors).")


def _read_local(folder: Path, file: str) -> dict[str, Any]:
    path = folder / file
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ValueError(f"--model {folder}: there is no {file}; a diffusers folder has one.") from error
    except NotADirectoryError as error:
        raise ValueError(f"--model {folder} is a file; give a diffusers folder or a hub id.") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    return _json(text, path)


def _json(text: str, path: Path | str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object.")
    return value


def _read_hub(name: str, file: str) -> dict[str, Any]:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are not news; that it gave up is our one line
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        path = hf_hub_download(name, file)
    except GatedRepoError as error:
        raise ValueError(f"--model {name}: its owner asks for consent; accept it at huggingface.co/{name} and log in (hf auth login).") from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"--model {name}: neither a folder here nor a model that huggingface.co shows you.") from error
    except LocalEntryNotFoundError as error:
        raise ValueError(f"--model {name}: there is no such folder here, and huggingface.co cannot be reached.") from error
    except EntryNotFoundError as error:
        raise ValueError(f"--model {name}: there is no {file} at huggingface.co/{name}; it is not a diffusers pipeline.") from error
    except HFValidationError as error:
        raise ValueError(f"--model {name}: neither a folder here nor a hub id (owner/name).") from error
    return _json(Path(path).read_text(encoding="utf-8"), f"{name}/{file}")
