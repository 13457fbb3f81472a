"""What `dit-usp` refuses: exit code 2, one line on stderr with the nearest choice that works, before a process starts."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from folders import CONFIGS, write_folder
from PIL import Image

from dit_usp import formats, launch, media, saving, supervise
from dit_usp.cli import run

SD3, FLUX, IMG2IMG, DIT, COG, INPAINT, FILL, FLUX2, WAN, WAN_I2V, WAN_V2V, ANIMATE, LTX2, COSMOS, SOUND, VACE, SR, QWEN = CONFIGS
FREE = 2**63 - 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and files. No test writes here."""
    tmp_path = tmp_path_factory.mktemp("workplace")
    for pipeline in CONFIGS:
        write_folder(tmp_path, pipeline, **({"id2label": {"0": "tench, Tinca tinca", "1": "goldfish"}} if pipeline == DIT else {}))
    broken = {
        "noindex": None,
        "badjson": "{",
        "listed": "[]",
        "noclass": "{}",
        "unknown": json.dumps({"_class_name": "FluxxPipeline", "transformer": []}),
    }
    for name, text in broken.items():
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "model_index.json").write_text(text)
    write_folder(tmp_path / "novae", FLUX, tokenizer_9=["transformers", "T5Tokenizer"])
    (write_folder(tmp_path / "noweights", FLUX) / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "taken.png").write_bytes(b"mine")
    (tmp_path / "taken-2.png").write_bytes(b"mine")
    (tmp_path / "many-2.png").write_bytes(b"mine")
    (tmp_path / "blank.txt").write_text("\n  \n")
    (tmp_path / "two.txt").write_text("a dog\na cat\n")
    (tmp_path / "latin.txt").write_bytes("Käse".encode("latin-1"))
    (tmp_path / "folder.png").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.png")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    (tmp_path / "other.safetensors").write_bytes(formats.tensors({"a": torch.zeros(1), "b": torch.zeros(1)}, {}))
    (tmp_path / "latents.safetensors").write_bytes(formats.tensors({"latents": torch.zeros(1)}, {}))
    (tmp_path / "long.txt").write_text("zqk " * 17000)
    return tmp_path


@pytest.fixture(autouse=True)
def workplace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In that folder, on a machine with two cores and no GPU, where no rank may start."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(launch, "num_gpus", lambda: 0)
    monkeypatch.setattr(launch, "num_cores", lambda: 2)
    monkeypatch.setattr(launch, "place", lambda: None)
    monkeypatch.setattr(supervise.Ranks, "__post_init__", lambda self: pytest.fail("a rank was started"))


