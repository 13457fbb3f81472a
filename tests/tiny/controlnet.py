"""Tiny ControlNets."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {}
