"""From normalized images to final predictions: what a file needs to be served without repl_mm, mmdet or torch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .network import CLASSIFIER, DENSE, SEGMENTOR, Network, find_network

DETECTIONS = ('boxes', 'scores', 'labels')
ALL = 2**31 - 1  # boxes at most


class EndToEnd(Network):
    """A network with its predictions: ONNX files of it need nothing but a runtime.

    Attributes:
        names (tuple[str]): Of the outputs. ``boxes`` (n, 4) as x1, y1, x2, y2 in pixels of the input, ``scores`` (n,)
            from the highest down and ``labels`` (n,), of one image; ``classes`` (N, H, W), the class of every pixel;
            or ``probabilities`` (N, classes).
        batch (int | None): Images that it takes; None: any number.
    """

    def __init__(self, model: nn.Module, kind: str, outputs, names: tuple[str, ...], batch: int | None = None):
        super().__init__(model, kind, outputs)
        self.names = names
        self.batch = batch

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the predictions, in the order of ``names``."""
        return self.outputs(images)


def find_end_to_end(model: nn.Module) -> EndToEnd:
    """The network of a model with its predictions.

    Raises:
        TypeError: The model predicts in a way that is not known here.
    """
    network = find_network(model)
    if network.kind == CLASSIFIER:
        return EndToEnd(model, network.kind, lambda x: (network.outputs(x).softmax(1),), ('probabilities',))
    if network.kind == SEGMENTOR:
        return EndToEnd(model, network.kind, lambda x: (class_map(model, network.outputs(x), x),), ('classes',))
    if network.kind == DENSE:
        _check_head(model)
        return EndToEnd(model, network.kind, lambda x: detections(model, network.outputs(x), x), DETECTIONS, batch=1)
    raise TypeError(
        f'--end2end: a {type(model).__name__} takes proposals or queries, or predicts in a way of its own: expected a '
        'classifier, a segmentor, or a detector with a dense head; export without it'
    )


def class_map(model: nn.Module, logits: Tensor, images: Tensor) -> Tensor:
    """Class of every pixel (N, H, W) of a segmentor's logits, resized to the images as mmseg does."""
    logits = F.interpolate(logits, images.shape[-2:], mode='bilinear', align_corners=model.align_corners)
    if model.out_channels == 1:
        threshold = model.decode_head.threshold
        return (logits.sigmoid() > threshold).squeeze(1).long()
    return logits.argmax(1)


def _is_yolox(head: nn.Module) -> bool:
    from mmdet.models.dense_heads import YOLOXHead

    return isinstance(head, YOLOXHead)


