"""Which emoji the model learns, and which one a lone keyword means."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Signs that are pictures rather than lettering or arrows.
SIGNS = re.compile(
    r"(red|orange|yellow|green|blue|purple|brown|black|white) (circle|square)|warning|radioactive|biohazard|check mark|cross mark|peace symbol"
    r"|yin yang|infinity|recycling symbol|red (question|exclamation) mark|atom symbol|no entry|trident emblem|star of David"
)
# Most gendered emoji double a neutral one ("man running", "person running"); these do not.
SINGLE = {
    *("man", "woman", "old man", "old woman", "man dancing", "woman dancing", "woman with headscarf"),
    *("woman and man holding hands", "pregnant woman", "woman feeding baby"),
}
UNSHOWN = {"middle finger"}
# The keyword lists hold slang that we neither learn nor suggest.
RUDE = {
    *("ass", "bitch", "butt", "crap", "fuck", "kills", "middle finger", "sex", "sexual", "sexy", "shit", "shitface", "terrorism", "virgin"),
}
# What everyday words mean where the keyword lists leave several choices.
EVERYDAY = {
    **{
        "car": "automobile",
        "vehicle": "automobile",
        "boat": "sailboat",
        "plane": "airplane",
        "bike": "bicycle",
        "space": "ringed planet",
        "planet": "ringed planet",
    },
    **{
        "happy": "grinning face",
        "smile": "smiling face",
        "sad": "crying face",
        "angry": "angry face",
        "laugh": "face with tears of joy",
        "wink": "winking face",
    },
    **{
        "love": "red heart",
        "heart": "red heart",
        "music": "musical notes",
        "dance": "woman dancing",
        "swim": "person swimming",
        "sleep": "sleeping face",
    },
    **{"winter": "snowman", "summer": "sun", "snow": "snowflake", "ocean": "water wave", "sea": "water wave", "night": "night with stars"},
    **{"cold": "cold face", "hot": "hot face", "tree": "deciduous tree", "flower": "blossom", "plant": "potted plant", "nature": "evergreen tree"},
    **{
        "food": "hamburger",
        "fruit": "red apple",
        "breakfast": "pancakes",
        "dessert": "ice cream",
        "tea": "teacup without handle",
        "drink": "tropical drink",
    },
    **{
        "alcohol": "beer mug",
        "christmas": "Christmas tree",
        "birthday": "birthday cake",
        "money": "money bag",
        "science": "microscope",
        "art": "artist palette",
    },
    **{
        "phone": "mobile phone",
        "computer": "laptop",
        "tool": "hammer",
        "weapon": "crossed swords",
        "building": "office building",
        "game": "video game",
    },
    **{"sport": "soccer ball", "ball": "soccer ball", "football": "american football", "hat": "top hat", "shoe": "running shoe"},
    **{
        "clothing": "t-shirt",
        "clothes": "t-shirt",
        "animal": "dog face",
        "bunny": "rabbit face",
        "dog": "dog face",
        "bird": "parrot",
        "insect": "lady beetle",
    },
}


@dataclass(frozen=True)
class Subject:
    """One emoji: its name, its group in Unicode's list, and the words people look it up by, most typical first."""

    name: str
    group: str
    keywords: tuple[str, ...]

    @classmethod
    def from_row(cls, name: str, group: str, keywords: str) -> Subject:
        return cls(name, group, tuple(word for word in keywords.split("|") if word and word not in RUDE))

    @property
    def words(self) -> set[str]:
        return set(self.keywords) | set(self.name.lower().split())


def wanted(subject: Subject) -> bool:
    """Leave out signs, gendered doubles and what we do not show."""
    if subject.name in UNSHOWN:
        return False
    if subject.group == "Symbols":
        return bool(SIGNS.fullmatch(subject.name))
    if subject.group == "People & Body":
        return subject.name in SINGLE or not re.search(r"\b(man|woman|men|women)\b", subject.name)
    return True


def meanings(subjects: Sequence[Subject]) -> dict[str, Subject]:
    """The one subject that each keyword means alone.

    A word that is the name of a subject means that one and is left out ("cat" never means tiger).
    """
    names = {subject.name.lower() for subject in subjects}
    by_name = {subject.name: subject for subject in subjects}
    having: dict[str, list[Subject]] = defaultdict(list)
    for subject in subjects:
        for word in subject.keywords:
            having[word].append(subject)
    counts = Counter(word for subject in subjects for word in subject.words)
    rarity = {word: math.log(len(subjects) / count) for word, count in counts.items()}
    return {word: by_name.get(EVERYDAY.get(word, ""), _most_typical(word, those, rarity)) for word, those in having.items() if word not in names}


def _most_typical(word: str, subjects: Sequence[Subject], rarity: dict[str, float]) -> Subject:
    """The subject whose other words most of those with this keyword share; an early keyword, the word in the name and a short name count more."""
    near = Counter(other for subject in subjects for other in subject.words)

    def score(subject: Subject) -> float:
        others = subject.words - {word}
        likeness = sum(near[other] / len(subjects) * rarity[other] for other in others) / math.sqrt(sum(rarity[other] ** 2 for other in others) + 1)
        parts = subject.name.lower().split()
        return likeness - 0.12 * subject.keywords.index(word) + (word in parts) - 0.15 * len(parts)

    return max(subjects, key=score)


def write_words(folder: Path, subjects: Sequence[Subject], meaning: Mapping[str, Subject]) -> None:
    """known.json and meaning.json: what the command line reads to understand a prompt."""
    known = {subject.name: subject.keywords for subject in subjects}
    (folder / "known.json").write_text(json.dumps(known, ensure_ascii=False))
    (folder / "meaning.json").write_text(json.dumps({word: meaning[word].name for word in sorted(meaning)}, ensure_ascii=False))
