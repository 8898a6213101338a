"""GPT-2 small with RepL on WikiText-2."""

_base_ = 'gpt2-s_wikitext2.py'
model = dict(backbone=dict(type='RepLGPT2Model'))
