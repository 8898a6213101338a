_base_ = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'
custom_imports = dict(imports=['repl_mm'])

model = dict(backbone=dict(type='RepLCSPDarknet', replace=dict()))
custom_hooks = [*_base_.custom_hooks, dict(type='RepLHook', shape=(640, 640))]
