"""Example inputs: what a backbone is measured on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ImageInput:
    """A batch of images.

    Args:
        shape (Sequence[int]): Height and width in pixels, or channels, height and width. Defaults to (800, 1344).
        batch (int): Images in a step. Defaults to 2.

    Raises:
        ValueError: It is no size of an image, or no number of images.
    """

    shape: Sequence[int] = (800, 1344)
    batch: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, 'shape', tuple(self.shape))
        if len(self.shape) not in (2, 3) or any(size < 1 for size in self.shape):
            raise ValueError(f'shape={self.shape} is no image size: give height and width, for instance 800 1344')
        if self.batch < 1:
            raise ValueError(f'batch={self.batch} is no number of images: give a whole number of at least 1')

    def with_channels(self, channels: int) -> 'ImageInput':
        """Return the same input with another number of channels."""
        return ImageInput((channels, *self.shape[-2:]), self.batch)

    def make(self, device: torch.device | str = 'cpu') -> torch.Tensor:
        """Return random images ``(batch, channels, height, width)`` on a device."""
        return torch.rand(self.batch, *(3, *self.shape)[-3:], device=device)

    def __str__(self) -> str:
        return f'{self.shape[-2]}x{self.shape[-1]}, batch {self.batch}'
