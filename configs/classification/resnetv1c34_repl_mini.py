"""The backbone of deeplabv3plus_r34-d8_repl_mini.py, pretrained in minutes on two CPU cores.

python tools/demo/mini_dataset.py --layout imagenet --size 64 64 --num-train 2000 --out data/mini_imagenet
"""

_base_ = ['_base_/models/resnet.py', '_base_/default_runtime.py']

model = dict(
    backbone=dict(type='RepLResNetV1c', _scope_='mmseg', replace=dict(), depth=34, stem_channels=16, base_channels=16),
    num_classes=4,
    in_channels=128,
)
custom_hooks = [dict(type='RepLHook', shape=(64, 64))]

data_root = 'data/mini_imagenet/'
loader = dict(batch_size=32, num_workers=0, collate_fn=dict(type='repl_mm.collate'))
dataset = dict(type='ImageNet', data_root=data_root, num_classes=4)
load, pack = dict(type='LoadImage'), dict(type='PackImage')
flip = dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal'])
train_dataloader = dict(
    **loader,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**dataset, split='train', pipeline=[load, flip, pack]),
)
val_dataloader = dict(
    **loader,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, split='val', pipeline=[load, pack]),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator

train_cfg = dict(by_epoch=True, max_epochs=6, val_interval=1)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0),
    clip_grad=dict(max_norm=10),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=60),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=10))
