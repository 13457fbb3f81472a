"""Which local kernel computes a call: the one asked for, or the first by preference that takes the call and passes its self-test here."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import logging
from typing import Any

import torch
from torch import Tensor

from dit_usp.attention.kernels import EXACT, HALF, KERNELS, Call, run
from dit_usp.attention.masks import LOWEST
from dit_usp.attention.merge import merge
from dit_usp.attention.preference import DEFAULT, preferences
from dit_usp.errors import UnsupportedError

logger = logging.getLogger("dit_usp.attention")


def choose(backend: str, call: Call) -> tuple[str, str]:
    """The kernel for a call, and why.

    Raises:
        ValueError: no kernel of that name; names the nearest.
        UnsupportedError: the kernel named does not take the call, or does not work here; names those that do.
    """
    check_name(backend)
    if backend != "auto":
        reason = _reason_against(backend, call)
        if reason:
            others = [name for name in DEFAULT if not _reason_against(name, call)]
            raise UnsupportedError(f"backend={backend!r} {reason}. These take the call: {', '.join(others)}.")
        return backend, "asked for"
    passed_over = ""
    for name, why in preferences(call, _capability(call.device)).items():
        reason = _reason_against(name, call)
        if not reason:
            return name, why + passed_over
        if call.device in (KERNELS[name].devices or (call.device,)):  # of those for other devices there is nothing to say
            passed_over += f"; {name} {reason}"
    raise AssertionError("math takes every call")


def check_name(backend: str) -> None:
    """Refuse a name that is not in the table."""
    if backend != "auto" and backend not in KERNELS:
        near = difflib.get_close_matches(backend, ("auto", *KERNELS), n=3, cutoff=0.3) or ("auto", *KERNELS)
        raise ValueError(f"backend={backend!r} is unknown. Nearest: {', '.join(near)}.")


@torch.compiler.assume_constant_result
def chosen(backend: str, *call: Any) -> str:
    """`choose`, told once at INFO. A constant to torch.compile: every argument is a plain value (those of Call, in order)."""
    return _chosen(backend, Call(*call))


@functools.cache
def _chosen(backend: str, call: Call) -> str:
    name, reason = choose(backend, call)
    logger.info("attention kernel %s for %s: %s", name, call, reason)
    return name


def _reason_against(name: str, call: Call) -> str:
    reason = KERNELS[name].refusal(call)
    if not reason and (state := _state(name, call.device)) != "ok":
        reason = state
    return reason


def available(device: str | torch.device) -> dict[str, str]:
    """Every kernel of the table: "ok" on this device, or why not."""
    return {name: _state(name, torch.device(device).type) for name in KERNELS}


def _capability(device: str) -> tuple[int, int] | None:
    return torch.cuda.get_device_capability() if device == "cuda" else None


def _state(name: str, device: str) -> str:
    return _tested(name, device, torch.cuda.current_device() if device == "cuda" else 0)


@functools.cache
def _tested(name: str, device: str, index: int) -> str:
    """Whether a kernel works on a device: there, importable, and right. Asked once a process and device."""
    kernel = KERNELS[name]
    if kernel.devices and device not in kernel.devices:
        return f"runs on {', '.join(kernel.devices)}, not {device}"
    if kernel.package and not _installed(kernel.package):
        return f"needs the package {kernel.package}, which is not installed"
    if device == "cuda" and torch.cuda.get_device_capability(index) < kernel.capability:
        return "needs compute capability {}.{}".format(*kernel.capability)
    try:
        errors = self_test(name, torch.device(device, index))
    except Exception as failure:  # whatever a package raises where it does not fit this GPU, driver or torch
        return f"does not run here: {type(failure).__name__}: {(str(failure).splitlines() or [''])[0]}"
    for dtype, error in errors.items():
        allowed = kernel.tolerance if dtype in HALF else EXACT
        if not error <= allowed:
            return f"fails its self-test in {dtype}: error {error:.1e}, {allowed:.0e} allowed"
    return "ok"


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the parent package
        return False


@torch.no_grad()
def self_test(name: str, device: torch.device) -> dict[torch.dtype, float]:
    """The largest relative error of a kernel against fp64 on small calls, in its out and lse, for each of its types; inf where it gives nan.

    Two blocks of keys are attended to one by one and merged, as the ring does; then causal and masked calls, as far as the kernel takes them.
    """
    dtypes = KERNELS[name].dtypes or (torch.float32,)
    errors = {dtype: _self_test_errors(name, dtype, device) for dtype in dtypes}
    return {dtype: max(error if error == error else float("inf") for error in errors[dtype]) for dtype in dtypes}


def _self_test_errors(name: str, dtype: torch.dtype, device: torch.device) -> list[float]:
    kernel = KERNELS[name]
    generator = torch.Generator().manual_seed(0)  # the global state of the caller stays as it is
    q, k, v = (torch.randn(2, length, 2, 64, generator=generator).to(device, dtype) for length in (48, 80, 80))
    k = k + 0.5  # keys of real models have a mean, which some kernels take out
    parts = [run(name, q, k[:, part], v[:, part]) for part in (slice(0, 24), slice(24, 80))]
    errors = _merged_errors(parts, _reference(q, k, v))
    errors += _errors(run(name, q, k[:, :48], v[:, :48], causal=True), _reference(q, k[:, :48], v[:, :48], causal=True))
    if kernel.mask:
        mask = torch.rand(2, 1, 48, 80, generator=generator).to(device) > 0.5
        mask[0, :, 3] = False
        errors += _errors(run(name, q, k, v, mask), _reference(q, k, v, mask))
        hidden = torch.zeros(1, 1, 48, 80, device=device, dtype=dtype)
        hidden[:, :, 5, :24] = max(LOWEST, torch.finfo(dtype).min)  # a row whose first block is all but empty
        parts = [run(name, q, k[:, part], v[:, part], hidden[..., part]) for part in (slice(0, 24), slice(24, 80))]
        errors += _merged_errors(parts, _reference(q, k, v, hidden))
    return errors


def _merged_errors(parts: list[tuple[Tensor, Tensor | None]], expected: tuple[Tensor, Tensor | None]) -> list[float]:
    """Of two blocks merged as the ring does; none for a kernel without LSE."""
    (first, first_lse), (second, second_lse) = parts
    if first_lse is None or second_lse is None:
        return []
    return _errors(merge(*merge(None, None, first, first_lse), second, second_lse), expected)


def _reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> tuple[Tensor, Tensor | None]:
    return run("math", q.double(), k.double(), v.double(), mask, causal=causal)


def _errors(result: tuple[Tensor, Tensor | None], expected: tuple[Tensor, Tensor | None]) -> list[float]:
    errors = [_relative(result[0], expected[0])]
    if result[1] is not None and expected[1] is not None:
        errors.append(_relative(*(lse.masked_fill(lse == -torch.inf, 0) for lse in (result[1], expected[1]))))
    return errors


def _relative(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want).abs().max() / want.abs().max()).item()