# arguments after "generate" -> the line; a prompt is put before those that name none
CASES: dict[str, str] = {
    # prompts
    "-- ": 'there is no prompt; say what to draw: dit-usp generate "a red heart".',
    "''": 'the prompt is empty; say what to draw, such as "a red heart".',
    "'  '": 'the prompt is empty; say what to draw, such as "a red heart".',
    "a red heart": 'put the prompt in quotes: dit-usp generate "a red heart".',
    "x --prompts two.txt": "PROMPT and --prompts are both given; use one of them.",
    "--prompts blank.txt": '--prompts blank.txt is empty; say what to draw, such as "a red heart".',
    "--prompts none.txt": "--prompts none.txt cannot be read: No such file or directory.",
    "--prompts folder.png": "--prompts folder.png cannot be read: Is a directory.",
    "--prompts latin.txt": "--prompts latin.txt is not UTF-8 text.",
    "x --images 0": "--images 0 makes nothing; use 1 or more.",
    # models
    "x --model emoji-pixart": "--model emoji-pixart: there is no such folder, and a hub id reads owner/name; did you mean emoji-pixart-256?",
    "x --model ./nowhere": "--model ./nowhere: there is no such folder, and a hub id reads owner/name; did you mean emoji-pixart-256?",
    "x --model nobody/nothing": "--model nobody/nothing: there is no such folder here, and huggingface.co cannot be reached.",
    "x --model 'a b/c'": "--model a b/c: neither a folder here nor a hub id (owner/name).",
    "x --model taken.png": "--model taken.png is a file; give a diffusers folder or a hub id.",
    "x --model noindex": "--model noindex: there is no model_index.json; a diffusers folder has one.",
    "x --model badjson": "badjson/model_index.json is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1).",
    "x --model listed": "listed/model_index.json holds no JSON object.",
    "x --model noclass": "--model noclass: its model_index.json names no pipeline with a transformer.",
    "x --model unknown": "--model unknown: FluxxPipeline is not supported. The nearest that are: FluxPipeline, Flux2Pipeline, FluxFillPipeline.",
    f"x --model novae/{FLUX}": f"--model novae/{FLUX}: its model_index.json lists tokenizer_9, but there is no folder novae/{FLUX}/tokenizer_9.",
    f"x --model noweights/{FLUX}": f"--model noweights/{FLUX}: there are no weights in noweights/{FLUX}/transformer "
    "(diffusion_pytorch_model.safetensors).",
    f"'a goldfisch' --model {DIT}": f"'a goldfisch' is no class of {DIT}. Nearest: goldfish, tinca tinca.",
    f"1000 --model {DIT}": f"'1000' is no class of {DIT}. Use 0 to 999.",
    # layouts
    f"x --model {SD3} --ulysses 8": "--ulysses 8 needs at least 8 heads; SD3Transformer2DModel has 6. Try --ulysses 4 --ring 2 or --ulysses 6.",
    f"x --model {SD3} --ulysses 7": "--ulysses 7 needs at least 7 heads; SD3Transformer2DModel has 6. Try --ulysses 1 --ring 7 or --ulysses 6.",
    "x --nproc 0": "0 ranks cannot make a picture; ask for at least 1.",
    "x --nproc -2": "-2 ranks cannot make a picture; ask for at least 1.",
    "x --nproc 9": "9 ranks on 2 cores would only wait for one another; use --nproc 8 or fewer.",
    "x --nproc two": "Invalid value for '--nproc': 'two' is not a valid integer.",
    "x --ring 0": "--ring 0 is not a whole number of ranks; 1 switches the axis off.",
    "x --ulysses -1": "--ulysses -1 is not a whole number of ranks; 1 switches the axis off.",
    "x --cfg 3": "--cfg 3: guidance has two halves; try --cfg 2 and --data 1.",
    "x --nproc 4 --ulysses 2": "--nproc 4, but --ulysses 2 makes 2; add --ring 2, or use --nproc 2.",
    "x --nproc 3 --ulysses 2 --ring 2": "--nproc 3, but --ulysses 2 --ring 2 makes 4; use --nproc 4.",
    "x --cfg 2 --guidance 1": "--cfg 2 shares the two halves of guidance, which --guidance 1 switches off; "
    "use --guidance above 1, or --cfg 1 with --ulysses 1 --ring 2 --ring-method gather.",
    f"x --model {FLUX} --cfg 2": "--cfg 2 shares the two halves of guidance, which true_cfg_scale=1 switches off; "
    "use true_cfg_scale above 1, or --cfg 1 with --ulysses 1 --ring 2 --ring-method gather.",
    f"x --model {QWEN} --cfg 2": "--cfg 2 shares the two halves of guidance, which a missing --negative switches off; "
    "use --negative ' ', or --cfg 1 with --ulysses 1 --ring 2 --ring-method gather.",
    f"x --model {WAN} --cfg 2 --guidance 1": "--cfg 2 shares the two halves of guidance, which --guidance 1 switches off; "
    "use --guidance above 1, or --cfg 1 with --ulysses 1 --ring 2 --ring-method gather.",
    f"x --model {COSMOS} --cfg 2": "--cfg 2 needs guidance as two halves of one batch or two calls a step, "
    "which CosmosTransformer3DModel does not get from its pipelines. Try --cfg 1 with --ulysses 1 --ring 2 --ring-method gather.",
    "x --data 2": "--data 2 has nothing to do with 1 picture; use --data 1 or --images 2.",
    "--prompts two.txt --data 3": "--data 3 has nothing to do with 2 pictures; use --data 2 or --images 3.",
    "x --ring-method gather": "--ring-method gather says how a ring of ranks passes keys on, "
    "but there is no ring in ulysses 1 x ring 1 x cfg 1 x data 1; add --ring 2.",
    "x --ring 2 --ring-method round": "Invalid value for '--ring-method': 'round' is not one of 'rotate', 'gather'.",
    "x --device cuda": "--device cuda: no GPU is found here; use --device cpu.",
    "x --device tpu": "Invalid value for '--device': 'tpu' is not one of 'cuda', 'cpu'.",
    "x --dtype fp8": "Invalid value for '--dtype': 'fp8' is not one of 'float32', 'bfloat16', 'float16'.",
    "x --dtype float16": "--dtype float16 is for GPUs; on the CPU use --dtype float32 or bfloat16.",
    # the call
    "x --steps 0": "--steps 0: emoji-pixart-256 makes a picture in 2 to 1000 steps; use --steps 2.",
    "x --steps 1": "--steps 1: emoji-pixart-256 makes a picture in 2 to 1000 steps; use --steps 2.",
    "x --steps 1001": "--steps 1001: emoji-pixart-256 makes a picture in 2 to 1000 steps; use --steps 1000.",
    f"x --model {SD3} --steps 0": f"--steps 0: {SD3} makes a picture in 1 to 1000 steps; use --steps 1.",
    "x --guidance nan": "--guidance nan is not a strength; use 0 or more (1: no guidance).",
    "x --guidance -3": "--guidance -3 is not a strength; use 0 or more (1: no guidance).",
    "x --negative blue --guidance 1": "--negative has no effect with --guidance 1; use --guidance above 1, or leave --negative out.",
    f"x --model {FLUX} --negative blue": "--negative has no effect with true_cfg_scale 1; add --set true_cfg_scale=4, or leave --negative out.",
    f"x --model {QWEN} --negative blue --guidance 1": "--negative has no effect with --guidance 1; use --guidance above 1, or leave --negative out.",
    f"x --model {QWEN} --guidance 3": f"--guidance has no effect in {QWEN} without --negative; add --negative ' ', or leave --guidance out.",
    f"x --model {QWEN} --set true_cfg_scale=3": "--set true_cfg_scale: use --guidance.",
    f"1 --model {DIT} --negative blue": "--negative: DiTPipeline has no negative_prompt; leave it out.",
    f"1 --model {DIT} --height 256": "--height: DiTPipeline has one size; leave it out.",
    "x --height 250": "--height 250: emoji-pixart-256 makes multiples of 16 from 16 to 16384; use --height 256.",
    "x --width 0": "--width 0: emoji-pixart-256 makes multiples of 16 from 16 to 16384; use --width 16.",
    "x --width 99999968": "--width 99999968: emoji-pixart-256 makes multiples of 16 from 16 to 16384; use --width 16384.",
    f"x --model {FLUX} --height 1000": f"--height 1000: {FLUX} makes multiples of 16 from 16 to 16384; use --height 992.",
    f"x --model {SD3} --width 1600": f"--width 1600: {SD3} has positions for 96 patches of 16; use --width 1536.",
    "x --frames 9": "--frames 9: PixArtAlphaPipeline makes pictures, not clips; leave it out.",
    "x --fps 9": "--fps 9: PixArtAlphaPipeline makes pictures, not clips; leave it out.",
    f"x --model {COG} --frames 0": "--frames 0 makes nothing; use 1 or more.",
    f"x --model {COG} --fps 0": "--fps 0 is out of range; use 1 to 240.",
    f"x --model {COG} --fps 60 -o x.gif": "--fps 60 is out of range; use 1 to 50 for .gif.",
    f"x --model {COSMOS} --fps 12.5": f"--fps 12.5: {COSMOS} takes whole numbers; use --fps 12.",
    "x --duration 3": "--duration 3: PixArtAlphaPipeline makes pictures, not clips; leave it out.",
    f"x --model {COG} --duration nan": "--duration nan is out of range; use up to 3600 seconds.",
    f"x --model {COG} --duration 0.01": "--duration 0.01 is no whole frame at 8 a second; use 0.12 or more.",
    f"x --model {COG} --duration 3 --frames 9": "--frames and --duration are both given; use one of them.",
    f"x --model {SOUND} --frames 9": f"--frames 9: {SOUND} makes sounds, not clips; leave it out.",
    f"x --model {SOUND} --height 64": f"--height: {SOUND} has one size; leave it out.",
    "x --seed -1": f"--seed -1 is out of range; use 0 to {FREE}.",
    f"x --seed {2**63}": f"--seed {2**63} is out of range; use 0 to {FREE}.",
    "x --set max_sequence_length": "--set max_sequence_length: write it as name=value, such as --set max_sequence_length=64.",
    "x --set max_sequense_length=64": "--set max_sequense_length: PixArtAlphaPipeline has no such argument; it has max_sequence_length.",
    "x --set max_sequence_length=long": "--set max_sequence_length=long: it takes int.",
    "x --set max_sequence_length=1.5": "--set max_sequence_length=1.5: it takes int.",
    "x --set clean_caption=1": "--set clean_caption=1: it takes bool.",
    "x --set eta=0 --set eta=1": "--set eta is given twice.",
    "x --set guidance_scale=2": "--set guidance_scale: use --guidance.",
    "x --set output_type=np": "--set output_type: generate decides it.",
    "x --set latents=1": "--set latents=1: it takes a .safetensors file.",
    "x --set callback=1": "--set callback: its values cannot be written on a command line; call PixArtAlphaPipeline from Python.",
    "x --set latents=no.safetensors": "--set latents=no.safetensors cannot be read: No such file or directory.",
    "x --set latents=other.safetensors": "--set latents=other.safetensors cannot be read: it has no latents; it has a, b.",
    """x --set 'timesteps=["a"]'""": """--set timesteps=["a"]: it takes list[int].""",
    f"x --model {SD3} --set 'sigmas=[1, true]'": "--set sigmas=[1, true]: it takes list[float].",
    f"x --model {WAN} --set num_frames=9": "--set num_frames: use --frames.",
    f"x --model {COSMOS} --set fps=9": "--set fps: use --fps.",
    f"x --model {IMG2IMG} --set image=photo.png": "--set image: use --image.",
    f"x --model {FLUX} --set ip_adapter_image=two.txt": "--set ip_adapter_image=two.txt cannot be read: it is in no known format.",
    # files to start from
    "x --image photo.png": "--image: PixArtAlphaPipeline has no such input; it starts from text alone.",
    f"x --model {IMG2IMG} --audio photo.png": f"--audio: {IMG2IMG} has no such input; it takes --image.",
    f"x --model {QWEN} --control-image photo.png": f"--control-image: {QWEN} has no such input; QwenImageControlNetPipeline has, "
    f"but needs scheduler, text_encoder, tokenizer, controlnet, which {QWEN} does not have.",
    f"x --model {FLUX} --pipeline FluxImgToImgPipeline": "--pipeline FluxImgToImgPipeline: none of that name runs FluxTransformer2DModel; "
    "the nearest that do: FluxImg2ImgPipeline, FluxControlImg2ImgPipeline, FluxPipeline.",
    f"x --model {QWEN} --pipeline QwenImageControlNetPipeline": "--pipeline QwenImageControlNetPipeline needs scheduler, text_encoder, tokenizer, "
    f"controlnet, which {QWEN} does not have.",
    f"x --model {FLUX} --set latents=latents.safetensors --images 2": "--set latents=latents.safetensors is for one picture, but 2 are asked for; "
    "make them one by one.",
    f"x --model {FLUX} --set ip_adapter_image=photo.png --images 2 --data 2": "--data 2 cannot deal out given pictures, clips or sounds; "
    "use --ulysses 2 or --ring 2, or leave it out.",
    f"x --model {IMG2IMG}": f"{IMG2IMG} needs --image.",
    f"x --model {INPAINT}": f"{INPAINT} needs --image and --mask.",
    f"x --model {INPAINT} --image photo.png": f"{INPAINT} needs --mask.",
    f"x --model {FILL}": f"{FILL} needs --image and --mask.",
    f"x --model {ANIMATE} --image photo.png": f"{ANIMATE} needs --video and --set face_video=FILE.",
    f"--model {SR}": f"{SR} needs --video.",
    f"x --model {SR}": f"{SR} takes no prompt; leave it out.",
    f"x --model {WAN_V2V} --frames 9": f"--frames: {WAN_V2V} makes as many frames as it is given; leave it out.",
    f"x --model {VACE} --video photo.png --frames 5": "--frames 5: photo.png has 1 frames, 0.06 s; leave it out.",
    f"x --model {WAN_V2V} --video photo.png --duration 1": "--duration 1: photo.png has 1 frames, 0.06 s; leave it out.",
    f"x --model {IMG2IMG} --image none.png": "--image none.png cannot be read: No such file or directory.",
    f"x --model {IMG2IMG} --image two.txt": "--image two.txt cannot be read: it is in no known format.",
    f"x --model {IMG2IMG} --image half.png": "--image half.png cannot be read: image file is truncated.",
    f"x --model {IMG2IMG} --image folder.png": "--image folder.png cannot be read: Is a directory.",
    f"x --model {IMG2IMG} --image photo.png --image photo.png": f"--image is given 2 times, but {IMG2IMG} takes one; leave the others out.",
    f"x --model {WAN_V2V} --video none.mp4": "--video none.mp4 cannot be read: No such file or directory.",
    f"x --model {WAN_V2V} --video two.txt": "--video two.txt cannot be read: Invalid data found when processing input.",
    f"x --model {WAN_V2V} --video folder.png": "--video folder.png cannot be read: there are no pictures in it.",
    f"x --model {SOUND} --audio two.txt": "--audio two.txt cannot be read: Invalid data found when processing input.",
    f"x --model {SOUND} --audio photo.png": "--audio photo.png cannot be read: it has none of what is asked for.",
    f"x --model {IMG2IMG} --image photo.png --images 2 --data 2": "--data 2 cannot deal out given pictures, clips or sounds; "
    "use --ulysses 2 or --ring 2, or leave it out.",
    f"1 --model {DIT} --set eta=1": "--set eta: DiTPipeline has no such argument; it has none to set.",
    # files
    "x -o taken.png": "taken.png exists already; add --overwrite, or use -o taken-3.png.",
    "x -o many.png --images 3": "many-2.png exists already; add --overwrite, or use -o many.png.",
    "x -o taken.png/x.png": "-o taken.png/x.png: taken.png is not a folder.",
    "x -o taken.png/": "-o taken.png/: taken.png is not a folder.",
    "x -o taken.png/new/x.png": "-o taken.png/new/x.png: taken.png is not a folder.",
    "x -o x": "x: a picture needs a suffix: .png, .jpg, .jpeg, .webp (latents: .safetensors).",
    "x -o x.bmp": "x.bmp: a picture is written as .png, .jpg, .jpeg, .webp (latents: .safetensors), not .bmp.",
    "x -o x.mp4": "x.mp4: a picture is written as .png, .jpg, .jpeg, .webp (latents: .safetensors), not .mp4.",
    f"x --model {COG} -o x.png": "x.png: a clip is written as .mp4, .webm, .webp, .gif (latents: .safetensors), not .png.",
    f"x --model {SOUND} -o x.mp4": "x.mp4: a sound is written as .wav (latents: .safetensors), not .mp4.",
    f"1 --model {DIT} -o x.safetensors": f"x.safetensors: {DIT} has no latents to save; use .png, .jpg, .jpeg, .webp.",
    "--prompts long.txt -o x.jpg": "x.jpg: JPEG has room for 65000 bytes about a picture; use .png or a shorter prompt.",
    f"x -o {'x' * 252}.png": f"-o {'x' * 252}.png: the name is too long for a file.",
    "x -o /dev/null": "null: a picture needs a suffix: .png, .jpg, .jpeg, .webp (latents: .safetensors).",
    # the command itself
    "x --stepps 3": "there is no option --stepps; did you mean --steps?",
    "x --seed": "Option '--seed' requires an argument.",
}


