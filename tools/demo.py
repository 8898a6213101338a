"""From nothing to pretrained, trained, evaluated and costed RepL networks: what `make demo` runs.

Generates the mini dataset in three layouts; pretrains the backbones of RetinaNet-RepL and DeepLabV3+-RepL as image
classifiers, and trains the two from there; evaluates them, the segmentor by mmseg and by the official Cityscapes
scripts; draws predictions and curves; prints what RepL costs::

    python tools/demo.py

Everything lands in data and work_dirs/demo. A second call skips what is there; a call that was cut off is continued.
It ends with an error as soon as a network has not learned.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mini_dataset
import torch
from _common import stop
from compare import read_scalars, write_config
from mmengine.config import Config

TOOLS = Path(__file__).resolve().parent
CONFIGS = TOOLS.parent / 'configs'


class Steps:
    """Prints a header line before each step, with the time since the start.

    Args:
        total (int): Number of steps.
    """

    def __init__(self, total):
        self.total, self.done, self.start = total, 0, time.time()

    def __call__(self, text):
        self.done += 1
        elapsed = time.strftime('%M:%S', time.gmtime(time.time() - self.start))
        print(f'\n=== [{self.done}/{self.total}] {text} (elapsed {elapsed}) ===', flush=True)


def run_tool(name, *args, stdout=None):
    """Runs a script of tools/ in a process of its own.

    Args:
        name (str): File name of the script.
        *args (str | Path): Its arguments.
        stdout (IO, optional): Where its output goes. Defaults to None, the screen.

    Raises:
        SystemExit: The script failed.
    """
    command = [sys.executable, str(TOOLS / name), *map(str, args)]
    print('$ python', *(os.path.relpath(part) if os.path.exists(part) else part for part in command[1:]), flush=True)
    code = subprocess.run(command, stdout=stdout).returncode
    if code:
        stop(f'tools/{name} failed with exit code {code}')


def is_done(path, *sources):
    """Whether an output exists and is no older than what it is made from.

    Args:
        path (Path): The output.
        *sources (Path): Its inputs.

    Returns:
        bool: True if there is nothing to do.
    """
    if not path.is_file() or any(source.stat().st_mtime > path.stat().st_mtime for source in sources):
        return False
    print(f'{path}: is there already')
    return True


def evaluate(config, checkpoint, work_dir, *options):
    """Tests a checkpoint with tools/test.py.

    Args:
        config (Path): Config file.
        checkpoint (Path): Checkpoint file.
        work_dir (Path): Where the logs go; the metrics are kept in ``metrics.json`` there.
        *options (str | Path): Further arguments of tools/test.py.

    Returns:
        dict[str, float]: The metrics.
    """
    kept = work_dir / 'metrics.json'
    if not is_done(kept, checkpoint):
        run_tool('test.py', config, checkpoint, '--work-dir', work_dir, *options)
        newest = max(work_dir.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
        kept.write_text(newest.read_text())
    return json.loads(kept.read_text())


def draw_boxes(axes, image, boxes, labels, classes, scores=None):
    """Shows an image with its boxes.

    Args:
        axes (matplotlib.axes.Axes): Where to draw.
        image (np.ndarray): (h, w, 3) RGB.
        boxes (Sequence): (n, 4) as x1, y1, x2, y2.
        labels (Sequence[int]): (n,) class indices.
        classes (Sequence[str]): Class names.
        scores (Sequence[float], optional): (n,) scores, written behind the names. Defaults to None.
    """
    axes.imshow(image)
    axes.autoscale(False)
    axes.set_axis_off()
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        x1, y1, x2, y2 = map(float, box)
        color = f'C{int(label)}'
        text = classes[int(label)] + (f' {scores[i]:.2f}' if scores is not None else '')
        axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=color, linewidth=1.5)
        style = dict(facecolor=color, edgecolor='none', pad=0.8, alpha=0.8)
        axes.text(x1 + 1, y1 + 1, text, color='white', fontsize=6, va='top', bbox=style, clip_on=True)


def draw_detections(config, checkpoint, path, columns=6, rows=2, score_thr=0.4):
    """Draws detections below the ground truth of the first validation images.

    Args:
        config (Path): Config file.
        checkpoint (Path): Checkpoint file.
        path (Path): The picture to write.
        columns (int): Images side by side. Defaults to 6.
        rows (int): Pairs of rows. Defaults to 2.
        score_thr (float): Boxes with a lower score are not drawn. Defaults to 0.4.
    """
    from matplotlib.figure import Figure
    from mmcv import imread
    from mmdet.apis import inference_detector, init_detector
    from mmdet.registry import DATASETS

    device = 'cuda:0' if torch.cuda.is_available() else 'cpu'
    model = init_detector(str(config), str(checkpoint), device=device)
    dataset = DATASETS.build(model.cfg.val_dataloader.dataset)
    classes = dataset.metainfo['classes']
    figure = Figure(figsize=(2 * columns, 4.4 * rows), layout='constrained')
    panels = figure.subplots(2 * rows, columns, squeeze=False)
    for i in range(min(columns * rows, len(dataset))):
        info = dataset.get_data_info(i)
        image = imread(info['img_path'])
        truth, predicted = panels[i // columns * 2 : i // columns * 2 + 2, i % columns]
        instances = info['instances']
        boxes, labels = [x['bbox'] for x in instances], [x['bbox_label'] for x in instances]
        draw_boxes(truth, image[..., ::-1], boxes, labels, classes)
        found = inference_detector(model, image).pred_instances.cpu().numpy()
        found = found[found.scores >= score_thr]
        draw_boxes(predicted, image[..., ::-1], found.bboxes, found.labels, classes, found.scores)
    for row in range(2 * rows):
        title = ('ground truth', f'predictions, score >= {score_thr}')[row % 2]
        panels[row, 0].set_title(title, loc='left', fontsize=9)
    figure.savefig(path, dpi=110)


def draw_segmentations(config, checkpoint, path, columns=8):
    """Draws the first validation images, below them the ground truth and the predicted segments.

    Args:
        config (Path): Config file.
        checkpoint (Path): Checkpoint file.
        path (Path): The picture to write.
        columns (int): Images side by side. Defaults to 8.
    """
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from mmcv import imread
    from mmseg.apis import inference_model, init_model
    from mmseg.registry import DATASETS

    model = init_model(str(config), str(checkpoint), device='cuda:0' if torch.cuda.is_available() else 'cpu')
    dataset = DATASETS.build(model.cfg.val_dataloader.dataset)
    classes, palette = dataset.metainfo['classes'], np.zeros((256, 3), np.uint8)  # void is black
    palette[: len(classes)] = dataset.metainfo['palette']
    figure = Figure(figsize=(1.6 * columns, 5.4), layout='constrained')
    panels = figure.subplots(3, columns, squeeze=False)
    drawn = set()
    for column in range(min(columns, len(dataset))):
        info = dataset.get_data_info(column)
        truth = imread(info['seg_map_path'], 'unchanged')
        predicted = inference_model(model, info['img_path']).pred_sem_seg.data[0].cpu().numpy()
        drawn |= {*np.unique(truth), *np.unique(predicted)}
        pictures = imread(info['img_path'])[..., ::-1], palette[truth], palette[predicted]
        for axes, picture in zip(panels[:, column], pictures, strict=True):
            axes.imshow(picture)
    for axes, title in zip(panels[:, 0], ('image', 'ground truth (black: ignored)', 'prediction'), strict=True):
        axes.set_title(title, loc='left', fontsize=9)
    for axes in panels.flat:
        axes.set_axis_off()
    patches = [Patch(color=palette[i] / 255, label=name) for i, name in enumerate(classes) if i in drawn]
    figure.legend(handles=patches, loc='outside lower left', ncols=8, fontsize=8)
    figure.savefig(path, dpi=110)


def draw_curves(work_dir, path, losses, metrics):
    """Draws training losses and validation metrics over the iterations.

    Args:
        work_dir (Path): Work dir of the training run.
        path (Path): The picture to write.
        losses (Sequence[str]): Names of the losses in the log.
        metrics (Sequence[str]): Names of the metrics in the log.
    """
    from matplotlib.figure import Figure

    records = read_scalars(work_dir)
    figure = Figure(figsize=(9, 3.4), layout='constrained')
    left, right = figure.subplots(1, 2)
    train = [record for record in records if 'loss' in record]
    for key in losses:
        left.plot([r['step'] for r in train], [r[key] for r in train], label=key)
    left.set(xlabel='iteration', title='training loss')
    # validation records may count epochs; each belongs to the last training record before it
    step, points = 0, []
    for record in records:
        if 'loss' in record:
            step = record['step']
        elif metrics[0] in record:  # not there as long as a detector finds nothing
            points.append((step, record))
    for key in metrics:
        right.plot([step for step, _ in points], [record[key] for _, record in points], 'o-', label=key)
    right.set(xlabel='iteration', title='validation')
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


@dataclass
class Part:
    """What the demo does with one network.

    Args:
        config (Path): Config to train; its data_root is where the mini dataset goes.
        dataset (tuple): Arguments of tools/mini_dataset.py.
        metrics (tuple[str]): Metrics to draw; the first one tells whether the network has learned.
        minimum (float): What the first metric must reach.
        losses (tuple[str]): Losses to draw. Defaults to the loss.
        pretraining (Part, optional): Classifier with the same backbone, trained before. Defaults to None.
        draw (Callable, optional): Takes the config, the checkpoint and the picture to write. Defaults to None: neither
            pictures nor costs.
        results (tuple[str]): Arguments of tools/test.py that keep the predictions. Defaults to none.
        costs (tuple): Config and image size of a network of usual size to cost beside the small one. Defaults to none.
    """

    config: Path
    dataset: tuple
    metrics: tuple
    minimum: float
    losses: tuple = ('loss',)
    pretraining: 'Part | None' = None
    draw: Callable | None = None
    results: tuple = ()
    costs: tuple = ()

    @property
    def num_steps(self):
        """int: Number of steps, those of the pretraining included."""
        return 4 + (2 if self.draw else 0) + (self.pretraining.num_steps if self.pretraining else 0)

    def run(self, work_dir, header):
        """Runs all steps, or what is left of them.

        Args:
            work_dir (Path): Folder of everything but the dataset.
            header (Steps): Announces the steps.

        Returns:
            Path: The checkpoint.

        Raises:
            SystemExit: The network has not learned, or a tool failed.
        """
        name, cfg, start = self.config.stem, Config.fromfile(self.config), 'from scratch'
        if self.pretraining:
            pretrained = self.pretraining.run(work_dir / 'pretraining', header)
            cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(pretrained), prefix='backbone.')
            start = f'from {os.path.relpath(pretrained)}'
        header(f'{name}: mini dataset, textured shapes with occlusion and clutter')
        mini_dataset.main([*map(str, self.dataset), '--out', cfg.data_root])

        header(f'{name}: training {start}; each log line says how long it still takes (eta)')
        config, train_dir, test_dir = work_dir / 'config.py', work_dir / 'train', work_dir / 'test'
        try:
            write_config(cfg, config)
        except ValueError as error:
            stop(error)
        epochs = cfg.train_cfg.get('max_epochs')
        checkpoint = train_dir / (f'epoch_{epochs}.pth' if epochs else f'iter_{cfg.train_cfg.max_iters}.pth')
        if not is_done(checkpoint):
            run_tool('train.py', config, '--work-dir', train_dir, '--resume')

        header(f'{name}: evaluation on the held-out images')
        metrics = evaluate(config, checkpoint, test_dir, *(word.format(test_dir) for word in self.results))
        for key, value in metrics.items():
            if key not in ('time', 'data_time'):
                print(f'{key:<26} {value:.3f}')

        header(f'{name}: curves of losses and metrics')
        if not is_done(work_dir / 'curves.png', checkpoint):
            draw_curves(train_dir, work_dir / 'curves.png', self.losses, self.metrics)

        if self.draw:
            header(f'{name}: pictures of predictions beside the ground truth')
            if not is_done(work_dir / 'predictions.png', checkpoint):
                self.draw(config, checkpoint, work_dir / 'predictions.png')
            header(f'{name}: what RepL costs and saves, exact counts, no data needed')
            self.show_costs(cfg, work_dir)

        metric = self.metrics[0]
        value = metrics.get(metric, 0)  # not there if a detector finds nothing
        if not value >= self.minimum:
            stop(f'{metric} {value:.3f} is below {self.minimum}, {name} has not learned; see {work_dir}')
        print(f'\n{name}: {metric} {value:.3f}; its files are in {work_dir}')
        return checkpoint

    def show_costs(self, cfg, work_dir):
        """Prints the cost tables of the network of usual size and of the small one.

        Args:
            cfg (Config): The config that was trained.
            work_dir (Path): Where the tables go.
        """
        size = json.loads((Path(cfg.data_root) / mini_dataset.STAMP).read_text())['size']
        mini = (self.config, '--shape', *size, '--batch', cfg.train_dataloader.batch_size)
        for config, *shape in filter(None, (self.costs, mini)):
            table = work_dir / f'cost_{config.stem}.txt'
            if not is_done(table, config):
                with table.with_suffix('.part').open('w') as part:
                    files = ('--json', table.with_suffix('.json'), '--plot', table.with_suffix('.png'))
                    run_tool('cost.py', config, *shape, *files, stdout=part)
                table.with_suffix('.part').rename(table)
            print(table.read_text())


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
