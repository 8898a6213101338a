"""Learning from a trained classifier instead of from labels."""

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from torch import Tensor

from ..data_checks import DataError
from ..registry import MODELS
from .classifier import ImageClassifier


@MODELS.register_module()
class DistilledClassifier(ImageClassifier):
    """An :class:`ImageClassifier` that learns a trained one's answers (Hinton et al., arXiv 1503.02531), and no label.

    The teacher sees the very images that the student sees, normalized and augmented. It is no part of the state dict,
    of the parameters, or of what :mod:`repl_mm.cost` counts: its forward pass costs a third of its own training step.

    Args:
        teacher_config (str | dict): The teacher's config, as in mmdet: a file, or a dict with ``model``.
        teacher_ckpt (str): Its checkpoint, which must have all of its tensors.
        temperature (float): Both networks' logits are divided by it. Defaults to 4.
        **settings: Of :class:`ImageClassifier`.

    Raises:
        DataError: The checkpoint is missing, or not the teacher's.
        ValueError: Another setting is not valid.
    """

    def __init__(self, teacher_config, teacher_ckpt, temperature=4.0, **settings):
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or temperature <= 0:
            raise ValueError(
                f'DistilledClassifier.temperature={temperature!r} is not valid: expected a number above 0'
            )
        super().__init__(**settings)
        self.temperature = temperature
        cfg = Config.fromfile(teacher_config) if isinstance(teacher_config, str) else teacher_config
        if 'model' not in cfg:
            raise ValueError(f'DistilledClassifier.teacher_config={teacher_config!r} is not valid: it has no model')
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            teacher = MODELS.build({**cfg['model'], 'channels_last': settings.get('channels_last', False)})
        try:
            load_checkpoint(teacher, teacher_ckpt, map_location='cpu', strict=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f'DistilledClassifier.teacher_ckpt={teacher_ckpt!r} is not valid: {" ".join(str(error).split())}; '
                'expected a checkpoint of teacher_config'
            ) from error
        if teacher.head.out_features != self.head.out_features:
            raise ValueError(
                f'DistilledClassifier.num_classes={self.head.out_features} is not valid: the teacher has '
                f'{teacher.head.out_features}'
            )
        # in a tuple it is no submodule
        self.teacher = (teacher.eval().requires_grad_(False),)

    def _apply(self, fn, *args, **kwargs):
        self.teacher[0]._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)

    def loss(self, inputs: Tensor, logits: Tensor, labels: Tensor | None) -> Tensor:
        """The Kullback-Leibler divergence from the teacher's softened answers, times ``temperature**2``."""
        with torch.no_grad():
            answers = self.teacher[0](inputs)
        log_probabilities = [F.log_softmax(x / self.temperature, 1) for x in (logits, answers)]
        return F.kl_div(*log_probabilities, reduction='batchmean', log_target=True) * self.temperature**2
