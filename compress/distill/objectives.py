"""What distillation minimises: errors behind residual and norm, and errors of the model's own output."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..devices import upload
from ..errors import ModelError
from ..padding import RealRows
from ..streams import accepted, answer_stream
from ..tasks import HEADS, Task
from .activations import Activations

if TYPE_CHECKING:
    from ..models import Pretrained

_NOWHERE = -1e4  # a logit that leaves no probability and whose difference to itself is still 0


class BehindNorm(nn.Module):
    """Error of a student's answers as the rest of the network sees them: behind the residual and the next norm.

    The plain output error is the wrong target: a few large output directions hide those that matter. Errors are
    relative to answering every token with the mean answer, so 1 means that nothing is learned and 0 that all is.
    """

    def __init__(self, norm: nn.Module | None) -> None:
        super().__init__()
        self.norm = nn.Identity() if norm is None else copy.deepcopy(norm).float().requires_grad_(False)
        self.scale = 1.0

    @torch.no_grad()
    def calibrate(self, data: Activations) -> None:
        """Set the error that counts as 1, from a site's data."""
        self.scale = 1.0
        wanted = data.goal - data.residual
        mean = wanted.mean(0).expand_as(wanted)
        self.scale = max(float(self(mean, data)), 1e-12)

    def forward(self, answer: Tensor, data: Activations) -> Tensor:
        """Mean squared error over tokens and channels: answer [N, d_out] -> scalar, in units of `scale`."""
        return functional.mse_loss(self.norm(data.residual + answer), self.norm(data.goal)) / self.scale

    @torch.no_grad()
    def weights(self, data: Activations) -> tuple[Tensor, Tensor]:
        """First-order weights of an answer's error: one a token [N] and one a channel [d_out]."""
        out, goal = self.norm(data.goal), data.goal
        if isinstance(self.norm, nn.Identity):
            return torch.ones_like(goal[:, 0]), torch.ones_like(goal[0])
        deviation = (goal - goal.mean(-1, keepdim=True)).square().mean(-1).clamp_min(1e-12)
        gain = out.std(0) / (goal / deviation.sqrt()[:, None]).std(0).clamp_min(1e-8)
        return 1.0 / deviation, gain


def hidden_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of hidden states [N, d], relative to the teacher's variance."""
    return functional.mse_loss(student, teacher) / teacher.var(dim=0, correction=0).mean().clamp_min(1e-12)


def logits_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) a token, logits [N, classes], times the squared temperature (Hinton et al., 2015)."""
    log_student = functional.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher.float() / temperature, dim=-1)
    return functional.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean") * temperature**2


def mean_pool(hidden: Tensor, keep: Tensor | None) -> Tensor:
    """Mean over real positions: hidden [B, T, d], keep [B, T] -> [B, d]."""
    if keep is None:
        return hidden.mean(1)
    mask = keep[..., None].to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1).clamp_min(1.0)


def embedding_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Pooled embeddings [B, d]: 1 - cosine to the teacher's, plus the squared error of the batch's similarities."""
    student, teacher = functional.normalize(student, dim=-1), functional.normalize(teacher, dim=-1)
    cosine = (student * teacher).sum(-1)
    similarities = functional.mse_loss(student @ student.T, teacher @ teacher.T)
    return (1.0 - cosine).mean() + similarities


def output_error(task: Task, real: RealRows, student: Any, teacher: Any, temperature: float) -> Tensor:
    """The error of the model's own output against the teacher's, padding left out: what it is depends on the task.

    Logits: divergence.  A base model: the pooled embedding.  Other heads: squared error of every tensor they give.
    """
    answer = HEADS[task].answer
    if answer == "embedding":
        hidden, wanted = student.last_hidden_state.float(), teacher.last_hidden_state.float()
        keep = _keep(real, hidden)
        return embedding_error(mean_pool(hidden, keep), mean_pool(wanted, keep))
    if answer == "any":
        return outputs_error(real, student, teacher)
    if answer == "span":
        keep = _keep(real, teacher.start_logits)
        pairs = [(student.start_logits, teacher.start_logits), (student.end_logits, teacher.end_logits)]
        return torch.stack(
            [logits_divergence(_hidden(ours, keep), _hidden(theirs, keep), temperature) for ours, theirs in pairs]
        ).sum()
    logits, wanted = student.logits, teacher.logits
    if logits.dim() == 3:
        logits, wanted = (real.pick([part], answer_stream(real.model))[0] for part in (logits, wanted))
    return logits_divergence(logits, wanted, temperature)


def outputs_error(real: RealRows, student: Any, teacher: Any) -> Tensor:
    """Squared error of each tensor that a head gives, relative to its mean square, summed over them."""
    errors = []
    for name, wanted in float_outputs(teacher).items():
        ours, theirs = (real.pick_alike(part).float() for part in (student[name], wanted))
        usable = torch.isfinite(theirs)  # what a head rules out by an infinity is no number to come near to
        ours, theirs = (part.masked_fill(~usable, 0.0) for part in (ours, theirs))
        errors.append((ours - theirs).square().sum() / theirs.square().sum().clamp_min(1e-12))
    return torch.stack(errors).sum()


@torch.no_grad()
def check_outputs(pretrained: Pretrained, batch: Mapping[str, Tensor]) -> None:
    """Raise ModelError where a head of an unknown kind does not run on the data, or gives nothing to distil."""
    model: Any = pretrained.model
    if HEADS[pretrained.task].answer != "any":
        return
    inputs = {key: value.to(model.device) for key, value in accepted(model, batch).items()}
    try:
        found = float_outputs(model(**inputs, return_dict=True))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        raise ModelError(
            f"{type(model).__name__} does not run on {', '.join(inputs)} alone: {str(error).partition(chr(10))[0]}",
            where=pretrained.source,
            remedy="give all that it reads: `source: jsonl`, with `fields` for the arguments of its processor",
        ) from error
    if not found:
        raise ModelError(
            f"{type(model).__name__} gives no numbers that could be distilled",
            where=pretrained.source,
            remedy="convert its base model: AutoModel.from_pretrained(MODEL).save_pretrained(FOLDER)",
        )


def float_outputs(output: Any) -> dict[str, Tensor]:
    """Tensors of numbers among a model's outputs, by name."""
    return {
        name: value
        for name, value in output.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() and name != "loss"
    }


def _keep(real: RealRows, output: Tensor) -> Tensor | None:
    """Which positions of an output [B, T, ...] are no padding, where it is; None: all."""
    mask = real.mask("main", output.shape[1])
    return None if mask is None else upload(mask, output.device)


def _hidden(logits: Tensor, keep: Tensor | None) -> Tensor:
    """Logits [B, T] that give padding no probability."""
    return logits if keep is None else logits.float().masked_fill(~keep, _NOWHERE)
