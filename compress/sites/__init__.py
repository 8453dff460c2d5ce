"""Sites: the dense feed-forward networks inside a transformer, found by structure, and put back as students."""

from .discovery import find_sites
from .examples import example_inputs, usable_token_ids
from .experts import experts_error, find_experts, listed
from .norms import find_norms
from .site import Site, base_model, base_model_path, dense_parameter_name, from_base, to_base
from .swapping import StandIn, Swap, check_replaceable, place, swap
from .weights import site_weights

__all__ = [
    "Site",
    "StandIn",
    "Swap",
    "base_model",
    "base_model_path",
    "check_replaceable",
    "dense_parameter_name",
    "example_inputs",
    "experts_error",
    "find_experts",
    "find_norms",
    "find_sites",
    "from_base",
    "listed",
    "place",
    "site_weights",
    "swap",
    "to_base",
    "usable_token_ids",
]
