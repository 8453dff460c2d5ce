"""Upper bounds of the memory and the disk that a conversion takes, said before it starts.

Each stage holds tensors whose sizes are known before: weights, their gradients and moments, recorded activations, what
the closed form makes of them. The numbers of columns below count what the code holds at once, rounded up.
"""

from __future__ import annotations

import resource
import sys
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from .baselines.factorised import FactorisedGeometry
from .checkpoint.side_files import is_model_file
from .distill.layerwise import CACHE_BYTES, HELD_OUT_TOKENS, VISITS
from .distill.writing import cache_bytes, is_unwritten
from .evaluate.quality import batch_tokens
from .evaluate.sizes import stored_width
from .plan import Needs, Plan
from .students import StudentGeometry, stored_bytes

if TYPE_CHECKING:
    from .data import Corpus
    from .models import Pretrained
    from .plan import SitePlan
    from .recipe import Recipe

_FLOAT = 4
_UNEVEN = 1.1  # batches are larger or smaller than they should be
_LAYER = 24  # of a layer's width, what a token keeps for the backward pass outside the student
_LOGITS = 8  # copies of a batch's logits, of both models, in the loss and its gradient
_STATE = 4  # of what is trained: weights, the last good ones, two moments
_TIMED_TOKENS = 16 * 128  # of the largest batch whose pass is timed
_KEPT = 0.35  # of a stage's memory that the allocator does not give back
_REPORTS = 1 << 20  # report, card, probe and the journal


def estimate(plan: Plan, recipe: Recipe, corpus: Corpus, pretrained: Pretrained) -> Needs:
    """Bound memory and disk, in bytes, from sizes alone; what the process holds already is measured.

    On a device other than the CPU the memory is that of both together.
    """
    model = pretrained.model
    weights = sum(p.numel() for p in model.parameters()) * _FLOAT
    students = [_student_bytes(entry.geometry) for entry in plan.converted if entry.geometry]
    rest = weights - sum(entry.dense.parameters * _FLOAT for entry in plan.converted)
    trained = _trained(plan, recipe, pretrained, rest, sum(students))

    sites = max((_site_memory(entry, recipe, corpus) for entry in plan.converted), default=0)
    tuning = _tuning_memory(plan, recipe, pretrained, trained)
    later = _KEPT * sites + max(tuning, _measuring(plan, pretrained))
    writing = cache_bytes(model.device) if is_unwritten(corpus) else 0
    memory = _held() + weights + sum(students) + int(max(sites, later, writing))

    width = stored_width(pretrained.folder)
    files = [path for path in pretrained.folder.rglob("*") if path.is_file()]
    names = [PurePosixPath(path.relative_to(pretrained.folder).as_posix()) for path in files]
    side = sum(path.stat().st_size for path, name in zip(files, names, strict=True) if not is_model_file(name))
    packed = sum(plan.stored(entry) for entry in plan.converted)
    width += recipe.pack.rest == "int8"  # an embedding may be there twice: as it is, and as a head in int8
    checkpoint = packed + int(1.05 * rest * width / _FLOAT) + side + _REPORTS
    recorded = max((_recorded(entry, recipe, corpus) for entry in plan.converted), default=0)
    disk = sum(students) + max(
        2 * _STATE * max(students, default=0) + recorded,  # a new state is there before the old one goes
        2 * _STATE * trained,
        trained + 2 * checkpoint,  # packed again, where a published file was damaged
    )
    return Needs(memory, disk + _REPORTS, checkpoint)


