"""ViT-B with RepL on ImageNet."""

_base_ = 'vit-b_imagenet.py'
model = dict(backbone=dict(type='RepLVisionTransformer'))
