"""Files are whole or not there, never replace another silently, and tell how they were made."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dit_usp.config import ParallelConfig
from dit_usp.formats import Sound
from dit_usp.media import _delays, clip_fps, count_frames, read_clip
from dit_usp.request import MAX_SEED, Picture, Request
from dit_usp.saving import Target, read_metadata, remove_unfinished, save, save_clip, save_image, write_whole, written

TOLD = {"prompt": 'ein "rotes" Herz ❤\nzwei', "seed": MAX_SEED, "guidance": 4.5, "set": {"eta": None}, "versions": {"dit-usp": "1.2"}}


def noise(seed: int = 0, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 40, 3), dtype=np.uint8)).convert(mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", ["png", "PNG", "jpg", "jpeg", "webp"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_metadata_of_pictures_comes_back(tmp_path: Path, suffix: str, mode: str) -> None:
    path = save_image(noise(mode=mode), tmp_path / f"a.{suffix}", TOLD)
    assert read_metadata(path) == {**TOLD, "width": 40, "height": 24}
    assert names(tmp_path) == [f"a.{suffix}"]


def test_png_keeps_every_pixel_and_says_what_other_programs_look_for(tmp_path: Path) -> None:
    with Image.open(save_image(noise(), tmp_path / "a.png", TOLD)) as image:
        assert np.array_equal(np.asarray(image), np.asarray(noise()))
        assert (image.info["Description"], image.info["Software"]) == (TOLD["prompt"], "dit-usp 1.2")


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_metadata_of_clips_comes_back(tmp_path: Path, suffix: str) -> None:
    path = save([noise(seed) for seed in range(3)], Target(str(tmp_path / f"a.{suffix}"), TOLD, fps=10))
    assert read_metadata(path) == {**TOLD, "width": 40, "height": 24, "frames": 3, "fps": 10}
    with Image.open(path) as image:
        assert image.n_frames == 3
        image.seek(1)
        image.load()  # webp tells the duration of frames that it has decoded
        assert image.info["duration"] == 100


@pytest.mark.parametrize("suffix", ["webp", "gif"])
@pytest.mark.parametrize("fps", [16, 24, 30, 40, 50])
def test_animations_last_as_long_as_their_clip_and_come_back_whole(tmp_path: Path, suffix: str, fps: float) -> None:
    """Encoders keep one of the pictures that are alike; formats tell times in whole hundredths or thousandths of a second."""
    colours = [1, 1, 1, 2, 3, 4, 4, 5, *[6] * 20, 7]
    path = save([Image.new("RGB", (16, 16), (9 * colour, 0, 0)) for colour in colours], Target(str(tmp_path / f"a.{suffix}"), TOLD, fps=fps))
    frames = [frame.getpixel((5, 5))[0] for frame in read_clip(path)]
    assert [round(red / 9) for red in frames] == colours
    assert count_frames(path) == len(colours)
    assert clip_fps(path) == pytest.approx(fps, rel=0.02)
    with Image.open(path) as image:
        assert sum(_delays(image)) == pytest.approx(1000 * len(colours) / fps, abs=5)


def test_options_go_to_the_format(tmp_path: Path) -> None:
    small, large = (save_image(noise(), tmp_path / f"{quality}.jpg", TOLD, quality=quality) for quality in (10, 100))
    assert small.stat().st_size < large.stat().st_size / 2


def test_a_clip_is_no_png_and_a_picture_no_gif(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^a\.png: a clip is written as \.mp4, \.webm, \.webp, \.gif \(latents: \.safetensors\), not \.png\.$"):
        save_clip([noise()], tmp_path / "a.png", TOLD)
    with pytest.raises(ValueError, match=r"^a\.gif: a picture is written as \.png, \.jpg, \.jpeg, \.webp \(latents: \.safetensors\), not \.gif\.$"):
        save_image(noise(), tmp_path / "a.gif", TOLD)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif"])
def test_pictures_of_others_have_no_metadata_of_ours(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise().save(path, comment=b"a comment") if suffix == "gif" else noise().save(path)
    with pytest.raises(ValueError, match="metadata"):
        read_metadata(path)


# -- whole or not at all


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 1000 bytes: writing fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def large(suffix: str) -> Any:
    """A result that fills more than 1000 bytes in that format."""
    if suffix == "wav":
        return Sound(np.zeros(4000), 8000)
    if suffix == "safetensors":
        return {"latents": torch.zeros(500)}
    return noise() if suffix in ("png", "jpg") else [noise(seed) for seed in range(9)]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "mp4", "webm", "wav", "safetensors"])
def test_full_disk_leaves_nothing_and_names_the_file(tmp_path: Path, suffix: str, overwrite: bool) -> None:
    with full_disk(), pytest.raises(OSError, match=rf"File too large: '.*/a\.{suffix}'$"):
        save(large(suffix), Target(str(tmp_path / f"a.{suffix}"), TOLD, overwrite=overwrite))
    assert names(tmp_path) == []


@pytest.mark.parametrize(("overwrite", "named"), [(False, "a-2.png"), (True, "a.png")])
def test_full_disk_leaves_the_old_file(tmp_path: Path, overwrite: bool, named: str) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    with full_disk(), pytest.raises(OSError, match=f"File too large: '.*/{named}'$"):
        save_image(noise(), tmp_path / "a.png", TOLD, overwrite=overwrite)
    assert (tmp_path / "a.png").read_bytes() == b"old"
    assert names(tmp_path) == ["a.png"]


def test_a_folder_in_the_way_is_named_once_and_words_without_number_stay(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OSError, match=r"^\[Errno 21\] Is a directory: '\S*/a\.png'$"):
        write_whole(b"data", tmp_path / "a.png", overwrite=True)

    def fail(path: Path) -> None:
        raise OSError("cannot encode")

    with pytest.raises(OSError, match=r"^cannot encode$"):
        written(tmp_path / "b.png", fail)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_late_failures_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """A network share tells a full disk at fsync; KeyboardInterrupt and SystemExit come anywhere."""

    def fail(*args: object) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(SystemExit):
        write_whole(b"data", tmp_path / "a.png", overwrite=True)
    assert names(tmp_path) == []


def test_nothing_bears_the_name_before_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(names(tmp_path)))
    write_whole(b"data", tmp_path / "a.png")
    assert seen
    assert all("a.png" not in some for some in seen)
    assert names(tmp_path) == ["a.png"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".dit-usp-12-0.part", ".dit-usp-123-0.part", "a.png"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path, 12)
    assert names(tmp_path) == [".dit-usp-123-0.part", "a.png"]


def test_the_users_mask_decides_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert write_whole(b"data", tmp_path / "a.png").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


# -- names


def test_a_taken_name_is_passed_over_or_replaced_on_demand(tmp_path: Path) -> None:
    paths = [write_whole(str(number).encode(), tmp_path / "a.png") for number in range(3)]
    assert [path.name for path in paths] == ["a.png", "a-2.png", "a-3.png"]
    write_whole(b"new", tmp_path / "a.png", overwrite=True)
    assert [path.read_text() for path in paths] == ["new", "1", "2"]


def test_no_name_is_given_twice_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda number: write_whole(str(number).encode(), tmp_path / "a.png"), range(40)))
    assert [path.read_text() for path in paths] == [str(number) for number in range(40)]
    assert len(names(tmp_path)) == 40


def test_without_hard_links_names_are_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    for number in range(2):
        write_whole(str(number).encode(), tmp_path / "a.png")
    assert {name: (tmp_path / name).read_text() for name in names(tmp_path)} == {"a.png": "0", "a-2.png": "1"}


# -- requests


def test_a_request_deals_one_picture_to_every_replica() -> None:
    pictures = tuple(Picture("x", seed, f"{seed}.png") for seed in range(5))
    rounds = Request("m", pictures, config=ParallelConfig(data_degree=2)).rounds()
    assert [[picture.seed for picture in some] for some in rounds] == [[0, 1], [2, 3], [4]]


def test_a_request_tells_each_file_its_own_story() -> None:
    request = Request("m", (Picture("a dog face", 7, "a.png", asked="a puppy"),), told={"steps": 3}, config=ParallelConfig(ring_degree=2))
    layout = {"layout": "ulysses 1 x ring 2 x cfg 1 x data 1", "ranks": 2}
    assert request.target(request.pictures[0]).metadata == {"prompt": "a dog face", "asked": "a puppy", "seed": 7, "steps": 3, **layout}


@pytest.mark.parametrize(
    ("pictures", "text"),
    [
        ((), "There is nothing to make: give at least one prompt."),
        ((Picture("x", -1, "a.png"),), f"seed -1 is out of range; use 0 to {MAX_SEED}."),
        ((Picture("x", 1, "a.png"), Picture("y", 2, "a.png")), "a.png would be written twice; give each picture a name of its own."),
    ],
)
def test_requests_refuse_nonsense(pictures: tuple[Picture, ...], text: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the text is compared as a whole
        Request("m", pictures)
    assert str(error.value) == text
