"""From nothing to pretrained, trained, evaluated and costed RepL networks: what `make demo` runs.

Generates the mini dataset in three layouts; pretrains the backbones of RetinaNet-RepL and DeepLabV3+-RepL as image
classifiers, and trains the two from there; evaluates them, the segmentor by mmseg and by the official Cityscapes
scripts; draws predictions and curves; prints what RepL costs::

    python tools/demo/demo.py

Everything lands in data and work_dirs/demo. A second call skips what is there; a call that was cut off is continued.
It ends with an error as soon as a network has not learned.
"""

import argparse
from pathlib import Path

from parts import Part
from pictures import draw_detections, draw_segmentations
from steps import TOOLS, Steps

CONFIGS = TOOLS.parent / 'configs'


def pretraining(name):
    """What the demo does with the classifier of a config in configs/classification."""
    return Part(
        config=CONFIGS / 'classification' / f'{name}.py',
        dataset=('--layout', 'imagenet', '--size', 64, 64, '--num-train', 4800, '--num-val', 400),
        metrics=('accuracy/top1',),
        minimum=45,
    )


PARTS = dict(
    detection=Part(
        config=CONFIGS / 'retinanet_r50_repl_mini.py',
        dataset=(),
        metrics=('coco/bbox_mAP_50', 'coco/bbox_mAP'),
        minimum=0.5,
        losses=('loss', 'loss_cls', 'loss_bbox'),
        pretraining=pretraining('resnet50_repl_mini'),
        draw=draw_detections,
        costs=(CONFIGS / 'retinanet_r50_repl_coco.py',),
    ),
    segmentation=Part(
        config=CONFIGS / 'deeplabv3plus_r34-d8_repl_mini.py',
        dataset=('--layout', 'cityscapes', '--size', 64, 64, '--num-train', 2000),
        metrics=('mIoU', 'mAcc'),
        minimum=45,
        pretraining=pretraining('resnetv1c34_repl_mini'),
        draw=draw_segmentations,
        results=('--out', '{}/results'),
        costs=(CONFIGS / 'deeplabv3plus_r50-d8_repl_cityscapes.py', '--shape', 512, 1024),
    ),
)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--parts', nargs='+', choices=PARTS, default=list(PARTS), help='each with its pretraining; default: all'
    )
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'), help='default: %(default)s')
    args = parser.parse_args(argv)
    parts = {name: PARTS[name] for name in args.parts}
    header = Steps(sum(part.num_steps for part in parts.values()))
    for name, part in parts.items():
        part.run(args.work_dir / name, header)


if __name__ == '__main__':
    main()
