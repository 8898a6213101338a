"""Augmentation of whole batches, on the device where they are: every image gets its own random numbers.

A batch transform takes images (N, C, H, W) and labels, classes (N,) or their probabilities (N, classes); it returns
both.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..augment import BatchCrop, BatchFlip, check_range  # noqa: F401  (the two are batch transforms too)
from ..registry import MODELS


def _boxes(images: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
    """A rectangle in each image: its height and width (N,) in pixels, cut to the image's, at a random place in it.

    Returns:
        Tensor: True inside, (N, 1, H, W).
    """
    inside = []
    for size, sides in zip(images.shape[2:], (heights, widths), strict=True):
        sides = sides.round().clamp(0, size)
        start = (torch.rand_like(sides) * (size - sides + 1)).floor()[:, None]
        places = torch.arange(size, device=images.device)
        inside.append((places >= start) & (places < start + sides[:, None]))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


@MODELS.register_module()
class BatchErase(nn.Module):
    """Put noise into a rectangle of an image (random erasing).

    Args:
        prob (float): Share of the images. Defaults to 0.25.
        area (tuple[float]): Smallest and largest share of the image's area. Defaults to (0.02, 0.33).
        aspect (float): The sides' ratio is between ``aspect`` and its inverse; sides are cut to the image's.
            Defaults to 0.3.
    """

    def __init__(self, prob: float = 0.25, area=(0.02, 0.33), aspect: float = 0.3):
        super().__init__()
        check_range(self, 0, 1, prob=prob)
        check_range(self, 0.01, 1, aspect=aspect)
        if len(area) != 2 or not 0 <= area[0] <= area[1] <= 1:
            raise ValueError(f'BatchErase.area={area!r} is not valid: expected two rising numbers from 0 to 1')
        self.area = area

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        share, ratio, chosen = torch.rand(3, len(images), device=images.device)
        low, high = self.area
        area = (low + share * (high - low)) * images.shape[2] * images.shape[3] * (chosen < self.prob)
        ratio = self.aspect ** (2 * ratio - 1)
        inside = _boxes(images, (area * ratio).sqrt(), (area / ratio).sqrt())
        return torch.where(inside, torch.randn_like(images), images), labels


@MODELS.register_module()
class BatchMix(nn.Module):
    """Mixup and CutMix: mix every image with its partner, the image at its place in the reversed batch.

    An image is mixed by one of the two, both alike if both are on; its label becomes the mixture of the two labels.

    Args:
        num_classes (int): Number of classes.
        mixup (float): Parameter of mixup's beta distribution; 0: no mixup. Defaults to 0.8.
        cutmix (float): Parameter of CutMix's beta distribution; 0: no CutMix. Defaults to 1.
        prob (float): Share of the images that are mixed. Defaults to 1.
    """

    def __init__(self, num_classes: int, mixup: float = 0.8, cutmix: float = 1.0, prob: float = 1.0):
        super().__init__()
        check_range(self, 0, 1, prob=prob)
        check_range(self, 0, 1000, mixup=mixup, cutmix=cutmix)
        if not mixup and not cutmix:
            raise ValueError('BatchMix.mixup=0 and BatchMix.cutmix=0 leave nothing to do: expected one above 0')
        self.num_classes = num_classes

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        num, _, height, width = images.shape
        labels = F.one_hot(labels, self.num_classes).float() if labels.dim() == 1 else labels
        share = 0.5 if self.mixup and self.cutmix else float(self.cutmix > 0)
        cut = torch.rand(num, device=images.device) < share
        keep = torch.where(cut, self._beta(self.cutmix, images), self._beta(self.mixup, images))
        keep = torch.where(torch.rand(num, device=images.device) < self.prob, keep, 1.0)
        side = (1 - keep).sqrt()
        inside = _boxes(images, side * height, side * width)
        # the share of the image itself, at every pixel
        own = torch.where(cut[:, None, None, None], (~inside).float(), keep[:, None, None, None])
        images = own * images + (1 - own) * images.flip(0)
        own = own.mean((2, 3))
        return images, own * labels + (1 - own) * labels.flip(0)

    @staticmethod
    def _beta(parameter: float, images: Tensor) -> Tensor:
        parameter = torch.tensor(float(parameter or 1), device=images.device)
        return torch.distributions.Beta(parameter, parameter).sample((len(images),))
