"""The backbone is mmpretrain's, which has to be installed."""

_base_ = 'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmpretrain.models', 'repl_mm'])

model = dict(backbone=dict(type='mmpretrain.RepLConvNeXt', replace=dict()))
custom_hooks = [dict(type='RepLHook', shape=(512, 512))]
