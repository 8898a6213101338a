"""GPT-2 small on WikiText-2: 12 layers of 768 channels, windows of 512 words."""

_base_ = '_base_/gpt2_wikitext2.py'
model = dict(backbone=dict(n_embd=768, n_layer=12, n_head=12, n_positions=512))
train_dataloader = dict(batch_size=16, dataset=dict(length=512))
val_dataloader = dict(batch_size=8, dataset=dict(length=512, stride=256))
test_dataloader = dict(batch_size=8, dataset=dict(length=512, stride=256))
optim_wrapper = dict(optimizer=dict(lr=6e-4))
custom_hooks = [dict(type='RepLHook', shape=(512,))]
