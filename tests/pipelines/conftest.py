"""Tiny pipelines, saved once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from tiny_pipelines import build


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`folder(name)` holds the tiny pipeline of diffusers class `name`."""
    root = tmp_path_factory.mktemp("pipelines")

    @cache
    def saved(name: str) -> str:
        build(name, root / "parts").save_pretrained(root / name)
        return str(root / name)

    return saved
