_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'
custom_imports = dict(imports=['repl_mm'])

model = dict(backbone=dict(type='RepLResNet', replace=dict()))
custom_hooks = [dict(type='RepLHook')]
