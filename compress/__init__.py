"""Convert pretrained dense transformers into LookupFFN models that run fast on a CPU.

Importing this package teaches transformers to load compressed checkpoints, and costs next to nothing: every public
name brings in what it needs when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from . import baselines as baselines
    from . import evaluate as evaluate
    from .checkpoint import load as load
    from .checkpoint import verify as verify
    from .conversion import convert as convert
    from .conversion import resume as resume
    from .lookup import LookupFFN as LookupFFN
    from .lookup import PackedLookupFFN as PackedLookupFFN
    from .lookup import pack as pack
    from .publishing import push as push
    from .recipe import Recipe as Recipe
    from .replace import replace_ffn as replace_ffn
    from .sites import find_sites as find_sites
    from .studies import run_study as run_study
    from .studies.sweep import sweep as sweep

    __version__: str

_MODULES = {
    "LookupFFN": ".lookup",
    "PackedLookupFFN": ".lookup",
    "Recipe": ".recipe",
    "convert": ".conversion",
    "find_sites": ".sites",
    "load": ".checkpoint",
    "pack": ".lookup",
    "push": ".publishing",
    "replace_ffn": ".replace",
    "resume": ".conversion",
    "run_study": ".studies",
    "sweep": ".studies.sweep",
    "verify": ".checkpoint",
}

__all__ = [
    "LookupFFN",
    "PackedLookupFFN",
    "Recipe",
    "__version__",
    "baselines",
    "convert",
    "evaluate",
    "find_sites",
    "load",
    "pack",
    "push",
    "replace_ffn",
    "resume",
    "run_study",
    "sweep",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("compress-lookup")
    elif name in ("baselines", "evaluate"):
        value = importlib.import_module(f".{name}", __name__)
    elif name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name], __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _EvaluatePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.evaluate(*args, **kwargs)


class _Compress(ModuleType):
    """`compress.evaluate` is a package and by contract a function: importing the package must not hide the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "evaluate" and isinstance(value, ModuleType):
            value.__class__ = _EvaluatePackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Compress


# At once where transformers has its quantizers loaded, and otherwise as soon as it loads them.
@wrapt.when_imported("transformers.quantizers.auto")
def _register(_: ModuleType) -> None:
    from .checkpoint.quantizer import register

    register()