def _held() -> int:
    """Most bytes that the process has held so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _student_bytes(geometry: StudentGeometry) -> int:
    return stored_bytes(geometry, "float32", "float32")


def _widths(g: StudentGeometry) -> tuple[int, int, int, int]:
    """Bits of the hash, tables, hidden values and codes that a token has in a student."""
    if isinstance(g, FactorisedGeometry):
        return 0, 0, (2 if g.gated else 1) * g.d_hidden, len(g.parts) * g.rank
    return g.hash_bits, g.tables, g.neurons, g.rank


def _columns(g: StudentGeometry) -> int:
    """What a token keeps in a student for the backward pass."""
    hash_bits, tables, neurons, rank = _widths(g)
    return 6 * hash_bits + 8 * tables + 4 * (neurons + rank)


def _trained(plan: Plan, recipe: Recipe, pretrained: Pretrained, rest: int, students: int) -> int:
    """Bytes of the weights that the end-to-end stage trains."""
    if not recipe.finetune.steps:
        return 0
    if recipe.finetune.train == "all":
        return students + rest
    if recipe.finetune.train == "lookup":
        return students
    norms = [module for module in pretrained.model.modules() if "norm" in type(module).__name__.lower()]
    return students + _FLOAT * sum(p.numel() for module in norms for p in module.parameters(recurse=False))


def _tokens(recipe: Recipe, corpus: Corpus, entry: SitePlan) -> tuple[int, int]:
    """Tokens of a site that are recorded at once, and those held out."""
    batch = recipe.distill.batch_tokens
    all_batches = max(1, corpus.train.tokens // batch)
    fit = max(1, min(recipe.fit.tokens, corpus.train.tokens) // batch)
    cached = max(1, CACHE_BYTES // _row(entry) // batch)
    chunk = min(cached, max(1, min(recipe.distill.steps // VISITS, all_batches))) if recipe.distill.steps else 0
    longest = int(max(corpus.train.lengths.max(), corpus.holdout.lengths.max()))
    held = max(1, min(HELD_OUT_TOKENS, corpus.holdout.tokens) // batch)
    return int(_UNEVEN * max(fit, chunk) * max(batch, longest)), int(_UNEVEN * held * max(batch, longest))


def _row(entry: SitePlan) -> int:
    """Bytes of one recorded token: input, residual and goal."""
    return _FLOAT * (entry.dense.d_in + 2 * entry.dense.d_out)


def _recorded(entry: SitePlan, recipe: Recipe, corpus: Corpus) -> int:
    return sum(_tokens(recipe, corpus, entry)) * _row(entry)


def _site_memory(entry: SitePlan, recipe: Recipe, corpus: Corpus) -> int:
    """Recordings, twice while their parts are joined, and the larger of fit and training."""
    g, dense = entry.geometry, entry.dense
    assert g is not None
    fit_tokens = int(_UNEVEN * min(recipe.fit.tokens, corpus.train.tokens))
    hidden = (9 if dense.gated else 7) * dense.d_hidden
    hash_bits, tables, neurons, rank = _widths(g)
    widths = 3 * dense.d_in + 4 * dense.d_out + neurons + 2 * rank
    fit = _FLOAT * fit_tokens * (max(hidden, dense.d_hidden + 3 * hash_bits + 8 * tables) + widths)
    batch = int(_UNEVEN * recipe.distill.batch_tokens)
    columns = _columns(g) + 4 * (dense.d_in + 2 * dense.d_out)
    training = (2 * _STATE + 1) * _student_bytes(g) + _FLOAT * batch * columns
    return 2 * _recorded(entry, recipe, corpus) + max(fit, training)


def _tuning_memory(plan: Plan, recipe: Recipe, pretrained: Pretrained, trained: int) -> int:
    """Gradients, moments, the last good state, a state that is being written, and a batch's activations."""
    if not recipe.finetune.steps:
        return 0
    batch = int(_UNEVEN * max(recipe.finetune.batch_tokens, recipe.data.sequence_length))
    return (2 * _STATE) * trained + batch * _activations(plan, pretrained, recipe.data.sequence_length)


def _activations(plan: Plan, pretrained: Pretrained, length: int) -> int:
    """Bytes that one token keeps for the backward pass, its logits included."""
    config = pretrained.model.config.get_text_config()
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    columns = 0
    for entry in plan.sites:
        g, dense = entry.geometry, entry.dense
        own = 3 * dense.d_hidden if g is None else _columns(g)
        columns += _LAYER * max(dense.d_in, dense.d_out) + 2 * heads * length + own
    return _FLOAT * (columns + _LOGITS * _classes(pretrained))


def _classes(pretrained: Pretrained) -> int:
    if pretrained.task in ("causal", "masked"):
        return int(getattr(pretrained.model.config.get_text_config(), "vocab_size", 1))
    return 1


def _measuring(plan: Plan, pretrained: Pretrained) -> int:
    """The report: dense models of three widths, their FFNs alone, recorded inputs, logits of a batch."""
    weights = _FLOAT * sum(p.numel() for p in pretrained.model.parameters())
    inputs = sum(entry.dense.d_in for entry in plan.sites)
    layer = max(_LAYER * max(e.dense.d_in, e.dense.d_out) + 3 * e.dense.d_hidden for e in plan.sites)
    tokens = max(_TIMED_TOKENS, batch_tokens(pretrained))
    return 4 * weights + _FLOAT * tokens * (2 * inputs + layer + _LOGITS * _classes(pretrained))
