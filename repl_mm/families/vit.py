"""Plain vision transformers of mmseg: one stage, ``layers``."""

from types import SimpleNamespace

import torch
from torch import nn

from ..computing_layers import ComputingLayer
from . import encoder
from .contract import misfit_of_blocks
from .encoder import DEFAULTS, OPERATORS, build  # noqa: F401  (part of the family)

BACKBONES = ('VisionTransformer', 'BEiT', 'MAE')
REFUSED = {}


def misfit(backbone: nn.Module) -> str | None:
    """``layers`` is a list of encoder layers: timm's and torchvision's classes of this name have none."""
    layers = getattr(backbone, 'layers', None)
    wrong = 'it has no layers' if layers is None else misfit_of_blocks(dict(layers=layers), encoder.lacking)
    return wrong and f'{wrong}; expected a list layers of {encoder.EXPECTED}'


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
    init_cfg = getattr(backbone, 'init_cfg', None)
    if isinstance(init_cfg, dict) and 'prefix' in init_cfg:
        backbone.init_cfg = [init_cfg]
    if hasattr(backbone, 'fix_init_weight'):
        nothing = SimpleNamespace(weight=torch.empty(0))  # MAE rescales these in place
        for layer in backbone.layers:
            if isinstance(layer, ComputingLayer):
                layer.attn = SimpleNamespace(proj=nothing)
                layer.ffn = SimpleNamespace(layers=[None, nothing])
