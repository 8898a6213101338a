"""FCN with HRNet-W18-small on CamVid; tools/dataset_converters/camvid_to_mmseg.py makes data/camvid."""

_base_ = ['mmseg::_base_/models/fcn_hr18.py', './_base_/camvid.py']
custom_imports = dict(imports=['repl_mm'])

crop_size = (256, 256)
model = dict(
    data_preprocessor=dict(size=crop_size),
    pretrained='open-mmlab://msra/hrnetv2_w18_small',
    backbone=dict(
        type='RepLHRNet',
        replace=dict(),
        extra=dict(
            stage1=dict(num_blocks=(2,)),
            stage2=dict(num_blocks=(2, 2)),
            stage3=dict(num_modules=3, num_blocks=(2, 2, 2)),
            stage4=dict(num_modules=2, num_blocks=(2, 2, 2, 2)),
        ),
    ),
    decode_head=dict(num_classes=11),
)
custom_hooks = [dict(type='RepLHook', shape=crop_size)]
