"""ResNet-32 with RepL on STL-10."""

_base_ = 'resnet32_stl10.py'
model = dict(backbone=dict(type='RepLCifarResNet'))
