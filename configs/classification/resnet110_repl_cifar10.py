"""ResNet-110 with RepL on CIFAR-10."""

_base_ = 'resnet110_cifar10.py'
model = dict(backbone=dict(type='RepLCifarResNet'))
