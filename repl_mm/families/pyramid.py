"""Pyramid transformers: MixVisionTransformer (SegFormer) and Twins of mmseg, PVT and PVTv2 of mmdet."""

from torch import nn

from . import encoder
from .contract import Children, misfit_of_blocks
from .encoder import DEFAULTS, OPERATORS, build  # noqa: F401  (part of the family)

BACKBONES = (
    'MixVisionTransformer',
    'PyramidVisionTransformer',
    'PyramidVisionTransformerV2',
    'PCPVT',
    'SVT',
)
REFUSED = {}


def misfit(backbone: nn.Module) -> str | None:
    """``layers`` holds a list for every stage: timm's PVTv2 and mmpretrain's Twins have none."""
    found = {f'layers.{i}': stage for i, stage in enumerate(getattr(backbone, 'layers', ()))}
    flat = [name for name, stage in found.items() if not isinstance(stage, nn.ModuleList)]
    if not found:
        wrong = 'it has no layers'
    elif flat:
        wrong = f'{flat[0]} ({type(found[flat[0]]).__name__}) is no list of layers'
    else:
        paths = {id(module): name for name, module in backbone.named_modules()}
        blocks = stages(backbone)
        wrong = misfit_of_blocks({paths[id(stage.parent)]: stage for stage in blocks}, encoder.lacking)
    return wrong and f'{wrong}; expected a list layers with one list for every stage, of {encoder.EXPECTED}'


def stages(backbone: nn.Module) -> list[Children]:
    """The layers of each stage; MiT and PVT keep them between patch embedding and norm."""
    return [_blocks(stage) for stage in backbone.layers]


def _blocks(stage: nn.ModuleList) -> Children:
    """The encoder layers of a stage; PVT's list begins with its position embedding."""
    layers = stage[1] if len(stage) > 1 and isinstance(stage[1], nn.ModuleList) else stage
    return Children(layers, [name for name, layer in layers.named_children() if not hasattr(layer, 'pos_embed')])


def frozen(backbone: nn.Module) -> tuple:
    """None: these backbones have no ``frozen_stages``."""
    return ()


def openers(backbone: nn.Module) -> tuple:
    """None: the patch embedding is apart from the layers."""
    return ()
