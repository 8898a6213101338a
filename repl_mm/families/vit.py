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
    """Prepare for the initialization code of these classes.

    That of MAE asks every layer for parts of its attention. None reads the ``prefix`` of a dict ``init_cfg``; a list
    is left to mmengine, which does.
    """
    encoder.finish(backbone)
    if isinstance(backbone.init_cfg, dict) and 'prefix' in backbone.init_cfg:
        backbone.init_cfg = [backbone.init_cfg]
    if hasattr(backbone, 'fix_init_weight'):
        nothing = SimpleNamespace(weight=torch.empty(0))  # MAE rescales these in place
        for layer in backbone.layers:
            if isinstance(layer, ComputingLayer):
                layer.attn = SimpleNamespace(proj=nothing)
                layer.ffn = SimpleNamespace(layers=[None, nothing])
