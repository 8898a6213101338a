"""Segmenter on Cityscapes: the model and the optimizer of mmseg's ADE20K config, SETR's crops of 768x768."""

_base_ = [
    'mmseg::_base_/models/segmenter_vit-b16_mask.py',
    'mmseg::_base_/datasets/cityscapes_768x768.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_80k.py',
]
custom_imports = dict(imports=['repl_mm'])

crop_size = (768, 768)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(type='RepLVisionTransformer', replace=dict(), img_size=crop_size),
    decode_head=dict(num_classes=19),
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(512, 512)),
)
optim_wrapper = dict(optimizer=dict(lr=0.001, weight_decay=0.0))
train_dataloader = dict(batch_size=1)
custom_hooks = [dict(type='RepLHook', shape=crop_size)]
