"""What a model's JSON files tell before a weight is loaded: its pipeline, its plan, its sizes."""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dit_usp.cli.signature import Parameter, read_signature
from dit_usp.embedded import embedded
from dit_usp.models import find_plan
from dit_usp.pipelines.table import NAMES
from dit_usp.plan import ShardPlan

DEFAULT = "emoji-pixart-256"
# What suits a model that comes with us, by the pipeline's names: half the steps look the same (the figures are in its model card).
EMBEDDED_CALLS: dict[str, dict[str, Any]] = {DEFAULT: {"num_inference_steps": 10, "guidance_scale": 3.0}}

Read = Callable[[str], dict[str, Any]]  # a JSON file of the model by its path in the model's folder


@dataclass(frozen=True)
class Model:
    """A model as its files describe it.

    Attributes:
        name: as the user knows it.
        source: what from_pretrained is given: a hub id or a folder.
        folder: where it lies, if it lies here.
        index: model_index.json.
        transformer, vae, scheduler: the components' configs.
        calls: the arguments that suit it, where they are not the pipeline's own.
    """

    name: str
    source: str
    folder: Path | None
    index: Mapping[str, Any]
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
        return self.index["transformer"][1]

    @cached_property
    def plan(self) -> ShardPlan:
        """How its transformer is sharded."""
        plan = find_plan(self.transformer_class)
        if plan is None:
            raise ValueError(f"{self.transformer_class} of {self.name} has no shard plan; CONTRIBUTING shows how to add one in ten lines.")
        return plan

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """What its pipeline's call takes."""
        return read_signature(self.pipeline)

    @property
    def makes_clips(self) -> bool:
        """Whether its results are videos."""
        return "num_frames" in self.parameters

    @property
    def scale(self) -> int:
        """Pixels a latent, along height and width."""
        return 2 ** (len(self.vae["block_out_channels"]) - 1)

    @property
    def patch(self) -> int:
        """Latents a token, along height and width."""
        return 2 if self.transformer_class == "FluxTransformer2DModel" else self.transformer.get("patch_size", 1)  # FLUX packs before its model

    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels when the user names none."""
        config = self.transformer
        sample = config.get("sample_size", 128)  # FLUX's config names none; its pipeline takes 128
        return config.get("sample_height", sample) * self.scale, config.get("sample_width", sample) * self.scale

    def tokens(self, height: int, width: int, frames: int | None) -> int:
        """Image or video tokens of one picture or clip, without text."""
        plane = (height // self.scale // self.patch) * (width // self.scale // self.patch)
        if not self.makes_clips:
            return plane
        latents = (frames or self.transformer["sample_frames"]) - 1
        planes = latents // self.vae["temporal_compression_ratio"] + 1
        return plane * -(-planes // (self.transformer.get("patch_size_t") or 1))


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
    index = read("model_index.json")
    _check_pipeline(name, index)
    if folder is not None:
        _check_components(name, folder, index)
    transformer, vae, scheduler = (read(file) for file in ("transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"))
    model = Model(name, source, folder, index, transformer, vae, scheduler, EMBEDDED_CALLS.get(name, {}))
    if "image" in model.parameters:
        raise ValueError(f"--model {name}: {model.pipeline} starts from a picture, which generate cannot give; call it from Python.")
    return model


def _check_pipeline(name: str, index: Mapping[str, Any]) -> None:
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str) or "transformer" not in index:
        raise ValueError(f"--model {name}: its model_index.json names no pipeline with a transformer.")
    if pipeline not in NAMES:
        nearest = difflib.get_close_matches(pipeline, NAMES, n=3, cutoff=0.3) or NAMES
        raise ValueError(f"--model {name}: {pipeline} is not supported. The nearest that are: {', '.join(nearest)}.")


def _check_components(name: str, folder: Path, index: Mapping[str, Any]) -> None:
    """Every part that model_index.json lists is there, and the transformer with weights: told now, not after a minute of loading."""
    for part, entry in index.items():
        if isinstance(entry, list) and len(entry) == 2 and all(entry) and not (folder / part).is_dir():
            raise ValueError(f"--model {name}: its model_index.json lists {part}, but there is no folder {folder / part}.")
    if not any((folder / "transformer").glob("diffusion_pytorch_model*.*")):
        raise ValueError(f"--model {name}: there are no weights in {folder / 'transformer'} (diffusion_pytorch_model.safetensors).")


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
