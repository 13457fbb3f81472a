"""The kernel table: each kernel that runs here keeps the contract; adapters of packages are tried against stand-ins; choices explain themselves."""

import importlib.machinery
import logging
import math
import sys
import types

import pytest
import torch

from dit_usp.attention import available, choice, choose
from dit_usp.attention.choice import chosen, self_test
from dit_usp.attention.kernels import EXACT, KERNELS, Call, _aligned, run
from dit_usp.attention.masks import near_zero
from dit_usp.attention.preference import DEFAULT, MEASURED, preferences
from dit_usp.errors import UnsupportedError

CPU = torch.device("cpu")
HERE = [name for name in KERNELS if available(CPU)[name] == "ok"]


def attention_of(q, k, v, mask=None, causal=False):
    """The definition, in fp64, one row at a time."""
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=torch.double)
    lse = torch.full((q.shape[0], q.shape[2], q.shape[1]), -torch.inf, dtype=torch.double)
    group = q.shape[2] // k.shape[2]
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            for i in range(q.shape[1]):
                keys = [j for j in range(k.shape[1]) if not causal or j <= i]
                bias = [0.0] * k.shape[1] if mask is None else mask.expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])[b, h, i].tolist()
                if mask is not None and mask.dtype == torch.bool:
                    bias = [0.0 if allowed else -math.inf for allowed in bias]
                keys = [j for j in keys if bias[j] != -math.inf]
                if keys:
                    scores = torch.stack([q[b, i, h].double() @ k[b, j, h // group].double() / math.sqrt(q.shape[3]) + bias[j] for j in keys])
                    lse[b, h, i] = scores.logsumexp(0)
                    out[b, i, h] = scores.softmax(0) @ v[b, keys, h // group].double()
    return out, lse


def calls(dtype):
    """Named calls: q, k, v (B, S, H, D), mask, causal. Tensors are strided views, as Ulysses gives them."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(7, 2, 3 * 4, 16, generator=generator).to(dtype).transpose(0, 1).split(4, dim=2)
    masks = torch.rand(2, 4, 7, 7, generator=generator) > 0.5
    masks[0, :, 2] = False
    return {
        "plain": (q, k, v, None, False),
        "causal": (q, k, v, None, True),
        "other length": (q, k[:, :5], v[:, :5], None, False),
        "gqa": (q, k[:, :, :2], v[:, :, :2], None, False),
        "key mask": (q, k, v, masks[:, :1, :1], False),
        "mask with empty rows": (q, k, v, masks, False),
        "additive": (q, k, v, torch.randn(1, 4, 7, 7, generator=generator).masked_fill(~masks[:1], -torch.inf).to(dtype), False),
        "no keys": (q, k[:, :0], v[:, :0], None, False),
        "no queries": (q[:, :0], k, v, None, False),
    }


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_contract(name, dtype):
    for label, (q, k, v, mask, causal) in calls(dtype).items():
        out, lse = run(name, q, k, v, mask, None, causal)
        expected, expected_lse = attention_of(q, k, v, mask, causal)
        tolerance = EXACT if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance, msg=lambda text, label=label: f"{label}: {text}")
        if mask is not None:
            assert (out[(expected_lse == -torch.inf).transpose(1, 2)] == 0).all()
        if KERNELS[name].lse:
            assert lse.dtype == torch.float32
            torch.testing.assert_close(lse.double(), expected_lse, rtol=tolerance, atol=tolerance)
        else:
            assert lse is None or not out.numel() or label == "no keys"


def test_kernels_that_do_not_run_here_say_why():
    for name, state in available("cpu").items():
        assert state == "ok" or state == f"runs on cuda, not {CPU}", name
    assert {"sdpa", "cpu", "math"} <= set(HERE)


@pytest.mark.parametrize("name", HERE)
def test_self_test_passes(name):
    assert all(error <= (EXACT if dtype.itemsize >= 4 else 2e-2) for dtype, error in self_test(name, CPU).items())


# Packages: stand-ins that keep the packages' documented signatures and layouts, and compute by the reference.


def reference(q, k, v, softmax_scale, causal):
    return run("math", q, k, v, None, softmax_scale, causal)


def flash_attn(wrong=lambda lse: lse):
    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, return_attn_probs=False):
        out, lse = reference(q, k, v, softmax_scale, causal)
        assert return_attn_probs
        return out.to(q.dtype), wrong(lse), None

    return {"flash_attn": {"flash_attn_func": flash_attn_func}}


def flash_attn_3():
    def flash_attn_func(q, k, v, softmax_scale=None, causal=False, return_attn_probs=False):
        out, lse = reference(q, k, v, softmax_scale, causal)
        return (out.to(q.dtype), lse) if return_attn_probs else out.to(q.dtype)

    return {"flash_attn_interface": {"flash_attn_func": flash_attn_func}}


def flash_attn_4():
    def flash_attn_func(q, k, v, softmax_scale=None, causal=False, return_lse=False):
        out, lse = reference(q, k, v, softmax_scale, causal)
        return out.to(q.dtype), lse if return_lse else None

    return {"flash_attn": {}, "flash_attn.cute": {"flash_attn_func": flash_attn_func}}


def xformers():
    class LowerTriangularMask:
        pass

    def forward(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None):
        out, lse = reference(query, key, value, scale, isinstance(attn_bias, LowerTriangularMask))
        return out.to(query.dtype), torch.nn.functional.pad(lse, (0, -lse.shape[2] % 32))

    fmha = types.SimpleNamespace(memory_efficient_attention_forward_requires_grad=forward)
    return {"xformers": {}, "xformers.ops": {"LowerTriangularMask": LowerTriangularMask, "fmha": fmha}}


def sageattention(corrected=True):
    def sageattn(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, return_lse=False):
        assert tensor_layout == "NHD"
        mean = k.mean(dim=1, keepdim=True)
        out, lse = reference(q, k - mean, v, sm_scale, is_causal)
        if corrected:
            lse = lse + (q.float() * mean.float()).sum(-1).transpose(1, 2) * sm_scale
        return out.to(q.dtype), lse

    return {"sageattention": {"sageattn": sageattn}}


def install(monkeypatch, modules):
    for name, members in modules.items():
        module = types.ModuleType(name)
        module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []
        for member, value in members.items():
            setattr(module, member, value)
        monkeypatch.setitem(sys.modules, name, module)


ADAPTERS = {"flash-attn-2": flash_attn, "flash-attn-3": flash_attn_3, "flash-attn-4": flash_attn_4, "xformers": xformers, "sage": sageattention}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_passes_its_self_test(monkeypatch, name):
    install(monkeypatch, ADAPTERS[name]())
    assert max(self_test(name, CPU).values()) <= KERNELS[name].tolerance


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("flash-attn-2", flash_attn(lambda lse: lse / math.log(2))),  # base 2
        ("flash-attn-2", flash_attn(torch.zeros_like)),  # none at all
        ("flash-attn-2", flash_attn(lambda lse: lse * torch.nan)),
        ("sage", sageattention(corrected=False)),  # the mean of K is missing
    ],
)
def test_self_test_finds_a_wrong_lse(monkeypatch, name, modules):
    install(monkeypatch, modules)
    assert max(self_test(name, CPU).values()) > 2 * KERNELS[name].tolerance


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_absent_package_is_named(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    choice._tested.cache_clear()
    package = KERNELS[name].package
    if choice._installed(package):
        pytest.skip(f"{package} is installed")
    assert choice._tested(name, "cuda", 0) == f"needs the package {package}, which is not installed"
    choice._tested.cache_clear()


def test_a_package_that_does_not_load_is_named(monkeypatch):
    def broken(*args, **kwargs):
        raise ImportError("undefined symbol: _ZN3c10")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(choice, "self_test", broken)
    install(monkeypatch, flash_attn())
    choice._tested.cache_clear()
    assert choice._tested("flash-attn-2", "cuda", 0) == "does not run here: ImportError: undefined symbol: _ZN3c10"
    choice._tested.cache_clear()


# Choices


def test_auto_says_which_and_why():
    call = Call("cpu", torch.float32, 64, 64, lse=True)
    assert choose("auto", call) == ("cpu", choose("auto", call)[1])
    assert choose("auto", call)[1] == "not measured on cpu: the default order; sdpa gives no LSE"
    assert choose("auto", Call("cpu", torch.float32, 64, 64))[0] == "sdpa"
    assert choose("auto", Call("cpu", torch.float32, 64, 64, lse=True, grad=True))[0] == "math"
    assert choose("auto", Call("cpu", torch.float32, 64, 32, lse=True))[0] == "math"


def auto_on(monkeypatch, capability, call, absent=()):
    """What auto would take on a GPU of that capability on which every kernel but `absent` works."""
    monkeypatch.setattr(choice, "_capability", lambda device: capability)
    monkeypatch.setattr(
        choice, "_state", lambda name, device: "is absent" if name in absent or capability < KERNELS[name].capability or name == "cpu" else "ok"
    )
    return choose("auto", call)


HOPPER = "measured fastest on compute capability 9.0 (H100, torch 2.11), before flash, efficient"
PACKAGES = tuple(name for name in KERNELS if KERNELS[name].package)


@pytest.mark.parametrize("size", [64, 72, 128])
@pytest.mark.parametrize(("lse", "name"), [(False, "sdpa"), (True, "cudnn")])
def test_what_was_measured_on_hopper_is_taken(monkeypatch, size, lse, name):
    assert auto_on(monkeypatch, (9, 0), Call("cuda", torch.bfloat16, size, size, lse=lse)) == (name, HOPPER)


@pytest.mark.parametrize(
    ("capability", "absent", "call", "name", "why"),
    [
        ((8, 9), PACKAGES, {}, "flash", "not measured on compute capability 8.9: the default order; sdpa gives no LSE; cudnn is absent"),
        ((8, 0), (), {}, "flash-attn-2", "not measured on compute capability 8.0: the default order; sdpa gives no LSE; cudnn is absent"),
        ((12, 0), (), {}, "cudnn", "not measured on compute capability 12.0: the default order; sdpa gives no LSE"),
        ((9, 0), ("cudnn",), {}, "flash-attn-4", "not measured fastest on compute capability 9.0: the default order; cudnn is absent; sdpa gives"),
        ((9, 0), (), {"masked": True}, "cudnn", "not measured with a mask: the default order; sdpa gives no LSE"),
        ((9, 0), (), {"head_dim": 256, "value_dim": 256}, "flash-attn-3", "not measured for head size 256: the default order; sdpa gives no LSE; "),
        ((9, 0), (), {"dtype": torch.float32}, "efficient", "not measured in torch.float32: the default order; sdpa gives no LSE; cudnn does not"),
    ],
)
def test_what_was_not_measured_goes_by_the_default_order(monkeypatch, capability, absent, call, name, why):
    call = Call(**{"device": "cuda", "dtype": torch.bfloat16, "head_dim": 64, "value_dim": 64, "lse": True} | call)
    taken, reason = auto_on(monkeypatch, capability, call, absent)
    assert taken == name
    assert reason.startswith(why)


@pytest.mark.parametrize("major", MEASURED)
def test_a_measured_order_leaves_no_kernel_out(major):
    for lse in (False, True):
        assert set(preferences(Call("cuda", torch.float16, 128, 128, lse=lse), (major, 0))) == set(DEFAULT)
    measured = MEASURED[major]
    assert {*measured.whole, *measured.with_lse, *measured.slower} <= set(DEFAULT)
    assert all(KERNELS[name].lse for name in measured.with_lse)


def test_a_call_is_told_in_words():
    assert str(Call("cuda", torch.bfloat16, 72, 72)) == "head size 72, bfloat16 on cuda"
    call = Call("cpu", torch.float32, 8, 16, masked=True, causal=True, square=False, lse=True, grad=True)
    assert str(call) == "head size 8 (values 16), float32 on cpu, with a mask, is_causal, another number of keys, an LSE, gradients"


def test_a_choice_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, logger="dit_usp.attention"):
        for _ in range(3):
            chosen("auto", "cpu", torch.float32, 8192, 8192, False, False, True, True, False)
    assert len(caplog.records) == 1
    assert "attention kernel cpu" in caplog.text


@pytest.mark.parametrize(
    ("backend", "call", "error", "message"),
    [
        ("falsh", Call("cpu", torch.float32, 64, 64), ValueError, "backend='falsh' is unknown. Nearest: flash"),
        (
            "flash",
            Call("cpu", torch.bfloat16, 64, 64),
            UnsupportedError,
            "backend='flash' runs on cuda, not cpu. These take the call: sdpa, cpu, math.",
        ),
        ("sdpa", Call("cpu", torch.float32, 64, 64, lse=True), UnsupportedError, "backend='sdpa' gives no LSE. These take the call: cpu, math."),
        (
            "cpu",
            Call("cpu", torch.float32, 64, 64, lse=True, grad=True),
            UnsupportedError,
            "backend='cpu' has no gradient here. These take the call: math.",
        ),
        (
            "cpu",
            Call("cpu", torch.float32, 64, 64, causal=True, square=False),
            UnsupportedError,
            "backend='cpu' takes causal only with as many keys as queries. These take the call: sdpa, math.",
        ),
    ],
)
def test_refusals_name_what_works(backend, call, error, message):
    with pytest.raises(error) as failure:
        choose(backend, call)
    assert str(failure.value).startswith(message)


def test_no_kernel_takes_a_call_it_cannot_keep():
    """Whatever the call, a kernel that `refusal` lets through takes its mask, type and head size."""
    assert set(DEFAULT) | {"sage"} == set(KERNELS)
    assert KERNELS["flash"].refusal(Call("cuda", torch.float16, 64, 64, masked=True)) == "takes no mask"
    assert KERNELS["cudnn"].refusal(Call("cuda", torch.float32, 64, 64)) == "does not take torch.float32"
    assert KERNELS["cudnn"].refusal(Call("cuda", torch.float16, 256, 256)) == "takes head sizes up to 128 that are multiples of 8, not 256"
    assert KERNELS["flash"].refusal(Call("cuda", torch.float16, 36, 36)) == "takes head sizes up to 256 that are multiples of 8, not 36"
    assert KERNELS["math"].refusal(Call("cuda", torch.float16, 36, 40, masked=True, lse=True, grad=True)) == ""


@pytest.mark.parametrize("columns", [slice(5, 21), slice(0, 21), slice(16, 32)])
def test_rows_of_a_mask_begin_where_kernels_can_read_vectors(columns):
    mask = torch.empty(2, 1, 7, 48, device="meta", dtype=torch.bfloat16)[..., columns]
    aligned = _aligned(mask)
    assert aligned.shape == mask.shape
    assert aligned.storage_offset() % 16 == 0
    assert all(step % 16 == 0 for step in aligned.stride()[:-1])
    assert (aligned is mask) == (columns.start % 16 == 0)


def test_a_mask_is_aligned_in_compiled_code_without_a_graph_break():
    mask = torch.empty(2, 1, 7, 48, device="meta")[..., 5:26]
    aligned = torch.compile(_aligned, backend="aot_eager", fullgraph=True)(mask)
    assert aligned.shape == mask.shape
    assert all(step % 16 == 0 for step in aligned.stride()[:-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_a_mask_hides_by_a_finite_number_can_be_told_in_powers_of_two(dtype):
    mask = torch.zeros(1, 1, 3, 8, dtype=dtype)
    mask[..., 0, :4] = torch.finfo(dtype).min  # nothing else in the ring's first block
    mask[..., 1, :4] = -torch.inf
    moved, hiding = near_zero(mask)
    assert not hiding.any()
    assert torch.isfinite(moved[..., 0, :].float() * math.log2(math.e)).all()
    torch.testing.assert_close(moved.float().softmax(3), mask.float().softmax(3))
    assert (moved == -torch.inf).sum() == 4
