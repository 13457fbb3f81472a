"""Guidance by two calls a step, shared between two halves of ranks: whatever is done between the calls, the numbers are one process's."""

from __future__ import annotations

import pytest
import torch
from test_parity import error, forward
from tiny import build
from torch import nn

from dit_usp.config import ParallelConfig
from dit_usp.errors import UnsupportedError
from dit_usp.guidance import Awaited, DealtCalls
from dit_usp.inject import dealt_calls, parallelize, unparallelize
from dit_usp.mesh import init_mesh

STEPS = 4


def texts(inputs, count):
    """The calls of a step differ in their text, and in its length."""
    text = inputs["encoder_hidden_states"]
    return [inputs | {"encoder_hidden_states": (1 + number) * text[:, : text.shape[1] - number]} for number in range(count)]


def as_wan(model, calls):
    cond, uncond = (model(**call, return_dict=False)[0] for call in calls)
    return uncond + 3 * (cond - uncond)


def as_flux_kontext(model, calls):
    """Views of a view, taken before the numbers are there; and a result whose other fields are none of ours."""
    cond, uncond = (model(**call).sample[:, :, :, 2:].unflatten(3, (-1, 2)).transpose(3, 4).chunk(2, dim=1)[1] for call in calls)
    return uncond + 3 * (cond - uncond)


def as_bria(model, calls):
    """Copied to another type, and written into, before the second call."""
    cond, uncond = (model(**call, return_dict=False)[0].double().clone().flatten(2) for call in calls)
    return (uncond + 3 * (cond - uncond)).unflatten(2, (-1, 2)).float()


def in_place(model, calls):
    uncond, cond = (model(**call, return_dict=False)[0] for call in reversed(calls))
    part = cond[:, 1:]
    cond -= uncond
    part.mul_(2)
    return cond.mul_(3).add_(uncond)


def in_inference_mode(model, calls):
    with torch.inference_mode():
        return as_flux_kontext(model, calls).clone()


def one_after_the_other(model, calls):
    """A second pair whose input is made of the first's results."""
    first, second = calls
    between = as_wan(model, calls)
    return as_wan(model, [first | {"hidden_states": between}, second | {"hidden_states": model(**first | {"hidden_states": between}).sample}])


def three_calls(model, calls):
    first, second, third = (model(**call, return_dict=False)[0] for call in [*calls, texts(calls[0], 3)[2]])
    return first + 2 * (first - second) + (first - third)


def fewer_later(model, calls):
    """Guidance is cut off under way."""
    fewer_later.step += 1
    return as_wan(model, calls) if fewer_later.step % STEPS < 2 else 2 * model(**calls[0], return_dict=False)[0]


WAYS = {way.__name__: way for way in (as_wan, as_flux_kontext, as_bria, in_place, in_inference_mode, one_after_the_other, three_calls, fewer_later)}


def steps(model, inputs, way):
    fewer_later.step = -1
    with torch.no_grad():
        return [way(model, [call | {"timestep": call["timestep"] - 7 * step} for call in texts(inputs, 2)]) for step in range(STEPS)]


def compared(name, way, degrees):
    """The largest error of all steps, and how many of one process's calls this rank has left out."""
    model, inputs = build(name, batch=1)
    counted = []
    model.register_forward_pre_hook(lambda *_: counted.append(1))
    wanted = steps(model, inputs, WAYS[way])
    whole = len(counted)
    parallelize(model, init_mesh(ParallelConfig(*degrees), "cpu"))
    got = steps(model, inputs, WAYS[way])
    unparallelize(model)
    return max(error(one, other) for one, other in zip(got, wanted, strict=True)), 2 * whole - len(counted)


# Both compute a first call of a kind; from then on each computes every other one.
LEFT_OUT = {"one_after_the_other": [7, 10], "three_calls": [3, 6], "fewer_later": [1, 3]}


@pytest.mark.parametrize("way", WAYS)
def test_two_halves_equal_one_process(ranks, way):
    results = ranks(2, compared, "wan", way, (1, 1, 2))
    assert max(worst for worst, _ in results) <= 1e-5
    assert [left_out for _, left_out in results] == LEFT_OUT.get(way, [3, 3])


@pytest.mark.parametrize(("name", "degrees"), [("wan_ti2v", (2, 1, 2)), ("wan", (1, 2, 2))])
def test_each_half_shares_the_sequence(ranks, name, degrees):
    results = ranks(4, compared, name, "as_wan", degrees)
    assert max(worst for worst, _ in results) <= 1e-5
    assert min(left_out for _, left_out in results) > 0


def refusals():
    model, inputs = build("wan", batch=1)
    parallelize(model, init_mesh(ParallelConfig(cfg_degree=2), "cpu"))
    cond, uncond = texts(inputs, 2)
    texts_seen = []
    for call in (lambda: model(**cond).sample * 2 - model(**uncond).sample, lambda: [model(**cond).sample.norm() for _ in range(2)]):
        dealt_calls(model).begin()
        with torch.no_grad(), pytest.raises(UnsupportedError) as caught:
            call()
        texts_seen.append(str(caught.value))
    return texts_seen


