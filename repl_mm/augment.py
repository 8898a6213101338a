"""Shifts and mirror images of whole batches, on the device where they are: every image gets its own random numbers.

A batch transform takes images (N, C, H, W) and labels, classes (N,) or their probabilities (N, classes); it returns
both. :mod:`repl_mm.classification.augment` has more of them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .registry import MODELS


def check_range(owner: nn.Module, low: float, high: float, **values) -> None:
    """Set the values as attributes.

    Raises:
        ValueError: One is not in ``low..high``.
    """
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            name = type(owner).__name__
            raise ValueError(f'{name}.{key}={value!r} is not valid: expected a number from {low:g} to {high:g}')
        setattr(owner, key, value)


@MODELS.register_module()
class BatchCrop(nn.Module):
    """Shift every image by up to ``padding`` pixels and fill with zeros: pad and crop.

    Args:
        padding (int): Pixels on each side. Defaults to 4.
    """

    def __init__(self, padding: int = 4):
        super().__init__()
        if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
            raise ValueError(f'BatchCrop.padding={padding!r} is not valid: expected an integer of at least 0')
        self.padding = padding

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        num, _, height, width = images.shape
        top, left = torch.randint(2 * self.padding + 1, (2, num, 1), device=images.device)
        rows = top + torch.arange(height, device=images.device)
        columns = left + torch.arange(width, device=images.device)
        padded = F.pad(images, 4 * [self.padding]).permute(0, 2, 3, 1)
        batch = torch.arange(num, device=images.device)[:, None, None]
        return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2), labels


@MODELS.register_module()
class BatchFlip(nn.Module):
    """Mirror images, left to right.

    Args:
        prob (float): Share of the images. Defaults to 0.5.
    """

    def __init__(self, prob: float = 0.5):
        super().__init__()
        check_range(self, 0, 1, prob=prob)

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < self.prob
        return torch.where(chosen, images.flip(3), images), labels
