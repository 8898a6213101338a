"""Small backbones, and a small detector on a few pictures, for the tests of what RepL has to survive."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import repl_mm  # noqa: F401  (registers the builders)

REPO = Path(__file__).resolve().parent.parent

# name: (stock backbone, its settings, replace); a new family adds rows
BACKBONES = {
    'basic': ('ResNet', dict(depth=18), dict()),
    'basic_conv': ('ResNet', dict(depth=18), dict(operator='conv', fusion='channel')),
    'bottleneck': ('ResNet', dict(depth=50), dict(every=3)),
    'adjacent': ('ResNet', dict(depth=50), dict(slots=[(2, 1), (2, 2), (2, 5), (3, 2)], operator='narrow')),
    'full': ('ResNet', dict(depth=50), dict(stages=(1, 3), operator='full')),
    'detach': ('ResNet', dict(depth=18), dict(detach=True)),
    'share': ('ResNet', dict(depth=18), dict(mode='share')),
    'own': ('ResNet', dict(depth=18), dict(mode='own')),
    'remove': ('ResNet', dict(depth=18), dict(mode='remove')),
    'v1d': ('ResNetV1d', dict(depth=18), dict(operator='pointwise')),
    'resnext': ('ResNeXt', dict(depth=50, groups=4, base_width=4), dict(stages=(3,), fusion='lowrank')),
}


def build_backbone(name: str, seed: int = 0, replace: dict | None = None, **settings) -> torch.nn.Module:
    """A backbone of the table at an eighth of its width, in mmdet's defaults: ``frozen_stages=1``, ``norm_eval=True``.

    All that initialization leaves at zero or at one is moved, so that every path carries signal and gradient.
    """
    stock, base, default = BACKBONES[name]
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone = MODELS.build(
            dict(base_channels=8, frozen_stages=1, norm_eval=True)
            | base
            | dict(type=f'RepL{stock}', replace=default if replace is None else replace)
            | settings
        )
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    backbone.train()
    return backbone


def images(num: int = 2, size: int = 64, seed: int = 1) -> torch.Tensor:
    """Normalized noise, ``(num, 3, size, size)``."""
    return torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(seed))


def loss_of(outputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """A loss that all outputs of a backbone take part in, a mean over the images."""
    return sum(output.square().mean() for output in outputs)


def gradients(model: torch.nn.Module, x: torch.Tensor, call=None) -> dict[str, torch.Tensor]:
    """Gradients of :func:`loss_of` by parameter name; ``call`` is what is called in place of the model."""
    model.zero_grad()
    loss_of((model if call is None else call)(x)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def detector_config(data_root, work_dir, **backbone) -> Config:
    """The shipped mini config as RetinaNet-R18-RepL of an eighth of its width: 2 epochs of 3 steps of 2 pictures.

    It runs in mmdet's way, with ``norm_eval=True`` and ``frozen_stages=1``, and without random augmentation.
    """
    cfg = Config.fromfile(REPO / 'configs' / 'retinanet_r50_repl_mini.py')
    cfg.model.backbone.update(dict(depth=18, base_channels=8, frozen_stages=1, norm_eval=True) | backbone)
    cfg.model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    cfg.model.bbox_head.update(in_channels=16, feat_channels=16)
    root = f'{data_root}/'
    for split, loader in (('train', cfg.train_dataloader), ('val', cfg.val_dataloader), ('val', cfg.test_dataloader)):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=root, ann_file=f'annotations/instances_{split}.json')
        loader.dataset.data_prefix = dict(img=f'{split}/')
        loader.dataset.pipeline = [step for step in loader.dataset.pipeline if step.type != 'RandomFlip']
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = f'{root}annotations/instances_val.json'
    cfg.train_cfg.update(max_epochs=2, val_interval=1)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=0, end=4)]
    cfg.custom_hooks = [dict(type='RepLHook', shape=None)]
    cfg.work_dir = str(work_dir)
    cfg.visualizer.name = str(work_dir)  # visualizers of one name are one object, with one folder
    cfg.randomness = dict(seed=0)
    return cfg
