_base_ = 'mmdet::hrnet/faster-rcnn_hrnetv2p-w18-1x_coco.py'
custom_imports = dict(imports=['repl_mm'])

model = dict(backbone=dict(type='RepLHRNet', replace=dict()))
custom_hooks = [dict(type='RepLHook')]
