"""A known keyword becomes its subject's name; names pass; unknown prompts get the nearest subjects."""

import json
from pathlib import Path

import pytest

from dit_usp.prompts import resolve, subjects

MODEL = Path(__file__).resolve().parents[1] / "dit_usp" / "data" / "emoji-pixart-256"


@pytest.mark.parametrize(
    ("prompt", "resolved", "note"),
    [
        ("puppy", "dog face", "puppy -> dog face"),
        ("a puppy on a red background", "a dog face on a red background", "puppy -> dog face"),
        ("small puppy on the left", "small dog face on the left", "puppy -> dog face"),
        ("flat puppy", "flat dog face", "puppy -> dog face"),
        ("A Puppy", "A dog face", "Puppy -> dog face"),
        ("a car", "an automobile", "car -> automobile"),
    ],
)
def test_a_keyword_becomes_its_subject(prompt, resolved, note):
    assert (resolve(prompt, MODEL).prompt, resolve(prompt, MODEL).note) == (resolved, note)


@pytest.mark.parametrize(
    "prompt", ["a red heart", "a small rocket on the left on a blue background", "flat drawing of a rocket", "a cat", "an old castle"]
)
def test_names_pass_unchanged(prompt):
    result = resolve(prompt, MODEL)
    assert (result.prompt, result.note, result.known) == (prompt, None, True)


def test_an_unknown_prompt_passes_with_the_nearest_subjects():
    result = resolve("a rockit", MODEL)
    assert result.prompt == "a rockit"
    assert not result.known
    assert "nearest: rocket" in result.note


def test_every_name_and_keyword_is_known():
    meaning = json.loads((MODEL / "meaning.json").read_text())
    names = set(subjects(MODEL))
    assert len(names) == 1188
    assert set(meaning.values()) <= names
    assert all(resolve(name, MODEL).prompt == name for name in names)
    assert not any("middle finger" in text for text in (*names, *meaning))


def test_a_model_without_word_lists_takes_any_prompt(tmp_path):
    assert resolve("puppy", tmp_path).prompt == "puppy"
    assert subjects(tmp_path) == ()
