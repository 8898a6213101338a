"""ViT-Ti with RepL on CIFAR-10."""

_base_ = 'vit-t_cifar10.py'
model = dict(backbone=dict(type='RepLVisionTransformer'))
