"""ResNet-110 with RepL on SVHN."""

_base_ = 'resnet110_svhn.py'
model = dict(backbone=dict(type='RepLCifarResNet'))
