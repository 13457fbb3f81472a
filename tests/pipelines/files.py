"""Folders, inputs and calls for the command line's tests with tiny pipelines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny_pipelines import default_call

from dit_usp import media
from dit_usp.cli.generate import Options, command
from dit_usp.cli.inputs import KEEP_SIZE, argument_of, needed
from dit_usp.cli.model import Model
from dit_usp.cli.prepare import Prepared, prepare
from dit_usp.formats import Sound, wav
from dit_usp.signature import FRAMES, PROMPTS

FILES = {"picture": "picture.png", "clip": "clip.gif", "condition": "clip.gif", "sound": "sound.wav"}


def write_files(folder: Path) -> None:
    """A file of each kind that a pipeline may start from."""
    frames = [Image.effect_noise((128, 96), 60).convert("RGB") for _ in range(9)]
    frames[0].save(folder / "picture.png")
    frames[0].save(folder / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    (folder / "sound.wav").write_bytes(wav(Sound(np.sin(np.arange(16000) / 20)[None], 16000), {}))


def write_configs(pipe: Any, folder: Path) -> Path:
    """A model's folder with its JSON files, and an empty file where its weights would be."""
    pipe.save_config(folder)
    for part, entry in json.loads((folder / "model_index.json").read_text()).items():
        if isinstance(entry, list):
            (folder / part).mkdir(exist_ok=True)
            if hasattr(component := getattr(pipe, part, None), "save_config"):
                component.save_config(folder / part)
    for part in ("transformer", "transformer_2"):
        if (folder / part).exists():
            (folder / part / "diffusion_pytorch_model.safetensors").touch()
    return folder


def options(**given: Any) -> Options:
    """As click makes them of nothing, on the CPU, with changes."""
    return Options(**{**command.make_context("generate", []).params, "device": "cpu", **given})


def prepared(model: Model, folder: Path, **given: Any) -> Prepared:
    """What the command line makes of the tiny call's size and length, a seed, and a file for everything that the pipeline needs."""
    call = default_call(model.pipeline)
    prompt = call.get("prompt", "a red heart")
    sizes = {} if model.pipeline in KEEP_SIZE else {side: call[side] for side in ("height", "width") if isinstance(call.get(side), int)}
    frames = {"frames": next((call[name] for name in FRAMES if name in call), None)}
    prompts = {"prompt": ("3" if "class_labels" in model.parameters else prompt if isinstance(prompt, str) else prompt[0],)}
    wanted = (prompts if model.call.first(PROMPTS) else {}) | sizes | frames | _needs(model, folder) | given
    return prepare(options(model=str(model.folder), seed=1, **wanted))


def _needs(model: Model, folder: Path) -> dict[str, Any]:
    """Options that give what the pipeline cannot do without."""
    given: dict[str, Any] = {"settings": ()}
    for name, *_ in needed(model.call):
        form = media.form(model.pipeline, name)
        assert form
        file = str(folder / FILES[form.kind])
        option = next((option for option in ("image", "mask", "video", "control_image", "audio") if _gives(option, name, model)), None)
        if option is None:
            given["settings"] += (f"{name}={file}",)
        else:
            given[option] = (file,) if option in ("image", "control_image") else file
    return given


def _gives(option: str, name: str, model: Model) -> bool:
    try:
        return argument_of(f"--{option.replace('_', '-')}", model) == name
    except ValueError:
        return False
