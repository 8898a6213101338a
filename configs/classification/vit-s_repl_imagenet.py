"""ViT-S with RepL on ImageNet."""

_base_ = 'vit-s_imagenet.py'
model = dict(backbone=dict(type='RepLVisionTransformer'))
