"""README tells the truth: its drawing, its table of models, its links and its Python are checked against the code."""

import re
import runpy
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from PIL import Image
from ranks import run_script

from dit_usp.attention import heads_to_sequence, sequence_to_heads
from dit_usp.attention.ring import passed_blocks
from dit_usp.cli import generate, models, show, topo
from dit_usp.cli.model import DEFAULT, embedded
from dit_usp.config import ParallelConfig
from dit_usp.mesh import init_mesh
from dit_usp.prompts import subjects

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
TEXT = PAGES[0].read_text(encoding="utf-8")
TOKENS, HEADS = 8, 4  # as drawn


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_list_of_models_is_current():
    readme = runpy.run_path(str(ROOT / "scripts" / "readme.py"))
    assert readme["START"] + readme["listing"]() + readme["END"] in TEXT, "run: python scripts/readme.py models"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")) if not link.startswith("http")]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_paths_named_on_the_page_exist():
    named = re.findall(r"\b(?:scripts|examples|docs|dit_usp|tests)/[\w./-]*\w", TEXT)
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_commands_have_the_options_shown():
    lines = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    commands = {"generate": generate.command, "models": models.command, "show": show.command, "topo": topo.command}
    shown = [words[1:] for words in lines if words and Path(words[0]).name == "dit-usp"]
    assert {words[0] for words in shown} == set(commands)
    for name, *arguments in shown:
        commands[name].make_context(name, arguments)  # refuses an option that is not there


def test_every_option_of_generate_is_shown():
    options = {option for parameter in generate.command.params for option in (*parameter.opts, *parameter.secondary_opts) if option.startswith("--")}
    told = {
        word
        for page in (TEXT, *(path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py")))
        for word in re.findall(r"--[a-z-]+", page)
    }
    assert options - told - {"--output", "--graph"} == set()  # shown as -o and --no-graph


def written(block, folder):
    """Python from the page with the embedded model in place of the large one, which the tests do not download."""
    script = folder / "castle.py"
    script.write_text(block.replace('"stabilityai/stable-diffusion-3.5-medium"', repr(str(embedded()[DEFAULT]))).replace("bfloat16", "float32"))
    return str(script)


def test_the_python_for_torchrun_makes_a_picture(ranks, tmp_path):
    ranks.launched(2, run_script, written(blocks("python")[0], tmp_path), str(tmp_path))
    assert Image.open(tmp_path / "castle.png").size == (256, 256)


def test_the_python_for_a_notebook_makes_a_picture(tmp_path):
    script = written(blocks("python")[1] + "print(image.size)", tmp_path)
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=150)
    assert (done.returncode, done.stdout.strip()) == (0, "(256, 256)"), done.stderr[-3000:]


def test_the_embedded_models_know_as_many_names_as_they_say():
    assert f"knows {len(subjects(embedded()[DEFAULT])):,} emoji by name" in TEXT
    assert f"shows {len(subjects(embedded()['emoji-video']))} of them in motion" in TEXT


# -- the drawing


def span(values):
    return f"{int(values.min())}-{int(values.max())}"


def stages():
    """What this rank holds at each stage of the drawing: tensors whose every element says its token and its head."""
    mesh = init_mesh(ParallelConfig(2, 2), "cpu")
    rank = mesh.sequence.rank()
    tokens = torch.arange(TOKENS).view(1, -1, 1).expand(1, TOKENS, HEADS)
    heads = torch.arange(HEADS).view(1, 1, -1).expand(1, TOKENS, HEADS)
    held = torch.stack([tokens, heads], dim=-1).float().tensor_split(4, dim=1)[rank]
    q, k, v = heads_to_sequence(held, held, held, mesh.ulysses)
    (_, first, _), (_, second, _) = passed_blocks(k, v, [4, 4], mesh.ring)
    out = sequence_to_heads(q, mesh.ulysses, [2, 2])

    def told(x, keys=None):
        return {"tokens": span(x[..., 0]), "heads": span(x[..., 1])} | ({} if keys is None else {"keys": span(keys[..., 0])})

    coordinates = f"ring {mesh.ring.rank()}, ulysses {mesh.ulysses.rank()}"
    return coordinates, {"before": told(held), "ring1": told(q, first), "ring2": told(q, second), "after": told(out)}


def test_the_drawing_shows_where_tokens_and_heads_are(ranks):
    svg = ET.parse(ROOT / "docs" / "attention.svg").getroot()
    drawn = {(g.get("data-stage"), int(g.get("data-rank"))): g for g in svg.iter("{http://www.w3.org/2000/svg}g") if g.get("data-rank")}
    labels = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text") if text.get("class") == "coordinate"]
    results = ranks(4, stages)
    assert labels == [coordinates for coordinates, _ in results]
    assert len(drawn) == 16
    for rank, (_, told) in enumerate(results):
        for stage, expected in told.items():
            group = drawn[stage, rank]
            assert {name.removeprefix("data-"): value for name, value in group.items() if name[5:] in expected} == expected, (stage, rank)
            assert cells(group) == expected, (stage, rank)


def cells(group):
    """The tokens and heads that the group's rectangles cover: 16 x 14 a cell."""
    told = {}
    for box in group.iter("{http://www.w3.org/2000/svg}rect"):
        x, y, width, height = (int(box.get(name)) for name in ("x", "y", "width", "height"))
        told["keys" if box.get("class") == "kv" else "tokens"] = f"{x // 16}-{(x + width) // 16 - 1}"
        if box.get("class") == "q":
            told["heads"] = f"{y // 14}-{(y + height) // 14 - 1}"
    return told
