"""A first success on generated pictures: what `make demo` runs.

Draws circles, squares, triangles and stars; trains RetinaNet-R50-RepL from scratch to find them; tests it on pictures
it never saw; draws what it predicts below the ground truth; counts what RepL saves; and serves the network in INT8::

    python tools/demo/demo.py        # detection, at most 10 minutes on two CPU cores
    python tools/demo/demo.py all    # segmentation as well: pretraining, training, official Cityscapes evaluation

Everything lands in data and work_dirs/demo. A second call skips what is there; a call that was cut off is continued.
It ends with an error as soon as a network has not learned.
"""

import argparse
import json
import os
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

import mini_dataset
from steps import TOOLS, Steps, duration, show, stop

CONFIGS = TOOLS.parent / 'configs'
# what is trained, on which pictures, for how long, and what the first number of its test must reach
NETWORKS = dict(
    detection=dict(
        config=CONFIGS / 'retinanet_r50_repl_mini.py',
        dataset=dict(layout='coco'),
        minutes='about 7 minutes',
        metric='coco/bbox_mAP_50',
        minimum=0.85,
    ),
    pretraining=dict(
        config=CONFIGS / 'classification' / 'resnetv1c34_repl_mini.py',
        dataset=dict(layout='imagenet', size=(64, 64), num_train=2000),
        minutes='1 to 2 minutes',
        metric='accuracy/top1',
        minimum=85,
    ),
    segmentation=dict(
        config=CONFIGS / 'deeplabv3plus_r34-d8_repl_mini.py',
        dataset=dict(layout='cityscapes', size=(64, 64)),
        minutes='3 to 5 minutes',
        metric='mIoU',
        minimum=75,
    ),
)
# networks of usual size, and the size of their pictures
COSTS = dict(
    detection=(CONFIGS / 'retinanet_r50_repl_coco.py', 800, 1344),
    segmentation=(CONFIGS / 'deeplabv3plus_r50-d8_repl_cityscapes.py', 512, 1024),
)


def learn(name, work_dir, steps, seed=0, backbone=None):
    """Draw the pictures, train a network on them and test it: three steps.

    Args:
        name (str): One of :data:`NETWORKS`.
        work_dir (Path): Folder of everything but the dataset.
        steps (Steps): Announces and runs the steps.
        seed (int): Seed of the training. Defaults to 0.
        backbone (Path | None): Checkpoint of a classifier whose backbone it starts from. Defaults to None.

    Returns:
        tuple: Checkpoint (Path) and what the first metric reached (float).

    Raises:
        SystemExit: The network has not learned, or a tool failed.
    """
    from mmengine.config import Config

    from repl_mm.comparison import write_config

    settings = NETWORKS[name]
    cfg, config = Config.fromfile(settings['config']), work_dir / 'config.py'
    cfg.randomness = dict(seed=seed)
    if backbone:
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(backbone), prefix='backbone.')
    steps(f'{name}: draw pictures of simple shapes (seconds)')
    try:
        write_config(cfg, config)
        written = mini_dataset.write(out_dir=cfg.data_root, **settings['dataset'])
    except (FileExistsError, ValueError) as error:
        stop(error)
    show(f'{"written" if written else "is there"}: {cfg.data_root}', last=True)

    steps(f'{name}: train {settings["config"].stem} ({settings["minutes"]} on two idle cores)')
    epochs = cfg.train_cfg.get('max_epochs')
    last = f'epoch_{epochs}.pth' if epochs else f'iter_{cfg.train_cfg.max_iters}.pth'
    folder, log = work_dir / 'train', work_dir / 'train.log'
    checkpoint = steps.run(log, folder, last, 'train.py', config, '--work-dir', folder, '--resume')

    steps(f'{name}: test on held-out pictures (seconds)')
    folder, log = work_dir / 'test', work_dir / 'test.log'
    results = ('--out', folder / 'results') if name == 'segmentation' else ()
    metrics = steps.run(log, folder, '*/*.json', 'test.py', config, checkpoint, '--work-dir', folder, *results)
    values = json.loads(metrics.read_text())
    metric, minimum = settings['metric'], settings['minimum']
    value = values.get(metric, 0)  # not there if a detector finds nothing
    shown = (key for key in values if not key.endswith('time') and values[key] >= 0)  # -1: no such objects
    show(', '.join(f'{key.split("/")[-1]} {values[key]:.3f}' for key in shown), last=True)
    if not value >= minimum:
        stop(f'{metric} {value:.3f} is below {minimum}: {name} has not learned; see {work_dir}')
    return checkpoint, value


