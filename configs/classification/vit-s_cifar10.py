"""ViT-S on CIFAR-10."""

_base_ = [
    '_base_/models/vit.py',
    '_base_/datasets/cifar10.py',
    '_base_/schedules/adamw_300e.py',
    '_base_/default_runtime.py',
]
model = dict(data_preprocessor=dict(augments=_base_.augments + _base_.mix))
