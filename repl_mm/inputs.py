"""Example inputs: what a backbone is measured on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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

    def fitted(self, settings: Mapping) -> 'ImageInput':
        """Return the same input with as many channels as a backbone of these settings takes."""
        return ImageInput((settings.get('in_channels', 3), *self.shape[-2:]), self.batch)

    def make(self, device: torch.device | str = 'cpu') -> torch.Tensor:
        """Return random images ``(batch, channels, height, width)`` on a device."""
        return torch.rand(self.batch, *(3, *self.shape)[-3:], device=device)

    def __str__(self) -> str:
        return f'{self.shape[-2]}x{self.shape[-1]}, batch {self.batch}'


@dataclass(frozen=True)
class WordInput:
    """A batch of texts, as numbers of words.

    Args:
        shape (Sequence[int]): The number of words of a text, alone.
        batch (int): Texts in a step. Defaults to 2.
        vocabulary (int): Number of different words. Defaults to 2.

    Raises:
        ValueError: It is no length of a text, or no number of texts.
    """

    shape: Sequence[int]
    batch: int = 2
    vocabulary: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, 'shape', tuple(self.shape))
        if len(self.shape) != 1 or self.shape[0] < 1:
            raise ValueError(f'shape={self.shape} is no length of a text: give one number, for instance 128')
        if self.batch < 1:
            raise ValueError(f'batch={self.batch} is no number of texts: give a whole number of at least 1')

    def fitted(self, settings: Mapping) -> 'WordInput':
        """Return the same input with the vocabulary of a backbone of these settings."""
        return replace(self, vocabulary=settings.get('vocab_size', self.vocabulary))

    def make(self, device: torch.device | str = 'cpu') -> torch.Tensor:
        """Return random texts ``(batch, words)`` on a device."""
        return torch.randint(self.vocabulary, (self.batch, *self.shape), device=device)

    def __str__(self) -> str:
        return f'{self.shape[0]} words, batch {self.batch}'


def make_input(shape: Sequence[int], batch: int = 2) -> ImageInput | WordInput:
    """Return texts for one number, images for several.

    Args:
        shape (Sequence[int]): Height and width, or the number of words.
        batch (int): Images or texts in a step. Defaults to 2.
    """
    return (WordInput if len(shape) == 1 else ImageInput)(shape, batch)
