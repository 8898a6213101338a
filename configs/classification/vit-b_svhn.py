"""ViT-B on SVHN."""

_base_ = 'vit-s_svhn.py'
model = dict(backbone=dict(embed_dims=768, num_heads=12), in_channels=768)