def _check_head(model: nn.Module) -> None:
    from mmdet.models.dense_heads import YOLOXHead
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    head = model.bbox_head
    known = YOLOXHead if _is_yolox(head) else BaseDenseHead
    own = [
        name
        for name in ('predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
        if getattr(type(head), name) is not getattr(known, name)
    ]
    nms = model.test_cfg.get('nms') or {}
    others = {*nms} - {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
    if own or getattr(head.loss_cls, 'custom_cls_channels', False):
        raise TypeError(f'--end2end: {type(head).__name__} decodes in a way of its own: export without it')
    if nms.get('type', 'nms') != 'nms' or others:
        raise TypeError(f'--end2end: test_cfg.nms={dict(nms)} is not known to ONNX: expected nms with iou_threshold')


def detections(model: nn.Module, outputs, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels of one image, as mmdet's dense heads make them.

    What mmdet leaves out because of its score stays with a score of 0, because shapes in a graph must not depend on
    data before the last step; the suppression drops it.
    """
    cfg, yolox = model.test_cfg, _is_yolox(model.bbox_head)
    boxes, scores, labels, valid = (_candidates_of_yolox if yolox else _candidates)(model, outputs, images)
    scores = torch.where(valid, scores, 0)
    apart = boxes  # boxes of different classes, moved so that they do not overlap
    if not cfg.nms.get('class_agnostic', False):
        apart = boxes + labels.to(boxes)[:, None] * (torch.where(valid[:, None], boxes, 0).max() + 1)
    most = ALL if yolox else int(cfg.get('max_per_img', 100))
    kept = torch.ops.repl_mm.nms(apart, scores, float(cfg.nms['iou_threshold']), most)
    return boxes[kept], scores[kept], labels[kept]


def _candidates_of_yolox(model: nn.Module, outputs, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`_candidates`: one class for every point; neither a choice nor a clipping before the suppression."""
    head = model.bbox_head
    sizes = [scores.shape[-2:] for scores in outputs[0]]
    options = dict(dtype=images.dtype, device=images.device, with_stride=True)
    priors = torch.cat(head.prior_generator.grid_priors(sizes, **options))
    logits, deltas, objectness = (torch.cat([level[0].flatten(1).T for level in kind]) for kind in outputs)
    scores, labels = logits.sigmoid().max(1)
    scores = scores * objectness.sigmoid()[:, 0]
    return head._bbox_decode(priors, deltas), scores, labels, scores >= model.test_cfg.get('score_thr', 0)


def _candidates(model: nn.Module, outputs, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is suppressed afterwards: boxes (n, 4), scores (n,), labels (n,), and which of them count at all (n,)."""
    head, cfg = model.bbox_head, model.test_cfg
    scores_of_levels, deltas_of_levels, *factors_of_levels = outputs
    sizes = [scores.shape[-2:] for scores in scores_of_levels]
    priors_of_levels = head.prior_generator.grid_priors(sizes, dtype=images.dtype, device=images.device)
    chosen = []
    for level, priors in enumerate(priors_of_levels):
        logits = scores_of_levels[level][0].permute(1, 2, 0).reshape(-1, head.cls_out_channels)
        scores = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[:, :-1]
        scores = torch.where(scores > cfg.get('score_thr', 0), scores, 0)
        deltas = deltas_of_levels[level][0].permute(1, 2, 0).reshape(-1, head.bbox_coder.encode_size)
        classes = scores.shape[1]
        flat = scores.flatten()
        count = cfg.get('nms_pre', -1)
        if count > 0:
            flat, index = flat.topk(torch.sym_min(count, flat.shape[0]))
        else:
            index = torch.arange(flat.shape[0], device=flat.device)
        prior = index // classes
        factor = 1
        if factors_of_levels:
            factor = factors_of_levels[0][level][0].permute(1, 2, 0).reshape(-1).sigmoid()[prior]
        chosen.append((flat, index % classes, factor, deltas[prior], priors[prior], flat > 0))
    scores, labels, factors, deltas, priors, valid = (
        parts if isinstance(parts[0], int) else torch.cat(parts) for parts in map(list, zip(*chosen, strict=True))
    )
    # mm's coders clip in code of their own while ONNX is exported, which is gone
    boxes = head.bbox_coder.decode(priors, deltas)
    if getattr(head.bbox_coder, 'clip_border', True):
        height, width = images.shape[-2:]
        boxes = torch.stack([boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)], 2).flatten(1)
    if factors_of_levels:
        scores = scores * factors
    if cfg.get('min_bbox_size', -1) >= 0:
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        valid = valid & (width > cfg.min_bbox_size) & (height > cfg.min_bbox_size)
    return boxes, scores, labels, valid


@torch.library.custom_op('repl_mm::nms', mutates_args=())
def nms(boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    """Indices of what is left of boxes (n, 4), from the highest score down: greedy, no scores of 0, at most ``most``.

    It stands for ONNX's NonMaxSuppression in an exported graph.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] > 0]
    corners, kept = boxes[order], []
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    left = torch.arange(len(order), device=boxes.device)
    while len(left) and len(kept) < most:
        first, left = left[0], left[1:]
        kept.append(order[first])
        low = torch.maximum(corners[first, :2], corners[left, :2])
        high = torch.minimum(corners[first, 2:], corners[left, 2:])
        inside = (high - low).clamp_min(0).prod(1)
        left = left[inside / (areas[first] + areas[left] - inside) <= iou]
    return torch.stack(kept) if kept else order[:0]


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    return scores.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def onnx_translations() -> dict:
    """What the operators above are in ONNX, for ``torch.onnx.export``."""
    from onnxscript import FLOAT, INT64
    from onnxscript import opset18 as op

    def onnx_nms(boxes: FLOAT, scores: FLOAT, iou: float, most: int) -> INT64:
        boxes = op.Unsqueeze(boxes, op.Constant(value_ints=[0]))
        scores = op.Unsqueeze(scores, op.Constant(value_ints=[0, 1]))
        most, iou, least = (
            op.Constant(value_ints=[most]),
            op.Constant(value_floats=[iou]),
            op.Constant(value_floats=[0.0]),
        )
        found = op.NonMaxSuppression(boxes, scores, most, iou, least)  # (n, 3): image, class, box
        return op.Squeeze(op.Slice(found, op.Constant(value_ints=[2]), op.Constant(value_ints=[3]), [1]), [1])

    return {torch.ops.repl_mm.nms.default: onnx_nms}
