"""ResNet-32 with RepL on CIFAR-10."""

_base_ = 'resnet32_cifar10.py'
model = dict(backbone=dict(type='RepLCifarResNet'))
