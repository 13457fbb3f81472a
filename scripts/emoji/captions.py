"""Scenes (background colour, place) and the captions that fit them. No torch: the captions are drawn once, before training."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emoji.subjects import Subject

COLOURS = {
    "white": (1.0, 1.0, 1.0),
    "black": (0.06, 0.06, 0.06),
    "red": (0.88, 0.22, 0.2),
    "orange": (1.0, 0.62, 0.2),
    "yellow": (1.0, 0.9, 0.35),
    "green": (0.35, 0.75, 0.4),
    "blue": (0.3, 0.55, 0.95),
    "purple": (0.6, 0.4, 0.85),
    "pink": (1.0, 0.7, 0.8),
    "gray": (0.65, 0.67, 0.7),
}
COLOUR_NAMES = list(COLOURS)
# Place 0 fills the picture; at the others the subject is half as large and moved by (x, y) halves of the picture.
PLACES = ("", " in the middle", " on the left", " on the right", " at the top", " at the bottom")
SHIFTS = ((0.0, 0.0), (0.0, 0.0), (-0.5, 0.0), (0.5, 0.0), (0.0, -0.5), (0.0, 0.5))
STYLE_WORDS = {"3d": ("3d", "3d render of"), "flat": ("flat", "flat drawing of")}
HOUSE_STYLE = "3d"  # what a prompt without a style word means
SMALL_SCENES = 20  # of the 50 pairs of colour and place, kept for each picture

Scene = tuple[int, int]  # colour, place


@dataclass(frozen=True)
class Mixture:
    """Shares of the kinds of captions and scenes.

    Args:
        alone: captions that name a subject by one keyword only.
        colour: pictures on a background colour.
        small: of those, pictures with a small subject at a place.
        any_word: a lone keyword stands for any subject that has it, instead of the one that it means.
    """

    alone: float = 0.35
    colour: float = 0.6
    small: float = 0.4
    any_word: bool = False


@dataclass(frozen=True)
class Picture:
    """One drawing of a subject: what a caption can say about it."""

    subject: Subject
    style: str
    alone: tuple[str, ...]  # keywords that name it without another word


def pictures_of(subjects: Sequence[Subject], styles: Sequence[str], meaning: Mapping[str, Subject], mixture: Mixture) -> list[Picture]:
    """Pair each picture's subject and style with the keywords that may stand alone."""

    def alone(subject: Subject) -> tuple[str, ...]:
        return tuple(word for word in subject.keywords if word in meaning and (mixture.any_word or meaning[word] is subject))

    return [Picture(subject, style, alone(subject)) for subject, style in zip(subjects, styles, strict=True)]


def draw_scenes(rng: random.Random) -> list[Scene]:
    """The scenes that one picture stands in: large on every colour, then some small ones."""
    small = [(colour, place) for colour in range(len(COLOURS)) for place in range(1, len(PLACES))]
    return [(colour, 0) for colour in range(len(COLOURS))] + rng.sample(small, SMALL_SCENES)


def choose_scene(scenes: Sequence[Scene], mixture: Mixture, rng: random.Random) -> int:
    """Index of a scene, drawn by the mixture; white is scene 0."""
    if rng.random() >= mixture.colour:
        return 0
    if rng.random() < mixture.small:
        return rng.randrange(len(COLOURS), len(scenes))
    return rng.randrange(len(COLOURS))


def caption(picture: Picture, scene: Scene, mixture: Mixture, rng: random.Random) -> str:
    """One way to ask for this picture; sometimes nothing, for classifier-free guidance."""
    if empty(rng):
        return ""
    colour, place = scene
    text = name(picture, mixture, rng)
    if place:
        text = "small " + text
    if picture.style != HOUSE_STYLE or rng.random() < 0.3:
        text = f"{rng.choice(STYLE_WORDS[picture.style])} {text}"
    if rng.random() < 0.4:
        text = with_article(text, rng)
    return on_colour(text + PLACES[place], colour, rng)


def empty(rng: random.Random) -> bool:
    """Whether a caption shall say nothing."""
    return rng.random() < 0.1


def name(picture: Picture, mixture: Mixture, rng: random.Random) -> str:
    """The subject's name, its name with keywords, or a keyword that means it."""
    kind = rng.random()
    if kind < mixture.alone and picture.alone:
        return rng.choice(picture.alone)
    keywords = picture.subject.keywords
    if kind < mixture.alone + 0.15 and keywords:
        return ", ".join([picture.subject.name, *rng.sample(keywords, min(rng.choice([1, 2]), len(keywords)))])
    return picture.subject.name


def with_article(text: str, rng: random.Random) -> str:
    """ "heart" -> "a heart", or something like it."""
    if rng.random() < 0.7:
        return ("an " if text[0].lower() in "aeiou" else "a ") + text
    return rng.choice(["the ", "a picture of a ", "an emoji of a "]) + text


def on_colour(text: str, colour: int, rng: random.Random) -> str:
    """The text with its background, which white needs only now and then."""
    return f"{text} on a {COLOUR_NAMES[colour]} background" if colour or rng.random() < 0.15 else text


@dataclass(frozen=True)
class CaptionBank:
    """Captions drawn once for each picture: scenes[n] are picture n's scenes, texts[n][k] fits scene chosen[n][k]."""

    scenes: list[list[Scene]]
    chosen: list[list[int]]
    texts: list[list[str]]

    @classmethod
    def draw(cls, pictures: Sequence[Picture], size: int, mixture: Mixture, seed: int) -> CaptionBank:
        rng = random.Random(seed)
        scenes = [draw_scenes(rng) for _ in pictures]
        chosen = [[choose_scene(some, mixture, rng) for _ in range(size)] for some in scenes]
        texts = [[caption(p, some[k], mixture, rng) for k in ks] for p, some, ks in zip(pictures, scenes, chosen, strict=True)]
        return cls(scenes, chosen, texts)
