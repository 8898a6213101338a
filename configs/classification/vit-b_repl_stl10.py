"""ViT-B with RepL on STL-10."""

_base_ = 'vit-b_stl10.py'
model = dict(backbone=dict(type='RepLVisionTransformer'))
