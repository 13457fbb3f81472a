"""Video transformers."""

from __future__ import annotations

from dit_usp.plan import Call, ShardPlan, batch, exchange, gather, late, local_int, neighbour, reduce, replicate, shard_plan, split

PLANS: tuple[ShardPlan, ...] = (
    *(
        shard_plan(
            name,
            split("rope[0]", "rope[1]", ":timestep", dim=1),  # a time a token in Wan 2.2's image-to-video
            split("blocks.0:hidden_states", dim=1),
            exchange("blocks.*.attn1"),
            gather("proj_out", dim=1),
        )
        for name in ("WanTransformer3DModel", "ChronoEditTransformer3DModel")
    ),
    shard_plan(
        "WanVACETransformer3DModel",
        split("rope[0]", "rope[1]", dim=1),
        split("vace_blocks.*:hidden_states", "vace_blocks.0:control_hidden_states", "blocks.0:hidden_states", dim=1),
        exchange("vace_blocks.*.attn1", "blocks.*.attn1"),
        gather("proj_out", dim=1),
    ),
    shard_plan(
        "SkyReelsV2Transformer3DModel",
        split("rope[0]", "rope[1]", dim=1),
        split("blocks.0:hidden_states", dim=1),
        split("blocks.*:temb", dim=2, ndim=4),  # diffusion forcing: a time of its own for every frame
        split("blocks.*:attention_mask", dim=2),
        exchange("blocks.*.attn1"),
        gather("blocks.-1", dim=1),  # the last modulation is by whole frames
    ),
    shard_plan(
        "HunyuanVideoTransformer3DModel",
        split("rope[0]", "rope[1]", dim=0),
        split("transformer_blocks.0:hidden_states", dim=1),
        split("transformer_blocks.0:encoder_hidden_states", dim=1, stream="text"),
        split("*transformer_blocks.*:attention_mask", dim=3, stream=("image", "text")),
        local_int("*transformer_blocks.*:num_tokens", optional=True),  # those of the first frame, where it is a picture given whole
        exchange("*transformer_blocks.*.attn"),
        gather("proj_out", dim=1),
        short={"text": "suffix"},
    ),
    shard_plan(
        "HunyuanVideo15Transformer3DModel",
        split("rope[0]", "rope[1]", dim=0),
        split("transformer_blocks.0:hidden_states", dim=1),
        split("transformer_blocks.0:encoder_hidden_states", "transformer_blocks.*:attention_mask", dim=1, stream="text"),
        exchange("transformer_blocks.*.attn", mask="outer"),
        gather("proj_out", dim=1),
        short={"text": "suffix"},
    ),
    shard_plan(
        "HunyuanVideoFramepackTransformer3DModel",
        split("transformer_blocks.0:hidden_states", dim=1),
        split("transformer_blocks.0:encoder_hidden_states", dim=1, stream="text"),
        split("transformer_blocks.*:freqs_cis", "single_transformer_blocks.*:image_rotary_emb", dim=0),
        split("*transformer_blocks.*:attention_mask", dim=3, stream=("image", "text")),
        exchange("*transformer_blocks.*.attn"),
        gather("single_transformer_blocks.-1[0]", dim=1),
        short={"text": "suffix"},
    ),
    shard_plan(
        "LTXVideoTransformer3DModel",
        split(":hidden_states", ":timestep", "rope[0]", "rope[1]", dim=1),
        exchange("transformer_blocks.*.attn1"),
        gather("proj_out", dim=1),
        guidance="batch",
    ),
    shard_plan(
        "LTX2VideoTransformer3DModel",
        split(":hidden_states", ":timestep", ":video_keyframes_mask", dim=1),
        split(":audio_hidden_states", ":audio_timestep", dim=1, stream="audio"),
        split("rope", "cross_attn_rope", dim=-2),
        split("audio_rope", "cross_attn_audio_rope", dim=-2, stream="audio"),
        late("transformer_blocks.*.attn1:attention_mask"),
        exchange("transformer_blocks.*.attn1", queries="image", keys="image"),
        exchange("transformer_blocks.*.audio_attn1", queries="audio", keys="audio"),
        exchange("transformer_blocks.*.audio_to_video_attn", queries="image", keys="audio"),
        exchange("transformer_blocks.*.video_to_audio_attn", queries="audio", keys="image"),
        gather("proj_out", dim=1),
        gather("audio_proj_out", dim=1, stream="audio"),
        guidance="batch",
        unguided=("isolate_modalities", "spatio_temporal_guidance_blocks"),  # its other kinds of guidance, a call each
        full=("image", "audio"),
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
    shard_plan(
        "ConsisIDTransformer3DModel",
        split(":image_rotary_emb", dim=0),
        split("transformer_blocks.0:hidden_states", dim=1),
        split("transformer_blocks.0:encoder_hidden_states", dim=1, stream="text"),
        exchange("transformer_blocks.*.attn1"),
        gather("transformer_blocks.-1[0]", dim=1),
        gather("transformer_blocks.-1[1]", dim=1, stream="text"),  # cut off again by its whole length
        guidance="batch",
    ),
    shard_plan(
        "MochiTransformer3DModel",
        split("rope[0]", "rope[1]", dim=0),
        split("transformer_blocks.0:hidden_states", dim=1),
        split("transformer_blocks.0:encoder_hidden_states", "transformer_blocks.*:encoder_attention_mask", dim=1, stream="text"),
        exchange("transformer_blocks.*.attn1", queries="?", keys="?"),  # one call a sample, over the words that its mask keeps
        gather("proj_out", dim=1),
        guidance="batch",
        ragged="encoder_attention_mask",
    ),
    shard_plan(
        "CosmosTransformer3DModel",
        split("rope[0]", "rope[1]", dim=0),
        split("transformer_blocks.0:hidden_states", "transformer_blocks.*:extra_pos_emb", ":block_controlnet_hidden_states", dim=1),
        split("transformer_blocks.*:temb", "transformer_blocks.*:embedded_timestep", "norm_out:temb", "norm_out:embedded_timestep", dim=1, ndim=3),
        exchange("transformer_blocks.*.attn1"),
        gather("proj_out", dim=1),
    ),
    shard_plan(
        "Cosmos3OmniTransformer",
        split("layers.0:gen_seq", "layers.*:rotary_emb[2]", "layers.*:rotary_emb[3]", dim=0),
        exchange("layers.*.self_attn", calls={"Cosmos3AttnProcessor": (Call(local=True), Call(shared="prefix"))}),  # text first, whole and causal
        gather("norm_moe_gen", dim=0),
    ),
    shard_plan(
        "AllegroTransformer3DModel",
        batch(":image_rotary_emb", dim=-1),
        split("transformer_blocks.0:hidden_states", dim=1),
        split(":image_rotary_emb[1]", dim=-1),
        split("transformer_blocks.*:attention_mask", dim=2),
        exchange("transformer_blocks.*.attn1"),
        gather("proj_out", dim=1),
        guidance="batch",
    ),
    shard_plan(
        "LatteTransformer3DModel",
        split("pos_embed", dim=1),  # space is cut, frames are whole: temporal attention stays local
        split("temporal_transformer_blocks.*:timestep", dim=0, per_sample=True),
        exchange("transformer_blocks.*.attn1"),
        gather("proj_out", dim=1),
        guidance="batch",
    ),
    shard_plan(
        "EasyAnimateTransformer3DModel",
        split("rope_embedding[0]", "rope_embedding[1]", dim=0),
        split("transformer_blocks.0:hidden_states", dim=1),
        split("transformer_blocks.0:encoder_hidden_states", dim=1, stream="text"),
        exchange("transformer_blocks.*.attn1"),
        gather("proj_out", dim=1),
        guidance="batch",
    ),
    shard_plan(
        "MotifVideoTransformer3DModel",
        split("x_embedder", dim=1),  # here, not at a block: the decoder blocks start anew from the latents
        split("context_embedder", ":encoder_attention_mask", dim=1, stream="text"),
        split(":image_embeds", dim=1, stream="condition"),
        split("rope[0]", "rope[1]", dim=0),
        exchange("transformer_blocks.*.attn"),
        exchange("single_transformer_blocks.*.attn", queries="?", keys="?"),  # those of the decoder hold the latents twice, and no text
        exchange("*transformer_blocks.*.cross_attn", queries="image", keys="text", optional=True),
        gather("proj_out", dim=1),
        short={"text": "suffix"},
    ),
    shard_plan(
        "Kandinsky5Transformer3DModel",
        split("visual_transformer_blocks.0:visual_embed", "visual_transformer_blocks.*:rope", dim=1),
        replicate(
            "visual_transformer_blocks.*.self_attention",
            arguments=("hidden_states", "rotary_emb"),
            when=("attention_type", "nabla"),
            why="with attention_type=nabla it chooses its tiles from means over all tokens",
        ),
        exchange("visual_transformer_blocks.*.self_attention"),
        gather("visual_transformer_blocks.-1", dim=1),
        refused={"sparse_params": "its blocks of attention are chosen from means over all tokens"},
    ),
    shard_plan(
        "Kandinsky6Transformer3DModel",
        split("visual_transformer_blocks.0:vis", dim=1),
        split("visual_transformer_blocks.0:aud", dim=1, stream="audio"),
        split("visual_transformer_blocks.*:vis_rope", dim=0),
        split("visual_transformer_blocks.*:aud_rope", dim=0, stream="audio"),
        exchange("visual_transformer_blocks.*.video_dec_block.self_attention", queries="image", keys="image"),
        exchange("visual_transformer_blocks.*.audio_dec_block.self_attention", queries="audio", keys="audio"),
        exchange("visual_transformer_blocks.*.va_cross_attention", queries="image", keys="audio"),
        exchange("visual_transformer_blocks.*.av_cross_attention", queries="audio", keys="image"),
        gather("visual_transformer_blocks.-1[0]", dim=1),
        gather("audio_out_layer", dim=1, stream="audio"),
        full=("image", "audio"),
    ),
    shard_plan(
        "Kandinsky6SRTransformer3DModel",
        split("visual_transformer_blocks.0:hidden_states", dim=1),
        replicate("visual_transformer_blocks.*.self_attention", arguments=("hidden_states",), why="chooses its tiles from means over all tokens"),
        gather("visual_transformer_blocks.-1", dim=1),
    ),
    shard_plan(
        "HeliosTransformer3DModel",
        local_int("blocks.*:original_context_length", "norm_out:original_context_length"),
        split("blocks.0:hidden_states", "blocks.*:temb", "blocks.*:rotary_emb", "norm_out:temb", dim=1, stream=("history", "image")),
        exchange("blocks.*.attn1"),
        gather("proj_out", dim=1),
    ),
    shard_plan(
        "AnyFlowTransformer3DModel",
        split("rope", dim=2),
        split("condition_embedder[0]", "condition_embedder[1]", "blocks.0:hidden_states", dim=1),
        exchange("blocks.*.attn1"),
        gather("proj_out", dim=1),
        guidance="batch",
    ),
    shard_plan(
        "AnyFlowFARTransformer3DModel",
        split("blocks.0:hidden_states", "blocks.*:temb", dim=1),
        replicate("blocks.*.attn1", arguments=("hidden_states",), why="chunk-causal by whole ranges; its cache stays whole"),
        gather("blocks.-1", dim=1),
    ),
    shard_plan(
        "WanAnimateTransformer3DModel",
        split("rope[0]", "rope[1]", dim=1),
        split("blocks.0:hidden_states", dim=1),
        exchange("blocks.*.attn1"),
        replicate("face_adapter.*", arguments=("hidden_states",), why="reads its tokens frame by frame"),
        gather("proj_out", dim=1),
    ),
    shard_plan(
        "SanaVideoTransformer3DModel",
        split("rope[0]", "rope[1]", "transformer_blocks.0:hidden_states", ":controlnet_block_samples", dim=1),
        split("transformer_blocks.*:timestep", "norm_out:temb", dim=1),  # one for each token, or one for all
        local_int("transformer_blocks.*:frames", in_units=True),
        neighbour("transformer_blocks.*.ff.conv_temp", dim=2, n=1),
        reduce("transformer_blocks.*.attn1"),
        gather("proj_out", dim=1),
        guidance="batch",
        units={"image": "frame"},
    ),
    shard_plan(
        "SanaWMTransformer3DModel",
        split("blocks.0:x", "blocks.*:plucker_emb", dim=1),
        split("blocks.*:t", "final_layer:t", dim=2, stream="frames"),
        replicate(
            "blocks.*.attn", "blocks.*.mlp", arguments=("x", "hidden_states"), why="a recurrence over frames; convolutions over space and time"
        ),
        gather("final_layer", dim=1),
        guidance="batch",
        units={"image": "frame"},
        refused={"frame_valid_mask": "its frames are not cut like its tokens"},
    ),
    shard_plan(
        "SanaWMLTX2RefinerTransformer3DModel",
        split(":hidden_states", ":timestep", dim=1),
        split(":video_rotary_emb", dim=-2),
        exchange("transformer_blocks.*.attn1", shared="prefix"),  # before them the cached keys, which the pipeline trims by whole frames
        gather("transformer_blocks.*:kv_cache.captured_k_pre", dim=1),
        gather("transformer_blocks.*:kv_cache.captured_v_pre", dim=1),
        gather("transformer_blocks.*:kv_cache.captured_k_post", dim=1),
        gather("transformer_blocks.*:kv_cache.captured_v_post", dim=1),
        gather("proj_out", dim=1),
    ),
    shard_plan(
        "MiniMaxH3Transformer3DModel",
        split("rope[0]", "rope[1]", "transformer_blocks.*:adaln_indices", "norm_out:timestep_indices", dim=0),
        split("transformer_blocks.0:hidden_states", dim=1),
        exchange("transformer_blocks.*.attn"),
        gather("proj_out", dim=1),
        gather("audio_proj_out", dim=1),
    ),
)
