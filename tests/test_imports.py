"""Imports point one way, and the light parts stay light."""

from __future__ import annotations

import ast
import configparser
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module imports from its own row or from those above it.
LAYERS = (
    ("errors",),
    ("config", "embedded", "signature"),
    ("mesh",),
    ("collectives",),
    ("calls",),
    (
        "plan",
        "places",
        "rebind",
        "remembered",
        "streams",
        "halo",
        "linear",
        "attention",
        "models",
        "sharding",
        "translate",
        "graph",
        "guidance",
        "compiled",
    ),
    ("inject",),
    ("launch", "status", "media", "formats", "saving", "results", "request", "prompts", "pipelines", "worker", "rank", "supervise", "engine"),
    ("bench", "topology"),
    ("cli",),
    ("__main__", "examples", "scripts"),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
HEAVY = ("torch", "diffusers", "transformers", "numpy", "PIL", "rich", "huggingface_hub")


def modules() -> Iterator[tuple[str, Path]]:
    """Every file with the name by which LAYERS knows it: dit_usp/attention/ring.py is `attention`."""
    for path in sorted((ROOT / "dit_usp").rglob("*.py")):
        first = path.relative_to(ROOT / "dit_usp").parts[0].removesuffix(".py")
        if first != "__init__":
            yield first, path
    for name in ("pipelines", "examples", "scripts"):
        yield from ((name, path) for path in sorted((ROOT / name).rglob("*.py")))


def imported(node: ast.AST) -> Iterator[str]:
    """What a file imports from dit_usp, at its top or inside functions, but not for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names if alias.name.startswith("dit_usp"))
        elif isinstance(child, ast.ImportFrom) and (child.module or "").split(".")[0] == "dit_usp":
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        else:
            yield from imported(child)


def edges() -> Iterator[tuple[str, str, Path]]:
    """(importer, imported, file); the version, and in examples and scripts the public names, belong to no layer."""
    for name, path in modules():
        for dotted in imported(ast.parse(path.read_text())):
            target = dotted.removeprefix("dit_usp").removeprefix(".").split(".")[0]
            public = target[:1] in ("", "_") or (name in LAYERS[-1] and target not in LAYER)
            if target != name and not public:
                yield name, target, path


def test_every_module_has_a_layer() -> None:
    assert {name for name, _ in modules()} == set(LAYER)


def test_no_import_points_upwards() -> None:
    wrong = [f"{path.relative_to(ROOT)} imports {target}" for name, target, path in edges() if LAYER.get(target, len(LAYERS)) > LAYER[name]]
    assert wrong == []


def test_no_import_comes_back() -> None:
    """Within a layer too there is an order."""
    graph: dict[str, set[str]] = {name: set() for name in LAYER}
    for name, target, _ in edges():
        graph[name].add(target)
    while leaves := {name for name, targets in graph.items() if not targets}:
        graph = {name: targets - leaves for name, targets in graph.items() if name not in leaves}
    assert graph == {}


@pytest.mark.parametrize(
    "code",
    [
        "import dit_usp",
        "import dit_usp.engine, dit_usp.request, dit_usp.saving, dit_usp.pipelines, dit_usp.models",
        "from dit_usp.cli import run; assert run(['generate', '--help']) == 0",
        "from dit_usp.cli import run; assert run(['generate', 'x', '--nproc', '4', '--device', 'cpu', '--print-plan']) == 0",
        "from dit_usp.cli import run; assert run(['models']) == 0",
    ],
)
def test_loads_nothing_heavy(code: str) -> None:
    end = f"; import sys; heavy = {{name for name in {HEAVY} if name in sys.modules}}; assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code + end], check=True, capture_output=True)


def test_help_is_quick() -> None:
    """Processor time, the best of three: what other programs do at the same time is not ours."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "dit_usp", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.3


def test_every_package_is_installed():
    """A wheel holds the packages that setup.cfg lists, and no others."""
    listed = configparser.ConfigParser()
    listed.read(ROOT / "setup.cfg")
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "dit_usp").rglob("__init__.py")}
    assert set(listed["options"]["packages"].split()) == found | {"dit_usp.pipelines"}
