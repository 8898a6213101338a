"""Language modelling on mmengine, with the networks of Hugging Face's ``transformers``: only what both lack.

A config with ``default_scope = 'repl_mm'`` finds all of it by name. ``transformers`` is loaded when a config asks for
one of its networks, never before.
"""

from .backbones import GPT2Model, LlamaModel, MistralModel, Qwen2Model, Qwen3Model
from .datasets import WikiText2, WordText
from .metric import Perplexity
from .model import LanguageModel

__all__ = [
    'GPT2Model',
    'LanguageModel',
    'LlamaModel',
    'MistralModel',
    'Perplexity',
    'Qwen2Model',
    'Qwen3Model',
    'WikiText2',
    'WordText',
]
