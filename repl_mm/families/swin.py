"""Swin transformers: ``stages``, each with ``blocks`` and what leads to the next stage; in timm ``layers``.

Neighbours have opposite window shifts. The light operators borrow MLPs, values and projections, which know no windows;
'full' keeps the replaced block's own shift, and tables of relative positions mean the same with and without it.
"""

from torch import nn

from . import encoder
from .contract import listed, misfit_of_blocks, missing
from .encoder import DEFAULTS, OPERATORS, build, finish  # noqa: F401  (part of the family)

BACKBONES = ('SwinTransformer',)
REFUSED = {}
BUILT = ('FeatureListNet',)


def misfit(backbone: nn.Module) -> str | None:
    """``stages`` or ``layers`` hold their ``blocks``: torchvision's class of this name has neither."""
    found = listed(backbone, 'stages', 'layers')
    without = [name for name, stage in found.items() if missing(stage, ['blocks'])]
    if not found:
        wrong = 'it has no stages'
    elif without:
        wrong = f'{without[0]} has no blocks'
    else:
        wrong = misfit_of_blocks({f'{name}.blocks': s.blocks for name, s in found.items()}, encoder.lacking)
    return wrong and f'{wrong}; expected a list stages or layers, each with a list blocks of {encoder.EXPECTED}'


def stages(backbone: nn.Module) -> list[nn.ModuleList]:
    """The blocks of each stage."""
    return [stage.blocks for stage in listed(backbone, 'stages', 'layers').values()]


def frozen(backbone: nn.Module) -> range:
    """``frozen_stages=k`` freezes the patch embedding and the stages 0 .. k-1, in mmpretrain stage k as well."""
    more = any(cls.__module__.startswith('mmpretrain.') for cls in type(backbone).__mro__)
    return range(max(0, min(getattr(backbone, 'frozen_stages', -1) + more, len(stages(backbone)))))


def openers(backbone: nn.Module) -> tuple:
    """None: patch merging is apart from the blocks of a stage."""
    return ()
