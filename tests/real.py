"""Real configurations at high resolution and as long videos, on the meta device: real widths, heads, patches and texts, one layer of each kind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Real:
    """One model at one size.

    Attributes:
        model: class name in diffusers.
        inputs: of its forward, on meta; positions that come from outside have values.
        image, text: tokens of each stream that is cut; no text where every rank holds all of it.
        table: the module that makes the rotary embedding, or ":argument" where it comes from outside.
        table_dim, table_streams: the dim of its tokens, and the streams that each of its tensors holds.
        layers: config of the depth; config: what else differs from the class's defaults.
        words: of the text, how many each call of an attention looks at by turns; (): all in one call.
        masked: the module that wants the text's mask on meta like all else, where the mask has values.
    """

    model: str
    inputs: Callable[[], Inputs]
    image: int
    text: int = 0
    table: str = ""
    table_dim: int = 0
    table_streams: tuple[tuple[str, ...], ...] = (("image",), ("image",))
    layers: dict[str, int] = field(default_factory=lambda: {"num_layers": 1})
    config: dict[str, Any] = field(default_factory=dict)
    words: tuple[int, ...] = ()
    masked: str = ""

    def build(self) -> nn.Module:
        """The model on meta, but for its table, whose constants are real. Takes no memory."""
        cls = getattr(diffusers, self.model)
        table = type(self._on_meta(cls).get_submodule(self.table)) if self.table and self.table[0] != ":" else None
        with _real(table) if table else contextlib.nullcontext():
            return self._on_meta(cls)

    def _on_meta(self, cls: type[nn.Module]) -> nn.Module:
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device("meta"):
                return cls(**self.layers, **self.config).eval()
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


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def flux() -> Inputs:
    side = torch.arange(4096 / 16)
    return dict(
        hidden_states=meta(1, 65536, 64), encoder_hidden_states=meta(1, 512, 4096), pooled_projections=meta(1, 768), timestep=meta(1),
        guidance=meta(1), img_ids=torch.cartesian_prod(torch.zeros(1), side, side), txt_ids=torch.zeros(512, 3),
    )  # fmt: skip


def sd35() -> Inputs:
    return dict(hidden_states=meta(2, 16, 256, 256), encoder_hidden_states=meta(2, 333, 4096), pooled_projections=meta(2, 2048), timestep=meta(2))


def pixart() -> Inputs:
    return dict(hidden_states=meta(2, 4, 256, 256), encoder_hidden_states=meta(2, 300, 4096), encoder_attention_mask=meta(2, 300), timestep=meta(2))


def qwen() -> Inputs:
    mask = meta(1, 1024, dtype=torch.bool)
    return dict(
        hidden_states=meta(1, 16384, 64), encoder_hidden_states=meta(1, 1024, 3584), encoder_hidden_states_mask=mask, timestep=meta(1),
        img_shapes=[[(1, 128, 128)]],
    )  # fmt: skip


def wan() -> Inputs:
    return dict(hidden_states=meta(1, 16, 21, 90, 160), encoder_hidden_states=meta(1, 512, 4096), timestep=meta(1))


def hunyuan() -> Inputs:
    return dict(
        hidden_states=meta(1, 16, 33, 90, 160), encoder_hidden_states=meta(1, 256, 4096), encoder_attention_mask=meta(1, 256),
        pooled_projections=meta(1, 768), timestep=meta(1), guidance=meta(1),
    )  # fmt: skip


def cogvideox() -> Inputs:
    """Positions as the pipeline makes them, of a video larger than the 720 x 480 it was trained on."""
    pipe = SimpleNamespace(transformer=CASES["cogvideox"].build(), vae_scale_factor_spatial=8)
    positions = diffusers.CogVideoXPipeline._prepare_rotary_positional_embeddings(pipe, 8 * 90, 8 * 160, 13, torch.device("cpu"))
    return dict(hidden_states=meta(2, 13, 16, 90, 160), encoder_hidden_states=meta(2, 226, 4096), timestep=meta(2), image_rotary_emb=positions)


def ltx() -> Inputs:
    return dict(
        hidden_states=meta(1, 33 * 15 * 22, 128), encoder_hidden_states=meta(1, 256, 4096), encoder_attention_mask=meta(1, 256), timestep=meta(1),
        num_frames=33, height=15, width=22, rope_interpolation_scale=(8 / 25, 32, 32),
    )  # fmt: skip


def mochi() -> Inputs:
    """The mask has values, which decide what is attended to."""
    mask = torch.arange(256)[None] < torch.tensor(CASES["mochi"].words)[:, None]
    return dict(hidden_states=meta(2, 12, 11, 60, 106), encoder_hidden_states=meta(2, 256, 4096), encoder_attention_mask=mask, timestep=meta(2))


TWO_KINDS = {"num_layers": 1, "num_single_layers": 1}
CASES = {
    "flux": Real(
        "FluxTransformer2DModel", flux, 65536, 512, "pos_embed", 0, (("text", "image"),) * 2, TWO_KINDS, {"guidance_embeds": True}
    ),
    "sd35": Real(
        "SD3Transformer2DModel", sd35, 16384, 333,
        config=dict(num_attention_heads=38, caption_projection_dim=2432, pos_embed_max_size=192, qk_norm="rms_norm"),
    ),
    "pixart": Real(
        "PixArtTransformer2DModel", pixart, 16384,
        config=dict(sample_size=128, caption_channels=4096, use_additional_conditions=False),
    ),
    "qwen": Real("QwenImageTransformer2DModel", qwen, 16384, 1024, "pos_embed", 0, (("image",), ("text",))),
    "wan": Real("WanTransformer3DModel", wan, 21 * 45 * 80, 0, "rope", 1),
    "hunyuan": Real(
        "HunyuanVideoTransformer3DModel", hunyuan, 33 * 45 * 80, 256, "rope", layers=TWO_KINDS | {"num_refiner_layers": 1},
        config=dict(guidance_embeds=True),
    ),
    "cogvideox": Real(
        "CogVideoXTransformer3DModel", cogvideox, 13 * 45 * 80, 226, ":image_rotary_emb",
        config=dict(num_attention_heads=48, use_rotary_positional_embeddings=True),
    ),
    "ltx": Real("LTXVideoTransformer3DModel", ltx, 33 * 15 * 22, 0, "rope", 1),
    "mochi": Real(
        "MochiTransformer3DModel", mochi, 11 * 30 * 53, 256, "rope", layers={"num_layers": 2}, words=(256, 17), masked="time_embed",
    ),
}  # fmt: skip
