_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'
custom_imports = dict(imports=['repl_mm'])

model = dict(backbone=dict(type='RepLCSPNeXt', replace=dict()))
custom_hooks = [*_base_.custom_hooks, dict(type='RepLHook', shape=(640, 640))]
