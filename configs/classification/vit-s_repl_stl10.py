"""ViT-S with RepL on STL-10."""

_base_ = 'vit-s_stl10.py'
model = dict(backbone=dict(type='RepLVisionTransformer'))
