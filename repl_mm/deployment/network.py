"""Which part of a model leaves it: the network, from normalized images to raw outputs.

Decoding, NMS and whatever else has data-dependent shapes stay with the model. Where a head takes proposals or queries
(two-stage detectors, DETR, Mask2Former) the network ends with the neck, and the head stays with the model as well.
"""

import sys
from collections.abc import Callable

from torch import Tensor, nn
from torch.utils import _pytree as pytree

DENSE, SEGMENTOR, CLASSIFIER, FEATURES = 'dense head', 'decode head', 'classifier', 'features'


class Network(nn.Module):
    """The network of a model: normalized images to a flat tuple of raw outputs.

    Attributes:
        kind (str): Where it ends: 'dense head', 'decode head', 'classifier' or 'features' (the neck, or the backbone
            where there is none).
        tree (pytree.TreeSpec | None): How the model nests the outputs; known after the first call.
        names (tuple[str] | None): Of the outputs. Defaults to None, numbers.
        batch (int | None): Images that it takes; None: any number.

    Shape: ``(N, C, H, W)`` to a tuple of tensors, each with N as its first dimension.
    """

    names: tuple[str, ...] | None = None
    batch: int | None = None

    def __init__(self, model: nn.Module, kind: str, outputs: Callable[[Tensor], object]):
        super().__init__()
        self.model = model
        self.kind = kind
        self.outputs = outputs
        self.tree = None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the raw outputs as a flat tuple."""
        leaves, tree = pytree.tree_flatten(self.outputs(images))
        self.tree = tree
        return tuple(leaves)

    def rest(self) -> dict[str, Tensor]:
        """The weights that the network does not have and prediction needs: of the heads, where it ends before them."""
        if self.kind != FEATURES:
            return {}
        inside = ('backbone.', 'neck.')
        return {key: value for key, value in self.model.state_dict().items() if not key.startswith(inside)}


def find_network(model: nn.Module) -> Network:
    """The network of a model of mmdet, of mmseg, of mmpretrain, or of our own classification.

    Raises:
        TypeError: The model is of another kind.
    """
    if callable(getattr(model, 'classify', None)):  # ImageClassifier, which loads with classification only
        return Network(model, CLASSIFIER, lambda images: model.classify(model.backbone(images)))
    has_backbone = isinstance(getattr(model, 'backbone', None), nn.Module)
    if not (has_backbone and callable(getattr(model, 'extract_feat', None))):
        raise TypeError(
            f'a {type(model).__name__} has no network that is known here: expected a detector of mmdet with one '
            'backbone (of a teacher with a student, one of them), a segmentor of mmseg, or a classifier of mmpretrain '
            'or of repl_mm'
        )
    if _is(model, 'mmdet.models.detectors.single_stage', 'SingleStageDetector') and _predicts_by_forward(
        getattr(model, 'bbox_head', None), 'mmdet.models.dense_heads.base_dense_head', 'BaseDenseHead'
    ):
        return Network(model, DENSE, lambda images: model.bbox_head(model.extract_feat(images)))
    if _is(model, 'mmseg.models.segmentors.encoder_decoder', 'EncoderDecoder') and _predicts_by_forward(
        model.decode_head, 'mmseg.models.decode_heads.decode_head', 'BaseDecodeHead'
    ):
        return Network(model, SEGMENTOR, lambda images: model.decode_head(model.extract_feat(images)))
    if _is(model, 'mmpretrain.models.classifiers.image', 'ImageClassifier') and _predicts_by_forward(
        model.head, 'mmpretrain.models.heads.cls_head', 'ClsHead'
    ):
        return Network(model, CLASSIFIER, lambda images: model.head(model.extract_feat(images)))
    return Network(model, FEATURES, model.extract_feat)


def _base(module: str, name: str) -> type | None:
    """A class of a package, if that has been imported; else nothing is an object of it."""
    return getattr(sys.modules.get(module), name, None)


def _is(thing: object, module: str, name: str) -> bool:
    base = _base(module, name)
    return base is not None and isinstance(thing, base)


def _predicts_by_forward(head: nn.Module, module: str, name: str) -> bool:
    """Whether a head predicts as its base class does: from what ``forward`` gives for features."""
    return _is(head, module, name) and type(head).predict is _base(module, name).predict


def describe(model: nn.Module) -> str:
    """Say what a model is and how many classes it tells apart; to see whether a file belongs to a config."""
    head = next((getattr(model, name) for name in ('bbox_head', 'decode_head', 'head') if hasattr(model, name)), None)
    head = getattr(getattr(model, 'roi_head', None), 'bbox_head', head)
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    count = getattr(head, 'num_classes', None) or getattr(head, 'out_features', None)
    return type(model).__name__ + ('' if count is None else f' of {count} classes')


def preprocessing(model: nn.Module) -> dict:
    """What happens to a picture, BGR, before the network sees it.

    Returns:
        dict: ``mean`` and ``std`` by channel in the order of the network's input, ``bgr_to_rgb`` (whether channels are
        swapped before), ``pad_size_divisor``.
    """
    pre = getattr(model, 'data_preprocessor', None)
    numbers = {name: getattr(pre, name, None) for name in ('mean', 'std')}
    # mmdet's, mmseg's and mmpretrain's names of it; our own takes RGB
    names = ('_channel_conversion', 'channel_conversion', 'to_rgb')
    swap = next((getattr(pre, name) for name in names if hasattr(pre, name)), pre is not None)
    return dict(
        {name: None if value is None else value.flatten().tolist() for name, value in numbers.items()},
        bgr_to_rgb=bool(swap),
        pad_size_divisor=int(getattr(pre, 'pad_size_divisor', 1) or 1),
    )
