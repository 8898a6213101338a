"""mmseg's ViT-S with patches of 4x4 pixels, for images of 32x32; its class token is classified."""

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], non_blocking=True
    ),
    backbone=dict(
        type='VisionTransformer',
        _scope_='mmseg',
        img_size=32,
        patch_size=4,
        embed_dims=384,
        num_layers=12,
        num_heads=6,
        drop_path_rate=0.1,
        norm_cfg=dict(type='LN', eps=1e-6),
        patch_bias=True,
        final_norm=True,
        output_cls_token=True,
    ),
    num_classes=10,
    in_channels=384,
    label_smoothing=0.1,
)
mix = [dict(type='BatchErase', prob=0.25), dict(type='BatchMix', num_classes=10, mixup=0.8, cutmix=1.0)]
