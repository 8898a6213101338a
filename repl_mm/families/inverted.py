"""MobileNetV2, MobileNetV3 and EfficientNet of mmdet and mmseg: inverted residuals, nothing behind the addition.

A block without a shortcut, which sets stride or width, opens a stage. Squeeze-and-excitation is part of the kept
blocks and of operator 'full'; the light operators have none.
"""

import functools
from itertools import pairwise

from torch import nn

from ..computing_layers import ComputingLayer
from . import residual
from .contract import Children, misfit_of_blocks, missing, missing_weights
from .residual import Parts

BACKBONES = ('MobileNetV2', 'MobileNetV3', 'EfficientNet')
REFUSED = {}
OPERATORS = ('separable', 'half', 'full')
# The hidden width is six times that of the block: a quarter of so many channels, mixed in many groups, still has fewer
# parameters than the block. The number of groups is a common divisor of the widths.
DEFAULTS = dict(every=2, ratio=0.25, fusion=dict(type='mix', groups=16))
STEP = 8  # hidden widths are multiples of it, as in these networks, so that there are common divisors


def misfit(backbone: nn.Module) -> str | None:
    """There are inverted residuals with a shortcut, each with the convolutions of its kind."""
    paths = {id(module): name for name, module in backbone.named_modules()}
    found = {paths[id(parent)]: Children(parent, names) for parent, names in _lists(backbone)}
    wrong = misfit_of_blocks(found, _lacking) if found else 'it has no layers of inverted residuals'
    return wrong and f'{wrong}; expected layer1, layer2, ... or a list layers of inverted residuals'


def _lacking(block: nn.Module) -> list[str]:
    lacking = [] if hasattr(block, 'conv') else missing(block, ['depthwise_conv', 'linear_conv'])
    if lacking:
        return lacking
    found = parts(block)
    return missing_weights(block, (*found.reduce, *found.spatial, *found.expand), dim=4)


def _is_block(module: nn.Module) -> bool:
    shortcut = hasattr(module, 'with_res_shortcut') or hasattr(module, 'use_res_connect')
    return shortcut or isinstance(module, ComputingLayer)


def _has_shortcut(block: nn.Module) -> bool:
    # what stands in a slot has one as well
    return getattr(block, 'with_res_shortcut', getattr(block, 'use_res_connect', True))


def _lists(backbone: nn.Module) -> list[tuple[nn.Module, list[str]]]:
    """Where the blocks are: modules, and names of successive children of each."""
    layers = getattr(backbone, 'layers', ())
    if isinstance(layers, nn.ModuleList):
        inner = list(layers)  # EfficientNet
    else:
        names = [name for name in layers if isinstance(name, str)]
        flat = [name for name in names if _is_block(getattr(backbone, name))]
        if flat:
            return [(backbone, flat)]  # MobileNetV3
        inner = [getattr(backbone, name) for name in names]
    inner = [layer for layer in inner if isinstance(layer, nn.Sequential) and any(map(_is_block, layer))]
    return [(layer, [name for name, _ in layer.named_children()]) for layer in inner]


def stages(backbone: nn.Module) -> list[Children]:
    """Blocks with a shortcut behind one another, and the block in front of them."""
    found = []
    for parent, names in _lists(backbone):
        starts = [i for i, name in enumerate(names) if i == 0 or not _has_shortcut(getattr(parent, name))]
        found += [Children(parent, names[i:j]) for i, j in pairwise([*starts, len(names)])]
    return found


def frozen(backbone: nn.Module) -> list[int]:
    """``frozen_stages=k`` freezes the stem and what follows up to ``layer<k>``; of EfficientNet one less."""
    count = getattr(backbone, 'frozen_stages', -1)
    layers = backbone.layers
    if isinstance(layers, nn.ModuleList):
        still = list(layers[: max(0, count)])
    else:
        still = [getattr(backbone, f'layer{i}') for i in range(1, count + 1)]
    modules = {id(module) for layer in still for module in layer.modules()}
    return [i for i, stage in enumerate(stages(backbone)) if any(id(stage[j]) in modules for j in range(len(stage)))]


def openers(backbone: nn.Module) -> list[int]:
    """The stages that begin with a block without a shortcut."""
    return [i for i, stage in enumerate(stages(backbone)) if not _has_shortcut(stage[0])]


def parts(block: nn.Module) -> Parts:
    """The convolutions of an inverted residual by their roles; the first blocks of a network do not widen."""
    if hasattr(block, 'conv'):  # mmseg's MobileNetV2
        names = [f'conv.{i}' for i in range(len(block.conv))]
    else:
        names = [name for name in ('expand_conv', 'depthwise_conv', 'linear_conv') if hasattr(block, name)]
    modules = [block.get_submodule(name) for name in names]
    convs = [f'{name}.conv' for name in names]
    return Parts(
        tuple(convs[:-2]),
        (convs[-2],),
        (convs[-1],),
        norms=tuple(module.norm if module.with_norm else None for module in modules),
        activation=modules[-2].activate,
        last=nn.Identity(),
        drop=getattr(block, 'drop_path', None),
    )


build = functools.partial(residual.build, parts, step=STEP)
