"""Generate the mini dataset: circles, squares, triangles and stars on plain ground, some partly hidden by others.

Colours say nothing of the class, so that a network has to look at the shape. Nothing is downloaded and the same
settings always give the same files::

    python tools/demo/mini_dataset.py --out data/mini

writes ``train`` and ``val`` with ``annotations/instances_*.json`` as COCO has them. ``--layout cityscapes`` paints the
same scenes as label maps (``leftImg8bit``, ``gtFine``) for segmentation, ``--layout imagenet`` draws one object a
picture into the folder of its class for classification. A second call with the same settings does nothing.
"""

import argparse
import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np

CLASSES = ('circle', 'square', 'triangle', 'star')
# The Cityscapes class that stands for the ground, for each shape, and for the frame of two pixels that is ignored in
# training and in evaluation. Each has an official category of its own; cars and persons also count as instances.
CITYSCAPES = ('road', 'vegetation', 'car', 'traffic sign', 'person', 'out of roi')
STAMP = 'mini_dataset.json'
VERSION = 3  # raise when a change of the drawing code changes the pictures

# distances of the corners from the centre, so that all shapes look equally large; every angle between them is the same
_CORNERS = dict(circle=[0.95] * 40, square=[1.2] * 4, triangle=[1.3] * 3, star=[1.3, 0.55] * 5)
# far enough from each other, and from the pale ground, to be told apart at a glance; BGR
_COLORS = [(60, 60, 220), (60, 150, 250), (90, 170, 50), (190, 140, 30), (200, 70, 70), (170, 60, 150), (70, 80, 110)]


