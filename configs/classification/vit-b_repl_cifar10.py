"""ViT-B with RepL on CIFAR-10."""

_base_ = 'vit-b_cifar10.py'
model = dict(backbone=dict(type='RepLVisionTransformer'))
