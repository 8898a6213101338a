"""Pyramid transformers: MixVisionTransformer (SegFormer) and Twins of mmseg, PVT and PVTv2 of mmdet."""

from torch import nn

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


def stages(backbone: nn.Module) -> list[Blocks]:
    """The layers of each stage; MiT and PVT keep them between patch embedding and norm."""
    return [Blocks(stage[1] if isinstance(stage[1], nn.ModuleList) else stage) for stage in backbone.layers]


def frozen(backbone: nn.Module) -> tuple:
    """None: these backbones have no ``frozen_stages``."""
    return ()


def openers(backbone: nn.Module) -> tuple:
    """None: the patch embedding is apart from the layers."""
    return ()
