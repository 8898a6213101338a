"""Plain vision transformers: one stage, ``layers`` of mmseg and mmpretrain, ``blocks`` of timm (DeiT, DINOv2, v3)."""

from types import SimpleNamespace

import torch
from torch import nn

from ..computing_layers import ComputingLayer, TokenGrid
from . import encoder
from .contract import misfit_of_blocks
from .encoder import DEFAULTS, OPERATORS, build  # noqa: F401  (part of the family)

BACKBONES = ('VisionTransformer', 'BEiT', 'MAE')
REFUSED = {}
BUILT = ('Eva',)  # timm's DINOv3 and EVA


def misfit(backbone: nn.Module) -> str | None:
    """``layers`` or ``blocks`` is a list of encoder layers: torchvision's class of this name has none."""
    name = _name(backbone)
    wrong = misfit_of_blocks({name: getattr(backbone, name)}, encoder.lacking) if name else 'it has no layers'
    return wrong and f'{wrong}; expected a list layers or blocks of {encoder.EXPECTED}'


def _name(backbone: nn.Module) -> str | None:
    return next((name for name in ('layers', 'blocks') if hasattr(backbone, name)), None)


def stages(backbone: nn.Module) -> list[nn.ModuleList | nn.Sequential]:
    """All layers are one stage."""
    return [getattr(backbone, _name(backbone))]


def frozen(backbone: nn.Module) -> range:
    """The only stage, where ``frozen_exclude`` leaves nothing of the layers to be trained."""
    return range(not any(p.requires_grad for p in stages(backbone)[0].parameters()))


def openers(backbone: nn.Module) -> tuple:
    """None: the patch embedding is apart from the layers."""
    return ()


def finish(backbone: nn.Module) -> None:
    """Tell the layers of operator 'half' how tokens lie, and prepare for the initialization code of these classes.

    That of MAE asks every layer for parts of its attention. None reads the ``prefix`` of a dict ``init_cfg``; a list
    is left to mmengine, which does.
    """
    encoder.finish(backbone)
    halves = [layer for layer in stages(backbone)[0] if isinstance(getattr(layer, 'grid', None), TokenGrid)]
    if halves and hasattr(backbone, 'patch_embed'):
        names = ('num_prefix_tokens', 'num_extra_tokens', 'with_cls_token')  # of timm, mmpretrain, mmseg
        grid = TokenGrid(next((int(getattr(backbone, name)) for name in names if hasattr(backbone, name)), 0))
        backbone.patch_embed.register_forward_hook(grid)
        for layer in halves:
            layer.grid = grid
    init_cfg = getattr(backbone, 'init_cfg', None)
    if isinstance(init_cfg, dict) and 'prefix' in init_cfg:
        backbone.init_cfg = [init_cfg]
    if hasattr(backbone, 'fix_init_weight') and hasattr(backbone, 'layers'):  # timm's is over by now
        nothing = SimpleNamespace(weight=torch.empty(0))  # MAE rescales these in place
        for layer in backbone.layers:
            if isinstance(layer, ComputingLayer):
                layer.attn = SimpleNamespace(proj=nothing)
                layer.ffn = SimpleNamespace(layers=[None, nothing])
