"""Check a site by numbers: what would be replaced computes what its linear layers and its activation say."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .site import Site
from .weights import site_weights

TOLERANCE = 1e-4  # of the largest output, in float32; narrower weights round more than that
_TOKENS = 4  # a large FFN is bound by reading its weights, which a few tokens do not make slower


@torch.no_grad()
def disagreement(model: nn.Module, site: Site, seen: torch.Size) -> str | None:
    """Tell why the modules of a site are not the function that the site describes; None where they are.

    The modules that a swap would replace run on random tokens, shaped as the input that they were `seen` with. `model`
    must be in evaluation mode.
    """
    weights = site_weights(model, site, copy=False)
    dtype = model.get_submodule(site.output).weight.dtype
    assert isinstance(dtype, torch.dtype)
    few = torch.Size([*(1 for _ in seen[:-2]), *([_TOKENS] if len(seen) > 1 else []), site.d_in])
    failure = ""
    for shape in (few, seen):  # some code wants the number of tokens that it knows
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(weights.down.device, dtype)
        try:
            y = _run(model, site, x)
        except Exception as error:
            failure = (str(error).strip() or type(error).__name__).splitlines()[0]
            continue
        wanted = weights.output(x.reshape(-1, site.d_in).float(), site.activation)
        if y.shape[-1] != site.d_out or y.numel() != wanted.numel():
            return f"its modules make {list(y.shape)} of {list(shape)}"
        off = (y.reshape(wanted.shape).float() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30)
        if off.item() <= max(TOLERANCE, 4 * torch.finfo(dtype).eps):
            return None
        return f"its linear layers and {site.activation} do not give what its modules compute: {off.item():.1g} off"
    return f"its modules do not run by themselves: {failure}"


def _run(model: nn.Module, site: Site, x: Tensor) -> Tensor:
    y = model.get_submodule(site.entry)(x)
    for path in site.identities:
        y = model.get_submodule(path)(y)
    if not isinstance(y, Tensor):
        raise TypeError(f"{site.entry} gives no tensor")
    return y
