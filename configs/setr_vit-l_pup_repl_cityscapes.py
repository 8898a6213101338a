_base_ = 'mmseg::setr/setr_vit-l_pup_8xb1-80k_cityscapes-768x768.py'
custom_imports = dict(imports=['repl_mm'])

# mmseg's config asks for a file that everybody has to convert; this one is downloaded
checkpoint = (
    'https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segmenter/vit_large_p16_384_20220308-d4efb41d.pth'  # noqa: E501
)
model = dict(
    backbone=dict(type='RepLVisionTransformer', replace=dict(), init_cfg=dict(checkpoint=checkpoint)),
)
custom_hooks = [dict(type='RepLHook', shape=(768, 768))]
