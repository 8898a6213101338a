"""ViT-S with RepL on SVHN."""

_base_ = 'vit-s_svhn.py'
model = dict(backbone=dict(type='RepLVisionTransformer'))
