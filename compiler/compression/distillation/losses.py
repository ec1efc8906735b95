"""What a student is asked to imitate. Each loss is a mean, so batches of any size weigh the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def response(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Kullback-Leibler divergence of softened class probabilities, times the temperature squared so that gradients keep
    their size (Hinton et al., arXiv:1503.02531).

    Args:
        student, teacher: logits (..., classes).
    """
    from torch.nn import functional

    count = student.shape[-1]
    own = functional.log_softmax(student.reshape(-1, count) / temperature, dim=-1)
    wanted = functional.log_softmax(teacher.reshape(-1, count) / temperature, dim=-1)
    return functional.kl_div(own, wanted, reduction="batchmean", log_target=True) * temperature**2


def regression(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference, for outputs that are no logits and for features."""
    from torch.nn import functional

    return functional.mse_loss(student, teacher)


def relation(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Distances between the examples of a batch, relative to their mean, and the angles they form (Park et al.,
    arXiv:1904.05068, with its weights of 1 and 2). The two may be of different width.

    Args:
        student, teacher: features (batch, ...), of one batch size, at least 2.
    """
    from torch.nn import functional

    own, wanted = student.flatten(1), teacher.flatten(1)
    distance = functional.smooth_l1_loss(_distances(own), _distances(wanted))
    angle = functional.smooth_l1_loss(_angles(own), _angles(wanted))
    return distance + 2 * angle


def _distances(features: torch.Tensor) -> torch.Tensor:
    """Between each two different examples, over their mean."""
    import torch

    count = len(features)
    first, second = torch.triu_indices(count, count, 1)
    distances = (features[first] - features[second]).norm(dim=1)
    return distances / distances.detach().mean().clamp_min(1e-12)


def _angles(features: torch.Tensor) -> torch.Tensor:
    """Cosines of the angles at each example between the directions to two others, (batch, batch, batch)."""
    from torch.nn import functional

    directions = functional.normalize(features[:, None] - features[None], dim=2, eps=1e-12)
    return directions @ directions.transpose(1, 2)
