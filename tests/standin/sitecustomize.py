"""On PYTHONPATH, in a rank: stand-ins for torch.distributed and the pipelines.

A rank then starts in 0.2 s and can be made to fail where a test wants. The rank program, its channel and its supervisor stay the real ones.
A wish is [stage, what, ranks it concerns], given to the call or in the environment.
"""

import json
import os
import sys
import time
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

from dit_usp.config import ParallelConfig

RANK = int(os.environ.get("RANK", "0"))
WISH = json.loads(os.environ.get("STAND_IN_WISH", "null"))


def act(stage, wish):
    """Do what the test wished for this stage."""
    wish = wish or WISH
    if wish is None or wish[0] != stage or RANK not in wish[2]:
        return
    if wish[1] == "refuse":
        raise ValueError("height=100 is not a multiple of 16; try 96.")
    if wish[1] == "raise":
        raise RuntimeError(f"no luck\non rank {RANK}")
    if wish[1] == "exit":
        os._exit(3)
    if wish[1] == "hang":  # with Python's lock held: no thread of this process runs any more
        import ctypes

        ctypes.PyDLL(None).sleep(60)
    else:
        time.sleep(wish[1])


class PixArtAlphaPipeline:
    def __init__(self, parallel, on_stage, on_step):
        self.mesh = SimpleNamespace(is_first=RANK == 0, config=parallel or ParallelConfig(int(os.environ["WORLD_SIZE"])))
        self.on_stage, self.on_step = on_stage, on_step

    def set_progress_bar_config(self, disable):
        assert disable

    def __call__(self, prompt, generator=None, wish=None, **call):
        self.on_stage("encode")
        act("encode", wish)
        self.on_stage("denoise")
        for step in range(1, 4):
            self.on_step(step, 3)
            if step == 2:
                act("denoise", wish)
        if RANK != 0:
            return {"images": None}
        self.on_stage("decode")
        act("decode", wish)
        os.fsync = lambda descriptor: act("save", wish)  # where a file is half written
        prompts = [prompt] if isinstance(prompt, str) else prompt
        return {"images": [picture(text) for text in prompts], "call": call, "world": os.environ["WORLD_SIZE"]}


def picture(prompt):
    from PIL import Image

    return Image.new("RGB", (8, 8), "red")


def auto_pipeline(model, parallel, on_stage, on_step, wish=None, **options):
    act("load", wish)
    return PixArtAlphaPipeline(parallel, on_stage, on_step)


def stand_in(name, **members):
    module = ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


if "DIT_USP_STORE" in os.environ:
    folders = find_spec("dit_usp.pipelines").submodule_search_locations  # its table is the real one
    stand_in("dit_usp.pipelines", auto_pipeline=auto_pipeline, __path__=folders)
    stand_in("torch", Generator=lambda device: SimpleNamespace(manual_seed=lambda seed: seed), float32="float32")
