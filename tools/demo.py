"""From nothing to a trained, evaluated and costed RetinaNet-RepL: what `make demo` runs.

Generates the mini dataset, trains, evaluates, draws predictions and curves, and prints what RepL costs::

    python tools/demo.py

Everything lands in data/mini and work_dirs/demo. A second call skips what is there; a call that was cut off is
continued. It ends with an error if the detector has not learned (bbox mAP50 below 0.5).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import mini_dataset
import torch
from _common import stop
from compare import read_scalars, write_config
from mmengine.config import Config

TOOLS = Path(__file__).resolve().parent
CONFIGS = TOOLS.parent / 'configs'
MIN_MAP50 = 0.5


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


def evaluate(config, checkpoint, work_dir):
    """Tests a checkpoint with tools/test.py.

    Args:
        config (Path): Config file.
        checkpoint (Path): Checkpoint file.
        work_dir (Path): Where the logs go; the metrics are kept in ``metrics.json`` there.

    Returns:
        dict[str, float]: The metrics.
    """
    kept = work_dir / 'metrics.json'
    if not is_done(kept, checkpoint):
        run_tool('test.py', config, checkpoint, '--work-dir', work_dir)
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


def draw_predictions(config, checkpoint, path, columns=6, rows=2, score_thr=0.4):
    """Draws predictions below the ground truth of the first validation images.

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


def draw_curves(work_dir, path):
    """Draws training losses and validation AP over the iterations.

    Args:
        work_dir (Path): Work dir of the training run.
        path (Path): The picture to write.
    """
    from matplotlib.figure import Figure

    records = read_scalars(work_dir)
    figure = Figure(figsize=(9, 3.4), layout='constrained')
    left, right = figure.subplots(1, 2)
    train = [record for record in records if 'loss' in record]
    for key in ('loss', 'loss_cls', 'loss_bbox'):
        left.plot([r['step'] for r in train], [r[key] for r in train], label=key)
    left.set(xlabel='iteration', title='training loss')
    # validation records count epochs; each belongs to the last training record before it
    step, points = 0, []
    for record in records:
        if 'loss' in record:
            step = record['step']
        elif 'coco/bbox_mAP' in record:  # not there as long as the detector finds nothing
            points.append((step, record))
    for key in ('coco/bbox_mAP', 'coco/bbox_mAP_50'):
        right.plot([step for step, _ in points], [record[key] for _, record in points], 'o-', label=key)
    right.set(xlabel='iteration', title='validation AP', ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', type=Path, default=CONFIGS / 'retinanet_r50_repl_mini.py', help='config to train')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'), help='default: %(default)s')
    parser.add_argument(
        '--min-map50', type=float, default=MIN_MAP50, help='required bbox mAP50 (default: %(default)s)'
    )
    args = parser.parse_args(argv)
    work_dir = args.work_dir
    cfg = Config.fromfile(args.config)
    header = Steps(6)

    header('mini dataset: textured shapes with occlusion and clutter')
    mini_dataset.main(['--out', cfg.data_root])

    header('training from scratch; each log line says how long it still takes (eta)')
    try:
        write_config(cfg, work_dir / 'config.py')
    except ValueError as error:
        stop(error)
    checkpoint = work_dir / f'epoch_{cfg.train_cfg.max_epochs}.pth'
    if not is_done(checkpoint):
        run_tool('train.py', args.config, '--work-dir', work_dir, '--resume')

    header('evaluation on the held-out images')
    metrics = evaluate(args.config, checkpoint, work_dir / 'test')
    for name, value in metrics.items():
        if name.startswith('coco/'):
            print(f'{name:<20} {value:.3f}')

    header('pictures of predictions beside the ground truth')
    if not is_done(work_dir / 'predictions.png', checkpoint):
        draw_predictions(args.config, checkpoint, work_dir / 'predictions.png')

    header('curves of loss and AP')
    if not is_done(work_dir / 'curves.png', checkpoint):
        draw_curves(work_dir, work_dir / 'curves.png')

    header('what RepL costs and saves: exact counts, no data needed')
    size = json.loads((Path(cfg.data_root) / mini_dataset.STAMP).read_text())['size']
    mini = ('--shape', *size, '--batch', cfg.train_dataloader.batch_size)
    for config, shape in ((CONFIGS / 'retinanet_r50_repl_coco.py', ()), (args.config, mini)):
        table = work_dir / f'cost_{config.stem}.txt'
        if not is_done(table, config):
            with table.with_suffix('.part').open('w') as part:
                files = ('--json', table.with_suffix('.json'), '--plot', table.with_suffix('.png'))
                run_tool('cost.py', config, *shape, *files, stdout=part)
            table.with_suffix('.part').rename(table)
        print(table.read_text())

    map50 = metrics['coco/bbox_mAP_50']
    print(f'\nbbox mAP50 {map50:.3f}, bbox mAP {metrics["coco/bbox_mAP"]:.3f}; pictures and tables are in {work_dir}')
    if map50 < args.min_map50:
        stop(f'bbox mAP50 {map50:.3f} is below {args.min_map50}: the detector has not learned')


if __name__ == '__main__':
    main()
