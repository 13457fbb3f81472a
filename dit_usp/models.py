"""One entry a transformer class: what dit-usp knows of it. Data only: adding a model is adding an entry (CONTRIBUTING.md shows how)."""

from __future__ import annotations

from dit_usp.plan import Call, ShardPlan, exchange, gather, shard_plan, split

PLANS = (
    shard_plan(
        "DiTTransformer2DModel",
        split("pos_embed", dim=1),
        exchange("transformer_blocks.*.attn1"),
        gather("proj_out_2", dim=1),
        guidance="batch",
    ),
    shard_plan(
        "PixArtTransformer2DModel",
        split(":attention_mask", dim=1, ndim=2),  # no pipeline passes it; as a ready bias (batch, 1, tokens) it is cut like one
        split(":attention_mask", dim=2, ndim=3),
        split("pos_embed", dim=1),
        exchange("transformer_blocks.*.attn1"),
        gather("proj_out", dim=1),
        guidance="batch",
    ),
    shard_plan(
        "SD3Transformer2DModel",
        split("pos_embed", ":block_controlnet_hidden_states", dim=1),
        split(":encoder_hidden_states", dim=1, stream="text"),
        exchange(
            "transformer_blocks.*.attn",
            # the second call of the IP-Adapter: image tokens look at the image and at the adapter's tokens, which every rank holds
            calls={"SD3IPAdapterJointAttnProcessor2_0": (Call(), Call(("image",), ("image",), shared="suffix"))},
        ),
        exchange("transformer_blocks.*.attn2", queries=("image",), keys=("image",), optional=True),  # dual attention: SD3.5 medium
        gather("proj_out", dim=1),
        guidance="batch",
        unguided="skip_layers",
    ),
    shard_plan(
        "FluxTransformer2DModel",
        split(":hidden_states", dim=1),
        split(":encoder_hidden_states", dim=1, stream="text"),
        split(":img_ids", dim=-2),  # (tokens, 3), or (batch, tokens, 3) from older callers
        split(":txt_ids", dim=-2, stream="text"),
        split(":controlnet_block_samples", ":controlnet_single_block_samples", dim=1),
        exchange(
            "transformer_blocks.*.attn",
            "single_transformer_blocks.*.attn",
            calls={"FluxIPAdapterAttnProcessor": (Call(), Call(local=True))},  # the adapter's keys are on every rank
        ),
        gather("proj_out", dim=1),
    ),
    shard_plan(
        "CogVideoXTransformer3DModel",
        split(":image_rotary_emb", dim=0),
        split("transformer_blocks.0:hidden_states", dim=1),
        split("transformer_blocks.0:encoder_hidden_states", dim=1, stream="text"),
        exchange("transformer_blocks.*.attn1"),
        gather("proj_out", dim=1),
        guidance="batch",
    ),
)


def find_plan(model: str) -> ShardPlan | None:
    """The plan of the transformer class named `model`, or None."""
    return next((plan for plan in PLANS if plan.model == model), None)
