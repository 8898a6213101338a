"""A tiny GPT-2 with RepL on WikiText-2."""

_base_ = 'gpt2-t_wikitext2.py'
model = dict(backbone=dict(type='RepLGPT2Model'))