def show_off(name, work_dir, checkpoint, steps):
    """Draw what a network predicts, and count what RepL saves in one of usual size: two steps."""
    steps(f'{name}: draw predictions beside the ground truth (seconds)')
    picture, config = work_dir / 'predictions.jpg', work_dir / 'config.py'
    steps.run(work_dir / 'pictures.log', work_dir, picture.name, 'demo/pictures.py', config, checkpoint, picture)

    config, *shape = COSTS[name]
    steps(f'{name}: count what RepL saves in {config.stem}, no data needed (seconds)')
    log, arms = work_dir / 'cost.log', ('--arms', 'e2e', 'fuse', 'remove', '--json', work_dir / 'cost.json')
    steps.run(log, work_dir, 'cost.json', 'cost.py', config, '--shape', *shape, *arms)
    print(log.read_text().rpartition(f'{config.name}\n')[2])
    return picture


def deploy(name, work_dir, checkpoint, value, steps):
    """Export a network, quantize it, and test the file like the checkpoint: one step; return what it reaches."""
    from mmengine.config import Config

    missing = [package for package in ('onnx', 'onnxruntime', 'onnxscript') if not find_spec(package)]
    if missing:
        stop(f"{missing[0]} is missing for the last step: pip install 'repl_mm[export]'")
    steps(f'{name}: export to ONNX, quantize to INT8, test the file with ONNX Runtime (a minute)')
    config, file = work_dir / 'config.py', work_dir / 'int8.onnx'
    pictures = Path(Config.fromfile(config).data_root) / 'train'
    arguments = (config, checkpoint, file, '--int8', '--images', pictures, '--num', 32)
    steps.run(work_dir / 'export.log', work_dir, file.name, 'export.py', *arguments)
    folder = work_dir / 'test_int8'
    metrics = steps.run(work_dir / 'test_int8.log', folder, '*/*.json', 'test.py', config, file, '--work-dir', folder)
    metric = NETWORKS[name]['metric']
    found = json.loads(metrics.read_text()).get(metric, 0)
    show(f'{metric.split("/")[-1]} {found:.3f} with ONNX Runtime in INT8, {value:.3f} with PyTorch', last=True)
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('parts', nargs='?', choices=('detection', 'all'), default='detection')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'), help='default: %(default)s')
    parser.add_argument('--seed', type=int, default=0, help='of the training (default: %(default)s)')
    args = parser.parse_args(argv)
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')  # mmengine 0.10.7 uses it
    began, folder, steps = time.time(), args.work_dir, Steps(6 if args.parts == 'detection' else 14)
    try:
        checkpoint, value = learn('detection', folder / 'detection', steps, args.seed)
        pictures = [show_off('detection', folder / 'detection', checkpoint, steps)]
        ends = [
            f'mAP50 {value:.3f} ({deploy("detection", folder / "detection", checkpoint, value, steps):.3f} in INT8)'
        ]
        if args.parts == 'all':
            start, _ = learn('pretraining', folder / 'pretraining', steps, args.seed)
            checkpoint, value = learn('segmentation', folder / 'segmentation', steps, args.seed, start)
            pictures.append(show_off('segmentation', folder / 'segmentation', checkpoint, steps))
            ends.append(f'mIoU {value:.1f}')
    except KeyboardInterrupt:
        stop('interrupted; the same command goes on from the last checkpoint')
    print(f'Done in {duration(time.time() - began)}: {", ".join(ends)} on pictures that were not trained on. Look at')
    print(*(f'  {os.path.relpath(path)}' for path in pictures), sep='\n')


if __name__ == '__main__':
    main()
