"""DeiT-tiny-RepL with one convolution as head on CamVid: street scenes of 480x360 in 11 classes.

tools/dataset_converters/camvid_to_mmseg.py makes data/camvid; the weights are DeiT-tiny's, converted by mmseg's
vit2mmseg.py.
"""

_base_ = './_base_/camvid.py'
custom_imports = dict(imports=['repl_mm'])

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(256, 256),
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type='RepLVisionTransformer',
        replace=dict(),
        img_size=(224, 224),
        embed_dims=192,
        num_layers=12,
        num_heads=3,
        patch_bias=True,
        out_indices=(11,),
        final_norm=True,
        norm_cfg=dict(type='LN', eps=1e-6),
        interpolate_mode='bicubic',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='data/deit_tiny_mmseg.pth'),
    ),
    decode_head=dict(
        type='FCNHead',
        in_channels=192,
        in_index=0,
        channels=128,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=11,
        norm_cfg=dict(type='BN'),
        loss_decode=dict(type='CrossEntropyLoss'),
    ),
    test_cfg=dict(mode='whole'),
)
custom_hooks = [dict(type='RepLHook', shape=(256, 256))]
