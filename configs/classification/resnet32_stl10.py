"""ResNet-32 on STL-10."""

_base_ = [
    '_base_/models/cifar_resnet.py',
    '_base_/datasets/stl10.py',
    '_base_/schedules/sgd_200e.py',
    '_base_/default_runtime.py',
]
model = dict(data_preprocessor=dict(augments=_base_.augments))
