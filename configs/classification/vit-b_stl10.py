"""ViT-B on STL-10."""

_base_ = 'vit-s_stl10.py'
model = dict(backbone=dict(embed_dims=768, num_heads=12), in_channels=768)
