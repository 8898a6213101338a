"""Pictures of what a network of the demo predicts, and of how it has learned."""

import torch


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
    """Draw detections below the ground truth of the first validation images.

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
    """Draw the first validation images, below them the ground truth and the predicted segments.

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
    """Draw training losses and validation metrics over the iterations.

    Args:
        work_dir (Path): Work dir of the training run.
        path (Path): The picture to write.
        losses (Sequence[str]): Names of the losses in the log.
        metrics (Sequence[str]): Names of the metrics in the log.
    """
    from matplotlib.figure import Figure

    from repl_mm.comparison import read_scalars

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
