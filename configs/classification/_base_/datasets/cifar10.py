"""CIFAR-10: 32x32 pixels, 10 classes. It lies in memory, and batches are augmented where the model is."""

data_root = 'data/cifar10/'
train_dataloader = dict(
    batch_size=128,
    collate_fn=dict(type='repl_mm.collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CIFAR10', data_root=data_root, split='train'),
)
val_dataloader = dict(
    batch_size=500,
    collate_fn=dict(type='repl_mm.collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CIFAR10', data_root=data_root, split='test'),
)
test_dataloader = val_dataloader
augments = [dict(type='BatchCrop', padding=4), dict(type='BatchFlip')]
custom_hooks = [dict(type='RepLHook', shape=(32, 32))]
auto_scale_lr = dict(enable=False, base_batch_size=128)
