"""ResNet-32 with RepL on SVHN."""

_base_ = 'resnet32_svhn.py'
model = dict(backbone=dict(type='RepLCifarResNet'))
