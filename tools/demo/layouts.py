"""How the mini dataset lies on disk: as COCO, as Cityscapes, or as ImageNet."""

import json

import cv2
import numpy as np
from pycocotools import mask as mask_utils
from rich.progress import track
from scenes import closeup, scenes
from shapes import CLASSES

# What is drawn -> the Cityscapes class that stands for it. Each has an official category of its own; cars and persons
# are told apart as instances there. A frame of void pixels is ignored in training and in evaluation.
CITYSCAPES = dict(
    background='road', square='car', triangle='traffic sign', star='person', ring='vegetation', frame='out of roi'
)
_FRAME = 2  # pixels, width of the void frame of the Cityscapes layout


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
    """Write the pictures and the annotation file of one split."""
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
    """Write the pictures and the label maps of one split, which is one city."""
    city = f'mini{split}'
    image_dir, label_dir = (folder / kind / split / city for kind in ('leftImg8bit', 'gtFine'))
    image_dir.mkdir(parents=True)
    label_dir.mkdir(parents=True)
    for i, (image, instances, labels) in enumerate(track(scenes(split, num, size, seed), f'{split} scenes', num)):
        name = f'{city}_{i:06d}_000000'  # city, sequence, frame
        cv2.imwrite(str(image_dir / f'{name}_leftImg8bit.png'), image)
        for kind, label_map in cityscapes_labels(instances, labels).items():
            cv2.imwrite(str(label_dir / f'{name}_gtFine_{kind}.png'), label_map)


def _write_imagenet_split(folder, split, num, size, seed):
    """Write the pictures of one split, each into the folder of its class."""
    larger = tuple(side * 3 // 2 for side in size)
    drawn = scenes(split, num, larger, seed, single=True)
    for i, (image, instances, labels) in enumerate(track(drawn, f'{split} scenes', num)):
        path = folder / split / CLASSES[labels[0]] / f'{i:06d}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), closeup(image, instances, size), [cv2.IMWRITE_JPEG_QUALITY, 95])


LAYOUTS = dict(coco=_write_coco_split, cityscapes=_write_cityscapes_split, imagenet=_write_imagenet_split)
