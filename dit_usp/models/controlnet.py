"""ControlNets made of transformer blocks. Their residuals are gathered, and cut again where the transformer takes them."""

from __future__ import annotations

from dit_usp.plan import ShardPlan, exchange, gather, shard_plan, split

PLANS: tuple[ShardPlan, ...] = (
    shard_plan(
        "HunyuanDiT2DControlNetModel",
        split("pos_embed", dim=1),  # called for the latents and for the condition
        split(":image_rotary_emb", dim=0),
        exchange("blocks.*.attn1"),
        gather("controlnet_blocks.*", dim=1),
        guidance="batch",
    ),
    shard_plan(
        "QwenImageControlNetModel",
        split("pos_embed[0]", dim=0),
        split("pos_embed[1]", dim=0, stream="text"),
        split("transformer_blocks.0:hidden_states", dim=1),
        split("transformer_blocks.0:encoder_hidden_states", "transformer_blocks.*:encoder_hidden_states_mask", dim=1, stream="text"),
        exchange("transformer_blocks.*.attn"),
        gather("controlnet_blocks.*", dim=1),
    ),
)
