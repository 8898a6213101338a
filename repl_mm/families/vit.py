"""Plain vision transformers of mmseg: one stage, ``layers``."""

from types import SimpleNamespace

import torch
from torch import nn

from ..computing_layers import ComputingLayer
from ..subclass import Specialized, specialize
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
    if hasattr(backbone, 'resize_rel_pos_embed'):
        specialize(backbone, _WithoutReplaced)
    if hasattr(backbone, 'fix_init_weight'):
        nothing = SimpleNamespace(weight=torch.empty(0))  # MAE rescales these in place
        for layer in backbone.layers:
            if isinstance(layer, ComputingLayer):
                layer.attn = SimpleNamespace(proj=nothing)
                layer.ffn = SimpleNamespace(layers=[None, nothing])


class _WithoutReplaced(Specialized):
    """BEiT and MAE resize the tables of a checkpoint to those of the model: replaced layers have none."""

    def resize_rel_pos_embed(self, checkpoint: dict) -> dict:
        state_dict = checkpoint.get('state_dict', checkpoint)
        places = tuple(f'layers.{i}.' for i, layer in enumerate(self.layers) if isinstance(layer, ComputingLayer))
        hidden = {key: state_dict.pop(key) for key in list(state_dict) if key.startswith(places)}
        return {**super().resize_rel_pos_embed(checkpoint), **hidden}
