"""Convert a folder in Pascal VOC form (as the public BCCD blood-cell dataset is published) to a COCO folder.

BCCD (MIT licence) is published at https://github.com/Shenggan/BCCD_Dataset; its folder ``BCCD`` is the input::

    python tools/dataset_converters/voc_to_coco.py BCCD_Dataset/BCCD data/bccd --classes RBC WBC Platelets

    BCCD/                                    data/bccd/
        JPEGImages/*.jpg                         images/*.jpg
        Annotations/*.xml                        annotations/instances_{train,val,test}.json
        ImageSets/Main/{train,val,test}.txt
"""

import argparse
import json
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

SPLITS = ('train', 'val', 'test')


def read_objects(path):
    """Read one VOC annotation file.

    Args:
        path (Path): The ``.xml`` file.

    Returns:
        tuple:

            - width (int), height (int): Image size in pixels.
            - objects (list[tuple]): (class name, [x, y, w, h]). The corners are taken as the annotation tool wrote
              them, as continuous coordinates, so that w is xmax - xmin.
    """
    root = ET.parse(path).getroot()
    objects = []
    for item in root.iter('object'):
        x1, y1, x2, y2 = (int(float(item.findtext(f'bndbox/{key}'))) for key in ('xmin', 'ymin', 'xmax', 'ymax'))
        objects.append((item.findtext('name'), [x1, y1, x2 - x1, y2 - y1]))
    return int(root.findtext('size/width')), int(root.findtext('size/height')), objects


def convert(voc, out, classes):
    """Convert the splits that ``ImageSets/Main`` lists.

    Args:
        voc (Path): Folder with ``JPEGImages``, ``Annotations`` and ``ImageSets``.
        out (Path): COCO folder to write; pictures are copied.
        classes (Sequence[str]): Class names; category ids count from 1 in this order.

    Returns:
        dict[str, tuple[int, int, int]]: Images, boxes and dropped boxes (no extent) by split.

    Raises:
        FileNotFoundError: A folder or a listed file is missing.
        ValueError: An object has a class that is not in ``classes``.
    """
    lists = {split: voc / 'ImageSets' / 'Main' / f'{split}.txt' for split in SPLITS}
    lists = {split: path for split, path in lists.items() if path.is_file()}
    if not lists:
        raise FileNotFoundError(f"no train.txt, val.txt or test.txt in '{voc / 'ImageSets' / 'Main'}'")
    (out / 'annotations').mkdir(parents=True, exist_ok=True)
    (out / 'images').mkdir(exist_ok=True)
    counts = {}
    for split, path in lists.items():
        images, annotations, dropped = [], [], 0
        for name in path.read_text().split():
            width, height, objects = read_objects(voc / 'Annotations' / f'{name}.xml')
            images.append(dict(id=len(images) + 1, file_name=f'{name}.jpg', width=width, height=height))
            for label, box in objects:
                if label not in classes:
                    raise ValueError(f"{name}.xml: class '{label}', valid are {', '.join(classes)}")
                if min(box[2:]) <= 0:
                    dropped += 1
                    continue
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=len(images),
                        category_id=classes.index(label) + 1,
                        bbox=box,
                        area=box[2] * box[3],
                        iscrowd=0,
                    )
                )
            shutil.copyfile(voc / 'JPEGImages' / f'{name}.jpg', out / 'images' / f'{name}.jpg')
        content = dict(
            images=images,
            annotations=annotations,
            categories=[dict(id=i + 1, name=name) for i, name in enumerate(classes)],
        )
        (out / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))
        counts[split] = (len(images), len(annotations), dropped)
    return counts


def main(argv=None):
    parser = argparse.ArgumentParser(description='Convert a Pascal VOC folder to a COCO folder.')
    parser.add_argument('voc', type=Path, help='folder with JPEGImages, Annotations and ImageSets')
    parser.add_argument('out', type=Path, help='COCO folder to write')
    parser.add_argument('--classes', nargs='+', required=True, help='class names, in the order of their ids')
    args = parser.parse_args(argv)
    try:
        counts = convert(args.voc, args.out, args.classes)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    for split, (images, boxes, dropped) in counts.items():
        print(f'{split}: {images} images, {boxes} boxes, {dropped} boxes without extent dropped')


if __name__ == '__main__':
    sys.exit(main())
