"""One epoch of fine-tuning on CIFAR-10 for a ResNet-32 whose weights tools/convert.py has made (load_from)."""

_base_ = 'resnet32_repl_cifar10.py'
train_cfg = dict(max_epochs=1, val_interval=1)
# at a higher rate the mixing coefficients, each a factor of whole rows of weights, lose what the conversion has found
optim_wrapper = dict(optimizer=dict(lr=0.03), paramwise_cfg=dict(custom_keys={'.repl.': dict(lr_mult=0.1)}))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', convert_to_iter_based=True),
]
