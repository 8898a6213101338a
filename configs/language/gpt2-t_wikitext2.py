"""A tiny GPT-2 on WikiText-2: 6 layers of 128 channels, windows of 128 words."""

_base_ = '_base_/gpt2_wikitext2.py'
model = dict(backbone=dict(n_embd=128, n_layer=6, n_head=4, n_positions=128))
train_dataloader = dict(batch_size=16, dataset=dict(length=128))
val_dataloader = dict(batch_size=16, dataset=dict(length=128, stride=64))
test_dataloader = dict(batch_size=16, dataset=dict(length=128, stride=64))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
custom_hooks = [dict(type='RepLHook', shape=(128,))]
