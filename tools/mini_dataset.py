"""Generates the mini dataset: scenes of textured shapes with occlusion and clutter, with exact masks.

Nothing is downloaded and the same settings always give the same files::

    python tools/mini_dataset.py --out data/mini

writes a COCO folder::

    data/mini/
        annotations/instances_train.json   instances_val.json
        train/000000.jpg ...               val/000000.jpg ...
        mini_dataset.json                  the settings; a second call with the same ones does nothing

With ``--layout cityscapes`` the same scenes become a folder as the official Cityscapes dataset is laid out::

    data/mini_cityscapes/
        leftImg8bit/train/minitrain/minitrain_000000_000000_leftImg8bit.png ...        val/minival/...
        gtFine/train/minitrain/minitrain_000000_000000_gtFine_labelIds.png ...         val/minival/...
                               minitrain_000000_000000_gtFine_labelTrainIds.png ...
                               minitrain_000000_000000_gtFine_instanceIds.png ...
        mini_dataset.json

With ``--layout imagenet`` pictures are closeups of one object, each in the folder of its class, for classification::

    data/mini_imagenet/
        train/ring/000003.jpg ...   train/square/   train/star/   train/triangle/          val/ring/000003.jpg ...
        mini_dataset.json

:func:`scene` draws one picture with its instance map and knows nothing of files; the writer of a layout only decides
how scenes lie on disk.
"""

import argparse
import json
import math
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_utils
from rich.progress import track

CLASSES = ('square', 'triangle', 'star', 'ring')
# What is drawn -> the Cityscapes class that stands for it. Each has an official category of its own; cars and persons
# are told apart as instances there. A frame of void pixels is ignored in training and in evaluation.
CITYSCAPES = dict(
    background='road', square='car', triangle='traffic sign', star='person', ring='vegetation', frame='out of roi'
)
STAMP = 'mini_dataset.json'
VERSION = 2  # raise when a change of the drawing code changes the pictures

_SUBPIXEL = 4  # fractional bits of the coordinates that cv2.fillPoly takes
_FRAME = 2  # pixels, width of the void frame of the Cityscapes layout
_OCCLUDED = 255  # in the instance map while drawing: taken by clutter in front of everything


def _regular(num, radius=1.0, phase=0.0):
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
        return [_regular(48), _regular(48, radius=0.55)]
    if name == 'square':
        return [_regular(4, radius=1.15)]
    if name == 'triangle':
        return [_regular(3, radius=1.2)]
    if name == 'star':
        points = np.empty((10, 2))
        points[0::2] = _regular(5, radius=1.2)
        points[1::2] = _regular(5, radius=0.5, phase=math.pi / 5)
        return [points]
    raise ValueError(f"unknown shape '{name}', valid are {', '.join(CLASSES)}")


def _place(contours, center, radius, angle, squeeze):
    """Contours squeezed along x, rotated, scaled and moved to ``center`` (x, y)."""
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = radius * np.array([[cos, -sin], [sin, cos]]) @ np.diag([squeeze, 1.0])
    return [contour @ matrix.T + center for contour in contours]


def _fill(contours, size):
    """Boolean mask (h, w) of the pixels inside the contours."""
    mask = np.zeros(size, np.uint8)
    fixed = [np.round(contour * 2**_SUBPIXEL).astype(np.int32) for contour in contours]
    cv2.fillPoly(mask, fixed, 1, shift=_SUBPIXEL)
    return mask.astype(bool)


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
    """Paints a randomly textured ``color`` onto the pixels of ``mask``, in place."""
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
        return _fill([_regular(9) * radius + start], size)
    return mask.astype(bool)


def scene(rng, size, num_objects=None, min_visible=0.5):
    """Draws one scene.

    Objects are laid from front to back: each takes the pixels that are still free, so the instance map holds exactly
    the visible pixels, and an object that would be hidden or cut off too much is not drawn at all. No object in the
    picture is without its label.

    Args:
        rng (np.random.Generator): Source of all randomness.
        size (tuple[int]): Height and width in pixels.
        num_objects (int, optional): How many objects to try. Defaults to a random number from 2 to 5.
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
        contours = _place(
            outline(CLASSES[label]), center, radius, rng.uniform(0, 2 * math.pi), squeeze=rng.uniform(0.75, 1.0)
        )
        visible = _fill(contours, size) & (instances == 0)
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
    """Yields ``num`` scenes of a split; scene ``i`` depends on nothing but (seed, split, i).

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