def scene(rng, size, labels=None):
    """Draw one scene.

    Objects are laid from front to back: each takes the pixels that are still free, and one of which less than three
    quarters would be seen is left out.

    Args:
        rng (np.random.Generator): Source of all randomness.
        size (tuple[int]): Height and width in pixels.
        labels (Sequence[int] | None): Classes of the objects to draw, up to seven. Defaults to 2 to 5 random ones.

    Returns:
        tuple:

            - image (np.ndarray): uint8 (h, w, 3), BGR as in OpenCV.
            - instances (np.ndarray): uint8 (h, w); 0 is background, object ``i`` of ``labels`` has value ``i + 1``.
            - labels (np.ndarray): int64 (n,), indices into :data:`CLASSES`.
    """
    height, width = size
    first, second = rng.uniform(170, 250, (2, 3))
    slope = np.add.outer(rng.uniform(-0.5, 0.5) * np.linspace(-1, 1, height), np.linspace(0, 1, width))
    image = first + np.clip(slope, 0, 1)[..., None] * (second - first)
    instances, drawn = np.zeros(size, np.uint8), []
    wanted = rng.integers(len(CLASSES), size=rng.integers(2, 6)) if labels is None else labels
    for label, color in zip(wanted, rng.permutation(_COLORS), strict=False):
        radius = min(size) * rng.uniform(0.1, 0.19)
        corners = np.array(_CORNERS[CLASSES[label]])
        angle = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(len(corners)) / len(corners)
        center = rng.uniform(1.3 * radius, (width - 1.3 * radius, height - 1.3 * radius))
        points = center + radius * corners[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        shape = cv2.fillPoly(np.zeros(size, np.uint8), [np.int32(np.round(points * 16))], 1, shift=4).astype(bool)
        visible = shape & (instances == 0)
        if visible.sum() >= 0.75 * shape.sum():
            drawn.append(label)
            instances[visible] = len(drawn)
            image[visible] = color
    image = cv2.GaussianBlur(image, (0, 0), 0.6) + rng.normal(0, 4, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), instances, np.array(drawn, np.int64)


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
        yield scene(rng, size, [i % len(CLASSES)] if single else None)


def _write_coco(folder, split, num, size, seed):
    (folder / split).mkdir(parents=True)
    (folder / 'annotations').mkdir(exist_ok=True)
    images, annotations = [], []
    for i, (image, instances, labels) in enumerate(scenes(split, num, size, seed)):
        images.append(dict(id=i + 1, file_name=f'{i:06d}.jpg', height=size[0], width=size[1]))
        cv2.imwrite(str(folder / split / f'{i:06d}.jpg'), image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        for value, label in enumerate(labels, 1):
            entry = dict(id=len(annotations) + 1, image_id=i + 1, category_id=int(label) + 1, iscrowd=0)
            box = cv2.boundingRect((instances == value).astype(np.uint8))  # of what is seen: x, y, w, h
            annotations.append(entry | dict(bbox=box, area=int((instances == value).sum())))
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def _write_cityscapes(folder, split, num, size, seed):
    from cityscapesscripts.helpers.labels import name2label

    city = f'mini{split}'
    for kind in ('leftImg8bit', 'gtFine'):
        (folder / kind / split / city).mkdir(parents=True)
    for i, (image, instances, labels) in enumerate(scenes(split, num, size, seed)):
        instances[[0, 1, -2, -1]] = instances[:, [0, 1, -2, -1]] = len(labels) + 1
        kinds = [name2label[CITYSCAPES[k]] for k in (0, *labels + 1, -1)]
        numbers = [1000 * k.id + kinds[:j].count(k) if k.hasInstances else k.id for j, k in enumerate(kinds)]
        maps = dict(labelIds=[kind.id for kind in kinds], labelTrainIds=[kind.trainId for kind in kinds])
        name = f'{split}/{city}/{city}_{i:06d}_000000'  # city, sequence, frame
        cv2.imwrite(str(folder / 'leftImg8bit' / f'{name}_leftImg8bit.png'), image)
        for key, values in maps.items():
            cv2.imwrite(str(folder / 'gtFine' / f'{name}_gtFine_{key}.png'), np.uint8(values)[instances])
        cv2.imwrite(str(folder / 'gtFine' / f'{name}_gtFine_instanceIds.png'), np.uint16(numbers)[instances])


def _write_imagenet(folder, split, num, size, seed):
    for i, (image, _, labels) in enumerate(scenes(split, num, size, seed, single=True)):
        path = folder / split / CLASSES[labels[0]] / f'{i:06d}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 95])


LAYOUTS = dict(coco=_write_coco, cityscapes=_write_cityscapes, imagenet=_write_imagenet)


def write(layout, out_dir, num_train=1000, num_val=100, size=(128, 128), seed=0):
    """Write the dataset, whole or not at all.

    Args:
        layout (str): One of :data:`LAYOUTS`.
        out_dir (str | Path): Folder to write. One that holds other settings of this dataset is replaced.
        num_train (int): Training images. Defaults to 1000.
        num_val (int): Validation images. Defaults to 100.
        size (tuple[int]): Height and width. Defaults to (128, 128).
        seed (int): Seed. Defaults to 0.

    Returns:
        bool: False if the folder was there already with the same settings.

    Raises:
        FileExistsError: ``out_dir`` exists and was not written by this function.
        ValueError: There is no image in a split, or a side is too short.
    """
    settings = dict(version=VERSION, layout=layout, num_train=num_train, num_val=num_val, size=list(size), seed=seed)
    if min(num_train, num_val) < 1 or min(size) < 32:
        raise ValueError(f'{num_train=}, {num_val=}, size={tuple(size)}: at least 1 image and sides of 32 pixels')
    out_dir = Path(out_dir)
    stamp, part = out_dir / STAMP, out_dir.with_name(f'{out_dir.name}.part')
    if out_dir.exists() and not stamp.is_file():
        raise FileExistsError(f"'{out_dir}' exists and has no {STAMP}: not a mini dataset, left as it is")
    if stamp.is_file() and json.loads(stamp.read_text()) == settings:
        return False
    shutil.rmtree(part, ignore_errors=True)
    for split, num in (('train', num_train), ('val', num_val)):
        LAYOUTS[layout](part, split, num, tuple(size), seed)
    (part / STAMP).write_text(json.dumps(settings))
    shutil.rmtree(out_dir, ignore_errors=True)
    os.replace(part, out_dir)
    return True


write_coco = partial(write, 'coco')
write_cityscapes = partial(write, 'cityscapes')


def main(argv=None):
    parser = argparse.ArgumentParser(description='Generate the mini dataset.')
    parser.add_argument('--layout', choices=LAYOUTS, default='coco', help='how it lies on disk (default: %(default)s)')
    parser.add_argument('--out', required=True, help='folder to write')
    parser.add_argument('--num-train', type=int, default=1000, help='training images (default: %(default)s)')
    parser.add_argument('--num-val', type=int, default=100, help='validation images (default: %(default)s)')
    parser.add_argument('--size', type=int, nargs=2, default=(128, 128), metavar=('H', 'W'), help='default: 128 128')
    parser.add_argument('--seed', type=int, default=0, help='default: %(default)s')
    args = parser.parse_args(argv)
    try:
        written = write(args.layout, args.out, args.num_train, args.num_val, args.size, args.seed)
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))
    print(f'{args.out}: ' + ('written' if written else 'is there already, nothing to do'))


if __name__ == '__main__':
    sys.exit(main())
