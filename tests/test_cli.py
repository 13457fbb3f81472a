"""The command line: what it passes on, what it says, and the same picture whatever the number of ranks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from folders import write_folder
from PIL import Image
from ranks import RankPool

from dit_usp import engine, launch, saving
from dit_usp.cli import COMMANDS, group, run
from dit_usp.cli.console import progress
from dit_usp.cli.model import find_model
from dit_usp.formats import Sound, wav
from dit_usp.media import Clip
from dit_usp.request import Request
from dit_usp.saving import read_metadata
from dit_usp.signature import read_call, read_components
from dit_usp.status import Doing
from dit_usp.supervise import RankError
from dit_usp.worker import Worker

OPTIONS = {
    "generate": "-o --output --model --pipeline --nproc --ulysses --ring --cfg --data --ring-method --seed --steps --guidance --height --width "
    "--frames --fps --duration --image --mask --video --control-image --last-image --audio --negative --dtype --device --images --prompts --set "
    "--print-plan --overwrite --compile --graph --debug",
    "models": "--json",
    "topo": "--json",
    "bench": "--share --ulysses --ring --cfg --ring-method --mode --baseline --layers --dtype --runs --exact --profile --kernels --json --plot",
    "show": "--json",
}


def test_option_list_is_frozen() -> None:
    """An option added or renamed here needs a test and a line in the changelog."""
    assert tuple(OPTIONS) == COMMANDS
    for name, options in OPTIONS.items():
        command = group.commands.get(name) or group.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert [option for parameter in command.params for option in parameter.opts if option.startswith("-")] == options.split()


def test_help_shows_every_option_once_under_a_heading(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "--help"]) == 0
    text = capsys.readouterr().out
    shown = re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.MULTILINE)
    assert sorted(shown) == sorted({*(option for option in OPTIONS["generate"].split() if option.startswith("--")), "--help"})
    assert re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE) == ["What", "Size", "Start from", "Files", "Ranks", "Other"]


# -- what the ranks are asked for


@pytest.fixture
def requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Requests are kept here instead of being carried out, but their files are written."""
    kept: list[Request] = []

    def write(request: Request, on_progress: Any) -> list[str]:
        kept.append(request)
        picture = Image.new("RGB", (16, 16))
        made: Any = {"latents": torch.zeros(1)} if "output_type" in request.call else [picture] * 2 if request.fps else picture
        return [str(saving.save(made, request.target(picture))) for picture in request.pictures]

    monkeypatch.setattr(engine, "run", write)
    monkeypatch.setattr(launch, "num_gpus", lambda: 0)
    monkeypatch.setattr(launch, "place", lambda: None)
    monkeypatch.chdir(tmp_path)
    return kept


def generate(*arguments: str) -> int:
    return run(["generate", *arguments])


def test_defaults(requests: list[Request]) -> None:
    assert generate("a red heart") == 0
    request = requests[0]
    assert request.model == str(files("dit_usp") / "data" / "emoji-pixart-256")
    assert request.call == {"num_inference_steps": 10, "guidance_scale": 3.0, "use_resolution_binning": False}
    assert (request.config.world_size, request.device, request.dtype) == (1, "cpu", "float32")
    assert [(picture.prompt, picture.path) for picture in request.pictures] == [("a red heart", "a-red-heart.png")]


def test_a_model_of_others_gets_what_the_user_gave_and_nothing_else(requests: list[Request], tmp_path: Path) -> None:
    folder = str(write_folder(tmp_path, "StableDiffusion3Pipeline"))
    assert generate("x", "--model", folder, "-o", "a.png") == 0
    given = "--steps 3 --guidance 2.5 --height 64 --width 96 --negative blue --dtype bfloat16 --seed 5 --set clip_skip=1 --set sigmas=[1,0.5]"
    assert generate("x", "--model", folder, "-o", "b.png", *given.split()) == 0
    assert requests[0].call == {}
    assert {name: requests[0].told[name] for name in ("steps", "guidance")} == {"steps": 28, "guidance": 7.0}  # its pipeline's own
    sizes = {"height": 64, "width": 96}
    told = {"num_inference_steps": 3, "guidance_scale": 2.5, "negative_prompt": "blue", "clip_skip": 1, "sigmas": [1, 0.5]}
    assert requests[1].call == told | sizes
    assert (requests[1].dtype, requests[1].pictures[0].seed) == ("bfloat16", 5)
    expected = {"steps": 3, "guidance": 2.5, "negative": "blue", "clip_skip": 1, "sigmas": [1, 0.5], "seed": 5, "model": folder, "dtype": "bfloat16"}
    assert expected.items() <= read_metadata("b.png").items()


