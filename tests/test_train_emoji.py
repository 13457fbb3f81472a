"""The training script: a sitting goes on where the last one ended, and captions fit their scenes."""

import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from emoji.captions import COLOUR_NAMES, PLACES, Mixture, caption, draw_scenes, pictures_of
from emoji.networks import new_text_encoder, new_transformer
from emoji.optim import Muon
from emoji.parts import PixArtTraining
from emoji.pictures import SMALL, Pictures
from emoji.subjects import Subject, meanings
from emoji.trainer import Recipe, Sitting

DOG, CAT = Subject("dog face", "Animals", ("puppy", "pet")), Subject("cat", "Animals", ("kitten", "pet"))
MEANING = meanings([DOG, CAT])
RECIPE = Recipe(32, 2, 2, 1.0, 1.0, 3, None, 0.35, 0.6, 0)


def denoiser(folder):
    """A denoiser of 32 x 32 pictures (4 tokens) with two pictures of random latents."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"transformer": new_transformer(32), "text_encoder": new_text_encoder(20)})
    data = {
        "latents": torch.randn(2, 5, 8, 4, 4).half(),
        "tokens": torch.randint(1, 20, (2, 3, 6), dtype=torch.int16),
        "chosen": torch.randint(0, 5, (2, 3)),
    }
    return PixArtTraining(model, data, torch.ones(2), 2, folder, compile=False)


def test_a_resumed_training_takes_the_same_steps(tmp_path):
    first = denoiser(tmp_path)
    for step in range(2):
        first.step(step, 0.1)
    Sitting(tmp_path, RECIPE, None, torch.device("cpu")).save(first, 2, 7.0, 0.5)
    first.step(2, 0.1)
    second = denoiser(tmp_path)
    assert Sitting(tmp_path, RECIPE, None, torch.device("cpu")).resume(second) == (2, 7.0, 0.5)
    second.step(2, 0.1)
    for kind in ("model", "average"):
        pairs = zip(getattr(first, kind).parameters(), getattr(second, kind).parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_another_recipe_is_refused(tmp_path):
    Sitting(tmp_path, RECIPE, None, torch.device("cpu")).save(denoiser(tmp_path), 0, 0.0, 0.5)
    with pytest.raises(ValueError, match="Choose another OUT"):
        Sitting(tmp_path, Recipe(**{**vars(RECIPE), "alone": 0.2}), None, torch.device("cpu"))


def test_muon_is_torchs_but_for_rounding():
    """torch.optim.Muon orthogonalises in bf16, one matrix at a time."""
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(*shape)) for shape in ((8, 16), (16, 8), (8, 16))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    before = [p.detach().clone() for p in ours]
    optimizers = Muon(ours, 0.1), torch.optim.Muon(theirs, lr=0.1, weight_decay=0.0)
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other, start in zip(ours, theirs, before, strict=True):
        assert (one - other).norm() < 0.02 * (other - start).norm()


def test_a_word_with_several_subjects_stands_alone_for_one():
    dog, cat = pictures_of([DOG, CAT], ["3d", "3d"], MEANING, Mixture())
    assert {"puppy"} <= set(dog.alone)
    assert {"kitten"} <= set(cat.alone)
    assert ("pet" in dog.alone) != ("pet" in cat.alone)


def test_captions_say_the_colour_and_the_place():
    rng = random.Random(0)
    (picture,) = pictures_of([DOG], ["3d"], MEANING, Mixture())
    for scene in draw_scenes(rng) * 5:
        text = caption(picture, scene, Mixture(), rng)
        colour, place = scene
        assert not text or ((COLOUR_NAMES[colour] in text) or colour == 0)
        assert PLACES[place] in text if text else True
        assert not text or ("small" in text) == bool(place)


def test_a_small_subject_stands_where_it_is_asked():
    """A white square on black, half as large on the left: rows 1/4 to 3/4, columns 0 to 1/2."""
    rgba = torch.full((1, 4, 32, 32), 255, dtype=torch.uint8)
    pictures = Pictures(rgba, [DOG], ["3d"], torch.ones(1))
    (image,) = pictures.compose(torch.tensor([0]), torch.tensor([COLOUR_NAMES.index("black")]), torch.tensor([PLACES.index(" on the left")]))
    assert SMALL == 0.5
    assert (image[:, 9:23, 1:15] > 0.99).all()
    outside = image.clone()
    outside[:, 7:25, :17] = -1
    assert (outside < -0.8).all()
