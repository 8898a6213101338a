"""GPT-2 from scratch on WikiText-2, word by word: what all configs of this folder have in common.

The cosine follows train_cfg.max_epochs. In validation and test every word is predicted once, from half a window of
words before it at least: the stride is half the length.
"""

default_scope = 'repl_mm'
data_root = 'data/wikitext2/'
vocab_size = 33278  # of the training split, <eos> and <unk> among them
model = dict(
    type='LanguageModel',
    data_preprocessor=dict(type='BaseDataPreprocessor'),
    backbone=dict(
        type='GPT2Model',
        vocab_size=vocab_size,
        resid_pdrop=0.1,
        embd_pdrop=0.1,
        attn_pdrop=0.1,
        bos_token_id=None,
        eos_token_id=None,
    ),
)
dataset = dict(type='WikiText2', data_root=data_root, vocab_size=vocab_size)
train_dataloader = dict(
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(split='train', **dataset),
)
val_dataloader = dict(
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(split='valid', **dataset),
)
test_dataloader = dict(
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(split='test', **dataset),
)
val_evaluator = dict(type='Perplexity')
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=20, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', betas=(0.9, 0.95), weight_decay=0.1),
    paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0),
    clip_grad=dict(max_norm=1),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, convert_to_iter_based=True),
]
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
)
randomness = dict(seed=0)
