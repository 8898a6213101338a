"""HRNet of mmdet and mmseg: ``layer1`` of Bottlenecks, then branches of BasicBlocks, side by side.

Every branch of every module is a stage; the fusion between the branches stays. The stages of one resolution follow
each other, so that neighbours across the border of two modules are blocks of the same branch.
"""

import functools

from torch import nn

from . import residual, resnet
from .contract import misfit_of_blocks, missing
from .resnet import DEFAULTS, OPERATORS  # noqa: F401  (part of the family)

BACKBONES = ('HRNet',)
REFUSED = {}

build = functools.partial(residual.build, resnet.parts)


def misfit(backbone: nn.Module) -> str | None:
    """``layer1``, and ``branches`` in all modules of ``stage2``, ``stage3``, ...."""
    modules = dict(_modules(backbone))
    without = [name for name, module in modules.items() if missing(module, ['branches'])]
    if missing(backbone, ['layer1']) or not modules:
        wrong = 'it has no layer1 and stage2'
    elif without:
        wrong = f'{without[0]} has no branches'
    else:
        found = {'layer1': backbone.layer1} | {name: stage for _, name, stage in _branches(backbone)}
        wrong = misfit_of_blocks(found, resnet.lacking)
    return wrong and f'{wrong}; expected layer1, and stage2, ... of modules whose branches are lists of ResNet blocks'


def _modules(backbone: nn.Module) -> list[tuple[str, nn.Module]]:
    names = [name for name in (f'stage{i}' for i in range(2, 10)) if hasattr(backbone, name)]
    return [(f'{name}.{i}', module) for name in names for i, module in enumerate(getattr(backbone, name))]


def _branches(backbone: nn.Module) -> list[tuple[int, str, nn.Sequential]]:
    """Resolution, name and blocks of all branches, resolution by resolution."""
    found = [
        (resolution, f'{name}.branches.{resolution}', branch)
        for name, module in _modules(backbone)
        for resolution, branch in enumerate(module.branches)
    ]
    return sorted(found, key=lambda item: item[0])


def stages(backbone: nn.Module) -> list[nn.Sequential]:
    """``layer1``; the branches of the highest resolution in all modules, in order; those of the next one; ..."""
    return [backbone.layer1, *(stage for *_, stage in _branches(backbone))]


def frozen(backbone: nn.Module) -> list[int]:
    """mmseg's ``frozen_stages=k`` freezes the stem, ``layer1`` and ``stage2`` .. ``stage<k>``; others have none."""
    numbers = [1, *(int(name.removeprefix('stage').partition('.')[0]) for _, name, _ in _branches(backbone))]
    return [i for i, number in enumerate(numbers) if number <= getattr(backbone, 'frozen_stages', -1)]


def openers(backbone: nn.Module) -> list[int]:
    """The stages whose first block changes the width."""
    firsts = enumerate(stage[0] for stage in stages(backbone))
    return [i for i, block in firsts if getattr(block, 'downsample', None) is not None]


def branches(backbone: nn.Module) -> list[int]:
    """The first stage of every resolution; what leads there are fusion modules."""
    resolutions = [resolution for resolution, *_ in _branches(backbone)]
    return [1 + resolutions.index(resolution) for resolution in dict.fromkeys(resolutions)]
