"""ViT-S with RepL on CIFAR-10."""

_base_ = 'vit-s_cifar10.py'
model = dict(backbone=dict(type='RepLVisionTransformer'))
