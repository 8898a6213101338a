"""A comparison of minutes: ResNet-20 of 8 base channels, too few for its task, on CIFAR-10 of 16x16 pixels.

Twelve epochs take three and a half minutes on one core in bfloat16 (optim_wrapper.type=CPUAmpOptimWrapper
model.channels_last=True), five to six without. Pictures are resized by an antialiased bilinear filter. Here every
block counts, so that arms differ, as they do not in networks that have more than they need. Validation is on a
held-out part of the training images: choose there, and report the test images once, by
`--cfg-options val_dataloader.dataset.split=test val_dataloader.dataset.indices=None`.
"""

_base_ = 'resnet32_cifar10.py'
model = dict(
    data_preprocessor=dict(
        size=16,
        augments=[dict(type='BatchCrop', padding=4), dict(type='BatchFlip')],
    ),
    backbone=dict(type='RepLCifarResNet', depth=20, base_channels=8, replace=dict(every=2)),  # block 1 of every stage
    in_channels=32,
)
train_dataloader = dict(dataset=dict(indices=45000))
val_dataloader = dict(dataset=dict(split='train', indices=list(range(45000, 50000))))
test_dataloader = dict(dataset=dict(split='test', indices=None))

epochs, steps = 12, 352  # of 128 images
warmup = epochs * steps // 10
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
optim_wrapper = dict(
    optimizer=dict(lr=0.2, weight_decay=5e-4),
    paramwise_cfg=dict(
        norm_decay_mult=0, bias_decay_mult=0, custom_keys={'.gain': dict(decay_mult=0), '.bias': dict(decay_mult=0)}
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup),
    dict(type='PolyLR', power=1, eta_min=0, by_epoch=False, begin=warmup, end=epochs * steps),
]
