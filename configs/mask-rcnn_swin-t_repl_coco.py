_base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'
custom_imports = dict(imports=['repl_mm'])

model = dict(backbone=dict(type='RepLSwinTransformer', replace=dict()))
custom_hooks = [dict(type='RepLHook')]
