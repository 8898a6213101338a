"""The backbone is mmpretrain's, which has to be installed."""

_base_ = 'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'
custom_imports = dict(imports=['mmpretrain.models', 'repl_mm'])

model = dict(backbone=dict(type='mmpretrain.RepLConvNeXt', replace=dict()))
custom_hooks = [dict(type='RepLHook')]
