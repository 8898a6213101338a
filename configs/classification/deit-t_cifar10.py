"""DeiT-tiny's ImageNet weights learn CIFAR-10, its images enlarged to 64x64, in one epoch.

The weights are DeiT-tiny's, converted by mmseg's vit2mmseg.py.
"""

_base_ = 'vit-t_cifar10.py'
model = dict(
    data_preprocessor=dict(augments=_base_.augments, size=64),
    backbone=dict(
        img_size=64,
        patch_size=16,
        interpolate_mode='bicubic',
        init_cfg=dict(type='Pretrained', checkpoint='data/deit_tiny_mmseg.pth'),
    ),
)
train_cfg = dict(max_epochs=1, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', convert_to_iter_based=True),
]
custom_hooks = [dict(type='RepLHook', shape=(64, 64))]