def test_a_result_that_is_used_before_the_second_call_is_refused(ranks):
    text = (
        "cfg_degree=2 shares the two calls of guidance, but the result of WanTransformer3DModel's first one was used before a second: "
        "guidance is off. Switch it on, or try cfg_degree=1 with ulysses_degree=2."
    )
    assert ranks(2, refusals) == [[text, text]] * 2


def remembering():
    from diffusers import FirstBlockCacheConfig

    model, inputs = build("wan", batch=1)
    parallelize(model, init_mesh(ParallelConfig(cfg_degree=2), "cpu"))
    steps(model, inputs, as_wan)  # switched on between two steps
    model.enable_cache(FirstBlockCacheConfig())
    with (
        torch.no_grad(),
        pytest.raises(UnsupportedError, match=r"but fbc_\w+ keeps what one call computed for the next. Disable it, or try cfg_degree=1"),
    ):
        model(**inputs)
    return True


def test_what_remembers_earlier_calls_is_refused(ranks):
    assert all(ranks(2, remembering))


def replaced(where):
    """Steps by a forward that somebody has put in place of the model's own, as caches of steps do."""
    model, inputs = build("wan", batch=1)
    parallelize(model, init_mesh(ParallelConfig(cfg_degree=2), "cpu"))
    plain = type(model).forward
    (model if where == "module" else type(model)).forward = counting(model) if where == "module" else counting_class(plain)
    try:
        with torch.no_grad(), pytest.raises(UnsupportedError, match=r"forward of WanTransformer3DModel and may keep what one call computed"):
            model(**inputs)
    finally:
        type(model).forward = plain
    return True


def counting(model):
    own = model.forward
    return lambda *args, **kwargs: own(*args, **kwargs)


def counting_class(plain):
    return lambda self, *args, **kwargs: plain(self, *args, **kwargs)


@pytest.mark.parametrize("where", ["module", "class"])
def test_a_forward_that_somebody_replaced_is_refused(ranks, where):
    assert all(ranks(2, replaced, where))


def under_autocast():
    """The same calls in fp32, then in bf16 as the CPU's autocast makes them: the halves' outputs are of another type then."""
    model, inputs = build("wan", batch=1)
    wanted = []
    for got in ([], wanted):
        if got is wanted:
            unparallelize(model)
        else:
            parallelize(model, init_mesh(ParallelConfig(cfg_degree=2), "cpu"))
            first = got
        got += steps(model, inputs, as_wan)
        with torch.autocast("cpu", torch.bfloat16):
            got += steps(model, inputs, as_wan)
    return max(error(one.float(), other.float()) for one, other in zip(first, wanted, strict=True))


def test_autocast_makes_calls_of_another_kind(ranks):
    assert max(ranks(2, under_autocast)) <= 1e-5


def with_gradients():
    """Both halves compute the call."""
    model, inputs = build("wan", batch=1)
    parallelize(model, init_mesh(ParallelConfig(cfg_degree=2), "cpu"))
    out = model(**inputs).sample
    out.sum().backward()
    return type(out) is torch.Tensor and any(weight.grad is not None for weight in model.parameters())


def test_calls_for_gradients_are_not_shared(ranks):
    assert all(ranks(2, with_gradients))


def compiled_in_place():
    """After the transformer was compiled, as a pipeline finds it at its next call."""
    model, inputs = build("wan", batch=1)
    wanted = steps(model, inputs, as_wan)
    parallelize(model, init_mesh(ParallelConfig(cfg_degree=2), "cpu"))
    model.compile(backend="eager")
    dealt_calls(model).begin()
    with torch.no_grad():
        shared = isinstance(model(**inputs).sample, Awaited)
    got = steps(model, inputs, as_wan)
    return shared, max(error(one, other) for one, other in zip(got, wanted, strict=True))


def test_a_transformer_compiled_in_place_is_shared_too(ranks):
    for shared, worst in ranks(2, compiled_in_place):
        assert shared
        assert worst <= 1e-5


class Holding(nn.Module):
    """Its calls give an object beside a tensor."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.weight * x, object()


def holding():
    model = Holding()
    DealtCalls(model, init_mesh(ParallelConfig(cfg_degree=2), "cpu").cfg, "").put_on()
    with torch.no_grad():
        results = [model(torch.ones(2)) for _ in range(3)]
    return all(type(tensor) is torch.Tensor for tensor, _ in results), len({id(one) for _, one in results})


def test_what_gives_more_than_tensors_is_computed_by_both_halves(ranks):
    assert ranks(2, holding) == [(True, 3)] * 2


def taken_off():
    model, inputs = build("wan", batch=1)
    wanted = forward(model, inputs)[0]
    parallelize(model, init_mesh(ParallelConfig(cfg_degree=2), "cpu"))
    with torch.no_grad():
        waiting = model(**inputs).sample
    unparallelize(model)
    return (
        isinstance(waiting, Awaited),
        model._compiled_call_impl is None,
        torch.equal(waiting + 0, wanted),
        torch.equal(forward(model, inputs)[0], wanted),
    )


def test_unparallelize_takes_it_off(ranks):
    assert ranks(2, taken_off) == [(True,) * 4] * 2
