_base_ = 'mmseg::deeplabv3/deeplabv3_r50-d8_4xb2-80k_cityscapes-512x1024.py'
custom_imports = dict(imports=['repl_mm'])

model = dict(backbone=dict(type='RepLResNetV1c', replace=dict()))
custom_hooks = [dict(type='RepLHook', shape=(512, 1024))]
