"""What a model's word lists make of a prompt. A model folder may hold known.json ({subject: its keywords}) and meaning.json ({keyword: subject}).

The embedded model draws what it has a name for. A keyword of a subject ("puppy") becomes the subject's name ("dog face"); names and their phrases
pass unchanged. No torch here: the command line resolves prompts before a process starts.
"""

from __future__ import annotations

import difflib
import json
import re
import textwrap
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# The phrases around a subject that the embedded model learnt: scripts/emoji/captions.py.
_BEFORE = re.compile(r"(?:(?:an?|the|small|flat|3d|(?:picture|emoji|drawing|render) of) +)*", re.IGNORECASE)
_AFTER = re.compile(r"(?: +in the middle| +on the left| +on the right| +at the top| +at the bottom| +on an? \w+ background)*[ .!]*$", re.IGNORECASE)
_ARTICLE = re.compile(r"\b(a)n?( +)$", re.IGNORECASE)
_SUGGESTIONS = 3
_COMPARED = 80  # letters of a prompt that are compared with names: the longest has 40


@dataclass(frozen=True)
class Resolved:
    """A prompt as the model should read it.

    Args:
        prompt: the text for the model.
        note: one line for the user: the keyword that was replaced, or the nearest known subjects; None when the prompt passed unchanged.
        known: whether the prompt names something that the model knows; True for a model without word lists.
    """

    prompt: str
    note: str | None = None
    known: bool = True


@dataclass(frozen=True)
class _Words:
    names: dict[str, str]  # lower case -> as listed
    meaning: dict[str, str]  # keyword -> name


@lru_cache(maxsize=4)
def _read(folder: Path) -> _Words | None:
    if not (folder / "known.json").exists():
        return None
    known = json.loads((folder / "known.json").read_text(encoding="utf-8"))
    return _Words({name.lower(): name for name in known}, json.loads((folder / "meaning.json").read_text(encoding="utf-8")))


def subjects(model_folder: str | Path) -> tuple[str, ...]:
    """Names of all subjects that this model was taught; none for a model without word lists."""
    words = _read(Path(model_folder))
    return tuple(words.names.values()) if words else ()


def resolve(prompt: str, model_folder: str | Path) -> Resolved:
    """Turn the keyword in a prompt into its subject's name: "a puppy on a red background" -> "a dog face on a red background".

    A name anywhere in the prompt leaves it as it is. A prompt without a known word passes too, with a note of the nearest subjects.
    """
    words = _read(Path(model_folder))
    if words is None or not prompt.strip():
        return Resolved(prompt)
    end = _AFTER.search(prompt).start()  # type: ignore[union-attr]  # matches the empty end at least
    start = _BEFORE.match(prompt, 0, end).end()  # type: ignore[union-attr]  # matches the empty beginning at least
    core = prompt[start:end]
    if core.lower() in words.meaning and _longest(prompt[:end], words.names, touching=core) is None:
        return _replace(prompt, start, end, words)
    if _longest(prompt[:end], words.names) is not None:
        return Resolved(prompt)
    span = _longest(core, words.meaning)
    if span is not None:
        return _replace(prompt, start + span[0], start + span[1], words)
    return Resolved(
        prompt, f"no known subject in {textwrap.shorten(prompt, _COMPARED)!r}; nearest: {', '.join(_nearest(core or prompt, words))}", known=False
    )


def _spans(text: str, most: int) -> Iterator[tuple[int, int]]:
    """Start and end of every run of up to `most` whole words, the longest first and, of those, the last: an English phrase ends in its head."""
    tokens = [match.span() for match in re.finditer(r"[^\s,;:!?.\"()]+(?:[.:,\u2019']\S*[^\s,;:!?.\"()])*", text)]
    for length in range(min(len(tokens), most), 0, -1):
        for first in range(len(tokens) - length, -1, -1):
            yield tokens[first][0], tokens[first + length - 1][1]


def _longest(text: str, vocabulary: Collection[str], touching: str = "") -> tuple[int, int] | None:
    """The longest part of the text that is in the vocabulary and longer than `touching`."""
    most = max((name.count(" ") + 1 for name in vocabulary), default=0)
    return next((span for span in _spans(text, most) if span[1] - span[0] > len(touching) and text[slice(*span)].lower() in vocabulary), None)


def _replace(prompt: str, start: int, end: int, words: _Words) -> Resolved:
    keyword = prompt[start:end]
    name = words.meaning[keyword.lower()]
    before = _ARTICLE.sub(lambda match: match[1] + ("n" if name[0].lower() in "aeiou" else "") + match[2], prompt[:start])
    return Resolved(before + name + prompt[end:], f"{keyword} -> {name}")


def _nearest(text: str, words: _Words) -> list[str]:
    """The subjects whose name or keyword is spelt most like the text."""
    close = difflib.get_close_matches(text[:_COMPARED].lower(), [*words.names, *words.meaning], n=4 * _SUGGESTIONS, cutoff=0.0)
    return list(dict.fromkeys(words.names.get(word) or words.meaning[word] for word in close))[:_SUGGESTIONS]
