"""Pictures of the mini dataset: textured shapes with occlusion and clutter, each with its exact instance map."""

import math

import cv2
import numpy as np
from shapes import CLASSES, fill, outline, place, regular

_OCCLUDED = 255  # in the instance map while drawing: taken by clutter in front of everything


def _smooth_noise(rng, size, cells):
    """Smooth random field (h, w) in about [-1, 1], ``cells`` bumps across."""
    coarse = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    return cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)


def _pattern(rng, x, y, radius):
    """Texture in [-1, 1] at the coordinates (x, y) of a shape: stripes, checks, dots, rings, speckle or plain."""
    kind = rng.integers(6)
    frequency = math.pi * rng.uniform(1.5, 4.0) / radius
    if kind == 0:
        return np.sign(np.sin(frequency * x))
    if kind == 1:
        return np.sign(np.sin(frequency * x) * np.sin(frequency * y))
    if kind == 2:
        return np.where(np.cos(frequency * x) + np.cos(frequency * y) > 0.7, 1.0, -0.4)
    if kind == 3:
        return np.sin(frequency * np.hypot(x, y))
    if kind == 4:
        return np.clip(rng.normal(0, 0.7, x.shape), -1, 1)
    return x / radius


def _paint(rng, image, mask, center, radius, color):
    """Paint a randomly textured ``color`` onto the pixels of ``mask``, in place."""
    row, col = np.nonzero(mask)
    angle = rng.uniform(0, 2 * math.pi)
    x, y = col - center[0], row - center[1]
    u, v = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    amount = rng.uniform(15, 55)
    tint = amount * (1 + 0.5 * rng.uniform(-1, 1, 3))
    image[row, col] = color + _pattern(rng, u, v, radius)[:, None] * tint


def _background(rng, size):
    """Smooth two-colour ground with coarse and fine texture, float (h, w, 3)."""
    first, second = rng.uniform(30, 225, (2, 3))
    blend = 0.5 + 0.5 * _smooth_noise(rng, size, int(rng.integers(1, 5)))[..., None]
    image = first * blend + second * (1 - blend)
    grain = rng.normal(0, rng.uniform(2, 10), size).astype(np.float32)
    if rng.random() < 0.5:
        grain = 3 * cv2.GaussianBlur(grain, (0, 0), rng.uniform(0.8, 2.5))
    return (image + grain[..., None]).astype(np.float32)


def _clutter(rng, size, short):
    """Mask (h, w) of one distractor: a line, an arc or a lopsided blob, which is no object of any class."""
    height, width = size
    mask = np.zeros(size, np.uint8)
    start = rng.uniform(0, 1, 2) * (width, height)
    thickness = max(1, round(short * rng.uniform(0.008, 0.03)))
    kind = rng.integers(3)
    if kind == 0:
        end = start + rng.uniform(-0.6, 0.6, 2) * short
        cv2.line(mask, np.int32(start).tolist(), np.int32(end).tolist(), 1, thickness)
    elif kind == 1:
        axes = np.int32(rng.uniform(0.05, 0.3, 2) * short).tolist()
        cv2.ellipse(mask, np.int32(start).tolist(), axes, rng.uniform(0, 360), 0, rng.uniform(60, 170), 1, thickness)
    else:
        radius = short * rng.uniform(0.03, 0.08) * rng.uniform(0.4, 1.0, (9, 1))
        return fill([regular(9) * radius + start], size)
    return mask.astype(bool)


