"""Statistics for the batch norms of computing layers that start from stock weights.

Operators 'full' and 'half' have such norms. Under ``norm_eval=True`` they would keep mean 0 and variance 1 for ever.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .surgery import computing_layers


def uncalibrated(backbone: nn.Module) -> list[_BatchNorm]:
    """Batch norms of computing layers which have seen no data and are in eval mode, so would never learn from it."""
    return [
        module
        for _, layer in computing_layers(backbone)
        for module in layer.modules()
        if isinstance(module, _BatchNorm)
        and module.track_running_stats
        and not module.training
        and int(module.num_batches_tracked) == 0
    ]


@torch.no_grad()
def calibrate(backbone: nn.Module, images: Iterable[Tensor]) -> int:
    """Set the running statistics of the computing layers' batch norms to averages over batches, in place.

    One pass is exact: a norm that is being calibrated normalizes by the batch's own statistics, so that the layers
    behind it see what they will see in training.

    Args:
        backbone (nn.Module): A backbone with computing layers, in the mode in which it is trained.
        images (Iterable[Tensor]): Batches of normalized images, each ``(N, 3, H, W)``.

    Returns:
        int: Number of norms calibrated; 0 if there is none to do, and then ``images`` is not touched.
    """
    norms = uncalibrated(backbone)
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.train()
            norm.momentum = None  # cumulative average
        for batch in images:
            backbone(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum
    return len(norms)
