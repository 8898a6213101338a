"""ConvNeXt of mmpretrain and timm, PoolFormer of mmpretrain: maps whose channels go through an MLP at every position.

The light operator of ConvNeXt keeps the block's depthwise kernel; Global Response Normalization (version 2) is part of
the kept blocks and of operator 'full'. PoolFormer's pooling has no weights: there it is the MLP alone, behind a norm
of every position.
"""

import copy
import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..computing_layers import ComputingLayer, MapMLPComputingLayer, PatchComputingLayer, tensor_of
from ..plan import Plan
from . import encoder
from .contract import listed, misfit_of_blocks, missing
from .residual import around

BACKBONES = ('ConvNeXt', 'PoolFormer')
REFUSED = {}
BUILT = ('FeatureListNet',)  # timm's, with features_only=True
OPERATORS = ('mlp', 'full')
DEFAULTS = dict(every=2, ratio=0.125, fusion=dict(type='mix', groups=32))


class Parts(NamedTuple):
    """Dotted names of a block's parts; ``spatial``, the depthwise convolution, is '' where there is none."""

    spatial: str
    norm: str
    fc1: str
    activation: str
    fc2: str
    scale: str


PARTS = {  # by what only these blocks have
    'depthwise_conv': Parts('depthwise_conv', 'norm', 'pointwise_conv1', 'act', 'pointwise_conv2', 'gamma'),
    'conv_dw': Parts('conv_dw', 'norm', 'mlp.fc1', 'mlp.act', 'mlp.fc2', 'gamma'),  # timm
    'token_mixer': Parts('', 'norm2', 'mlp.fc1', 'mlp.act', 'mlp.fc2', 'layer_scale_2'),  # PoolFormer
}


def parts(block: nn.Module) -> Parts:
    """The names of a block's parts; mmpretrain's for a block of another kind."""
    return next((names for own, names in PARTS.items() if hasattr(block, own)), PARTS['depthwise_conv'])


def misfit(backbone: nn.Module) -> str | None:
    """``stages``, or ``network``, hold blocks that end in two linear layers or 1x1 convolutions."""
    found = _lists(backbone)
    wrong = misfit_of_blocks(found, _lacking) if found else 'it has no stages'
    return wrong and f'{wrong}; expected lists of ConvNeXt or PoolFormer blocks in stages or network'


def _lacking(block: nn.Module) -> list[str]:
    names = parts(block)
    weights = [f'{name}.weight' for name in (names.spatial, names.norm, names.fc1, names.fc2) if name]
    lacking = missing(block, (*weights, f'{names.norm}.bias', names.activation))
    return lacking if lacking or hasattr(block, names.scale) else [names.scale]


def _lists(backbone: nn.Module) -> dict[str, nn.Module]:
    """The lists of blocks by name; between PoolFormer's stand patch embeddings, timm's are within a stage."""
    found = listed(backbone, 'stages', 'network')
    found = {(f'{key}.blocks' if hasattr(s, 'blocks') else key): getattr(s, 'blocks', s) for key, s in found.items()}
    return {key: blocks for key, blocks in found.items() if isinstance(blocks, nn.Sequential | nn.ModuleList)}


def stages(backbone: nn.Module) -> list[nn.Sequential]:
    """The lists of blocks."""
    return list(_lists(backbone).values())


def frozen(backbone: nn.Module) -> list[int]:
    """The stages without anything to train: ``frozen_stages`` counts PoolFormer's embeddings as well."""
    return [i for i, blocks in enumerate(stages(backbone)) if not any(p.requires_grad for p in blocks.parameters())]


def openers(backbone: nn.Module) -> tuple:
    """None: what sets stride and width is apart from the blocks."""
    return ()


def weights(block: nn.Module, role: str, channels: int) -> list[Tensor]:
    """A block's weight for a role, as a matrix; ``channels`` is the width of the replaced block."""
    names = parts(block)
    if role == 'spatial':
        conv = block.get_submodule(names.spatial)
        kernel, bias = tensor_of(conv, 'weight').flatten(1), tensor_of(conv, 'bias')
        return [torch.cat([kernel, kernel.new_zeros(len(kernel), 1) if bias is None else bias[:, None]], 1)]
    if role == 'fc1':
        fc1 = block.get_submodule(names.fc1)
        norm = block.get_submodule(names.norm)
        return [encoder.with_bias(tensor_of(fc1, 'weight'), tensor_of(fc1, 'bias'), norm, channels)]
    if role == 'fc2':
        return [encoder.scaled(tensor_of(block.get_submodule(names.fc2), 'weight'), tensor_of(block, names.scale))]
    return [] if (found := encoder.parameter(block, role)) is None else [found]


def build(plan: Plan, block: nn.Module, neighbours: tuple[nn.Module, ...]) -> nn.Module:
    """The computing layer that replaces a block.

    Raises:
        PlanError: No neighbour is built like the block, for ``operator='full'``.
    """
    names = parts(block)
    norm, fc1, fc2 = (block.get_submodule(name) for name in (names.norm, names.fc1, names.fc2))
    channels = norm.weight.numel()
    if plan.mode == 'remove':
        return ComputingLayer()
    if plan.mode in ('patch', 'linear'):
        return PatchComputingLayer(channels, plan.mode == 'linear', maps=True, last=nn.Identity())
    neighbours = plan.lenders(neighbours)
    borrowed = functools.partial(weights, channels=channels)
    if plan.operator == 'full':
        last = (fc2, getattr(block, 'layer_scale_1', None))  # of both branches of PoolFormer
        return encoder.full(plan, block, neighbours, borrowed, last, light=('mlp',))
    synthesis = functools.partial(encoder.synthesize, plan, neighbours, borrowed)
    hidden = max(1, round(plan.ratio * len(fc1.weight)))
    syntheses, spatial = {}, None
    if names.spatial:
        spatial = block.get_submodule(names.spatial)
        syntheses['spatial'] = synthesis('spatial', (channels, spatial.weight[0].numel() + 1))
    syntheses['fc1'] = synthesis('fc1', (hidden, channels + 1))
    # small, so that a converted network starts near the network without the block
    syntheses['fc2'] = synthesis('fc2', (channels, hidden), dim=1, start=encoder.START, bias=True)
    return MapMLPComputingLayer(
        syntheses,
        neighbours,
        borrowed,
        plan.detach,
        spatial=None if spatial is None else around(spatial.kernel_size, spatial.dilation),
        activation=copy.deepcopy(block.get_submodule(names.activation)),
        drop=block.drop_path,
        eps=norm.eps,
    )
