"""The table holds every pipeline of the installed diffusers that runs a model with a shard plan."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest

from dit_usp.cli.models import transformers
from dit_usp.models import PLANS
from dit_usp.pipelines.table import MODULAR, NAMES, PIPELINES

ROOT = Path(importlib.util.find_spec("diffusers").submodule_search_locations[0])
MODELS = {plan.model for plan in PLANS}


def components(cls):
    """The annotations of a class's components by name, from its source."""
    init = next((item for item in cls.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
    return {arg.arg: ast.unparse(arg.annotation) for arg in (*init.args.args, *init.args.kwonlyargs) if arg.annotation} if init else {}


def written():
    """The pipelines that diffusers exports, with the models that their sources name."""
    sources = [path.read_text(encoding="utf-8") for path in ROOT.glob("pipelines/*/pipeline_*.py")]
    classes = [cls for source in sources if any(model in source for model in MODELS) for cls in ast.parse(source).body]
    named = {cls.name: " ".join(components(cls).values()) for cls in classes if isinstance(cls, ast.ClassDef)}
    return {name: [model for model in MODELS if model in text] for name, text in named.items() if name in dir(diffusers)}


@pytest.fixture(scope="module")
def models_of():
    return {name: models for name, models in written().items() if models}


def test_no_pipeline_is_missing(models_of):
    assert sorted(set(models_of) - set(NAMES)) == [], "diffusers has pipelines that pipelines/table.py does not know"
    assert sorted(set(NAMES) - set(models_of)) == [], "pipelines/table.py has names that diffusers has not"
    assert len(set(NAMES)) == len(NAMES)


def test_each_is_listed_with_the_transformer_it_runs(models_of):
    assert [(model, name) for model, names in PIPELINES.items() for name in names if model not in models_of[name]] == []


def test_models_that_only_modular_pipelines_run():
    assert set(MODULAR) <= MODELS
    assert all(issubclass(getattr(diffusers, name), diffusers.ModularPipeline) for name in MODULAR.values())
    assert not set(MODULAR) & set(PIPELINES)


def test_what_the_list_of_models_says():
    rows = {row["transformer"]: row for row in transformers()}
    assert [rows[f"{name}Model"]["data"] for name in ("SD3Transformer2D", "ConsisIDTransformer3D", "SD3ControlNet")] == [True, False, False]
    assert rows["WanTransformer3DModel"]["without_data"]["WanImageToVideoPipeline"] == "starts from a picture, a clip or a sound"
    whole = ["QwenImage21Transformer2DModel", "Kandinsky6SRTransformer3DModel", "AnyFlowFARTransformer3DModel", "SanaWMTransformer3DModel"]
    assert [name for name, row in rows.items() if not row["ulysses"] or not row["ring"]] == whole
    assert {name: row["modular"] for name, row in rows.items() if row["modular"]} == MODULAR


def test_the_table_loads_nothing():
    code = "import sys, dit_usp.pipelines.table; assert not {'torch', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
