"""Pipelines of diffusers, shared over ranks: `USP` + the diffusers name, made on first use from the table of supported ones (PEP 562)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_usp.pipelines.table import NAMES

if TYPE_CHECKING:
    from dit_usp.pipelines.base import USPPipelineMixin
    from dit_usp.pipelines.build import auto_pipeline

__all__ = ["USPPipelineMixin", "auto_pipeline", *(f"USP{name}" for name in NAMES)]


def __getattr__(name: str) -> Any:
    if name == "auto_pipeline":
        from dit_usp.pipelines.build import auto_pipeline

        return auto_pipeline
    if name == "USPPipelineMixin":
        from dit_usp.pipelines.base import USPPipelineMixin

        return USPPipelineMixin
    if name.startswith("USP") and name[3:] in NAMES:
        from dit_usp.pipelines.build import usp_class

        return globals().setdefault(name, usp_class(name[3:]))
    raise AttributeError(f"module 'dit_usp.pipelines' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
