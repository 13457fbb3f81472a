"""ControlNets made of transformer blocks. Their residuals are gathered, and cut again where the transformer takes them."""

from __future__ import annotations

from dit_usp.plan import ShardPlan, exchange, gather, local_int, neighbour, reduce, shard_plan, split

PLANS: tuple[ShardPlan, ...] = (
    shard_plan(
        "FluxControlNetModel",
        split("transformer_blocks.0:hidden_states", dim=1),  # with the condition's tokens added
        split("transformer_blocks.0:encoder_hidden_states", dim=1, stream="text"),  # with the token that a union net puts before it
        split("*transformer_blocks.*:image_rotary_emb", dim=0, stream=("text", "image")),
        exchange("*transformer_blocks.*.attn"),
        gather("controlnet_*blocks.*", dim=1),
        guidance="whole",
    ),
    shard_plan(
        "SD3ControlNetModel",
        split(":encoder_hidden_states", dim=1, stream="text"),
        split("transformer_blocks.0:hidden_states", dim=1),
        exchange("transformer_blocks.*.attn"),
        exchange("transformer_blocks.*.attn2", queries="image", keys="image", optional=True),
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
        guidance="whole",
        short={"text": "prefix"},
    ),
    shard_plan(
        "HunyuanDiT2DControlNetModel",
        split("pos_embed", dim=1),  # called for the latents and for the condition
        split(":image_rotary_emb", dim=0),
        exchange("blocks.*.attn1"),
        gather("controlnet_blocks.*", dim=1),
        guidance="batch",
    ),
    shard_plan(
        "CosmosControlNetModel",
        split("rope[0]", "rope[1]", dim=0),
        split("control_blocks.0:hidden_states", "control_blocks.*:latents", "control_blocks.*:extra_pos_emb", dim=1),
        split("control_blocks.*:temb", "control_blocks.*:embedded_timestep", dim=1, ndim=3),
        exchange("control_blocks.*.attn1"),
        gather("control_blocks.*[1]", dim=1),
    ),
    shard_plan(
        "ZImageControlNetModel",
        split("control_layers.0:c", dim=1, anew=True),
        split("control_layers.*:x", "control_layers.*:attn_mask", "control_layers.*:freqs_cis", dim=1),
        exchange("control_layers.*.attention"),
        gather("control_layers.-1", dim=2),  # of the stack that the layers build up
        heads="n_heads",
    ),
    shard_plan(
        "SanaControlNetModel",
        split("patch_embed", dim=1),
        local_int("transformer_blocks.*:height", in_units=True),
        neighbour("transformer_blocks.*.ff.conv_depth", dim=2, n=1),
        reduce("transformer_blocks.*.attn1"),
        gather("controlnet_blocks.*", dim=1),
        guidance="batch",
        units={"image": "row"},
    ),
)
