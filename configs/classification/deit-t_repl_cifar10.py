"""DeiT-tiny with RepL learns CIFAR-10 from ImageNet weights."""

_base_ = 'deit-t_cifar10.py'
model = dict(backbone=dict(type='RepLVisionTransformer'))
