"""The ResNet family: stages ``layer1`` .. ``layerN`` of BasicBlock or Bottleneck blocks, whatever the variant."""

import copy
import functools
import math

import torch
from torch import Tensor, nn

from .. import fusion
from ..computing_layers import (
    ComputingLayer,
    FullComputingLayer,
    HalfComputingLayer,
    PatchComputingLayer,
    ResidualComputingLayer,
    tensor_of,
)
from ..plan import Plan, PlanError
from .contract import misfit_of_blocks, missing_weights

OPERATORS = ('separable', 'conv', 'half', 'full')
DEFAULTS = dict(every=2, ratio=0.5, fusion=dict(type='mix', groups=2))
BACKBONES = ('ResNet', 'ResNetV1c', 'ResNetV1d', 'ResNeXt', 'RegNet', 'Res2Net', 'ResNeSt', 'CifarResNet')
REFUSED = {
    'DetectoRS_ResNet': 'its blocks take a second input (recursive feature pyramid) that a computing layer has not',
    'DetectoRS_ResNeXt': 'its blocks take a second input (recursive feature pyramid) that a computing layer has not',
    'TridentResNet': 'its third stage runs on lists of branches with shared weights',
}


def misfit(backbone: nn.Module) -> str | None:
    """Every block has the convolutions of a BasicBlock or of a Bottleneck, whoever wrote it."""
    found = {name: getattr(backbone, name) for name in _names(backbone)}
    wrong = misfit_of_blocks(found, _lacking) if found else 'it has no layer1'
    return wrong and f'{wrong}; expected stages layer1, layer2, ... of blocks with conv1, conv2 and, if any, conv3'


def _lacking(block: nn.Module) -> list[str]:
    if hasattr(block, 'conv3') and not hasattr(block, 'conv2') and not hasattr(block, 'convs'):
        return ['conv2']
    names = dict.fromkeys(name for role in ('reduce', 'spatial', 'expand') for name in conv_names(block, role))
    return missing_weights(block, names, dim=4)


def _names(backbone: nn.Module) -> list[str]:
    return [name for name in (f'layer{i}' for i in range(1, 10)) if hasattr(backbone, name)]


def stages(backbone: nn.Module) -> list[nn.Sequential]:
    """The stages, each a Sequential of blocks."""
    return [getattr(backbone, name) for name in _names(backbone)]


def frozen(backbone: nn.Module) -> range:
    """``frozen_stages=k`` freezes the stem and the stages 0 .. k-1."""
    return range(max(0, min(getattr(backbone, 'frozen_stages', -1), len(stages(backbone)))))


def conv_names(block: nn.Module, role: str) -> list[str]:
    """Dotted names of the convolutions of a block that play a role.

    Roles: 'reduce' (into the hidden width), 'spatial' (inside it), 'expand' (out of it), 'conv' (all of a BasicBlock).
    """
    bottleneck = hasattr(block, 'conv3')
    if role == 'reduce':
        return ['conv1']
    if role == 'expand':
        return ['conv3' if bottleneck else 'conv2']
    if role == 'conv':
        return ['conv1', 'conv2']
    if not bottleneck:
        return ['conv1']
    if hasattr(block, 'convs'):  # Res2Net
        return [f'convs.{i}' for i in range(len(block.convs))]
    return ['conv2.conv' if hasattr(block.conv2, 'conv') else 'conv2']  # ResNeSt wraps its convolution


def openers(backbone: nn.Module) -> range:
    """The first block of every stage sets its stride and width."""
    return range(len(stages(backbone)))


def weights(block: nn.Module, role: str) -> list[Tensor]:
    """A block's weights for a role, each ``(out, in / groups, kh, kw)``; parts of one operator are joined."""
    if role.endswith('.weight'):
        return [tensor_of(block.get_submodule(role.removesuffix('.weight')), 'weight')]
    found = [tensor_of(block.get_submodule(name), 'weight') for name in conv_names(block, role)]
    return [torch.cat(found)] if role == 'spatial' and len(found) > 1 else found


def build(plan: Plan, block: nn.Module, neighbours: tuple[nn.Module, ...]) -> nn.Module:
    """The computing layer that replaces ``block``.

    Raises:
        PlanError: The plan's operator does not exist for this kind of block.
    """
    if plan.mode == 'remove':
        return ComputingLayer()
    channels = block.get_submodule(conv_names(block, 'expand')[0]).out_channels
    if plan.mode in ('patch', 'linear'):
        return PatchComputingLayer(channels, plan.mode == 'linear', maps=True)
    if plan.mode == 'own':
        neighbours = ()  # they lend nothing
    elif plan.mode == 'share':
        neighbours = neighbours[:1]
    if plan.operator == 'full':
        return _full(plan, block, neighbours)
    if plan.operator == 'half':
        return _half(plan, block, neighbours)
    spatial = block.get_submodule(conv_names(block, 'spatial')[0])
    hidden = max(1, round(plan.ratio * block.conv1.out_channels))
    kernel = spatial.kernel_size
    around = _around(kernel, spatial.dilation)
    light = functools.partial(_synthesis, plan, neighbours)
    # Inner gains undo the halving of the second moment by ReLU.
    gain = 2**0.5

    if plan.operator == 'conv':
        if hasattr(block, 'conv3'):
            raise PlanError(
                "replace.operator='conv' is not valid for bottleneck blocks: one convolution at full width would cost "
                "more than the block; expected 'separable' or 'full'"
            )
        convs = dict(conv=(_last(plan, neighbours, 'conv', (channels, channels, *kernel)), around))
    else:
        convs = dict(
            reduce=(light('reduce', (hidden, channels, 1, 1), gain=gain), {}),
            spatial=(light('spatial', (hidden, 1, *kernel), gain=gain), dict(around, groups=hidden)),
            expand=(_last(plan, neighbours, 'expand', (channels, hidden, 1, 1), dim=1), {}),
        )
    drop = getattr(block, 'drop_path', None)  # stochastic depth: CifarResNet and mmpretrain have it, mmdet does not
    return ResidualComputingLayer(convs, neighbours, weights, plan.detach, drop)


