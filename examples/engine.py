"""Several ranks from a plain script or a notebook: no torchrun. They load the model once, stay warm between prompts and end with this process.

python examples/engine.py
"""

from importlib.resources import files

import dit_usp

MODEL = files("dit_usp") / "data" / "emoji-pixart-256"  # or a hub id, such as "stabilityai/stable-diffusion-3.5-medium"

with dit_usp.Engine(MODEL, nproc=2) as engine:  # or parallel=dit_usp.ParallelConfig(ulysses_degree=2) for a layout of your own
    print(f"ready: {engine.parallel}")
    image = engine.generate("a red heart", seed=1, num_inference_steps=10, guidance_scale=3.0).images[0]
    image.save("heart.png")

    prompts = ["a lemon", "an owl on a blue background"]  # each is the picture that its own seed gives alone; save= records how it was made
    engine.generate(prompts, seed=[1, 2], save=["lemon.png", "owl.png"], num_inference_steps=10, guidance_scale=3.0)
