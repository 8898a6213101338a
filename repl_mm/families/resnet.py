"""The ResNet family: stages ``layer1`` .. ``layerN`` of BasicBlock or Bottleneck blocks, whatever the variant."""

import functools
import math

from torch import nn

from . import residual
from .contract import misfit_of_blocks, missing_weights
from .residual import DEFAULTS, OPERATORS, Parts  # noqa: F401  (part of the family)

BACKBONES = ('ResNet', 'ResNetV1c', 'ResNetV1d', 'ResNeXt', 'RegNet', 'Res2Net', 'ResNeSt', 'CifarResNet')
BUILT = ('FeatureListNet',)  # timm's, with features_only=True
REFUSED = {
    'DetectoRS_ResNet': 'its blocks take a second input (recursive feature pyramid) that a computing layer has not',
    'DetectoRS_ResNeXt': 'its blocks take a second input (recursive feature pyramid) that a computing layer has not',
    'TridentResNet': 'its third stage runs on lists of branches with shared weights',
    'SSDVGG': 'its convolutions have no shortcuts, so that nothing is left where one is replaced',
    'UNet': 'its convolutions have no shortcuts, so that nothing is left where one is replaced',
}


def misfit(backbone: nn.Module) -> str | None:
    """Every block has the convolutions of a BasicBlock or of a Bottleneck, whoever wrote it."""
    found = {name: getattr(backbone, name) for name in _names(backbone)}
    wrong = misfit_of_blocks(found, lacking) if found else 'it has no layer1'
    return wrong and f'{wrong}; expected stages layer1, layer2, ... of blocks with conv1, conv2 and, if any, conv3'


def lacking(block: nn.Module) -> list[str]:
    """Names of the convolutions that a block has not."""
    if hasattr(block, 'conv3') and not hasattr(block, 'conv2') and not hasattr(block, 'convs'):
        return ['conv2']
    found = parts(block)
    return missing_weights(block, dict.fromkeys((*found.reduce, *found.spatial, *found.expand)), dim=4)


def _names(backbone: nn.Module) -> list[str]:
    return [name for name in (f'layer{i}' for i in range(1, 10)) if hasattr(backbone, name)]


def stages(backbone: nn.Module) -> list[nn.Sequential]:
    """The stages, each a Sequential of blocks."""
    return [getattr(backbone, name) for name in _names(backbone)]


def frozen(backbone: nn.Module) -> range:
    """``frozen_stages=k`` freezes the stem and the stages 0 .. k-1."""
    return range(max(0, min(getattr(backbone, 'frozen_stages', -1), len(stages(backbone)))))


def openers(backbone: nn.Module) -> range:
    """The first block of every stage sets its stride and width."""
    return range(len(stages(backbone)))


def parts(block: nn.Module) -> Parts:
    """The convolutions of a BasicBlock or a Bottleneck by their roles."""
    if not hasattr(block, 'conv3'):
        return Parts(('conv1',), ('conv1',), ('conv2',), ('conv1', 'conv2'), norms=_norms(block, 2), drop=_drop(block))
    if hasattr(block, 'convs'):  # Res2Net
        spatial = tuple(f'convs.{i}' for i in range(len(block.convs)))
    else:
        spatial = ('conv2.conv' if hasattr(block.conv2, 'conv') else 'conv2',)  # ResNeSt wraps its convolution
    return Parts(('conv1',), spatial, ('conv3',), norms=_norms(block, 3), drop=_drop(block))


def _norms(block: nn.Module, last: int) -> tuple:
    """The norm behind the first convolution, for the inner ones as well, and the one behind the last."""
    found = [
        next((getattr(block, name) for name in (f'norm{i}', f'bn{i}') if hasattr(block, name)), None)  # torchvision's
        for i in (1, last)
    ]
    return (found[0], *found) if last == 3 else tuple(found)


def _drop(block: nn.Module) -> nn.Module | None:
    """Stochastic depth: CifarResNet and mmpretrain have it, mmdet does not."""
    return getattr(block, 'drop_path', None)


def dense_width(block: nn.Module) -> int:
    """The inner width of a block of the same costs whose inner convolution is dense.

    Grouped and split convolutions make a bottleneck cheap and wide: that of a ResNeXt-50 (32x4d) is as expensive as
    that of a ResNet-50, which is half as wide. A half of its width would cost most of what the block costs.

    Returns:
        int: A multiple of 8 where the inner convolution is not dense; else the block's inner width.
    """
    names = parts(block)
    width, size = len(block.conv1.weight), math.prod(block.get_submodule(names.spatial[0]).kernel_size)
    inner = sum(block.get_submodule(name).weight.numel() for name in names.spatial)
    if names.spatial == names.reduce or inner == size * width**2:
        return width
    outer = block.conv1.weight[0].numel() + len(block.conv3.weight)
    cost = outer * width + inner  # multiplications at every position, of the wanted block outer * w + size * w^2
    return max(1, round((math.sqrt(outer**2 + 4 * size * cost) - outer) / (2 * size) / 8)) * 8


build = functools.partial(residual.build, parts, width=dense_width)