def _around(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> dict:
    """Settings of a convolution that keeps the size of its input."""
    return dict(padding=tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)), dilation=dilation)


def _half(plan: Plan, block: nn.Module, neighbours: tuple[nn.Module, ...]) -> nn.Module:
    """The block's own chain at half the resolution: half of its hidden units from each neighbour."""
    spatial = block.get_submodule(conv_names(block, 'spatial')[0])
    channels = block.get_submodule(conv_names(block, 'expand')[0]).out_channels
    hidden, kernel = block.conv1.out_channels, spatial.kernel_size
    down = dict(_around(kernel, spatial.dilation), stride=2)
    around = _around(kernel, tuple(max(1, d // 2) for d in spatial.dilation))  # reaches as far at half the resolution
    norm, last = (_norm(block, number) for number in (1, 3 if hasattr(block, 'conv3') else 2))

    def synthesis(role, shape, dim=0, groups=1, **transformation):
        shapes = [tuple(weight.shape) for neighbour in neighbours for weight in weights(neighbour, role)]
        if plan.mode == 'own':
            source = fusion.OwnWeight(shape, shapes, dim, start=2**0.5)
        else:
            source = fusion.UnitsWeight(shape, shapes, dim, groups, **transformation)
        return fusion.Synthesis(source, None, bias=False)

    mixing = {} if plan.mode == 'share' else dict(type=plan.fusion['type'], mix_groups=plan.fusion.get('groups', 1))
    if not hasattr(block, 'conv3'):
        convs = dict(
            reduce=(synthesis('reduce', (hidden, channels, *kernel)), down, norm),
            expand=(synthesis('expand', (channels, hidden, *kernel), dim=1, **mixing), around, last),
        )
    else:
        groups = math.lcm(2, spatial.groups) if hidden % math.lcm(2, spatial.groups) == 0 else spatial.groups
        inner = (hidden, hidden // groups, *kernel)  # each neighbour's units read their like
        convs = dict(
            reduce=(synthesis('reduce', (hidden, channels, 1, 1)), dict(stride=2), norm),
            spatial=(synthesis('spatial', inner, groups=groups), dict(around, groups=groups), copy.deepcopy(norm)),
            expand=(synthesis('expand', (channels, hidden, 1, 1), dim=1, **mixing), {}, last),
        )
    return HalfComputingLayer(convs, neighbours, weights, plan.detach, getattr(block, 'drop_path', None))


def _norm(block: nn.Module, number: int) -> nn.Module:
    """A fresh norm like that behind a block's convolution of this number."""
    names = (f'norm{number}', f'bn{number}')  # mm's, torchvision's
    norm = next((getattr(block, name) for name in names if hasattr(block, name)), None)
    if getattr(norm, 'weight', None) is None or not hasattr(norm, 'reset_parameters'):
        raise PlanError(
            f"replace.operator='half' needs affine norms {' or '.join(names)} in a {type(block).__name__}, found "
            f"{type(norm).__name__}: expected norm_cfg=dict(type='BN') or 'GN', or operator='separable'"
        )
    norm = copy.deepcopy(norm)
    norm.reset_parameters()
    return norm.requires_grad_(True)


def _synthesis(plan, neighbours, role, shape, dim=0, start=1.0, gain=None, bias=True) -> fusion.Synthesis:
    shapes = [tuple(weight.shape) for block in neighbours for weight in weights(block, role)]
    source = fusion.build_source(plan.mode, shape, shapes, dim, start, plan.fusion)
    return fusion.Synthesis(source, gain, bias)


def _last(plan, neighbours, role, shape, dim=0, start=0.1) -> fusion.Synthesis:
    """The last operator of a branch: small, so that a converted network starts near the network without the block."""
    gain = start if plan.mode == 'share' else None  # a shared weight has no scale of its own
    return _synthesis(plan, neighbours, role, shape, dim, start, gain)


def _full(plan: Plan, block: nn.Module, neighbours: tuple[nn.Module, ...]) -> nn.Module:
    for key, used in (('dcn', getattr(block, 'with_dcn', False)), ('plugins', getattr(block, 'with_plugins', False))):
        if used:
            raise PlanError(
                f"replace.operator='full' copies the structure of a block and cannot copy its {key}: expected a light "
                "operator such as 'separable', or a backbone without " + key
            )
    block = copy.deepcopy(block)  # the backbone stays whole if another slot turns out to be impossible
    convs = {name: module for name, module in block.named_modules() if isinstance(module, nn.Conv2d)}
    syntheses = {}
    for name, conv in convs.items():
        shape = tuple(conv.weight.shape)
        dim = int(shape[1] < shape[0] and conv.groups == 1)
        syntheses[f'{name}.weight'] = _synthesis(plan, neighbours, f'{name}.weight', shape, dim, bias=False)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    norms = [m for m in block.modules() if hasattr(m, 'running_mean') or isinstance(m, nn.GroupNorm)]
    for norm in norms:
        norm.reset_parameters()
    last = ('norm3', 'bn3') if hasattr(block, 'conv3') else ('norm2', 'bn2')  # mm's property, torchvision's name
    nn.init.constant_(next(getattr(block, name) for name in last if hasattr(block, name)).weight, 0.1)
    return FullComputingLayer(block, syntheses, neighbours, weights, plan.detach)
