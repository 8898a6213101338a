"""ResNet-101 on ImageNet, on 8 GPUs."""

_base_ = 'resnet50_imagenet.py'
model = dict(backbone=dict(depth=101))
