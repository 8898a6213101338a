"""The classifier, and what happens to a batch of images before it."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ..config import plain_config
from ..heads import pooled
from ..registry import MODELS, class_of


@MODELS.register_module()
class ClsDataPreprocessor(BaseDataPreprocessor):
    """Move a batch to the model's device, normalize it there, and augment it in training.

    Args:
        mean (Sequence[float]): Mean of the channels, in RGB order, of values in 0..255.
        std (Sequence[float]): Standard deviation of the channels.
        augments (Sequence[dict]): Batch transforms of :mod:`repl_mm.classification.augment`, in their order; they work
            on normalized images, so what they fill with zeros has the mean color. Defaults to none.
        size (int | None): Side, in pixels, to which the images are then resized (bilinear, to a square): weights that
            were pretrained on larger pictures see small ones so. Defaults to None, as they are.
        non_blocking (bool): Copy from pinned memory while the device works. Defaults to False.

    Raises:
        ValueError: ``size`` is not valid.
    """

    rgb = True  # the order in which its images come

    def __init__(self, mean, std, augments=(), size=None, non_blocking=False):
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(
                f'ClsDataPreprocessor.size={size!r} is not valid: expected None or an integer of at least 1'
            )
        super().__init__(non_blocking)
        self.size = size
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.augments = nn.ModuleList(MODELS.build(augment) for augment in augments)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Normalize, augment and resize.

        Args:
            data (dict): ``inputs``, uint8 images (N, 3, H, W) in RGB order, and ``labels``, their classes (N,).
            training (bool): Whether to augment. Defaults to False.

        Returns:
            dict: ``inputs``, float32 (N, 3, H, W) of the new size, and ``labels``: classes (N,), or their
            probabilities (N, classes) where images were mixed.
        """
        data = self.cast_data(data)
        images = (data['inputs'].float() - self.mean) / self.std
        labels = data['labels']
        if training:
            for augment in self.augments:
                images, labels = augment(images, labels)
        if self.size:
            images = F.interpolate(images, (self.size, self.size), mode='bilinear', antialias=True)
        return dict(inputs=images, labels=labels)


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """A backbone, pooling, and a linear layer.

    The last output of the backbone is what is classified: its class token if it is a pair (feature map, class token),
    as mmseg's VisionTransformer gives with ``output_cls_token=True``; else the mean over all positions of the feature
    map.

    Args:
        backbone (dict): Config of the backbone.
        num_classes (int): Number of classes.
        in_channels (int): Channels of the backbone's last output.
        label_smoothing (float): Share of the target that is spread over all classes. Defaults to 0.
        channels_last (bool): Keep images and the backbone's weights in channels-last memory. Defaults to False.
        data_preprocessor (dict | None): Config of the data preprocessor. Defaults to None.
        init_cfg (dict | list[dict] | None): As of any mmengine module. Defaults to None.

    Raises:
        ValueError: A setting is not valid, or does not fit the backbone.
    """

    def __init__(
        self,
        backbone,
        num_classes,
        in_channels,
        label_smoothing=0.0,
        channels_last=False,
        data_preprocessor=None,
        init_cfg=None,
    ):
        for key, value in (('num_classes', num_classes), ('in_channels', in_channels)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f'ImageClassifier.{key}={value!r} is not valid: expected an integer of at least 1')
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f'ImageClassifier.label_smoothing={label_smoothing!r} is not valid: expected a number in [0, 1)'
            )
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        self.head = nn.Linear(in_channels, num_classes)
        self.label_smoothing = label_smoothing
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def init_weights(self) -> None:
        """Initialize, then change the memory format, on which random numbers depend."""
        super().init_weights()
        self.backbone.to(memory_format=self.memory_format)

    def forward(self, inputs: Tensor, labels: Tensor | None = None, mode: str = 'tensor'):
        """Classify images.

        Args:
            inputs (Tensor): Images (N, 3, H, W).
            labels (Tensor | None): Classes (N,), or their probabilities (N, num_classes). Defaults to None.
            mode (str): 'tensor', 'loss' or 'predict'. Defaults to 'tensor'.

        Returns:
            Tensor | dict | list[dict]: 'tensor': logits (N, num_classes); 'loss': what :meth:`loss` gives as ``loss``;
            'predict': for every image its ``scores`` (num_classes,) and, where labels are given, its ``label``.
        """
        inputs = inputs.contiguous(memory_format=self.memory_format)
        logits = self.classify(self.backbone(inputs)).float()
        if mode == 'tensor':
            return logits
        if mode == 'loss':
            return dict(loss=self.loss(inputs, logits, labels))
        if mode == 'predict':
            scores = logits.softmax(1)
            if labels is None:
                return [dict(scores=score) for score in scores]
            return [dict(scores=score, label=label) for score, label in zip(scores, labels, strict=True)]
        raise ValueError(f"mode={mode!r} is not valid: expected 'tensor', 'loss' or 'predict'")

    def loss(self, inputs: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """The cross entropy of the logits."""
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def classify(self, outputs) -> Tensor:
        """Logits (N, num_classes) of the backbone's outputs."""
        out = pooled(outputs)
        if out.shape[1] != self.head.in_features:
            raise ValueError(
                f'ImageClassifier.in_channels={self.head.in_features} does not fit the backbone, whose last output '
                f'has {out.shape[1]} channels'
            )
        return self.head(out)


def classifier_head(cfg, weights: dict[str, Tensor], device: str = 'cpu') -> Callable | None:
    """What the classifier of a config makes of its backbone's outputs, with given weights.

    Args:
        cfg (Config): The config.
        weights (dict): Tensors of the model outside of its backbone.
        device (str): Where the outputs will be. Defaults to 'cpu'.

    Returns:
        Callable | None: It gives the logits; None for another model, or if the weights are of other classes.
    """
    scope = cfg.get('default_scope')
    settings = plain_config(cfg.model)
    kind = class_of(ROOT_MODELS, settings['type'], scope)
    if not (isinstance(kind, type) and issubclass(kind, ImageClassifier)):
        return None
    settings = {key: settings[key] for key in ('backbone', 'num_classes', 'in_channels')}
    with DefaultScope.overwrite_default_scope(scope):
        model = ImageClassifier(**copy.deepcopy(settings))
    own = model.head.state_dict()
    head = {name: weights.get(f'head.{name}') for name in own}
    if any(tensor is None or tensor.shape != own[name].shape for name, tensor in head.items()):
        return None
    model.head.load_state_dict(head)
    return model.to(device).eval().requires_grad_(False).classify
