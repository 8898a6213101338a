"""STL-10: 96x96 pixels, 10 classes; the labelled images."""

data_root = 'data/stl10/'
train_dataloader = dict(
    batch_size=128,
    collate_fn=dict(type='repl_mm.collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='STL10', data_root=data_root, split='train'),
)
val_dataloader = dict(
    batch_size=500,
    collate_fn=dict(type='repl_mm.collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='STL10', data_root=data_root, split='test'),
)
test_dataloader = val_dataloader
augments = [dict(type='BatchCrop', padding=12), dict(type='BatchFlip')]
custom_hooks = [dict(type='RepLHook', shape=(96, 96))]
auto_scale_lr = dict(enable=False, base_batch_size=128)
