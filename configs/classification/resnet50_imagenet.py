"""ResNet-50 on ImageNet, on 8 GPUs."""

_base_ = [
    '_base_/models/resnet.py',
    '_base_/datasets/imagenet.py',
    '_base_/schedules/sgd_100e.py',
    '_base_/default_runtime.py',
]
