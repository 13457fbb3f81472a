"""Start from a picture: where a pipeline takes pictures, clips or sounds, Engine takes their files.

python examples/edit.py photo.jpg [MODEL]
"""

import sys

import dit_usp

picture, model, *_ = [*sys.argv[1:], "black-forest-labs/FLUX.1-Kontext-dev"]  # or an img2img, inpaint or image-to-video model

with dit_usp.Engine(model, nproc=2) as engine:
    print(f"{engine.pipeline} on {engine.parallel}")
    engine.generate("as an oil painting", image=picture, seed=1, num_inference_steps=20, save="painting.png")  # also mask_image=, control_image= ...
    # Latents instead of pixels, decoded by nobody: another call starts from them with latents="painting.safetensors".
    engine.generate("as an oil painting", image=picture, seed=1, num_inference_steps=20, save="painting.safetensors")
