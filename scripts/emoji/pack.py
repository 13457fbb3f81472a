"""Build the pack of pictures that train_emoji.py reads, from npm packages: WebP pictures (RGBA) with names, groups and keywords.

Pictures: @lobehub/fluent-emoji-3d and @iconify-json/fluent-emoji-flat (Microsoft's Fluent Emoji, MIT). Names: unicode-emoji-json; keywords:
emojilib and emojibase-data (MIT). Needs cairosvg besides dit-usp. In an empty folder:

    npm install @lobehub/fluent-emoji-3d@1.1.0 @iconify-json/fluent-emoji-flat@1.2.6 unicode-emoji-json@0.9.0 emojilib@4.0.3 emojibase-data@17.0.0
    python scripts/emoji/pack.py node_modules pack.npz
"""

from __future__ import annotations

import argparse
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cairosvg
import numpy as np
from PIL import Image

# Lettering, clock faces, arrows, and the skin tones of one emoji.
SKIPPED = re.compile(r"^(flag|keycap)|o.clock|-thirty|button|squared|skin tone|^(left|right|up|down|.*arrow)")
VARIATION = "\ufe0f"  # "show as a picture": some lists write it, some do not


def code(emoji: str) -> str:
    """Its code points as the picture sets name their files: "1f469-200d-1f680"."""
    return "-".join(f"{ord(character):x}" for character in emoji if character != VARIATION)


class Sources:
    """The unpacked npm packages."""

    def __init__(self, folder: Path) -> None:
        self.emoji: dict[str, dict[str, str]] = self._json(folder, "unicode-emoji-json/data-by-emoji.json")
        self.keywords: dict[str, list[str]] = self._json(folder, "emojilib/dist/emoji-en-US.json")
        self.tags = {item["emoji"].replace(VARIATION, ""): item.get("tags", []) for item in self._json(folder, "emojibase-data/en/data.json")}
        self.solid = {file.stem.replace("-fe0f", ""): file for file in (folder / "@lobehub/fluent-emoji-3d/assets").iterdir()}
        self.flat = self._json(folder, "@iconify-json/fluent-emoji-flat/icons.json")
        characters = self._json(folder, "@iconify-json/fluent-emoji-flat/chars.json")
        self.flat_names = {key.replace("-fe0f", ""): name for key, name in characters.items()}

    @staticmethod
    def _json(folder: Path, path: str) -> Any:
        return json.loads((folder / path).read_text(encoding="utf-8"))

    def words(self, emoji: str, name: str) -> list[str]:
        """Keywords in lower case, each once, without the name itself."""
        words = [word.replace("_", " ") for word in self.keywords.get(emoji, []) + self.tags.get(emoji.replace(VARIATION, ""), [])]
        return list(dict.fromkeys(word.lower() for word in words if re.search("[a-z]", word.lower()) and word != name))

    def picture_3d(self, key: str, pixels: int) -> Image.Image | None:
        return Image.open(self.solid[key]).convert("RGBA")

    def picture_flat(self, key: str, pixels: int) -> Image.Image | None:
        """The SVG of the flat set, drawn at this size; None when the set has none."""
        name = self.flat_names.get(key, "")
        alias = self.flat.get("aliases", {}).get(name, {}).get("parent")
        icon = self.flat["icons"].get(name) or self.flat["icons"].get(alias)
        if icon is None:
            return None
        width, height = (icon.get(side, self.flat.get(side, 16)) for side in ("width", "height"))
        spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        svg = f'<svg {spaces} viewBox="0 0 {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'
        return Image.open(io.BytesIO(cairosvg.svg2png(bytestring=svg.encode(), output_width=pixels, output_height=pixels))).convert("RGBA")


def webp(image: Image.Image, pixels: int) -> bytes:
    file = io.BytesIO()
    image.resize((pixels, pixels), Image.Resampling.LANCZOS).save(file, "WEBP", quality=92, method=4)
    return file.getvalue()


def build(sources: Sources, pixels: int) -> dict[str, np.ndarray]:
    """The arrays of the pack: data and off (the files, end to end), style and subj of each file; names, groups and kws of each subject."""
    files: list[bytes] = []
    rows: list[tuple[str, int]] = []
    subjects: list[tuple[str, str, str]] = []
    styles: dict[str, Callable[[str, int], Image.Image | None]] = {"3d": sources.picture_3d, "flat": sources.picture_flat}
    for emoji, facts in sources.emoji.items():
        name, key = facts["name"], code(emoji)
        if facts["group"] == "Flags" or SKIPPED.search(name) or key not in sources.solid:
            continue
        for style, picture in styles.items():
            if (image := picture(key, pixels)) is not None:
                files.append(webp(image, pixels))
                rows.append((style, len(subjects)))
        subjects.append((name, facts["group"], "|".join(sources.words(emoji, name))))
    names, groups, keywords = (np.array(column) for column in zip(*subjects, strict=True))
    style_of, subject_of = (np.array(column) for column in zip(*rows, strict=True))
    offsets = np.cumsum([0, *map(len, files)])
    data = np.frombuffer(b"".join(files), np.uint8)
    return {"data": data, "off": offsets, "style": style_of, "subj": subject_of, "names": names, "groups": groups, "kws": keywords}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="the node_modules folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--pixels", type=int, default=256)
    args = parser.parse_args()
    arrays = build(Sources(args.packages), args.pixels)
    np.savez(args.out, **arrays)
    print(f"{len(arrays['names'])} subjects, {len(arrays['style'])} pictures, {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
