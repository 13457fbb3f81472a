"""A clip by two ranks, as a file that a browser plays; the suffix is the format (.mp4, .webm, .gif, .webp).

python examples/video.py
"""

import dit_usp

SIZE = {"height": 128, "width": 128, "num_frames": 13}  # 4k + 1 frames: the first latent is one, each of the others four

with dit_usp.Engine("emoji-video", nproc=2) as engine:  # or a hub id, such as "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", and its sizes
    result = engine.generate("a bouncing heart", seed=1, save="heart.mp4", fps=10, num_inference_steps=10, guidance_scale=3.0, **SIZE)
    print(f"heart.mp4: {result.frames.shape[1]} frames by {engine.parallel}")
