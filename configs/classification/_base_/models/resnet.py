"""mmdet's ResNet-50, trained as a whole; mmseg's ResNetV1c (DeepLab) by _scope_='mmseg' and its type."""

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], non_blocking=True
    ),
    backbone=dict(type='ResNet', _scope_='mmdet', depth=50, out_indices=(3,), norm_eval=False),
    num_classes=1000,
    in_channels=2048,
    label_smoothing=0.1,
)
