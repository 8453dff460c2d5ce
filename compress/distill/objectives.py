"""What distillation minimises: errors behind residual and norm, and errors of the model's own output."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..models import Task
from .activations import Activations


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


def output_error(task: Task, student: object, teacher: object, keep: Tensor | None, temperature: float) -> Tensor:
    """The task's own output against the teacher's: logits where the model has them, else the pooled embedding."""
    if task == "embedding":
        pair = (getattr(out, "last_hidden_state") for out in (student, teacher))  # noqa: B009
        return embedding_error(*(mean_pool(hidden, keep) for hidden in pair))
    logits, wanted = getattr(student, "logits"), getattr(teacher, "logits")  # noqa: B009
    if logits.dim() == 3:
        rows = slice(None) if keep is None else keep.reshape(-1)
        logits, wanted = (part.reshape(-1, part.shape[-1])[rows] for part in (logits, wanted))
    return logits_divergence(logits, wanted, temperature)
