"""ResNet-110 on SVHN."""

_base_ = 'resnet32_svhn.py'
model = dict(backbone=dict(depth=110))
