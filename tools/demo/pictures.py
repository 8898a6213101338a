"""Draw what a trained network predicts below the ground truth, for the first pictures of its validation set."""

import argparse

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from repl_mm.config import read_config
from repl_mm.reading import read_weights_only

DEVICE = 'cuda:0' if torch.cuda.is_available() else 'cpu'


def draw_boxes(axes, image, boxes, labels, classes, scores=None):
    """Show an image with its boxes.

    Args:
        axes (matplotlib.axes.Axes): Where to draw.
        image (np.ndarray): (h, w, 3) RGB.
        boxes (Sequence): (n, 4) as x1, y1, x2, y2.
        labels (Sequence[int]): (n,) class indices.
        classes (Sequence[str]): Class names.
        scores (Sequence[float] | None): (n,) scores, written behind the names. Defaults to None.
    """
    axes.imshow(image, interpolation='bilinear')
    axes.autoscale(False)
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        x1, y1, x2, y2 = map(float, box)
        text = classes[int(label)] + (f' {scores[i]:.2f}' if scores is not None else '')
        axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color='black', linewidth=1.2)
        style = dict(facecolor='black', edgecolor='none', pad=1.2, alpha=0.8)
        axes.text(x1, y1, text, color='white', fontsize=7.5, va='bottom', bbox=style)


def draw_detections(config, checkpoint, path, columns=6, score_thr=0.5):
    """Draw ground truth and detections.

    Args:
        config (Config): Config of the network.
        checkpoint (str): Checkpoint file.
        path (str): The picture to write.
        columns (int): Images side by side. Defaults to 6.
        score_thr (float): Boxes with a lower score are not drawn. Defaults to 0.5.
    """
    from mmcv import imread
    from mmdet.apis import inference_detector, init_detector
    from mmdet.registry import DATASETS

    model = init_detector(config, checkpoint, device=DEVICE)
    dataset = DATASETS.build(model.cfg.val_dataloader.dataset)
    classes, columns = dataset.metainfo['classes'], min(columns, len(dataset))
    figure = Figure(figsize=(2 * columns, 4.9), layout='constrained')
    panels = figure.subplots(2, columns, squeeze=False)
    for i in range(columns):
        info = dataset.get_data_info(i)
        image, instances = imread(info['img_path']), info['instances']
        boxes, labels = [x['bbox'] for x in instances], [x['bbox_label'] for x in instances]
        draw_boxes(panels[0, i], image[..., ::-1], boxes, labels, classes)
        found = inference_detector(model, image).pred_instances.cpu().numpy()
        found = found[found.scores >= score_thr]
        draw_boxes(panels[1, i], image[..., ::-1], found.bboxes, found.labels, classes, found.scores)
    finish(figure, panels, ('ground truth', f'predictions with a score of at least {score_thr}'), path)


def draw_segmentations(config, checkpoint, path, columns=8):
    """Draw images, ground truth and predicted segments.

    Args:
        config (Config): Config of the network.
        checkpoint (str): Checkpoint file.
        path (str): The picture to write.
        columns (int): Images side by side. Defaults to 8.
    """
    from mmcv import imread
    from mmseg.apis import inference_model, init_model
    from mmseg.registry import DATASETS

    model = init_model(config, checkpoint, device=DEVICE)
    dataset = DATASETS.build(model.cfg.val_dataloader.dataset)
    classes, palette = dataset.metainfo['classes'], np.zeros((256, 3), np.uint8)  # void is black
    palette[: len(classes)] = dataset.metainfo['palette']
    columns, drawn = min(columns, len(dataset)), set()
    figure = Figure(figsize=(1.6 * columns, 5.8), layout='constrained')
    panels = figure.subplots(3, columns, squeeze=False)
    for column in range(columns):
        info = dataset.get_data_info(column)
        truth = imread(info['seg_map_path'], 'unchanged')
        predicted = inference_model(model, info['img_path']).pred_sem_seg.data[0].cpu().numpy()
        drawn |= {*np.unique(truth), *np.unique(predicted)}
        pictures = imread(info['img_path'])[..., ::-1], palette[truth], palette[predicted]
        for axes, picture in zip(panels[:, column], pictures, strict=True):
            axes.imshow(picture)
    patches = [Patch(color=palette[i] / 255, label=name) for i, name in enumerate(classes) if i in drawn]
    figure.legend(handles=patches, loc='outside lower left', ncols=8, fontsize=8)
    finish(figure, panels, ('image', 'ground truth (black: ignored)', 'prediction'), path)


def finish(figure, panels, titles, path):
    """Write a title above each row, and the picture to its file."""
    for axes, title in zip(panels[:, 0], titles, strict=True):
        axes.set_title(title, loc='left', fontsize=13, pad=14)
    for axes in panels.flat:
        axes.set_axis_off()
    figure.get_layout_engine().set(h_pad=0.12)
    figure.savefig(path, dpi=100)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('out', help='the picture to write')
    args = parser.parse_args(argv)
    read_weights_only()
    cfg = read_config(args.config)
    dict(mmdet=draw_detections, mmseg=draw_segmentations)[cfg.default_scope](cfg, args.checkpoint, args.out)


if __name__ == '__main__':
    main()
