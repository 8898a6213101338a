"""ViT-Ti on CIFAR-10."""

_base_ = 'vit-s_cifar10.py'
model = dict(backbone=dict(embed_dims=192, num_heads=3), in_channels=192)
