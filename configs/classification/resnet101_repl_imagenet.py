"""ResNet-101 with RepL on ImageNet; the plan is that of dense configs whose first stage is frozen."""

_base_ = 'resnet101_imagenet.py'
model = dict(backbone=dict(type='RepLResNet', replace=dict(stages=(1, 2, 3))))
