"""MSCAN (SegNeXt) of mmseg: encoder layers whose attention is made of depthwise convolutions.

Its norms are batch norms. The light operator normalizes every token by itself instead: there are no statistics to be
calibrated. ``mixer`` of the transformers is left out: the mean token is not what this attention gives.
"""

from torch import nn

from .contract import misfit_of_blocks, missing
from .encoder import build  # noqa: F401  (part of the family)

BACKBONES = ('MSCAN',)
REFUSED = {}
OPERATORS = ('mlp', 'half', 'full')
DEFAULTS = dict(every=2, ratio=0.25, fusion=dict(type='mix', groups=32))
PARTS = ('norm1.weight', 'attn.proj_2.weight', 'norm2.weight', 'mlp.fc1.weight', 'mlp.dwconv.weight', 'mlp.fc2.weight')


def misfit(backbone: nn.Module) -> str | None:
    """``block1``, ``block2``, ... are lists of layers with two norms, an attention and an MLP."""
    found = {f'block{i + 1}': stage for i, stage in enumerate(stages(backbone))}
    wrong = misfit_of_blocks(found, lambda block: missing(block, PARTS)) if found else 'it has no block1'
    return wrong and f'{wrong}; expected lists block1, block2, ... of layers with norm1, attn, norm2 and mlp'


def stages(backbone: nn.Module) -> list[nn.ModuleList]:
    """The layers of each stage."""
    names = (f'block{i}' for i in range(1, 10))
    return [getattr(backbone, name) for name in names if hasattr(backbone, name)]


def frozen(backbone: nn.Module) -> tuple:
    """None: MSCAN has no ``frozen_stages``."""
    return ()


def openers(backbone: nn.Module) -> tuple:
    """None: the patch embedding is apart from the layers."""
    return ()
