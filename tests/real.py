"""Published models at high resolution and with long videos, on the meta device: their widths, heads, patches and texts, one layer of each kind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dit_usp.bench.cases import CASES, Case, Inputs, Rand


@dataclass(frozen=True)
class Real:
    """One model at one size.

    Attributes:
        case: the model, and its inputs at this size.
        image, text: tokens of each stream that is cut; no text where every rank holds all of it.
        table: the module that makes the rotary embedding, or ":argument" where it comes from outside.
        table_dim, table_streams: the dim of its tokens, and the streams that each of its tensors holds.
        known: inputs whose values matter; all others have a shape alone.
        depth: layers of each kind.
        words: of the text, how many each call of an attention looks at by turns; (): all in one call.
        masked: the module that wants the text's mask on meta like all else, where the mask has values.
    """

    case: Case
    image: int
    text: int = 0
    table: str = ""
    table_dim: int = 0
    table_streams: tuple[tuple[str, ...], ...] = (("image",), ("image",))
    known: tuple[str, ...] = ()
    depth: int = 1
    words: tuple[int, ...] = ()
    masked: str = ""

    def build(self) -> nn.Module:
        """The model on meta, but for its table, whose constants are real. Takes no memory."""
        table = type(self._on_meta().get_submodule(self.table)) if self.table and self.table[0] != ":" else None
        with _real(table) if table else contextlib.nullcontext():
            return self._on_meta()

    def inputs(self) -> Inputs:
        made = self.case.inputs(lambda *shape: torch.empty(shape, dtype=torch.bfloat16, device="meta"))
        return {name: value if name in self.known else onto_meta(value) for name, value in made.items()}

    def _on_meta(self) -> nn.Module:
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device("meta"):
                return getattr(diffusers, self.case.model)(**self.case.config, **dict.fromkeys(self.case.layers, self.depth)).eval()
        finally:
            torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def _real(cls: type[nn.Module]) -> Iterator[None]:
    """Modules of this class are built on the CPU, whatever is around them."""
    original = cls.__init__

    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        with torch.device("cpu"):
            original(self, *args, **kwargs)

    cls.__init__ = init  # type: ignore[method-assign]
    try:
        yield
    finally:
        cls.__init__ = original  # type: ignore[method-assign]


def onto_meta(value: Any) -> Any:
    """Every tensor in `value` without its numbers."""
    return tree_map(lambda item: item.to("meta") if isinstance(item, Tensor) else item, value)


def resized(name: str, *size: int) -> Case:
    """A case of the benchmark at another size."""
    case = CASES[name]
    return Case(case.model, case.config, partial(case.inputs.func, *size), case.layers)  # type: ignore[attr-defined]


def _cogvideox(rand: Rand) -> Inputs:
    """1280 x 720, larger than it was trained on, with positions as its pipeline makes them."""
    pipe = SimpleNamespace(transformer=REAL["cogvideox"].build(), vae_scale_factor_spatial=8)
    positions = diffusers.CogVideoXPipeline._prepare_rotary_positional_embeddings(pipe, 8 * 90, 8 * 160, 13, torch.device("cpu"))
    return resized("cogvideox-49f", 13, 90, 160).inputs(rand) | dict(image_rotary_emb=positions)


def _ltx(rand: Rand) -> Inputs:
    """257 frames of 704 x 480."""
    return dict(
        hidden_states=rand(1, 33 * 15 * 22, 128), encoder_hidden_states=rand(1, 256, 4096), encoder_attention_mask=rand(1, 256), timestep=rand(1),
        num_frames=33, height=15, width=22, rope_interpolation_scale=(8 / 25, 32, 32),
    )  # fmt: skip


def _mochi(rand: Rand) -> Inputs:
    """61 frames of 848 x 480; the mask's values decide what is attended to."""
    mask = torch.arange(256)[None] < torch.tensor(REAL["mochi"].words)[:, None]
    return dict(hidden_states=rand(2, 12, 11, 60, 106), encoder_hidden_states=rand(2, 256, 4096), encoder_attention_mask=mask, timestep=rand(2))


REAL = {
    "flux": Real(resized("flux-1024", 4096), 65536, 512, "pos_embed", 0, (("text", "image"),) * 2, ("img_ids", "txt_ids")),
    "sd35": Real(resized("sd35-1024", 2048), 16384, 333),
    "pixart": Real(resized("pixart-1024", 2048), 16384),
    "qwen": Real(resized("qwen-1024", 2048), 16384, 300, "pos_embed", 0, (("image",), ("text",))),
    "wan": Real(resized("wan14b-480p", 21, 90, 160), 21 * 45 * 80, 0, "rope", 1),
    "hunyuan": Real(resized("hunyuan-720p", 33, 90, 160), 33 * 45 * 80, 256, "rope"),
    "cogvideox": Real(
        Case("CogVideoXTransformer3DModel", CASES["cogvideox-49f"].config, _cogvideox, {"num_layers": 42}), 13 * 45 * 80, 226, ":image_rotary_emb",
        known=("image_rotary_emb",),
    ),
    "ltx": Real(Case("LTXVideoTransformer3DModel", {}, _ltx, {"num_layers": 28}), 33 * 15 * 22, 0, "rope", 1),
    "mochi": Real(
        Case("MochiTransformer3DModel", {}, _mochi, {"num_layers": 48}), 11 * 30 * 53, 256, "rope", known=("encoder_attention_mask",), depth=2,
        words=(256, 17), masked="time_embed",
    ),
}  # fmt: skip
