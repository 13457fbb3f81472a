"""--set name=value: any argument of the pipeline's call, its value checked against the annotation."""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

from dit_usp import media
from dit_usp.cli.model import Model
from dit_usp.signature import FRAMES, PER_PROMPT, PROMPTS, RATES

# Arguments with an option of their own, and those that generate decides.
OPTIONS: dict[str, str] = {
    **dict.fromkeys(PROMPTS, "PROMPT"),
    **dict.fromkeys(FRAMES, "--frames"),
    **dict.fromkeys(RATES, "--fps"),
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "height": "--height",
    "width": "--width",
    "negative_prompt": "--negative",
    **dict.fromkeys(PER_PROMPT, "--images"),
    "generator": "--seed",
}
_OURS = ("output_type", "return_dict")

_SEQUENCES = ("list", "List", "tuple", "Tuple", "Sequence", "Iterable")
_MAPPINGS = ("dict", "Dict", "Mapping")
# What JSON writes, by the words that annotations use for it; a bool is no number.
_PLAIN: dict[str, Callable[[Any], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "Any": lambda value: True,
    **dict.fromkeys(_SEQUENCES, lambda value: isinstance(value, list)),
    **dict.fromkeys(_MAPPINGS, lambda value: isinstance(value, dict)),
}


def read_settings(settings: Collection[str], model: Model, taken: dict[str, str]) -> dict[str, Any]:
    """--set key=value ... as arguments of the call; paths of pictures, clips, sounds and tensors stay paths.

    Args:
        taken: the option that gives an argument of this pipeline, beside those that all pipelines have.

    Raises:
        ValueError: not key=value, a name that the call does not have or that has an option, a value of another type, a file that cannot be read.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise ValueError(f"--set {setting}: write it as name=value, such as --set max_sequence_length=64.")
        if name in values:
            raise ValueError(f"--set {name} is given twice.")
        _check_name(name, model, OPTIONS | taken)
        values[name] = _value(name, text, model)
    return values


def _check_name(name: str, model: Model, taken: Mapping[str, str]) -> None:
    if option := taken.get(name):
        raise ValueError(f"--set {name}: use {option}.")
    if name in _OURS:
        raise ValueError(f"--set {name}: generate decides it.")
    settable = [other for other in model.parameters if _expected(other, model) and other not in (*taken, *_OURS)]
    if name in model.parameters and name not in settable:
        raise ValueError(f"--set {name}: its values cannot be written on a command line; call {model.pipeline} from Python.")
    if name not in model.parameters:
        nearest = difflib.get_close_matches(name, settable, n=3, cutoff=0.4) or settable
        known = f"it has {', '.join(nearest)}" if nearest else "it has none to set"
        raise ValueError(f"--set {name}: {model.pipeline} has no such argument; {known}.")


def _expected(name: str, model: Model) -> str:
    """What may be written for an argument, in words; empty if nothing can."""
    form, parameter = media.form(model.pipeline, name), model.parameters[name]
    files = form.words if form else "a .safetensors file" if media.takes_tensor(parameter) else ""
    return " or ".join(filter(None, (files, *_described(parameter.annotation))))


def _value(name: str, text: str, model: Model) -> Any:
    parameter, form = model.parameters[name], media.form(model.pipeline, name)
    if form:
        media.check(text, form, f"--set {name}={text}")
        return text
    if media.takes_tensor(parameter) and text.endswith(media.TENSORS):
        media.check_tensor(text, name, f"--set {name}={text}")
        return text
    value = _parsed(text)
    if fits(value, parameter.annotation) or (value is None and parameter.default is None and not parameter.required):
        return value
    if fits(text, parameter.annotation):
        return text
    raise ValueError(f"--set {name}={text}: it takes {_expected(name, model)}.")


def _parsed(text: str) -> Any:
    """JSON, or Python's words for the three that JSON spells otherwise; else the text."""
    if text in ("True", "False", "None"):
        return ast.literal_eval(text)
    with suppress(json.JSONDecodeError):
        return json.loads(text)
    return text


def fits(value: Any, annotation: ast.expr | None) -> bool:
    """Whether an annotation allows a value of JSON, down to the elements of lists: ["a"] is no `list[int] | None`."""
    match annotation:
        case None:
            return True
        case ast.Constant(value=None):
            return value is None
        case ast.Constant(value=str(text)):
            return fits(value, ast.parse(text, mode="eval").body)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in _PLAIN and _PLAIN[name](value)
        case ast.BinOp(left=left, right=right):
            return fits(value, left) or fits(value, right)
        case ast.Subscript(value=ast.Name(id=outer) | ast.Attribute(attr=outer), slice=inner):
            return _fits_inside(value, outer, inner.elts if isinstance(inner, ast.Tuple) else [inner])
    return False


def _fits_inside(value: Any, outer: str, parts: list[ast.expr]) -> bool:
    """The same for `outer[parts]`."""
    if outer in ("Optional", "Union"):
        return (outer == "Optional" and value is None) or any(fits(value, part) for part in parts)
    if outer == "Literal":
        return any(isinstance(part, ast.Constant) and part.value == value for part in parts)
    if outer in _MAPPINGS:
        return isinstance(value, dict) and all(fits(key, parts[0]) and fits(item, parts[-1]) for key, item in value.items())
    if outer not in _SEQUENCES or not isinstance(value, list):
        return False
    if outer in ("tuple", "Tuple") and ast.unparse(parts[-1]) != "...":
        return len(value) == len(parts) and all(map(fits, value, parts))
    return all(fits(item, parts[0]) for item in value)


def _described(annotation: ast.expr | None) -> Iterator[str]:
    """The parts of an annotation that can be written as JSON, None left out: `torch.Tensor | list[int] | None` -> list[int]."""
    match annotation:
        case None:
            yield "any value"
        case ast.Constant(value=str(text)):
            yield from _described(ast.parse(text, mode="eval").body)
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in _PLAIN:
            yield name
        case ast.BinOp(left=left, right=right):
            yield from (*_described(left), *_described(right))
        case ast.Subscript(value=ast.Name(id="Optional" | "Union"), slice=inner):
            for part in inner.elts if isinstance(inner, ast.Tuple) else [inner]:
                yield from _described(part)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            yield " or ".join(ast.unparse(part) for part in (inner.elts if isinstance(inner, ast.Tuple) else [inner]))
        case ast.Subscript(value=ast.Name(id=outer) | ast.Attribute(attr=outer), slice=inner) if outer in (*_SEQUENCES, *_MAPPINGS):
            inside = inner.elts[-1 if outer in _MAPPINGS else 0] if isinstance(inner, ast.Tuple) else inner
            if any(True for _ in _described(inside)):
                yield ast.unparse(annotation)
