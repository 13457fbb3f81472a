"""Audio transformers: their tokens are moments; the stream is called "image" like every main stream."""

from __future__ import annotations

from dit_usp.plan import ShardPlan, exchange, gather, local_int, shard_plan, split

PLANS: tuple[ShardPlan, ...] = (
    shard_plan(
        "StableAudioDiTModel",
        split(":rotary_embedding", dim=0),  # covers the token that is put before the others
        split("transformer_blocks.0:hidden_states", "transformer_blocks.*:attention_mask", dim=1),
        exchange("transformer_blocks.*.attn1"),
        gather("proj_out", dim=1),
        guidance="batch",
    ),
    shard_plan(
        "StableAudio3DiTModel",
        local_int("transformer_blocks.*:num_memory_tokens", stream="memory"),
        split("transformer_blocks.0:hidden_states", dim=1, stream=("memory", "image")),
        split("transformer_blocks.*:rope", dim=0, stream=("memory", "image")),
        split("transformer_blocks.*:local_seq", dim=1),
        exchange("transformer_blocks.*.self_attn"),
        gather("transformer_blocks.-1", dim=1, stream=("memory", "image")),
        guidance="batch",
        heads="num_heads",
    ),
    shard_plan(
        "AceStepTransformer1DModel",
        split("layers.0:hidden_states", dim=1),
        split("layers.*:position_embeddings", dim=0),
        split("layers.*:attention_mask", dim=2),
        exchange("layers.*.self_attn", mask="native"),
        gather("norm_out", dim=1),
    ),
    shard_plan(
        "LongCatAudioDiTTransformer",
        split("blocks.0:hidden_states", "blocks.*:mask", dim=1),
        split("blocks.*:rope", dim=0),
        exchange("blocks.*.self_attn"),
        gather("blocks.-1", dim=1),
        guidance="calls",
        heads="dit_heads",
    ),
    shard_plan(
        "MiniMaxMusic3Transformer1DModel",
        split("rotary_emb[0]", "rotary_emb[1]", dim=0),
        split("transformer_blocks.0:hidden_states", dim=1),
        exchange("transformer_blocks.*.attn"),
        gather("transformer_blocks.-1", dim=1),
    ),
)
