"""UPerNet with ViT-B on Cityscapes: the model and the optimizer of mmseg's ADE20K config, SETR's crops of 768x768."""

_base_ = [
    'mmseg::_base_/models/upernet_vit-b16_ln_mln.py',
    'mmseg::_base_/datasets/cityscapes_768x768.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_80k.py',
]
custom_imports = dict(imports=['repl_mm'])

crop_size = (768, 768)
model = dict(
    data_preprocessor=dict(size=crop_size),
    # mmseg's config asks for a file that everybody has to convert; this one is downloaded
    pretrained='https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segmenter/vit_base_p16_384_20220308-96dfe169.pth',  # noqa: E501
    backbone=dict(
        type='RepLVisionTransformer', replace=dict(), img_size=crop_size, drop_path_rate=0.1, final_norm=True
    ),
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(512, 512)),
)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys=dict(pos_embed=dict(decay_mult=0), cls_token=dict(decay_mult=0), norm=dict(decay_mult=0))
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=1500, end=80000, by_epoch=False),
]
custom_hooks = [dict(type='RepLHook', shape=crop_size)]
