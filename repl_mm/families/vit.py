"""Plain vision transformers of mmseg: one stage, ``layers``."""

from types import SimpleNamespace

import torch
from torch import nn

from ..computing_layers import ComputingLayer
from . import encoder
from .encoder import DEFAULTS, OPERATORS, build  # noqa: F401  (part of the family)

BACKBONES = ('VisionTransformer', 'BEiT', 'MAE')
REFUSED = {}


def stages(backbone: nn.Module) -> list[nn.ModuleList]:
    """All layers are one stage."""
    return [backbone.layers]


def frozen(backbone: nn.Module) -> range:
    """The only stage, where ``frozen_exclude`` leaves nothing of the layers to be trained."""
    return range(not any(p.requires_grad for p in backbone.layers.parameters()))


def openers(backbone: nn.Module) -> tuple:
    """None: the patch embedding is apart from the layers."""
    return ()


def finish(backbone: nn.Module) -> None:
    """Prepare for the initialization code of BEiT and MAE, which asks every layer for parts of its attention."""
    encoder.finish(backbone)
    if hasattr(backbone, 'fix_init_weight'):
        nothing = SimpleNamespace(weight=torch.empty(0))  # MAE rescales these in place
        for layer in backbone.layers:
            if isinstance(layer, ComputingLayer):
                layer.attn = SimpleNamespace(proj=nothing)
                layer.ffn = SimpleNamespace(layers=[None, nothing])
