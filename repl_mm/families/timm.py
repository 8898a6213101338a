"""What stands around timm's networks: the ``TIMMBackbone`` of mmseg and mmpretrain, and timm's feature extractors.

The networks themselves are served by their own families, by name and structure: timm is imported nowhere. It cuts a
network into the children of a ``FeatureListNet`` for ``features_only=True``; whatever the network was, the family is
the one that its structure fits.
"""

from torch import nn

BACKBONES = ('TIMMBackbone',)
REFUSED = {}
BUILT = ('FeatureGetterNet',)


def inner(backbone: nn.Module) -> nn.Module:
    """The network of timm."""
    return backbone.timm_model if hasattr(backbone, 'timm_model') else backbone.model
