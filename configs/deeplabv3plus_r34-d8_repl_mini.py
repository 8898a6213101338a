"""DeepLabV3+-R34-d8-RepL on the generated mini dataset in Cityscapes layout, in minutes on two CPU cores.

From scratch; tools/demo/demo.py starts its backbone from that of classification/resnetv1c34_repl_mini.py.

python tools/demo/mini_dataset.py --layout cityscapes --size 64 64 --out data/mini_cityscapes
"""

_base_ = 'mmseg::deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py'
custom_imports = dict(imports=['repl_mm'])

size = (64, 64)
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=size),
    backbone=dict(type='RepLResNetV1c', replace=dict(), depth=34, stem_channels=16, base_channels=16),
    # a quarter of the width of a ResNet-34, a head to match, and dilations for its maps of 8x8
    decode_head=dict(in_channels=128, channels=32, c1_in_channels=16, dilations=(1, 2, 4, 6)),
    auxiliary_head=None,
)
custom_hooks = [dict(type='RepLHook', shape=size)]

data_root = 'data/mini_cityscapes/'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomRotFlip', rotate_prob=0.0, flip_prob=1.0),  # quarter turns and mirror images
    dict(type='PackSegInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
loader = dict(batch_size=32, num_workers=0, persistent_workers=False)
train_dataloader = dict(**loader, dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(**loader, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
# mIoU by mmseg, and the official evaluation by cityscapesscripts, for which the results are kept as pictures
test_evaluator = [
    dict(type='IoUMetric', iou_metrics=['mIoU']),
    dict(type='CityscapesMetric', output_dir='work_dirs/mini_cityscapes_results', keep_results=True),
]

max_iters = 600
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0),
    clip_grad=dict(max_norm=10),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', T_max=max_iters, by_epoch=False),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=300, max_keep_ckpts=1))
