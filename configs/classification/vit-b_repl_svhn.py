"""ViT-B with RepL on SVHN."""

_base_ = 'vit-b_svhn.py'
model = dict(backbone=dict(type='RepLVisionTransformer'))
