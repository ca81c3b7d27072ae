"""The loss of a step: soft targets, label smoothing, hardness weights and the SOTA head's own terms.

Array names: B batch, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from qdeploy.models.classifier import Paths
from qdeploy.training.recipes import TrainConfig
from qdeploy.training.schedule import Settings


def soft_cross_entropy(logits_BK: Tensor, target_BK: Tensor, smoothing: float = 0.0, hardness: bool = False) -> Tensor:
    """Return the mean cross-entropy against soft targets.

    Args:
        logits_BK: Float32 logits.
        target_BK: Probabilities; each row sums to one.
        smoothing: Share of the target that is spread over all classes, in [0, 1).
        hardness: Weigh each image by ``1 + (1 - p)``, p the detached probability of its target, and divide the
            weights by their mean (paper, III.C; the weighting's form is ours).
    """
    losses_B = F.cross_entropy(logits_BK, target_BK, label_smoothing=smoothing, reduction="none")
    return (losses_B * hardness_weights(logits_BK, target_BK)).mean() if hardness else losses_B.mean()


@torch.no_grad()
def hardness_weights(logits_BK: Tensor, target_BK: Tensor) -> Tensor:
    """Return the weight of each image, ``[B]``: between 2/3 and 2 or so, with mean 1."""
    weights_B = 2.0 - (logits_BK.softmax(dim=1) * target_BK).sum(dim=1)
    return weights_B / weights_B.mean()


def distillation_loss(logits_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """Return the mean divergence of the student from its teacher at a temperature, times its square.

    The square keeps the size of the gradient the same whatever the temperature (Hinton et al., 2015).
    """
    student_BK = (logits_BK / temperature).log_softmax(dim=1)
    return temperature**2 * F.kl_div(student_BK, teacher_BK, reduction="batchmean")


def total_loss(
    paths: Paths, target_BK: Tensor, config: TrainConfig, settings: Settings, teacher_BK: Tensor | None = None
) -> Tensor:
    """Add up the losses: labels and teacher, auxiliary path (0.4 falling to 0.2), transformer path (if asked for)."""
    loss = soft_cross_entropy(paths.logits.float(), target_BK, settings.label_smoothing, config.hardness)
    if teacher_BK is not None:
        taught = distillation_loss(paths.logits.float(), teacher_BK, config.distill_temperature)
        loss = (1.0 - config.distill_weight) * loss + config.distill_weight * taught
    if paths.auxiliary is not None and settings.auxiliary_weight:
        loss = loss + settings.auxiliary_weight * soft_cross_entropy(paths.auxiliary.float(), target_BK)
    if paths.transformer is not None and config.deep_supervision:
        loss = loss + config.deep_supervision * soft_cross_entropy(paths.transformer.float(), target_BK)
    return loss
