"""ViT-S with patches of 16x16 pixels on ImageNet, on 8 GPUs."""

_base_ = [
    '_base_/models/vit.py',
    '_base_/datasets/imagenet.py',
    '_base_/schedules/adamw_300e.py',
    '_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(augments=[dict(type='BatchErase', prob=0.25), dict(type='BatchMix', num_classes=1000)]),
    backbone=dict(img_size=224, patch_size=16),
    num_classes=1000,
)
crop = dict(type='RandomResizedCrop', size=224, interpolation='bicubic')
pipeline = [_base_.load, crop, _base_.flip, dict(type='RandAugment'), _base_.pack]
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=pipeline))
auto_scale_lr = dict(base_batch_size=512)