def scene(rng, size, num_objects=None, min_visible=0.5):
    """Draw one scene.

    Objects are laid from front to back: each takes the pixels that are still free, so the instance map holds exactly
    the visible pixels, and an object that would be hidden or cut off too much is not drawn at all. No object in the
    picture is without its label.

    Args:
        rng (np.random.Generator): Source of all randomness.
        size (tuple[int]): Height and width in pixels.
        num_objects (int | None): How many objects to try. Defaults to a random number from 2 to 5.
        min_visible (float): Smallest visible share of an object's area. Defaults to 0.5.

    Returns:
        tuple:

            - image (np.ndarray): uint8 (h, w, 3), BGR as in OpenCV.
            - instances (np.ndarray): uint8 (h, w); 0 is background, object ``i`` of ``labels`` has value ``i + 1``.
            - labels (np.ndarray): int64 (n,), indices into :data:`CLASSES`.
    """
    height, width = size
    short = min(height, width)
    image = _background(rng, size)
    for _ in range(rng.integers(2, 7)):
        image[_clutter(rng, size, short)] += rng.uniform(-70, 70, 3)

    instances = np.zeros(size, np.uint8)
    front = np.zeros(size, bool)
    for _ in range(rng.integers(0, 3)):
        front |= _clutter(rng, size, short)
    instances[front] = _OCCLUDED

    labels = []
    for _ in range(rng.integers(2, 6) if num_objects is None else num_objects):
        label = int(rng.integers(len(CLASSES)))
        radius = short * math.exp(rng.uniform(math.log(0.12), math.log(0.28)))
        center = rng.uniform(0.03, 0.97, 2) * (width, height)
        contours = place(
            outline(CLASSES[label]), center, radius, rng.uniform(0, 2 * math.pi), squeeze=rng.uniform(0.75, 1.0)
        )
        visible = fill(contours, size) & (instances == 0)
        area = cv2.contourArea(contours[0].astype(np.float32))
        area -= sum(cv2.contourArea(hole.astype(np.float32)) for hole in contours[1:])
        if visible.sum() < max(1, min_visible * area):
            continue
        # an object as bright as what lies behind it could not be seen
        behind = image[visible].mean(axis=0)
        color = rng.uniform(20, 235, 3)
        while np.abs(color - behind).max() < 60:
            color = rng.uniform(20, 235, 3)
        labels.append(label)
        instances[visible] = len(labels)
        _paint(rng, image, visible, center, radius, color)

    image[front] = rng.uniform(0, 255, 3)
    instances[front] = 0
    light = 1 + rng.uniform(0.05, 0.3) * _smooth_noise(rng, size, 2)
    image = cv2.GaussianBlur(image * light[..., None], (0, 0), rng.uniform(0.4, 0.8))
    image += rng.normal(0, rng.uniform(1, 6), image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), instances, np.array(labels, np.int64)


def scenes(split, num, size, seed, single=False):
    """Yield ``num`` scenes of a split; scene ``i`` depends on nothing but (seed, split, i).

    Args:
        split (str): ``'train'`` or ``'val'``.
        num (int): Number of scenes.
        size (tuple[int]): Height and width.
        seed (int): Seed of the dataset.
        single (bool): Whether scenes have one object each, of the classes in turn. Defaults to False.

    Yields:
        tuple: As :func:`scene` returns.
    """
    for i in range(num):
        rng = np.random.default_rng([seed, ('train', 'val').index(split), i])
        drawn = scene(rng, size, 1 if single else None)
        while single and drawn[2].tolist() != [i % len(CLASSES)]:  # of another class, or hidden and without a label
            drawn = scene(rng, size, 1)
        yield drawn


def closeup(image, instances, size):
    """The part of a scene around its objects, with an eighth to spare on each side, enlarged or reduced to a size.

    Args:
        image (np.ndarray): Picture as :func:`scene` returns.
        instances (np.ndarray): Its instance map.
        size (tuple[int]): Height and width of the result.

    Returns:
        np.ndarray: uint8 (h, w, 3).
    """
    places, whole = np.argwhere(instances), np.array(instances.shape)
    low, high = places.min(axis=0), places.max(axis=0) + 1
    part = np.minimum(whole, np.ceil(1.25 * np.max((high - low) / size) * np.array(size)).astype(int))
    top, left = np.clip((low + high - part) // 2, 0, whole - part)
    return cv2.resize(image[top : top + part[0], left : left + part[1]], (size[1], size[0]))
