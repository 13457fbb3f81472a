"""What is remembered of tensors is asked anew as soon as they are other ones, or have changed."""

from types import SimpleNamespace

import torch
from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

from dit_usp.remembered import MOST, Remembered, contents, numbers_of


def test_numbers_are_read_anew_after_a_change():
    remembered, mask = Remembered(), torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert numbers_of(mask[:1], remembered) == numbers_of(mask[:1], remembered) == (1, 1, 0)
    assert len(remembered._answers) == 1  # two views of one place
    assert numbers_of(mask[1:], remembered) == (1, 0, 0)
    mask[0, 2] = 1
    assert numbers_of(mask[:1], remembered) == (1, 1, 1)
    with torch.inference_mode():
        assert numbers_of(torch.ones(2), remembered) == (1.0, 1.0)


def test_an_answer_goes_with_its_tensors():
    remembered, asked = Remembered(), []

    def ask():
        asked.append(1)
        return len(asked)

    kept = torch.ones(2)
    assert [remembered.get("a", [kept], ask), remembered.get("a", [kept], ask), remembered.get("b", [kept], ask)] == [1, 1, 2]
    assert [remembered.get("a", [], ask), remembered.get("a", [], ask)] == [3, 4]
    for _ in range(3 * MOST):  # an id comes back, its tensor does not
        remembered.get("a", [torch.ones(2)], ask)
    assert len(asked) == 4 + 3 * MOST
    assert len(remembered._answers) <= MOST


def test_the_contents_of_a_cache():
    cache = GlmImageKVCache(2)
    cache.set_mode("write")
    assert contents(cache)[1] == []
    cache[0].store(torch.zeros(1), torch.ones(1))
    (empty, none), (held, tensors) = contents(GlmImageKVCache(2)), contents(cache)
    assert not none
    assert held != empty
    assert len(tensors) == 2
    loop = SimpleNamespace(inside=[1, {"a": torch.ones(1)}], model=torch.nn.Linear(2, 2))
    loop.itself = loop
    assert contents(loop)[0] == (1,)
    assert len(contents(loop)[1]) == 1


def test_ranks_forget_alike_however_long_their_tensors_live():
    """One rank keeps every tensor alive, on the other an id is soon given again: both ask at the same turns."""
    asked: dict[str, list[int]] = {"hoarder": [], "other": []}
    for name, hoard in (("hoarder", []), ("other", None)):
        remembered: Remembered[int] = Remembered()
        kept = torch.zeros(1)
        for turn in range(3 * MOST):
            fresh = torch.zeros(1)
            if hoard is not None:
                hoard.append(fresh)
            for key, tensors in (("kept", [kept]), ("fresh", [fresh])):
                remembered.get(key, tensors, lambda turn=turn: asked[name].append(turn) or turn)  # noqa: B023
            del fresh, tensors
    assert asked["hoarder"] == asked["other"]
