"""ViT-S on STL-10."""

_base_ = [
    '_base_/models/vit.py',
    '_base_/datasets/stl10.py',
    '_base_/schedules/adamw_300e.py',
    '_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(augments=_base_.augments + _base_.mix),
    backbone=dict(img_size=96, patch_size=8),
)
