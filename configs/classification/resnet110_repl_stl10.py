"""ResNet-110 with RepL on STL-10."""

_base_ = 'resnet110_stl10.py'
model = dict(backbone=dict(type='RepLCifarResNet'))
