"""ViT-B on CIFAR-10."""

_base_ = 'vit-s_cifar10.py'
model = dict(backbone=dict(embed_dims=768, num_heads=12), in_channels=768)
