"""Put a student in the place of a dense FFN, and the dense FFN back. Needs no forward pass: works on meta tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import SiteError
from .site import Site


class StandIn(nn.Identity):
    """The identity in the place of a linear layer or an activation.

    Models ask their linears for `weight.dtype` before they call them, so an empty weight of that dtype stays behind.
    """

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        weight = getattr(replaced, "weight", None)
        if isinstance(weight, Tensor):
            device = "cpu" if weight.is_meta else weight.device  # nothing would ever fill a meta tensor
            self.register_buffer("weight", torch.empty(0, dtype=weight.dtype, device=device), persistent=False)


@dataclass
class Swap:
    """A replacement that can be taken back."""

    replaced: list[tuple[nn.Module, str, nn.Module]] = field(default_factory=list)  # parent, child's name, child

    def undo(self) -> None:
        """Put every original module back; a second call does nothing."""
        while self.replaced:
            parent, key, original = self.replaced.pop()
            setattr(parent, key, original)


def swap(model: nn.Module, site: Site, student: nn.Module) -> Swap:
    """Put `student` ([..., d_in] -> [..., d_out]) in the place of a site of `model`.

    Raises SiteError where the model's code leaves no place for it (`site.obstacle`).
    """
    check_replaceable(site)
    return place(model, site.entry, site.identities, student)


def check_replaceable(site: Site) -> None:
    """Raise SiteError where no student can take a site's place (`site.obstacle`)."""
    if site.obstacle:
        raise SiteError(
            f"{site.name} cannot be replaced: {site.obstacle}",
            where=site.name,
            remedy="exclude this site in the recipe",
        )


def place(model: nn.Module, entry: str, identities: Sequence[str], student: nn.Module) -> Swap:
    """Put `student` at `entry` and the identity at `identities`, dotted paths relative to `model`.

    A checkpoint's paths are relative to the base model: place(base_model(model), ...). Raises SiteError, with nothing
    changed, where a path leads nowhere.
    """
    places = [(_module(model, entry), student)]
    for path in identities:
        module = _module(model, path)
        places.append((module, StandIn(module)))
    student._replaces_ffn = True  # type: ignore[assignment]  # discovery looks for no dense FFN inside
    done = Swap()
    for old, new in places:
        slots = [(parent, key) for parent in model.modules() for key, child in parent._modules.items() if child is old]
        for parent, key in slots:
            setattr(parent, key, new)
            done.replaced.append((parent, key, old))
    return done


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise SiteError(
            f"{type(model).__name__} has no module {path}",
            where=path,
            remedy="use a model of the architecture, and with the number of layers, that the site was found in",
        ) from None
