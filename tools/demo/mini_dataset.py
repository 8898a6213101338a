"""Generate the mini dataset: scenes of textured shapes with occlusion and clutter, with exact masks.

Nothing is downloaded and the same settings always give the same files::

    python tools/demo/mini_dataset.py --out data/mini

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

scenes.py draws one picture with its instance map and knows nothing of files; layouts.py only decides how they lie on
disk.
"""

import argparse
import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path

from layouts import LAYOUTS

STAMP = 'mini_dataset.json'
VERSION = 2  # raise when a change of the drawing code changes the pictures


def write(layout, out_dir, num_train=1000, num_val=150, size=(96, 96), seed=0):
    """Write the dataset, whole or not at all.

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
