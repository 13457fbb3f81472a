"""dit-usp: parallel inference of diffusion transformers with Unified Sequence Parallelism (arXiv 2405.07719).

The public names load on first use (PEP 562), so that `import dit_usp` costs neither torch nor diffusers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "ParallelConfig": "dit_usp.config",
    "UnsupportedError": "dit_usp.errors",
    "Mesh": "dit_usp.mesh",
    "init_mesh": "dit_usp.mesh",
    "usp_attention": "dit_usp.attention",
    "parallelize": "dit_usp.inject",
    "unparallelize": "dit_usp.inject",
    "auto_pipeline": "dit_usp.pipelines",
    "Engine": "dit_usp.engine",
}
__all__ = [
    "Engine",
    "Mesh",
    "ParallelConfig",
    "UnsupportedError",
    "__version__",
    "auto_pipeline",
    "init_mesh",
    "parallelize",
    "unparallelize",
    "usp_attention",
]

if TYPE_CHECKING:
    from dit_usp.attention import usp_attention
    from dit_usp.config import ParallelConfig
    from dit_usp.engine import Engine
    from dit_usp.errors import UnsupportedError
    from dit_usp.inject import parallelize, unparallelize
    from dit_usp.mesh import Mesh, init_mesh
    from dit_usp.pipelines import auto_pipeline


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dit_usp' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
