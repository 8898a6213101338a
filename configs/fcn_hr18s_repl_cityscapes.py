_base_ = 'mmseg::hrnet/fcn_hr18s_4xb2-80k_cityscapes-512x1024.py'
custom_imports = dict(imports=['repl_mm'])

model = dict(backbone=dict(type='RepLHRNet', replace=dict()))
custom_hooks = [dict(type='RepLHook', shape=(512, 1024))]