def coco_annotations(instances, labels):
    """COCO annotations of one scene, exact to the pixel.

    Args:
        instances (np.ndarray): Instance map as :func:`scene` returns.
        labels (np.ndarray): Class indices of the objects.

    Returns:
        list[dict]: ``category_id`` (class index + 1), ``bbox`` (x, y, w, h) and ``area`` of the visible pixels,
        ``segmentation`` as compressed RLE, ``iscrowd`` 0. Ids are left to the writer.
    """
    masks = instances[..., None] == np.arange(1, len(labels) + 1)
    rles = mask_utils.encode(np.asfortranarray(masks, dtype=np.uint8))
    return [
        dict(
            category_id=int(label) + 1,
            bbox=mask_utils.toBbox(rle).tolist(),
            area=int(mask_utils.area(rle)),
            segmentation=dict(size=rle['size'], counts=rle['counts'].decode('ascii')),
            iscrowd=0,
        )
        for label, rle in zip(labels, rles, strict=True)
    ]


def _write_coco_split(folder, split, num, size, seed):
    """Writes the pictures and the annotation file of one split."""
    (folder / split).mkdir(parents=True)
    (folder / 'annotations').mkdir(exist_ok=True)
    images, annotations = [], []
    for i, (image, instances, labels) in enumerate(track(scenes(split, num, size, seed), f'{split} scenes', num)):
        name = f'{i:06d}.jpg'
        cv2.imwrite(str(folder / split / name), image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        images.append(dict(id=i + 1, file_name=name, height=size[0], width=size[1]))
        for annotation in coco_annotations(instances, labels):
            annotations.append(dict(id=len(annotations) + 1, image_id=i + 1, **annotation))
    content = dict(
        info=dict(description='repl_mm mini dataset'),
        images=images,
        annotations=annotations,
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)],
    )
    (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def cityscapes_labels(instances, labels):
    """Label maps of one scene as Cityscapes has them.

    Args:
        instances (np.ndarray): Instance map as :func:`scene` returns.
        labels (np.ndarray): Class indices of the objects.

    Returns:
        dict[str, np.ndarray]: The maps (h, w) by the word in their file names:

            - ``labelIds``: uint8, official ids.
            - ``labelTrainIds``: uint8, 0 to 18, and 255 where nothing is to be learned.
            - ``instanceIds``: uint16, ``1000 * id + number`` of the object within its class for classes with
              instances, the id elsewhere.
    """
    from cityscapesscripts.helpers.labels import name2label

    classes = [name2label[CITYSCAPES[name]] for name in ('background', *(CLASSES[label] for label in labels))]
    frame = np.pad(np.zeros(np.subtract(instances.shape, 2 * _FRAME), bool), _FRAME, constant_values=True)
    maps = {}
    for kind, key in (('labelIds', 'id'), ('labelTrainIds', 'trainId')):
        maps[kind] = np.array([getattr(label, key) for label in classes], np.uint8)[instances]
        maps[kind][frame] = getattr(name2label[CITYSCAPES['frame']], key)
    numbers = [
        1000 * label.id + classes[1:i].count(label) if label.hasInstances else label.id
        for i, label in enumerate(classes)
    ]
    maps['instanceIds'] = np.where(frame, maps['labelIds'], np.array(numbers, np.uint16)[instances])
    return maps


def _write_cityscapes_split(folder, split, num, size, seed):
    """Writes the pictures and the label maps of one split, which is one city."""
    city = f'mini{split}'
    image_dir, label_dir = (folder / kind / split / city for kind in ('leftImg8bit', 'gtFine'))
    image_dir.mkdir(parents=True)
    label_dir.mkdir(parents=True)
    for i, (image, instances, labels) in enumerate(track(scenes(split, num, size, seed), f'{split} scenes', num)):
        name = f'{city}_{i:06d}_000000'  # city, sequence, frame
        cv2.imwrite(str(image_dir / f'{name}_leftImg8bit.png'), image)
        for kind, label_map in cityscapes_labels(instances, labels).items():
            cv2.imwrite(str(label_dir / f'{name}_gtFine_{kind}.png'), label_map)


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


def _write_imagenet_split(folder, split, num, size, seed):
    """Writes the pictures of one split, each into the folder of its class."""
    larger = tuple(side * 3 // 2 for side in size)
    drawn = scenes(split, num, larger, seed, single=True)
    for i, (image, instances, labels) in enumerate(track(drawn, f'{split} scenes', num)):
        path = folder / split / CLASSES[labels[0]] / f'{i:06d}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), closeup(image, instances, size), [cv2.IMWRITE_JPEG_QUALITY, 95])


LAYOUTS = dict(coco=_write_coco_split, cityscapes=_write_cityscapes_split, imagenet=_write_imagenet_split)


def write(layout, out_dir, num_train=1000, num_val=150, size=(96, 96), seed=0):
    """Writes the dataset, whole or not at all.

    Args:
        layout (str): One of :data:`LAYOUTS`.
        out_dir (str | Path): Folder to write. One that holds other settings of this dataset is replaced.
        num_train (int): Training images. Defaults to 1000.
        num_val (int): Validation images. Defaults to 150.
        size (tuple[int]): Height and width. Defaults to (96, 96).
        seed (int): Seed. Defaults to 0.

    Returns:
        bool: False if the folder was there already with the same settings.

    Raises:
        FileExistsError: ``out_dir`` exists and was not written by this function.
        ValueError: The layout is unknown, there is no image in a split, or a side is too short.
    """
    height, width = size
    settings = dict(
        version=VERSION, layout=layout, num_train=num_train, num_val=num_val, size=[height, width], seed=seed
    )
    if layout not in LAYOUTS:
        raise ValueError(f'layout={layout!r}: must be one of {", ".join(LAYOUTS)}')
    if min(num_train, num_val) < 1:
        raise ValueError(f'num_train={num_train}, num_val={num_val}: both must be at least 1')
    if min(height, width) < 32:
        raise ValueError(f'size={(height, width)}: both sides must be at least 32 pixels')
    out_dir = Path(out_dir)
    if out_dir.exists():
        stamp = out_dir / STAMP
        if not stamp.is_file():
            raise FileExistsError(f"'{out_dir}' exists and has no {STAMP}: not a mini dataset, left as it is")
        if json.loads(stamp.read_text()) == settings:
            return False
    part = out_dir.with_name(f'{out_dir.name}.part')
    shutil.rmtree(part, ignore_errors=True)
    for split, num in (('train', num_train), ('val', num_val)):
        LAYOUTS[layout](part, split, num, (height, width), seed)
    (part / STAMP).write_text(json.dumps(settings))
    if out_dir.exists():
        shutil.rmtree(out_dir)
    os.replace(part, out_dir)
    return True


write_coco = partial(write, 'coco')
write_cityscapes = partial(write, 'cityscapes')


def main(argv=None):
    parser = argparse.ArgumentParser(description='Generate the mini dataset.')
    parser.add_argument('--layout', choices=LAYOUTS, default='coco', help='how it lies on disk (default: %(default)s)')
    parser.add_argument('--out', help='folder to write (default: data/mini, for other layouts data/mini_LAYOUT)')
    parser.add_argument('--num-train', type=int, default=1000, help='training images (default: %(default)s)')
    parser.add_argument('--num-val', type=int, default=150, help='validation images (default: %(default)s)')
    parser.add_argument(
        '--size', type=int, nargs=2, default=(96, 96), metavar=('H', 'W'), help='image size (default: 96 96)'
    )
    parser.add_argument('--seed', type=int, default=0, help='default: %(default)s')
    args = parser.parse_args(argv)
    out = args.out or 'data/mini' + (f'_{args.layout}' if args.layout != 'coco' else '')
    try:
        written = write(args.layout, out, args.num_train, args.num_val, args.size, args.seed)
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))
    print(f'{out}: ' + ('written' if written else 'is there already, nothing to do'))


if __name__ == '__main__':
    sys.exit(main())