@pytest.mark.parametrize("arguments", CASES)
def test_refused(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    assert run(["generate", *shlex.split(arguments)]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"dit-usp: {CASES[arguments]}\n")


@pytest.mark.parametrize(("arguments", "name"), [(["caf\udce9"], "PROMPT"), (["x", "--negative", "\udce9"], "--negative")])
def test_words_that_are_not_utf8(arguments: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Python hands such bytes on as lone surrogates."""
    assert run(["generate", *arguments]) == 2
    assert capsys.readouterr().err == f"dit-usp: {name} is not UTF-8 text.\n"


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(media, "has_pyav", lambda: False)
    monkeypatch.setattr(saving, "has_pyav", lambda: False)
    monkeypatch.setitem(sys.modules, "av", None)
    extra = "needs PyAV, which is not installed: pip install 'dit-usp[video]'"
    for arguments, line in (
        (["x", "--model", WAN, "-o", "x.mp4"], f"x.mp4: .mp4 {extra}; or use .webp."),
        (["x", "--model", WAN_V2V, "--video", "two.mp4"], f"--video two.mp4 cannot be read: that {extra}."),
    ):
        assert run(["generate", *arguments]) == 2
        assert capsys.readouterr().err == f"dit-usp: {line}\n"
    assert run(["generate", "x", "--model", WAN, "--print-plan"]) == 0  # named after the prompt it becomes a .webp


def test_unwritable_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert run(["generate", "x", "-o", "x.png"]) == 2
    assert capsys.readouterr().err == "dit-usp: -o x.png: no permission to write in ..\n"


def test_more_ranks_than_gpus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(launch, "num_gpus", lambda: 2)
    assert run(["generate", "x", "--nproc", "3"]) == 2
    assert capsys.readouterr().err == "dit-usp: 3 ranks need 3 GPUs, but this machine has 2. Start at most 2 ranks, or compute on the CPU.\n"


def test_another_number_of_ranks_than_the_launcher(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The first rank says it, the others leave quietly."""
    for rank in (0, 1):
        monkeypatch.setattr(launch, "place", lambda rank=rank: launch.Place(rank, 2, rank, 2))
        assert run(["generate", "x", "--nproc", "4"]) == 2
    text = "ulysses 1 x ring 2 x cfg 2 x data 1 makes 4 ranks, but the launcher has started 2; leave out --nproc, or start 4."
    assert capsys.readouterr().err == f"dit-usp: {text}\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("show none.png", "none.png cannot be read: No such file or directory."),
        ("show folder.png", "folder.png cannot be read: Is a directory."),
        ("show two.txt", "two.txt is not a picture that can be read."),
        ("show", "Missing argument 'FILE...'."),
        ("genrate x", "there is no command genrate; did you mean generate?"),
        ("--colour", "there is no option --colour; there are -V, --version."),
    ],
)
def test_other_commands(arguments: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments.split()) == 2
    assert capsys.readouterr().err == f"dit-usp: {text}\n"
