"""Tiny pipelines and files to start from, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from files import write_files
from tiny_pipelines import build

from dit_usp import launch


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`folder(name)` holds the tiny pipeline of diffusers class `name`."""
    root = tmp_path_factory.mktemp("pipelines")

    @cache
    def saved(name: str) -> str:
        build(name, root / "parts").save_pretrained(root / name)
        return str(root / name)

    return saved


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of each kind that a pipeline may start from."""
    path = tmp_path_factory.mktemp("inputs")
    write_files(path)
    return path


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No launcher, in a folder of the test's own."""
    monkeypatch.setattr(launch, "place", lambda: None)
    monkeypatch.chdir(tmp_path)
