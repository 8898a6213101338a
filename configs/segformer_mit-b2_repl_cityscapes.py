_base_ = 'mmseg::segformer/segformer_mit-b2_8xb1-160k_cityscapes-1024x1024.py'
custom_imports = dict(imports=['repl_mm'])

model = dict(backbone=dict(type='RepLMixVisionTransformer', replace=dict()))
custom_hooks = [dict(type='RepLHook', shape=(1024, 1024))]
