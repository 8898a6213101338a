"""ResNet-32 of He et al. for small images."""

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(type='ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(type='CifarResNet', depth=32),
    num_classes=10,
    in_channels=64,
)
