_base_ = 'mmseg::segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py'
custom_imports = dict(imports=['repl_mm'])

model = dict(backbone=dict(type='RepLMSCAN', replace=dict()))
custom_hooks = [dict(type='RepLHook', shape=(512, 512))]
