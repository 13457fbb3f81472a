"""What a diffusers pipeline's call takes, read from its source file: importing diffusers takes 5 s, reading one file 0.02 s."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What JSON writes, by the words that annotations use for it.
_KINDS: dict[type, set[str]] = {
    bool: {"bool"},
    int: {"int", "float"},
    float: {"float"},
    str: {"str"},
    list: {"list", "List", "tuple", "Tuple", "Sequence"},
    dict: {"dict", "Dict"},
    type(None): {"None"},
}
_WRITABLE = set().union(*_KINDS.values()) - {"None"}

# Arguments with an option of their own, and those that generate decides.
_OPTIONS = {
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "height": "--height",
    "width": "--width",
    "num_frames": "--frames",
    "negative_prompt": "--negative",
    "num_images_per_prompt": "--images",
    "num_videos_per_prompt": "--images",
    "prompt": "PROMPT",
    "class_labels": "PROMPT",
    "generator": "--seed",
}
_OURS = ("output_type", "return_dict")


@dataclass(frozen=True)
class Parameter:
    """One argument of a call.

    Attributes:
        kinds: the types its annotation names, without what is inside their brackets.
        default: None also where there is none, or none that is a plain value.
    """

    kinds: frozenset[str]
    default: Any


def read_signature(pipeline: str) -> dict[str, Parameter]:
    """The arguments of a diffusers pipeline's `__call__` by name, without self and **kwargs.

    Raises:
        ValueError: the installed diffusers has no such pipeline.
    """
    for function in _functions(_class(pipeline)):
        if function.name == "__call__":
            arguments = function.args.args[1:]
            missing: list[ast.expr | None] = [None] * (len(arguments) - len(function.args.defaults))
            return {
                argument.arg: Parameter(frozenset(_kinds(argument.annotation)), _literal(default))
                for argument, default in zip(arguments, missing + list(function.args.defaults), strict=True)
            }
    raise ValueError(f"{pipeline} of the installed diffusers has no call of its own.")


def _class(pipeline: str) -> ast.ClassDef:
    spec = importlib.util.find_spec("diffusers")  # finds a top-level package without importing it
    folders = spec.submodule_search_locations if spec else None
    for path in sorted(Path((folders or ["/nowhere"])[0]).glob("pipelines/*/pipeline_*.py")):
        text = path.read_text(encoding="utf-8")
        if f"\nclass {pipeline}(" in text:
            return next(node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == pipeline)
    raise ValueError(f"the installed diffusers has no {pipeline}; pip install -U diffusers.")


def _functions(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    return (item for item in node.body if isinstance(item, ast.FunctionDef))


def _kinds(annotation: ast.AST | None) -> set[str]:
    """The outer types an annotation allows: "list[int] | None" -> {"list", "None"}."""
    match annotation:
        case ast.Constant(value=str(text)):
            return _kinds(ast.parse(text, mode="eval").body)
        case ast.Constant(value=None):
            return {"None"}
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return {name}
        case ast.BinOp(left=left, right=right):
            return _kinds(left) | _kinds(right)
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return _kinds(inner) | {"None"}
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=parts)):
            return set().union(*map(_kinds, parts))
        case ast.Subscript(value=outer):
            return _kinds(outer)
    return set()


def _literal(default: ast.expr | None) -> Any:
    with suppress(ValueError):
        return ast.literal_eval(default) if default else None
    return None


def read_settings(settings: Collection[str], parameters: Mapping[str, Parameter], pipeline: str) -> dict[str, Any]:
    """--set key=value ... as arguments of the call.

    Raises:
        ValueError: not key=value, a name that the call does not have or that has an option, a value of another type.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise ValueError(f"--set {setting}: write it as name=value, such as --set max_sequence_length=64.")
        if name in values:
            raise ValueError(f"--set {name} is given twice.")
        _check_name(name, parameters, pipeline)
        values[name] = _value(name, text, parameters[name].kinds)
    return values


def _check_name(name: str, parameters: Mapping[str, Parameter], pipeline: str) -> None:
    if option := _OPTIONS.get(name):
        raise ValueError(f"--set {name}: use {option}.")
    if name in _OURS:
        raise ValueError(f"--set {name}: generate decides it.")
    settable = [other for other, parameter in parameters.items() if parameter.kinds & _WRITABLE and other not in (*_OPTIONS, *_OURS)]
    if name in parameters and name not in settable:
        raise ValueError(f"--set {name}: its values cannot be written on a command line; call {pipeline} from Python.")
    if name not in parameters:
        nearest = difflib.get_close_matches(name, settable, n=3, cutoff=0.4) or settable
        known = f"it has {', '.join(nearest)}" if nearest else "it has none to set"
        raise ValueError(f"--set {name}: {pipeline} has no such argument; {known}.")


def _value(name: str, text: str, kinds: frozenset[str]) -> Any:
    value: Any = text
    with suppress(json.JSONDecodeError):
        value = json.loads(text)
    if text in ("True", "False", "None"):
        value = ast.literal_eval(text)
    if kinds & _KINDS[type(value)]:
        return value
    if "str" in kinds:
        return text
    raise ValueError(f"--set {name}={text}: it takes {' or '.join(sorted(kinds & _WRITABLE))}.")
