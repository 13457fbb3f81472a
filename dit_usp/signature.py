"""What a diffusers pipeline's call takes and gives, read from its source file: importing diffusers takes 5 s, reading one file 0.02 s."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

# Arguments of many pipelines that mean the same, by the first name that a call has.
PROMPTS = ("prompt", "class_labels")
FRAMES = ("num_frames", "frames", "video_length")
RATES = ("fps", "frame_rate")
PER_PROMPT = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")

# What the fields of a pipeline's output hold.
KINDS = {"images": "picture", "image": "picture", "frames": "clip", "video": "clip", "audios": "sound"}
TRACKS = ("audio", "sound")  # the sound of a clip

DOUBLED = ("LTX2DFRTemporalRefinePipeline",)  # play twice as many frames a second as their argument says, which is of what they are given
# Their model cards' and papers'; documentation in diffusers names none for the first and 15 for the second.
_CARDS_FPS = {"MochiPipeline": 30.0, "HunyuanVideo15Pipeline": 24.0}
_EXPANDED_FPS = 24.0  # Wan 2.2 5B's, by its model card: the one Wan whose model_index.json has expand_timesteps
DEFAULT_FPS = 8.0

_CLASS = re.compile(rb"^class (\w+)\(", re.MULTILINE)
_METHODS = {
    name: re.compile(rf"^    def {name}\(.*?(?=^    [@\w]|^(?:class|def|@)|\Z)", re.DOTALL | re.MULTILINE) for name in ("__call__", "__init__")
}
_OPTIONAL = re.compile(r"^    _optional_components = (\[[^\]]*\])", re.MULTILINE)


@dataclass(frozen=True)
class Parameter:
    """One argument of a call.

    Attributes:
        annotation: as written; None where there is none.
        default: None also where it is no plain value.
        required: it has no default.
    """

    annotation: ast.expr | None
    default: Any
    required: bool

    @cached_property
    def names(self) -> frozenset[str]:
        """Every name in its annotation: "list[torch.Tensor] | None" -> list, torch, Tensor, None."""
        return frozenset(_names(self.annotation))


@dataclass(frozen=True)
class Call:
    """A pipeline's `__call__`.

    Attributes:
        name: the pipeline's.
        parameters: its arguments by name, without self and **kwargs.
        results: the fields of its output.
        fps: frames a second of the clips it makes: what it assumes itself, else what its documentation saves them with.
        gives_latents: whether output_type="latent" ends it before anything is decoded.
        rounds_up: whether a number of frames that does not fit is rounded by `n // t * t + 1` (t frames a latent: 84 -> 85), not down (84 -> 81).
        sample_size: latents along a side when nobody says, if the pipeline has a constant for it.
    """

    name: str
    parameters: dict[str, Parameter]
    results: tuple[str, ...]
    fps: float
    gives_latents: bool
    rounds_up: bool
    sample_size: int | None

    @property
    def kind(self) -> str:
        """What it makes: "picture", "clip" or "sound"."""
        return next((KINDS[name] for name in self.results if name in KINDS), "picture")

    @property
    def has_track(self) -> bool:
        """Whether its clips may have sound."""
        return any(name in self.results for name in TRACKS)

    def fps_of(self, index: Mapping[str, Any]) -> float:
        """Frames a second of the clips of a model with that model_index.json."""
        return _EXPANDED_FPS if index.get("expand_timesteps") else self.fps

    def played(self, rate: float | None) -> float:
        """Frames a second of what it makes when asked for `rate`, or for nothing."""
        return (rate or self.fps) * (2 if self.name in DOUBLED else 1)

    def output_type(self, latents: bool) -> dict[str, str]:
        """The argument that makes it give latents, or what it decodes: some give latents by themselves."""
        if latents:
            return {"output_type": "latent"}
        return {"output_type": "pil"} if self.parameters["output_type"].default == "latent" else {}

    def first(self, names: tuple[str, ...]) -> str | None:
        """The first of `names` that is an argument."""
        return next((name for name in names if name in self.parameters), None)


@lru_cache
def read_call(pipeline: str) -> Call:
    """The call of the diffusers class `pipeline`.

    Raises:
        ValueError: the installed diffusers has no such pipeline, or none with a call of its own.
    """
    text = _file(pipeline)
    body, function = _method("__call__", pipeline, text)
    parameters, nodes = dict(_parameters(function.args)), list(ast.walk(function))
    size = re.search(r"self\.default_sample_size = (\d+)", text)
    return Call(
        name=pipeline,
        parameters=parameters,
        results=tuple(dict.fromkeys(_results(nodes))),
        fps=_fps(pipeline, parameters, text),
        gives_latents=any(isinstance(node, ast.Constant) and node.value == "latent" for node in nodes),
        rounds_up=re.search(r"if num_frames % \S+ != 1", body) is not None,
        sample_size=int(size[1]) if size else None,
    )


@lru_cache
def read_components(pipeline: str) -> dict[str, bool]:
    """What the diffusers class `pipeline` is made of, its settings too, and whether it cannot do without each."""
    text = _file(pipeline)
    _, function = _method("__init__", pipeline, text)
    body = text[text.index(f"\nclass {pipeline}(") + 1 :]
    listed = _OPTIONAL.search(body.split("\nclass ")[0])
    optional = ast.literal_eval(listed[1]) if listed else []
    return {name: parameter.required and name not in optional for name, parameter in _parameters(function.args)}


def _file(pipeline: str) -> str:
    """The source file that defines a pipeline."""
    if (path := _files().get(pipeline)) is None:
        raise ValueError(f"the installed diffusers has no {pipeline}; pip install -U diffusers.")
    return path.read_text(encoding="utf-8")


@lru_cache
def _files() -> dict[str, Path]:
    """Where each pipeline of diffusers is defined."""
    spec = importlib.util.find_spec("diffusers")  # finds a top-level package without importing it
    folders = spec.submodule_search_locations if spec else None
    files = Path((folders or ["/nowhere"])[0]).glob("pipelines/*/pipeline_*.py")
    return {name.decode(): path for path in files for name in _CLASS.findall(path.read_bytes())}


def _method(name: str, pipeline: str, text: str) -> tuple[str, ast.FunctionDef]:
    """Its method `name`, as text and parsed: the lines up to the next method, which parse ten times as fast as the file."""
    start = text.index(f"\nclass {pipeline}(") + 1
    method = _METHODS[name].search(text, start)
    if method is None or "\nclass " in text[start : method.start()]:
        raise ValueError(f"{pipeline} of the installed diffusers has no call of its own.")
    (node,) = ast.parse("class _:\n" + method[0]).body
    assert isinstance(node, ast.ClassDef)
    assert isinstance(node.body[0], ast.FunctionDef)
    return method[0], node.body[0]


def _parameters(arguments: ast.arguments) -> Iterator[tuple[str, Parameter]]:
    positional = arguments.args[1:]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    defaults = chain(missing, arguments.defaults, arguments.kw_defaults)
    for argument, default in zip([*positional, *arguments.kwonlyargs], defaults, strict=True):
        yield argument.arg, Parameter(argument.annotation, _literal(default), default is None)


def _literal(default: ast.expr | None) -> Any:
    with suppress(ValueError):
        return ast.literal_eval(default) if default else None
    return None


def _names(annotation: ast.AST | None) -> Iterator[str]:
    for node in ast.walk(annotation) if annotation else ():
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                yield name
            case ast.Constant(value=str(text)):
                yield from _names(ast.parse(text, mode="eval").body)
            case ast.Constant(value=None):
                yield "None"
            case ast.Subscript(value=ast.Name(id="Optional")):
                yield "None"


def _results(nodes: list[ast.AST]) -> Iterator[str]:
    """The fields that its returns fill: `return Output(frames=video, audio=audio)`. One that is always None is none."""
    for node in nodes:
        match node:
            case ast.Return(value=ast.Call(func=ast.Name(id=name), keywords=fields)) if name.endswith("Output"):
                yield from (field.arg for field in fields if field.arg and ast.unparse(field.value) != "None")


def _fps(pipeline: str, parameters: dict[str, Parameter], text: str) -> float:
    own = next((parameters[name].default for name in RATES if name in parameters), None)
    shown = re.search(r"export_to_video\([^)]*fps=(\d+)", text)
    return float(own or _CARDS_FPS.get(pipeline) or (shown[1] if shown else DEFAULT_FPS))