@pytest.mark.parametrize(
    ("pipeline", "arguments", "call", "scales"),
    [
        ("QwenImagePipeline", "--guidance 3", {"true_cfg_scale": 3.0}, {"true_cfg_scale": 3.0}),
        ("QwenImagePipeline", "", {}, {"true_cfg_scale": 4.0}),
        ("FluxPipeline", "--guidance 3 --set true_cfg_scale=2", {"guidance_scale": 3.0, "true_cfg_scale": 2}, {"guidance": 3.0, "true_cfg_scale": 2}),
    ],
)
def test_guidance_is_the_scale_that_the_model_has_a_use_for(
    requests: list[Request], tmp_path: Path, capsys: pytest.CaptureFixture[str], pipeline: str, arguments: str, call: Any, scales: Any
) -> None:
    assert generate("x", "--model", str(write_folder(tmp_path, pipeline)), "--negative", "blue", *arguments.split()) == 0
    assert requests[0].call == {**call, "negative_prompt": "blue"}
    assert scales.items() <= requests[0].told.items()
    assert ("--guidance 3: true_cfg_scale of QwenImagePipeline\n" in capsys.readouterr().err) == (call == {"true_cfg_scale": 3.0})


def test_a_model_of_classes_takes_their_names_and_numbers(requests: list[Request], tmp_path: Path) -> None:
    folder = str(write_folder(tmp_path, "DiTPipeline", id2label={"0": "tench, Tinca tinca", "1": "goldfish"}))
    for prompt in ("Tinca Tinca", "goldfish", "7"):
        assert generate(prompt, "--model", folder) == 0
    assert [request.pictures[0].prompt for request in requests] == [0, 1, 7]
    assert read_metadata("tinca-tinca.png")["asked"] == "Tinca Tinca"


