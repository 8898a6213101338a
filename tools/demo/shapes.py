"""The shapes of the mini dataset: their outlines, and the pixels inside."""

import math

import cv2
import numpy as np

CLASSES = ('square', 'triangle', 'star', 'ring')

_SUBPIXEL = 4  # fractional bits of the coordinates that cv2.fillPoly takes


def regular(num, radius=1.0, phase=0.0):
    """Corners of a regular polygon around the origin, (num, 2)."""
    angle = phase + 2 * math.pi * np.arange(num) / num
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def outline(name):
    """Contours of a shape of about unit radius around the origin.

    Args:
        name (str): One of :data:`CLASSES`.

    Returns:
        list[np.ndarray]: Closed contours (n, 2) as (x, y); a second contour is a hole.
    """
    if name == 'ring':
        return [regular(48), regular(48, radius=0.55)]
    if name == 'square':
        return [regular(4, radius=1.15)]
    if name == 'triangle':
        return [regular(3, radius=1.2)]
    if name == 'star':
        points = np.empty((10, 2))
        points[0::2] = regular(5, radius=1.2)
        points[1::2] = regular(5, radius=0.5, phase=math.pi / 5)
        return [points]
    raise ValueError(f"unknown shape '{name}', valid are {', '.join(CLASSES)}")


def place(contours, center, radius, angle, squeeze):
    """Contours squeezed along x, rotated, scaled and moved to ``center`` (x, y)."""
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = radius * np.array([[cos, -sin], [sin, cos]]) @ np.diag([squeeze, 1.0])
    return [contour @ matrix.T + center for contour in contours]


def fill(contours, size):
    """Boolean mask (h, w) of the pixels inside the contours."""
    mask = np.zeros(size, np.uint8)
    fixed = [np.round(contour * 2**_SUBPIXEL).astype(np.int32) for contour in contours]
    cv2.fillPoly(mask, fixed, 1, shift=_SUBPIXEL)
    return mask.astype(bool)
