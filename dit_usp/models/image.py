"""Image transformers, most used first."""

from __future__ import annotations

from dit_usp.plan import KEEP, Call, batch, exchange, gather, local_int, log_base, neighbour, reduce, replicate, shard_plan, split

PERTURBED = Call(("image", "text"), ("image", "text"), mask="identity")  # PAG, arXiv 2403.17377
HIDREAM = ("image", "t5", "llama", "llama")  # a layer's own words come last, and leave after it

PLANS = (
    shard_plan(
        "FluxTransformer2DModel",
        split(":hidden_states", dim=1),
        split(":encoder_hidden_states", dim=1, stream="text"),
        split(":img_ids", dim=-2),  # (tokens, 3), or (batch, tokens, 3) from older callers
        split(":txt_ids", dim=-2, stream="text"),
        split(":controlnet_block_samples", ":controlnet_single_block_samples", dim=1),
        split(":joint_attention_kwargs.attention_mask", dim=-1, stream=("text", "image")),
        exchange(
            "transformer_blocks.*.attn",
            "single_transformer_blocks.*.attn",
            calls={"FluxIPAdapterAttnProcessor": (Call(), Call(local=True))},  # the adapter's keys are on every rank
        ),
        gather("proj_out", dim=1),
    ),
    shard_plan(
        "Flux2Transformer2DModel",
        local_int(":num_ref_tokens", stream="reference"),  # Klein's KV cache: references come first, each rank caches its own
        split(":hidden_states", ":img_ids", dim=-2, stream=("reference", "image")),
        split(":encoder_hidden_states", ":txt_ids", dim=-2, stream="text"),
        exchange(
            "transformer_blocks.*.attn",
            "single_transformer_blocks.*.attn",
            # text and image look at everything, then references at references
            calls=dict.fromkeys(
                ("Flux2KVAttnProcessor", "Flux2KVParallelSelfAttnProcessor"), (Call(("text", "image")), Call(("reference",), ("reference",)))
            ),
        ),
        gather("proj_out", dim=1),
        full=("image", "reference"),
        cache="kv_cache",
    ),
    shard_plan(
        "QwenImageTransformer2DModel",
        split("pos_embed[0]", dim=0),
        split("pos_embed[1]", dim=0, stream="text"),  # the text's positions come from its whole length: it is cut after them, at block 0
        split(":controlnet_block_samples", dim=1),
        split("transformer_blocks.0:hidden_states", "transformer_blocks.*:modulate_index", dim=1),
        split("transformer_blocks.0:encoder_hidden_states", "transformer_blocks.*:encoder_hidden_states_mask", dim=1, stream="text"),
        exchange("transformer_blocks.*.attn"),
        gather("proj_out", dim=1),
        short={"text": "prefix"},  # rotated on its own, by a reshape that takes no empty piece
    ),
    shard_plan(
        "SD3Transformer2DModel",
        split("pos_embed", ":block_controlnet_hidden_states", dim=1),
        split(":encoder_hidden_states", dim=1, stream="text"),
        exchange(
            "transformer_blocks.*.attn",
            calls={
                # the second call of the IP-Adapter: image tokens look at the image and at the adapter's tokens, which every rank holds
                "SD3IPAdapterJointAttnProcessor2_0": (Call(), Call(("image",), ("image",), shared="suffix")),
                **dict.fromkeys(("PAGCFGJointAttnProcessor2_0", "PAGJointAttnProcessor2_0"), (Call(), PERTURBED)),
            },
        ),
        exchange("transformer_blocks.*.attn2", queries="image", keys="image", optional=True),  # dual attention: SD3.5 medium
        gather("proj_out", dim=1),
        guidance="batch",
        unguided=("skip_layers",),
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
        "ZImageTransformer2DModel",
        batch(":controlnet_block_samples", dim=None),  # padded to the longest caption of both halves
        split("layers.0:x", dim=1),
        split("layers.*:attn_mask", "layers.*:freqs_cis", "layers.*:noise_mask", "all_final_layer.*:noise_mask", dim=1),
        split(":controlnet_block_samples", dim=1),
        exchange("layers.*.attention"),
        gather("all_final_layer.*", dim=1),
        guidance="batch",
        heads="n_heads",
    ),
    shard_plan(
        "HiDreamImageTransformer2DModel",
        batch(":encoder_hidden_states_llama3", dim=1),
        split(":encoder_hidden_states_t5", dim=1, stream="t5"),
        split(":encoder_hidden_states_llama3", dim=2, stream="llama"),
        split("x_embedder", dim=1),
        split("pe_embedder", dim=1, stream=("image", KEEP)),
        split("double_stream_blocks.*:hidden_states_masks", dim=1),
        split("single_stream_blocks.*:hidden_states_masks", dim=1, stream=("image", KEEP)),
        exchange("*_stream_blocks.*.block.attn1", queries=HIDREAM, keys=HIDREAM),
        gather("final_layer", dim=1),
        guidance="batch",
    ),
    shard_plan(
        "ChromaTransformer2DModel",
        split(":hidden_states", dim=1),
        split(":encoder_hidden_states", dim=1, stream="text"),
        split(":img_ids", dim=-2),
        split(":txt_ids", dim=-2, stream="text"),
        split(":attention_mask", dim=1, stream=("text", "image")),
        split(":controlnet_block_samples", ":controlnet_single_block_samples", dim=1),
        exchange("transformer_blocks.*.attn", "single_transformer_blocks.*.attn", mask="outer"),
        gather("proj_out", dim=1),
    ),
    shard_plan(
        "CogView4Transformer2DModel",
        split("patch_embed[0]", dim=1),
        split("patch_embed[1]", dim=1, stream="text"),
        split("rope[0]", "rope[1]", ":image_rotary_emb", dim=0),
        split("transformer_blocks.*:attention_mask", dim=1, stream="text"),
        exchange("transformer_blocks.*.attn1", mask="outer"),
        gather("proj_out", dim=1),
    ),
    shard_plan(
        "CogView3PlusTransformer2DModel",
        split("transformer_blocks.0:hidden_states", dim=1),
        split("transformer_blocks.0:encoder_hidden_states", dim=1, stream="text"),
        exchange("transformer_blocks.*.attn1"),
        gather("proj_out", dim=1),
        guidance="batch",
    ),
    shard_plan(
        "AuraFlowTransformer2DModel",
        split("joint_transformer_blocks.0:hidden_states", dim=1),
        split("joint_transformer_blocks.0:encoder_hidden_states", dim=1, stream="text"),  # after the register tokens joined it
        exchange("joint_transformer_blocks.*.attn", "single_transformer_blocks.*.attn"),
        gather("proj_out", dim=1),
        guidance="batch",
    ),
    shard_plan(
        "Lumina2Transformer2DModel",
        split("layers.0:hidden_states", dim=1),
        split("layers.*:attention_mask", "layers.*:image_rotary_emb", dim=1),
        exchange("layers.*.attn"),
        gather("norm_out", dim=1),
    ),
    shard_plan(
        "LuminaNextDiT2DModel",
        split("patch_embedder[0]", "patch_embedder[1]", "patch_embedder[3]", dim=1),
        log_base("layers.*:cross_attention_kwargs.base_sequence_length"),
        exchange("layers.*.attn1"),
        gather("norm_out", dim=1),
        guidance="batch",
    ),
    shard_plan(
        "SanaTransformer2DModel",
        split("patch_embed", ":controlnet_block_samples", dim=1),
        local_int("transformer_blocks.*:height", in_units=True),
        neighbour("transformer_blocks.*.ff.conv_depth", dim=2, n=1),
        reduce("transformer_blocks.*.attn1"),
        gather("proj_out", dim=1),
        guidance="batch",
        units={"image": "row"},
    ),
    shard_plan(
        "PRXTransformer2DModel",
        split("img_in", dim=1),
        split("pe_embedder", dim=2),
        split("txt_in", ":attention_mask", dim=1, stream="text"),
        exchange("blocks.*.attention", queries="image", keys=("image", "text")),
        gather("final_layer", dim=1),
        guidance="batch",
        heads="num_heads",
    ),
    shard_plan(
        "OmniGenTransformer2DModel",
        batch(":input_img_latents", dim=None),  # of all samples in one list
        batch(":position_ids", dim=-1),  # those of the first sample are everybody's
        split("rope[0]", "rope[1]", dim=0),
        split("layers.0:hidden_states", dim=1),
        split("layers.*:attention_mask", dim=2),
        exchange("layers.*.self_attn"),
        gather("norm", dim=1),
        guidance="batch",
    ),
    shard_plan(
        "HunyuanDiT2DModel",
        split("pos_embed", dim=1),
        split(":image_rotary_emb", dim=0),
        split(":controlnet_block_samples", dim=1),
        exchange("blocks.*.attn1"),
        gather("proj_out", dim=1),
        guidance="batch",
    ),
    shard_plan(
        "DiTTransformer2DModel",
        split("pos_embed", dim=1),
        exchange("transformer_blocks.*.attn1"),
        gather("proj_out_2", dim=1),
        guidance="batch",
    ),
    shard_plan(
        "HunyuanImageTransformer2DModel",
        split("rope[0]", "rope[1]", dim=0),
        split("transformer_blocks.0:hidden_states", dim=1),
        split("transformer_blocks.0:encoder_hidden_states", dim=1, stream="text"),
        split("transformer_blocks.*:attention_mask", "single_transformer_blocks.*:attention_mask", dim=3, stream=("image", "text")),
        exchange("transformer_blocks.*.attn", "single_transformer_blocks.*.attn"),
        gather("proj_out", dim=1),
        short={"text": "suffix"},  # its blocks cut the text off by its length
    ),
    shard_plan(
        "GlmImageTransformer2DModel",
        split("rope[0]", "rope[1]", ":image_rotary_emb", dim=0),
        split("transformer_blocks.0:hidden_states", dim=1),
        split("transformer_blocks.0:encoder_hidden_states", dim=1, stream="text"),
        split("transformer_blocks.*:attention_mask", dim=1, stream="text"),
        exchange("transformer_blocks.*.attn1", mask="outer"),
        gather("proj_out", dim=1),
        cache="kv_caches",
    ),
    shard_plan(
        "BriaTransformer2DModel",
        split(":hidden_states", dim=1),
        split(":encoder_hidden_states", dim=1, stream="text"),
        split(":img_ids", dim=-2),
        split(":txt_ids", dim=-2, stream="text"),
        split(":controlnet_block_samples", ":controlnet_single_block_samples", dim=1),
        exchange("transformer_blocks.*.attn", "single_transformer_blocks.*.attn"),
        gather("proj_out", dim=1),
        guidance="batch",
    ),
    shard_plan(
        "BriaFiboTransformer2DModel",
        split(":hidden_states", dim=1),
        split(":encoder_hidden_states", ":text_encoder_layers", dim=1, stream="text"),
        split(":img_ids", dim=-2),
        split(":txt_ids", dim=-2, stream="text"),
        split(":joint_attention_kwargs.attention_mask", dim=3, stream=("text", "image")),
        exchange("transformer_blocks.*.attn", "single_transformer_blocks.*.attn"),
        gather("proj_out", dim=1),
        guidance="batch",
    ),
    shard_plan(
        "BriaFibo2Transformer2DModel",
        split("layers.0:x", dim=1),
        split("layers.*:attn_mask", "layers.*:freqs_cis", "layers.*:noise_mask", dim=1),
        exchange("layers.*.attention"),
        gather("layers.-1", dim=1),
    ),
    *(
        shard_plan(
            name,
            split(":hidden_states", dim=1),
            split(":encoder_hidden_states", dim=1, stream="text"),
            split(":img_ids", dim=-2),
            split(":txt_ids", dim=-2, stream="text"),
            exchange("transformer_blocks.*.attn", "single_transformer_blocks.*.attn"),
            gather("proj_out", dim=1),
        )
        for name in ("LongCatImageTransformer2DModel", "OvisImageTransformer2DModel")
    ),
    shard_plan(
        "Krea2Transformer2DModel",
        split("rotary_emb[0]", "rotary_emb[1]", dim=0),
        split("transformer_blocks.0:hidden_states", dim=1),
        split("transformer_blocks.*:attention_mask", dim=3),
        exchange("transformer_blocks.*.attn"),  # not text_fusion's attentions, which see the whole text
        gather("transformer_blocks.-1", dim=1),
    ),
    shard_plan(
        "Ideogram4Transformer2DModel",
        split(":hidden_states", ":encoder_hidden_states", ":position_ids", ":indicator", dim=1),
        split("layers.*:attention_mask", dim=2),
        exchange("layers.*.attention"),
        gather("final_layer", dim=1),
    ),
    shard_plan(
        "ErnieImageTransformer2DModel",
        split("pos_embed", dim=1),
        split("layers.0:x", "layers.*:temb", dim=0),
        split("layers.*:attention_mask", dim=3),
        exchange("layers.*.self_attention"),
        gather("layers.-1", dim=0),
        guidance="batch",
    ),
    shard_plan(
        "JoyImageEditTransformer3DModel",
        split("double_blocks.0:hidden_states", dim=1),
        split("double_blocks.0:encoder_hidden_states", dim=1, stream="text"),
        split("double_blocks.*:image_rotary_emb[0]", dim=0),
        split("double_blocks.*:image_rotary_emb[1]", dim=0, stream="text"),
        exchange("double_blocks.*.attn"),
        gather("proj_out", dim=1),
        short={"text": "suffix"},  # rotated on its own
    ),
    shard_plan(
        "JoyImageEditPlusTransformer3DModel",
        batch(":shape_list", listed=True),
        split("double_blocks.0:hidden_states", dim=1),
        split("double_blocks.0:encoder_hidden_states", dim=1, stream="text"),
        split("double_blocks.*:image_rotary_emb", dim=1),
        split("double_blocks.*:attention_mask", dim=3, stream=("image", "text")),
        exchange("double_blocks.*.attn"),
        gather("proj_out", dim=1),
        guidance="batch",
    ),
    shard_plan(
        "Flux3Transformer2DModel",
        split(":hidden_states", dim=1),
        split(":img_ids", dim=0),
        split(":encoder_hidden_states", dim=1, stream="text"),
        split(":txt_ids", dim=0, stream="text"),
        split(":image_cond_hidden_states", dim=1, stream="condition"),
        split(":image_cond_ids", dim=0, stream="condition"),
        exchange("mode_blocks.image.*.attn", queries="image", keys="image"),
        exchange("mode_blocks.image_cond.*.attn", queries="condition", keys="condition", optional=True),
        exchange("txt_mode_blocks.*.attn", queries="text", keys="text"),
        exchange("single_transformer_blocks.*.attn"),
        gather("proj_out", dim=1),
        full=("image", "text", "condition"),
    ),
    shard_plan(
        "NucleusMoEImageTransformer2DModel",
        split("pos_embed[0]", dim=0),
        split("transformer_blocks.0:hidden_states", dim=1),
        split("transformer_blocks.*:attention_kwargs.attention_mask", dim=1, stream=("image", KEEP)),
        exchange("transformer_blocks.*.attn", shared="suffix"),
        replicate("transformer_blocks.*.img_mlp", arguments=("hidden_states", "hidden_states_unmodulated"), why="experts choose among all tokens"),
        gather("proj_out", dim=1),
    ),
    shard_plan(
        "QwenImage21Transformer2DModel",
        split("transformer_blocks.0:hidden_states", dim=1),
        split("transformer_blocks.*:target_token_mask", dim=0),
        replicate("transformer_blocks.*.attn", arguments=("hidden_states",), why="block-causal by whole ranges; its cache stays whole"),
        gather("transformer_blocks.-1", dim=1),
    ),
)
