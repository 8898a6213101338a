"""ViT-B with patches of 16x16 pixels on ImageNet, on 8 GPUs."""

_base_ = 'vit-s_imagenet.py'
model = dict(backbone=dict(embed_dims=768, num_heads=12), in_channels=768)
