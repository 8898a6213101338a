"""ResNet-32 on SVHN."""

_base_ = [
    '_base_/models/cifar_resnet.py',
    '_base_/datasets/svhn.py',
    '_base_/schedules/sgd_200e.py',
    '_base_/default_runtime.py',
]
model = dict(data_preprocessor=dict(augments=_base_.augments))
