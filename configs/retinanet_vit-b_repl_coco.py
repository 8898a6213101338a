"""RetinaNet with mmseg's plain ViT-B and its feature pyramid in front of mmdet's FPN; needs both packages.

Images lie within 640x640, because attention is global: for backward, the stock backbone alone keeps 4852 MiB of two
images of 640x640, and 24732 MiB of two of 800x1344 (python tools/cost.py CONFIG --shape H W).
"""

_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['repl_mm'])

image_size = (640, 640)
model = dict(
    data_preprocessor=dict(pad_size_divisor=64),
    backbone=dict(
        _delete_=True,
        type='RepLVisionTransformer',
        _scope_='mmseg',
        replace=dict(),
        img_size=image_size,
        patch_size=16,
        embed_dims=768,
        num_layers=12,
        num_heads=12,
        out_indices=(2, 5, 8, 11),  # none of them is replaced
        drop_path_rate=0.1,
        patch_bias=True,
        final_norm=True,
        norm_cfg=dict(type='LN', eps=1e-6),
        # From scratch. init_cfg=dict(type='Pretrained', checkpoint=FILE) takes DeiT-B (deit_base_patch16_224) after
        # mmseg's tools/model_converters/vit2mmseg.py; its positions are interpolated to img_size.
    ),
    neck=[
        # Strides 8, 16, 32, 64: what RetinaNet looks at; at stride 4 the pyramid would have weights without use.
        dict(type='mmseg.Feature2Pyramid', embed_dim=768, rescales=[2, 1, 0.5, 0.25]),
        dict(type='FPN', in_channels=[768] * 4, out_channels=256, add_extra_convs='on_input', num_outs=5),
    ],
)
custom_hooks = [dict(type='RepLHook', shape=image_size)]

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=image_size, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_size, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))

# No layer-wise decay: mmdet's and mmseg's constructors know it for ConvNeXt, BEiT and MAE only.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0,
        bias_decay_mult=0,
        custom_keys=dict(pos_embed=dict(decay_mult=0), cls_token=dict(decay_mult=0)),
    ),
)
