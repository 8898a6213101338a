"""Swin transformers of mmdet and mmseg: ``stages``, each with ``blocks`` and what leads to the next stage.

Neighbours have opposite window shifts. The light operators borrow MLPs, values and projections, which know no windows;
'full' keeps the replaced block's own shift, and tables of relative positions mean the same with and without it.
"""

from torch import nn

from .encoder import DEFAULTS, OPERATORS, build, finish  # noqa: F401  (part of the family)

BACKBONES = ('SwinTransformer',)
REFUSED = {}


def stages(backbone: nn.Module) -> list[nn.ModuleList]:
    """The blocks of each stage."""
    return [stage.blocks for stage in backbone.stages]


def frozen(backbone: nn.Module) -> range:
    """``frozen_stages=k`` freezes the patch embedding and the stages 0 .. k-1."""
    return range(max(0, min(backbone.frozen_stages, len(backbone.stages))))


def openers(backbone: nn.Module) -> tuple:
    """None: patch merging stands behind the blocks of a stage."""
    return ()