def test_a_video_model_writes_clips(requests: list[Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(write_folder(tmp_path, "CogVideoXPipeline"))
    assert generate("a wave", "--model", folder, "--frames", "5", "--fps", "12", "--set", "use_dynamic_cfg=True") == 0
    assert requests[0].call == {"num_frames": 5, "use_dynamic_cfg": True}
    assert (requests[0].fps, requests[0].pictures[0].path) == (12, "a-wave.mp4")


@pytest.mark.parametrize(
    ("pipeline", "arguments", "call"),
    [
        ("FluxImg2ImgPipeline", "--image a.png", {"image": "a.png"}),
        ("FluxInpaintPipeline", "--image a.png --mask b.png", {"image": "a.png", "mask_image": "b.png"}),
        ("Flux2Pipeline", "--image a.png --image b.png", {"image": ["a.png", "b.png"]}),
        ("FluxPipeline", "--set ip_adapter_image=a.png", {"ip_adapter_image": "a.png"}),
        ("WanImageToVideoPipeline", "--image a.png --last-image b.png", {"image": "a.png", "last_image": "b.png"}),
        ("WanVideoToVideoPipeline", "--video c.gif", {"video": "c.gif"}),
        ("WanVideoToVideoPipeline", "--video c.gif --frames 4", {"video": Clip("c.gif", 1)}),
        ("WanVideoToVideoPipeline", "--video c.gif --duration 0.6", {"video": Clip("c.gif", 5)}),
        ("WanVACEPipeline", "--video c.gif", {"video": "c.gif", "num_frames": 9}),
        ("WanVACEPipeline", "--video c.gif --mask c.gif --frames 7", {"video": Clip("c.gif", 5), "mask": Clip("c.gif", 5), "num_frames": 5}),
        ("WanVACEPipeline", "--image a.png --frames 17", {"reference_images": ["a.png"], "num_frames": 17}),
        (
            "WanAnimatePipeline",
            "--image a.png --video c.gif --set face_video=c.gif",
            {"image": "a.png", "pose_video": "c.gif", "face_video": "c.gif"},
        ),
        (
            "LTX2ConditionPipeline",
            "--image a.png --last-image b.png",
            {"conditions": [{"frames": "a.png", "index": 0}, {"frames": "b.png", "index": -1}]},
        ),
        ("LTX2ConditionPipeline", "--video c.gif --fps 30", {"conditions": [{"frames": "c.gif", "index": 0}], "frame_rate": 30.0}),
        ("StableAudioPipeline", "--audio d.wav --duration 4", {"initial_audio_waveforms": "d.wav", "audio_end_in_s": 4.0}),
        ("CosmosTextToWorldPipeline", "--fps 24", {"fps": 24}),
    ],
)
def test_files_get_the_names_that_the_call_has_for_them(
    requests: list[Request], tmp_path: Path, pipeline: str, arguments: str, call: dict[str, Any]
) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (16, 16)).save(name)
    Image.new("L", (16, 16)).save("c.gif", save_all=True, append_images=[Image.new("L", (16, 16), number) for number in range(1, 9)], duration=100)
    Path("d.wav").write_bytes(wav(Sound(np.zeros(800), 8000), {}))
    assert generate("x", "--model", str(write_folder(tmp_path, pipeline)), "-o", "out.safetensors", *arguments.split()) == 0
    assert requests[0].call == call | {"output_type": "latent"}


PARTS = {name: ["transformers", "Part"] for name in ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")}


@pytest.mark.parametrize(
    ("pipeline", "arguments", "used", "changes"),
    [
        ("FluxPipeline", "--image a.png", "FluxImg2ImgPipeline", {}),
        ("FluxPipeline", "--image a.png --mask a.png", "FluxInpaintPipeline", {}),
        ("FluxImg2ImgPipeline", "--image a.png --mask a.png", "FluxInpaintPipeline", {}),
        ("WanPipeline", "--video c.gif", "WanVideoToVideoPipeline", {}),
        ("WanPipeline", "--image a.png", "WanImageToVideoPipeline", {"expand_timesteps": True}),
    ],
)
def test_a_pipeline_for_the_same_weights_takes_what_is_given(
    requests: list[Request], tmp_path: Path, capsys: pytest.CaptureFixture[str], pipeline: str, arguments: str, used: str, changes: dict[str, Any]
) -> None:
    Image.new("RGB", (16, 16)).save("a.png")
    Image.new("RGB", (16, 16)).save("c.gif")
    folder = whole_folder(tmp_path, pipeline, **changes)
    assert generate("x", "--model", folder, *arguments.split()) == 0
    assert requests[0].pipeline == requests[0].told["pipeline"] == used
    assert f"{used}, since --{arguments[2:7]}" in capsys.readouterr().err


def whole_folder(folder: Path, pipeline: str, **changes: Any) -> str:
    """With every part that diffusers' pipelines of that transformer need."""
    written = write_folder(folder, pipeline, **{name: entry for name, entry in PARTS.items() if name in read_components(pipeline)}, **changes)
    for name in PARTS:
        (written / name).mkdir(exist_ok=True)
    return str(written)


def test_weights_that_a_pipeline_would_leave_out_are_not_given_to_it(
    requests: list[Request], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wan 2.2 has two transformers, WanVideoToVideoPipeline one."""
    Image.new("RGB", (16, 16)).save("c.gif")
    folder = whole_folder(tmp_path, "WanPipeline", transformer_2=["diffusers", "WanTransformer3DModel"])
    (Path(folder) / "transformer_2").mkdir()
    assert generate("x", "--model", folder, "--video", "c.gif") == 2
    assert "for weights of its own" in capsys.readouterr().err


def test_the_pipeline_that_is_asked_for_is_taken(requests: list[Request], tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save("a.png")
    folder = whole_folder(tmp_path, "FluxPipeline")
    assert generate("x", "--model", folder, "--image", "a.png", "--pipeline", "FluxKontextPipeline") == 0
    assert generate("x", "--model", folder, "--pipeline", "FluxPipeline") == 0
    assert [request.pipeline for request in requests] == ["FluxKontextPipeline", None]


def test_a_rank_loads_the_pipeline_that_the_request_names(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    class Stand:
        def __getattr__(self, name: str) -> Any:
            return SimpleNamespace(from_pretrained=lambda *args, **options: loaded.append(name) or pipe)

    pipe = type("USPFluxPipeline", (), {"mesh": SimpleNamespace(is_first=True, config=None), "set_progress_bar_config": lambda self, disable: None})()
    monkeypatch.setattr("dit_usp.pipelines", Stand())
    Worker(None).load("m", None, None, None, {}, "FluxImg2ImgPipeline")
    assert loaded == ["USPFluxImg2ImgPipeline"]


def test_what_needs_no_text_is_asked_for_none(requests: list[Request], tmp_path: Path) -> None:
    Image.new("L", (16, 16)).save("c.gif")
    assert generate("--model", str(write_folder(tmp_path, "Kandinsky6SRPipeline")), "--video", "c.gif") == 0
    assert requests[0].pictures[0].path == "clip.mp4"


@pytest.mark.parametrize(
    ("pipeline", "arguments", "frames", "note"),
    [
        ("WanPipeline", "--frames 81", 81, ""),
        ("WanPipeline", "--frames 84", 85, "--frames 84: WanPipeline makes 4k + 1 frames, here 85\n"),
        ("CogVideoXPipeline", "--frames 84", 81, "--frames 84: CogVideoXPipeline makes 4k + 1 frames, here 81\n"),
        ("WanPipeline", "--frames 3", 1, "--frames 3: WanPipeline makes 4k + 1 frames, here 1\n"),
        ("WanPipeline", "--duration 5", 81, "5 s at 16 frames a second: 81 frames, 5.06 s\n"),
        ("WanPipeline", "--duration 5 --fps 24", 121, "5 s at 24 frames a second: 121 frames, 5.04 s\n"),
    ],
)
def test_frames_are_rounded_as_the_pipeline_does_and_it_is_said(
    requests: list[Request], tmp_path: Path, capsys: pytest.CaptureFixture[str], pipeline: str, arguments: str, frames: int, note: str
) -> None:
    assert generate("x", "--model", str(write_folder(tmp_path, pipeline)), "--seed", "1", *arguments.split()) == 0
    assert requests[0].call == {"num_frames": frames}
    assert capsys.readouterr().err.rpartition("0.")[0] in (note, f"{note}0.")  # before the line with the time


@pytest.mark.parametrize(
    ("pipeline", "arguments", "fps"),
    [
        ("WanPipeline", "", 16),
        ("WanPipeline", "--fps 23.976", 23.976),
        ("WanVideoToVideoPipeline", "--video c.gif", 10),
        ("WanVideoToVideoPipeline", "--video c.gif --fps 12", 12),
        ("LTX2ConditionPipeline", "--video c.gif", 24),
        ("CosmosTextToWorldPipeline", "", 30),
        ("FluxPipeline", "", None),
    ],
)
def test_a_clip_plays_as_fast_as_its_model_or_its_source(requests: list[Request], tmp_path: Path, pipeline: str, arguments: str, fps: float) -> None:
    Image.new("L", (16, 16)).save("c.gif", save_all=True, append_images=[Image.new("L", (16, 16), 9)], duration=100)
    assert generate("x", "--model", str(write_folder(tmp_path, pipeline)), *arguments.split()) == 0
    assert requests[0].fps == fps


def test_models_whose_documentation_names_another_speed(tmp_path: Path) -> None:
    assert find_model(str(write_folder(tmp_path, "WanPipeline", expand_timesteps=True))).fps == 24
    assert read_call("HunyuanVideo15Pipeline").fps == read_call("HunyuanVideo15ImageToVideoPipeline").fps == 24


def test_a_format_without_sound_is_said(requests: list[Request], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for output, said in (("a.gif", True), ("a.mp4", False)):
        assert generate("x", "--model", str(write_folder(tmp_path, "LTX2ConditionPipeline")), "-o", output) == 0
        assert (".gif holds no sound; use .mp4 to keep it" in capsys.readouterr().err) == said


def test_given_pictures_are_not_dealt_to_replicas(requests: list[Request], tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save("a.png")
    arguments = ("--model", str(write_folder(tmp_path, "FluxImg2ImgPipeline")), "--image", "a.png", "--images", "2", "--nproc", "2")
    assert generate("x", *arguments) == 0
    assert requests[0].config.sequence_degree == 2
    assert [picture.seed for picture in requests[0].pictures][1] == requests[0].pictures[0].seed + 1


@pytest.mark.parametrize(
    ("arguments", "layout"),
    [
        ("--nproc 2", (1, 1, 2, 1)),
        ("--nproc 4", (1, 2, 2, 1)),
        ("--nproc 3", (3, 1, 1, 1)),
        ("--nproc 2 --guidance 1", (1, 2, 1, 1)),
        ("--nproc 4 --images 4", (1, 1, 1, 4)),
        ("--ulysses 2 --ring 2", (2, 2, 1, 1)),
        ("--ulysses 2 --ring 2 --nproc 4", (2, 2, 1, 1)),
        ("--cfg 2", (1, 1, 2, 1)),
        ("--data 2 --images 3", (1, 1, 1, 2)),
    ],
)
def test_layouts(requests: list[Request], arguments: str, layout: tuple[int, ...]) -> None:
    assert generate("x", *arguments.split()) == 0
    config = requests[0].config
    assert (config.ulysses_degree, config.ring_degree, config.cfg_degree, config.data_degree) == layout


@pytest.mark.parametrize("method", ["rotate", "gather"])
def test_ring_method(requests: list[Request], method: str) -> None:
    assert generate("x", "--ring", "3", "--ring-method", method) == 0
    assert requests[0].config.ring_method == method


def test_gpus_are_used_where_there_are_any(requests: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "num_gpus", lambda: 2)
    assert generate("x") == 0
    assert generate("x", "--device", "cpu") == 0
    assert [(request.device, request.config.world_size) for request in requests] == [("cuda", 2), ("cpu", 1)]


# -- prompts, seeds, names


def test_a_keyword_becomes_its_subject_and_both_are_recorded(requests: list[Request], capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("a puppy", "-o", "a.png") == 0
    assert requests[0].pictures[0].prompt == "a dog face"
    assert capsys.readouterr().err.startswith("puppy -> dog face\n")
    assert {"prompt": "a dog face", "asked": "a puppy"}.items() <= read_metadata("a.png").items()


def test_an_unknown_prompt_is_told_the_nearest_subjects(requests: list[Request], capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("zzqk") == 0
    assert capsys.readouterr().err.startswith("no known subject in 'zzqk'; nearest: ")
    assert requests[0].pictures[0].prompt == "zzqk"


def test_prompts_and_images_count_up_seeds_and_names(requests: list[Request]) -> None:
    Path("prompts.txt").write_text("\ufeffa dog\n\n  a cat\n", encoding="utf-8")
    assert generate("--prompts", "prompts.txt", "--images", "2", "--seed", "7", "-o", "out.jpg") == 0
    made = [(picture.prompt, picture.seed, picture.path) for picture in requests[0].pictures]
    assert made == [("a dog", 7, "out-1.jpg"), ("a dog", 8, "out-2.jpg"), ("a cat", 9, "out-3.jpg"), ("a cat", 10, "out-4.jpg")]
    assert [read_metadata(path)["seed"] for *_, path in made] == [7, 8, 9, 10]


def test_a_folder_gets_names_made_from_the_prompts_and_loses_none(requests: list[Request]) -> None:
    Path("made").mkdir()
    Path("prompts.txt").write_text("A red heart!\na red: heart\n❤\n")
    for _ in range(2):
        assert generate("--prompts", "prompts.txt", "-o", "made/") == 0
    names = ["a-red-heart", "a-red-heart-2", "picture", "a-red-heart-3", "a-red-heart-4", "picture-2"]
    assert [picture.path for request in requests for picture in request.pictures] == [f"made/{name}.png" for name in names]
    assert sorted(path.name for path in Path("made").iterdir()) == sorted(f"{name}.png" for name in names)


def test_several_images_in_a_folder_are_numbered(requests: list[Request]) -> None:
    assert generate("a heart", "--images", "2") == 0
    assert [picture.path for picture in requests[0].pictures] == ["a-heart-1.png", "a-heart-2.png"]


def test_overwrite_replaces(requests: list[Request]) -> None:
    Path("a.png").write_bytes(b"old")
    assert generate("a red heart", "-o", "a.png") == 2
    assert Path("a.png").read_bytes() == b"old"
    assert generate("a red heart", "-o", "a.png", "--overwrite") == 0
    assert read_metadata("a.png")["prompt"] == "a red heart"
    assert [path.name for path in Path().iterdir()] == ["a.png"]


def test_without_a_seed_a_random_one_is_told_and_recorded(requests: list[Request], capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("x", "-o", "a.png") == 0
    assert generate("x", "-o", "b.png") == 0
    seeds = [request.pictures[0].seed for request in requests]
    assert seeds[0] != seeds[1]
    out, err = capsys.readouterr()
    assert out == "a.png\nb.png\n"
    lines = [line.partition(" s on ")[2] for line in err.splitlines() if " s on " in line]
    assert lines == [f"1 rank (ulysses 1 x ring 1 x cfg 1 x data 1), seed {seed}" for seed in seeds]
    assert [read_metadata(name)["seed"] for name in ("a.png", "b.png")] == seeds


# -- what is said


def test_print_plan_is_three_lines_and_makes_nothing(requests: list[Request], capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("x", "--nproc", "4", "--images", "3", "--steps", "5", "--print-plan") == 0
    assert requests == []
    assert capsys.readouterr().out.splitlines() == [
        "layout: ulysses 1 x ring 2 x cfg 2 x data 1 = 4 ranks (cpu, float32, keys by gather)",
        "why: cfg 2: each half of guidance has its own ranks; they exchange one output a step. "
        "ring 2: between two ranks one collective that gathers keys and values is as fast as two that trade heads, or faster.",
        "work: 3 pictures of 256 x 256 by PixArtAlphaPipeline of emoji-pixart-256, 5 steps, 256 tokens, 128 a rank",
    ]


@pytest.mark.parametrize(
    ("pipeline", "arguments", "work"),
    [
        ("CogVideoXPipeline", "--ring 3", "1 clip of 720 x 480 by CogVideoXPipeline of MODEL, 50 steps, 17550 tokens, 5850 a rank"),
        ("CogVideoXPipeline", "--frames 1", "1 clip of 720 x 480 by CogVideoXPipeline of MODEL, 50 steps, 1350 tokens"),
        ("FluxPipeline", "--ulysses 2 --height 512", "1 picture of 1024 x 512 by FluxPipeline of MODEL, 28 steps, 2048 tokens, 1024 a rank"),
    ],
)
def test_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str], pipeline: str, arguments: str, work: str) -> None:
    folder = str(write_folder(tmp_path, pipeline))
    assert generate("x", "--model", folder, "--device", "cpu", *arguments.split(), "--print-plan") == 0
    assert capsys.readouterr().out.splitlines()[2] == f"work: {work.replace('MODEL', folder)}"


def test_show(requests: list[Request], capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("castle", "-o", "a.webp", "--seed", "3") == 0
    capsys.readouterr()
    assert run(["show", "a.webp"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[1].split(), lines[2].split()) == ("a.webp", ["prompt", "castle"], ["seed", "3"])
    assert run(["show", "--json", "a.webp", "a.webp"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert json.loads(first) == {"file": "a.webp", **read_metadata("a.webp")}


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert "emoji-pixart-256" in table["embedded"]
    rows = {row["transformer"]: row for row in table["transformers"]}
    assert rows["PixArtTransformer2DModel"]["pipelines"] == ["PixArtAlphaPipeline", "PixArtSigmaPipeline", "PixArtSigmaPAGPipeline"]
    assert [rows[f"{name}Model"]["cfg"] for name in ("SD3Transformer2D", "FluxTransformer2D", "GlmImageTransformer2D", "CosmosTransformer3D")] == [
        True,
        True,
        False,
        False,
    ]
    assert rows["FluxTransformer2DModel"]["streams"] == ["image", "text"]
    assert rows["NucleusMoEImageTransformer2DModel"]["whole"] == {"transformer_blocks.*.img_mlp": "experts choose among all tokens"}
    assert list(rows["PixArtTransformer2DModel"]["without_cfg"]) == ["PixArtSigmaPAGPipeline"]
    assert (rows["LatteTransformer3DModel"]["data"], list(rows["LatteTransformer3DModel"]["without_data"])) == (False, ["LattePipeline"])
    assert run(["models"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in rows)


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with progress(2) as show:
            show(Doing("denoise", 3, 10), 1)
        err = capsys.readouterr().err
        assert ("denoise 2/2" in err, "3/10" in err) == (terminal, terminal)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (OSError(28, "No space left on device", "a.png"), 1, "[Errno 28] No space left on device: 'a.png'"),
        (RankError(1, "denoise", "was killed", "/tmp/log"), 1, "rank 1 was killed during denoise"),
        (ValueError("the ranks\nrefuse"), 2, "the ranks refuse"),
        (KeyboardInterrupt(), 130, "interrupted."),
    ],
)
def test_one_line_on_the_way_out(
    requests: list[Request], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, text: str
) -> None:
    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr(engine, "run", fail)
    assert generate("castle") == code
    err = capsys.readouterr().err
    assert err.strip().startswith(f"dit-usp: {text}")
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert generate("castle", "--debug") == code
    assert "Traceback" in capsys.readouterr().err


def test_ranks_of_a_launcher_parse_alike_and_the_first_one_talks(
    requests: list[Request], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dit_usp.cli.generate.quieten", lambda: None)  # would import diffusers
    for rank in (1, 0):
        monkeypatch.setattr(launch, "place", lambda rank=rank: launch.Place(rank, 2, rank, 2))
        monkeypatch.setattr(engine, "run", lambda request, show: requests.append(request) or ["a.png"])
        assert generate("a puppy", "-o", "a.png", "--seed", "1") == 0
        out, err = capsys.readouterr()
        assert (out, "puppy" in err) == (("", False) if rank else ("a.png\n", True))
    assert requests[0].config == requests[1].config
    assert requests[0].config.world_size == 2


# -- the whole way


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


SEED = 2**63 - 5
DRAWN = ("--seed", str(SEED), "--steps", "4", "--device", "cpu")


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / "heart.png"
    assert generate("a red heart", "-o", str(path), *DRAWN) == 0
    return path


def test_the_picture_is_a_red_heart_on_white(one_rank: Path) -> None:
    picture = pixels(one_rank)
    assert picture.shape == (256, 256, 3)
    assert picture[2:6, 2:6].min() > 230
    red, green, blue = picture[110:140, 110:140].mean((0, 1))
    assert red > 50 + max(green, blue)


def test_the_same_picture_on_two_ranks_that_are_started(one_rank: Path, tmp_path: Path) -> None:
    path = tmp_path / "heart.png"
    assert generate("a red heart", "-o", str(path), *DRAWN, "--nproc", "2") == 0
    assert abs(pixels(path) - pixels(one_rank)).max() <= 2


@pytest.mark.parametrize(("layout", "nproc"), [("--nproc 3", 3), ("--ulysses 2 --ring 2", 4)])
def test_the_same_picture_on_any_ranks(ranks: RankPool, one_rank: Path, tmp_path: Path, layout: str, nproc: int) -> None:
    path = tmp_path / "heart.png"
    assert ranks.launched(nproc, generate, "a red heart", "-o", str(path), *DRAWN, *layout.split()) == [0] * nproc
    assert abs(pixels(path) - pixels(one_rank)).max() <= 2


def test_the_same_picture_under_torchrun(one_rank: Path, tmp_path: Path) -> None:
    path = tmp_path / "heart.png"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dit_usp", "generate"]
    arguments = ["a red heart", "-o", str(path), *DRAWN, "--ring", "2", "--ring-method", "rotate"]
    done = subprocess.run([sys.executable, *command, *arguments], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{path}\n"
    assert "Loading" not in done.stderr
    assert abs(pixels(path) - pixels(one_rank)).max() <= 2


def test_one_picture_of_several_can_be_made_again_alone(one_rank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of three pictures dealt to two replicas is the one with its seed; the first differs from it. Progress counts by rounds."""
    seen: list[tuple[str, int]] = []
    carry_out = engine.run
    monkeypatch.setattr(engine, "run", lambda request, show: carry_out(request, lambda doing, done: seen.append((doing.stage, done))))
    path = tmp_path / "heart.png"
    arguments = ["--images", "3", "--data", "2", *DRAWN, "--seed", str(SEED - 2)]
    assert generate("a red heart", "-o", str(path), *arguments) == 0
    paths = [tmp_path / f"heart-{number}.png" for number in (1, 2, 3)]
    told = read_metadata(paths[2])
    assert (told["seed"], told["prompt"], told["ranks"]) == (SEED, "a red heart", 2)
    assert [read_metadata(path)["seed"] for path in paths] == [SEED - 2, SEED - 1, SEED]
    assert {("load", 0)} < set(seen)
    assert {done for _, done in seen} == {0, 2}
    assert abs(pixels(one_rank) - pixels(paths[2])).max() <= 2
    assert abs(pixels(paths[0]) - pixels(paths[2])).max() > 2
