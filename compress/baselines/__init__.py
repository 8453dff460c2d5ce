"""What LookupFFN is measured against: the paper's other systems, the same student without its tables, low-rank factors.

VanillaFFN, SlideFFN and MongooseFFN are modules that are called and trained as LookupFFN is; `costs.costs` says what
any of them costs. What each of BASELINES sets in a recipe's `lookup` section makes a baseline of a conversion; fit,
distillation and storage are then the same for all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .costs import Costs as Costs
    from .factorised import FactorisedFFN as FactorisedFFN
    from .factorised import PackedFactorisedFFN as PackedFactorisedFFN
    from .mongoose import MongooseFFN as MongooseFFN
    from .slide import SlideFFN as SlideFFN
    from .vanilla import VanillaFFN as VanillaFFN

BASELINES: dict[str, dict[str, int | str]] = {
    "pruned neurons": {"tables": 0, "rank": 0},  # the most important neurons, refitted
    "pruned neurons and a low-rank path": {"tables": 0},
    "low-rank factors": {"student": "factors"},  # of every matrix, all neurons kept
}

_MODULES = {
    "Costs": ".costs",
    "FactorisedFFN": ".factorised",
    "MongooseFFN": ".mongoose",
    "PackedFactorisedFFN": ".factorised",
    "SlideFFN": ".slide",
    "VanillaFFN": ".vanilla",
}

__all__ = ["BASELINES", "Costs", "FactorisedFFN", "MongooseFFN", "PackedFactorisedFFN", "SlideFFN", "VanillaFFN"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name], __name__), name)
