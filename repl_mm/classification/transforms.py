"""Transforms of single pictures that mmcv lacks; mmcv's own are found by name too. Images are BGR, as mm has them."""

import math

import mmcv
import mmcv.transforms  # noqa: F401  (registers mmcv's transforms)
import numpy as np
import torch
from mmcv.transforms import BaseTransform

from ..pictures import read_image
from ..registry import TRANSFORMS

GRAY = 128  # where a geometric operation leaves nothing


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Read a picture, ``img_path``, as ``img`` (H, W, 3).

    Raises:
        DataError: The file is missing, cut off, or no picture.
    """

    def transform(self, results: dict) -> dict:
        image = read_image(results['img_path'])
        return dict(results, img=image, img_shape=image.shape[:2])


@TRANSFORMS.register_module()
class RandomResizedCrop(BaseTransform):
    """Cut out a random part of an image and resize it to a square.

    Args:
        size (int): Pixels of each side.
        area (tuple[float]): Smallest and largest share of the image's area. Defaults to (0.08, 1).
        aspect (float): The sides' ratio is between ``aspect`` and its inverse. Defaults to 3/4.
        interpolation (str): As of mmcv's ``imresize``. Defaults to 'bilinear'.
    """

    def __init__(self, size: int, area=(0.08, 1.0), aspect: float = 3 / 4, interpolation: str = 'bilinear'):
        self.size = size
        self.area = area
        self.aspect = aspect
        self.interpolation = interpolation

    def transform(self, results: dict) -> dict:
        image = results['img']
        top, left, height, width = self.window(*image.shape[:2])
        image = image[top : top + height, left : left + width]
        image = mmcv.imresize(image, (self.size, self.size), interpolation=self.interpolation)
        return dict(results, img=image, img_shape=image.shape[:2])

    def window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of a random part; of the largest one in the middle if ten did not fit."""
        for _ in range(10):
            area = np.random.uniform(*self.area) * height * width
            ratio = self.aspect ** np.random.uniform(-1, 1)
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return np.random.randint(height - h + 1), np.random.randint(width - w + 1), h, w
        w, h = min(width, round(height / self.aspect)), min(height, round(width / self.aspect))
        return (height - h) // 2, (width - w) // 2, h, w


def _enhance(function):
    return lambda image, m: function(image, 1 + 0.9 * m)


def _shear(direction):
    return lambda image, m: mmcv.imshear(image, 0.3 * m, direction, border_value=GRAY)


def _translate(direction, axis):
    return lambda image, m: mmcv.imtranslate(image, 0.45 * m * image.shape[axis], direction, border_value=GRAY)


# name: what it does to an image at a magnitude in -1..1, on the functions of mmcv
OPERATIONS = {
    'auto_contrast': lambda image, m: mmcv.auto_contrast(image),
    'equalize': lambda image, m: mmcv.imequalize(image),
    'invert': lambda image, m: mmcv.iminvert(image),
    'posterize': lambda image, m: mmcv.posterize(image, 8 - int(4 * abs(m))),
    'solarize': lambda image, m: mmcv.solarize(image, 256 - int(256 * abs(m))),
    'color': _enhance(mmcv.adjust_color),
    'contrast': _enhance(mmcv.adjust_contrast),
    'brightness': _enhance(mmcv.adjust_brightness),
    'sharpness': _enhance(mmcv.adjust_sharpness),
    'rotate': lambda image, m: mmcv.imrotate(image, 30 * m, border_value=GRAY),
    'shear_x': _shear('horizontal'),
    'shear_y': _shear('vertical'),
    'translate_x': _translate('horizontal', 1),
    'translate_y': _translate('vertical', 0),
}


@TRANSFORMS.register_module()
class RandAugment(BaseTransform):
    """RandAugment: a few random operations out of :data:`OPERATIONS`.

    Args:
        num_ops (int): Operations per image. Defaults to 2.
        magnitude (float): Mean of their magnitudes, from 0 to 10. Defaults to 9.
        std (float): Standard deviation of the magnitudes. Defaults to 0.5.
        prob (float): Probability that a chosen operation is carried out. Defaults to 0.5.
    """

    def __init__(self, num_ops: int = 2, magnitude: float = 9, std: float = 0.5, prob: float = 0.5):
        if not 0 <= magnitude <= 10:
            raise ValueError(f'RandAugment.magnitude={magnitude!r} is not valid: expected a number from 0 to 10')
        self.num_ops = num_ops
        self.magnitude = magnitude
        self.std = std
        self.prob = prob

    def transform(self, results: dict) -> dict:
        image = results['img']
        for name in np.random.choice(list(OPERATIONS), self.num_ops):
            if np.random.rand() < self.prob:
                magnitude = np.clip(np.random.normal(self.magnitude, self.std), 0, 10) / 10
                image = OPERATIONS[name](image, np.random.choice((-1, 1)) * magnitude)
        return dict(results, img=image)


@TRANSFORMS.register_module()
class PackImage(BaseTransform):
    """End of a pipeline: the image as ``inputs``, a tensor (3, H, W) in RGB order, and its label as ``labels``."""

    def transform(self, results: dict) -> dict:
        image = np.ascontiguousarray(results['img'][..., ::-1].transpose(2, 0, 1))
        return dict(inputs=torch.from_numpy(image), labels=results['label'])
