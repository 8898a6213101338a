"""Pyramid transformers: MixVisionTransformer (SegFormer) and Twins of mmseg, PVT and PVTv2 of mmdet."""

from torch import nn

from . import encoder
from .contract import misfit_of_blocks
from .encoder import DEFAULTS, OPERATORS, build  # noqa: F401  (part of the family)

BACKBONES = (
    'MixVisionTransformer',
    'PyramidVisionTransformer',
    'PyramidVisionTransformerV2',
    'PCPVT',
    'SVT',
)
REFUSED = {}


class Blocks:
    """The encoder layers in a list that begins with something else (PVT's position embedding)."""

    def __init__(self, layers: nn.ModuleList):
        self.layers = layers
        self.start = sum(hasattr(layer, 'pos_embed') for layer in layers)

    def __len__(self) -> int:
        return len(self.layers) - self.start

    def __getitem__(self, index: int) -> nn.Module:
        return self.layers[self.start + index]

    def __setitem__(self, index: int, layer: nn.Module) -> None:
        self.layers[self.start + index] = layer


def misfit(backbone: nn.Module) -> str | None:
    """``layers`` holds a list for every stage: timm's PVTv2 and mmpretrain's Twins have none."""
    found = {f'layers.{i}': stage for i, stage in enumerate(getattr(backbone, 'layers', ()))}
    flat = [name for name, stage in found.items() if not isinstance(stage, nn.ModuleList)]
    if not found:
        wrong = 'it has no layers'
    elif flat:
        wrong = f'{flat[0]} ({type(found[flat[0]]).__name__}) is no list of layers'
    else:
        wrong = misfit_of_blocks({name: Blocks(_list_of(s)) for name, s in found.items()}, encoder.lacking)
    return wrong and f'{wrong}; expected a list layers with one list for every stage, of {encoder.EXPECTED}'


def stages(backbone: nn.Module) -> list[Blocks]:
    """The layers of each stage; MiT and PVT keep them between patch embedding and norm."""
    return [Blocks(_list_of(stage)) for stage in backbone.layers]


def _list_of(stage: nn.ModuleList) -> nn.ModuleList:
    return stage[1] if len(stage) > 1 and isinstance(stage[1], nn.ModuleList) else stage


def frozen(backbone: nn.Module) -> tuple:
    """None: these backbones have no ``frozen_stages``."""
    return ()


def openers(backbone: nn.Module) -> tuple:
    """None: the patch embedding is apart from the layers."""
    return ()
