"""Transformers that cannot be shared over ranks, or are not worth it, and why."""

from __future__ import annotations

_UNET = "it is a part of a UNet, whose convolutions stay whole"

REFUSED = {
    "WanAnimate2Transformer3DModel": "its attention packs frames into slots of fixed size, for flex_attention",
    "RFD4ProteinaTransformer": "it holds a value for every pair of tokens, which a cut of the tokens does not cut",
    "MiniMaxMusic3RVQDepthDecoder": "it writes at most 16 tokens, one after the other",
    "PriorTransformer": "it has about 81 tokens",
    "T5FilmDecoder": "it has 256 tokens",
    "Transformer2DModel": _UNET,
    "DreamLiteTransformer2DModel": _UNET,
    "TransformerTemporalModel": _UNET,
}
