"""What the transformer families have in common: encoder layers with norm1, attention, norm2, MLP.

An operator is known by its role: ``fc1``, ``spatial`` (the depthwise convolution that some MLPs have), ``fc2``,
``value`` and ``proj`` (of the attention), or by the dotted name of a parameter. What stands around an operator is part
of its weight: the affine part of the norm in front of it, LayerScale behind it, its bias as a last column.
"""

import copy
import functools
import inspect
import os

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import fusion
from ..computing_layers import (
    ComputingLayer,
    FullComputingLayer,
    HalfTokensComputingLayer,
    PatchComputingLayer,
    TransformerComputingLayer,
    tensor_of,
)
from ..plan import Plan, PlanError
from ..subclass import Specialized, specialize
from .contract import missing

OPERATORS = ('mlp', 'mixer', 'half', 'full')
DEFAULTS = dict(every=3, ratio=0.25, fusion=dict(type='mix', groups=32))
RATE = 30.0  # of the fusion coefficients: transformers are trained by AdamW, and their weights are of the size 1 / 30
EXPECTED = 'encoder layers with norm1, attn, norm2 and ffn or mlp'
# where LayerScale stands behind attention and MLP: mmseg, MSCAN, timm, mmpretrain
SCALES = {1: ('gamma_1', 'layer_scale_1', 'ls1.gamma', 'attn.gamma1.weight')}
SCALES[2] = ('gamma_2', 'layer_scale_2', 'ls2.gamma', 'ffn.gamma2.weight')
START = 0.1  # of the last operator of a branch: a converted network starts near the network without the layer


def lacking(block: nn.Module) -> list[str]:
    """Return what a layer has not of the parts that computing layers borrow from and copy."""
    found = missing(block, ('norm1.weight', 'attn', 'norm2.weight', 'mlp' if hasattr(block, 'mlp') else 'ffn'))
    if found:
        return found
    if 'Post' in type(block).__name__ or 'V2' in type(block).__name__:  # of timm
        return ['norms in front of its attention and its MLP']
    attn = getattr(block.attn, 'w_msa', block.attn)
    lends_value = 'qkv' if getattr(attn, 'v_proj', None) is None else 'v_proj'
    projections = missing(attn, (f'{lends_value}.weight', 'proj.weight'))
    if projections and missing(attn, ('attn.in_proj_weight', 'attn.out_proj.weight')):
        return [f'attn.{name}' for name in projections]
    maps = [m.weight for m in mlp(block).modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    name = 'ffn' if hasattr(block, 'ffn') else 'mlp'
    if maps and (maps[0].shape[0] != maps[-1].shape[1] or _activation(block) is None):  # a gated one (SwiGLU)
        return [f'{name} of two layers with an activation between them']
    if any(isinstance(m, nn.LayerNorm) for m in mlp(block).modules()):
        return [f'{name} without a norm']
    return []


def mlp(block: nn.Module) -> nn.Module:
    """A layer's MLP: MSCAN and timm call it ``mlp``."""
    return block.ffn if hasattr(block, 'ffn') else block.mlp


def linears(block: nn.Module) -> list[nn.Module]:
    """The operators of a layer's MLP: fc1, fc2, and between them, if there is one, the depthwise convolution.

    Raises:
        PlanError: The MLP or its norm is built in another way.
    """
    found = [m for m in mlp(block).modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    inner = found[1:-1]
    if len(found) not in (2, 3) or any(not isinstance(m, nn.Conv2d) or m.groups < m.out_channels for m in inner):
        raise PlanError(
            f'RepL cannot replace a {type(block).__name__} whose MLP has {len(found)} linear layers: expected two '
            '(num_fcs=2), with or without a depthwise convolution between them'
        )
    for norm in (block.norm1, block.norm2):
        if not isinstance(norm, _BatchNorm if _is_mscan(block) else nn.LayerNorm):
            raise PlanError(
                f'RepL cannot replace a {type(block).__name__} with a norm_cfg that builds {type(norm).__name__}: '
                "expected dict(type='LN')"
            )
    return found


def _is_mscan(block: nn.Module) -> bool:
    return hasattr(block.attn, 'proj_2')  # a convolution


def width(block: nn.Module) -> int:
    """Channels of a layer's input and output."""
    return block.norm2.weight.numel()


def with_bias(weight: Tensor, bias: Tensor | None, norm: nn.Module, channels: int) -> Tensor:
    """``W @ (gamma * x + beta) + b`` as one matrix ``(out, in + 1)``, its input channels aligned to ``channels``."""
    weight = weight.flatten(1)
    column = weight.new_zeros(len(weight)) if bias is None else bias
    shift = tensor_of(norm, 'bias')
    if shift is not None:  # RMSNorm has none
        column = column + weight @ shift
    weight = weight * tensor_of(norm, 'weight')
    return torch.cat([fusion.align_channels(weight, 1, channels), column[:, None]], 1)


def scaled(weight: Tensor, scale: Tensor | None) -> Tensor:
    """``W`` with LayerScale behind it."""
    return weight.flatten(1) if scale is None else weight.flatten(1) * scale[:, None]


def layer_scale(block: nn.Module, number: int) -> Tensor | None:
    """LayerScale behind a layer's attention (1) or MLP (2), None if there is none."""
    found = (parameter(block, name) for name in SCALES[number])
    return next((scale for scale in found if scale is not None), None)


def projection(block: nn.Module) -> nn.Module:
    """The output projection of a layer's attention."""
    if _is_mscan(block):
        return block.attn.proj_2
    attn = getattr(block.attn, 'w_msa', block.attn)
    return attn.proj if hasattr(attn, 'qkv') else attn.attn.out_proj  # mmcv's wrapper of nn.MultiheadAttention


def value(block: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the value of a layer's attention."""
    attn = getattr(block.attn, 'w_msa', block.attn)
    if getattr(attn, 'v_proj', None) is not None:  # timm's EVA, unless it has qkv
        return tensor_of(attn.v_proj, 'weight'), tensor_of(attn.v_proj, 'bias')
    if hasattr(attn, 'qkv'):
        weight, bias = tensor_of(attn.qkv, 'weight'), tensor_of(attn.qkv, 'bias')
        if bias is None and hasattr(attn, 'v_bias'):  # BEiT, EVA
            return weight.chunk(3)[2], tensor_of(attn, 'v_bias')
    else:
        weight, bias = tensor_of(attn.attn, 'in_proj_weight'), tensor_of(attn.attn, 'in_proj_bias')
    return weight.chunk(3)[2], None if bias is None else bias.chunk(3)[2]


def weights(block: nn.Module, role: str, channels: int) -> list[Tensor]:
    """A layer's weight for a role, as a matrix; ``channels`` is the width of the replaced layer."""
    if role == 'fc1':
        fc1 = linears(block)[0]
        return [with_bias(tensor_of(fc1, 'weight'), tensor_of(fc1, 'bias'), block.norm2, channels)]
    if role == 'spatial':
        conv = linears(block)[1]
        return [torch.cat([tensor_of(conv, 'weight').flatten(1), tensor_of(conv, 'bias')[:, None]], 1)]
    if role == 'fc2':
        return [scaled(tensor_of(linears(block)[-1], 'weight'), layer_scale(block, 2))]
    if role == 'value':
        return [with_bias(*value(block), block.norm1, channels)]
    if role == 'proj':
        return [scaled(tensor_of(projection(block), 'weight'), layer_scale(block, 1))]
    return [] if (found := parameter(block, role)) is None else [found]


def parameter(block: nn.Module, name: str) -> Tensor | None:
    """A parameter by its dotted name, None if the block has none of it."""
    path, _, leaf = name.rpartition('.')
    try:
        return tensor_of(block.get_submodule(path), leaf)
    except AttributeError:
        return None


def build(plan: Plan, block: nn.Module, neighbours: tuple[nn.Module, ...]) -> nn.Module:
    """The computing layer that replaces an encoder layer.

    Raises:
        PlanError: The layers are built in a way that the plan's operator cannot use.
    """
    channels = width(block)
    if plan.mode == 'remove':
        return ComputingLayer()
    if plan.mode in ('patch', 'linear'):
        return PatchComputingLayer(channels, plan.mode == 'linear', maps=False)
    neighbours = plan.lenders(neighbours)
    borrowed = functools.partial(weights, channels=channels)
    last = (projection(block), linears(block)[-1])
    if plan.operator == 'half':
        check_half(block)
        layer = full(plan, block, neighbours, borrowed, last, kind=HalfTokensComputingLayer)
        fit_windows(layer.repl['block'])
        return layer
    if plan.operator == 'full':
        return full(plan, block, neighbours, borrowed, last)
    synthesis = functools.partial(synthesize, plan, neighbours, borrowed)
    fc1, *spatial, _ = linears(block)
    hidden = max(1, round(plan.ratio * len(fc1.weight)))
    syntheses = dict(fc1=synthesis('fc1', (hidden, channels + 1)))
    if spatial:
        syntheses['spatial'] = synthesis('spatial', (hidden, spatial[0].weight[0].numel() + 1))
    # small, so that a converted network starts near the network without the layer
    syntheses['fc2'] = synthesis('fc2', (channels, hidden), dim=1, start=START, bias=True)
    if plan.operator == 'mixer':
        syntheses['value'] = synthesis('value', (channels, channels + 1))
        syntheses['proj'] = synthesis('proj', (channels, channels), dim=1, start=START)
    return TransformerComputingLayer(
        syntheses, neighbours, borrowed, plan.detach, _activation(block), _drop(block), block.norm2.eps
    )


def synthesize(plan, neighbours, borrowed, role, shape, dim=0, start=1.0, bias=False, **settings) -> fusion.Synthesis:
    """How the weight of a role is made, in the way of transformers: the neighbours' scales are kept."""
    shapes = [tuple(weight.shape) for block in neighbours for weight in borrowed(block, role)]
    settings = {**plan.fusion, 'normalize': False, 'rate': RATE, **settings}
    return fusion.Synthesis(fusion.build_source(plan.mode, shape, shapes, dim, start, settings), None, bias)


def _activation(block: nn.Module) -> nn.Module | None:
    """The activation of a layer's MLP: its only leaf that neither has weights nor drops anything."""
    other = (nn.Linear, nn.Conv2d, nn.Dropout, nn.Identity)
    leaves = (m for m in mlp(block).modules() if not any(m.children()) and not isinstance(m, other))
    return next((m for m in leaves if not _drops_paths(m)), None)


def _drop(block: nn.Module) -> nn.Module:
    """Dropout and stochastic depth behind a layer's MLP, at the layer's own rates."""
    dropout = next((m for m in mlp(block).modules() if isinstance(m, nn.Dropout) and m.p > 0), nn.Identity())
    return nn.Sequential(dropout, next(filter(_drops_paths, block.modules()), nn.Identity()))


def _drops_paths(module: nn.Module) -> bool:
    return type(module).__name__ == 'DropPath'  # mmcv's, timm's


def full(
    plan: Plan,
    block: nn.Module,
    neighbours: tuple[nn.Module, ...],
    borrowed,
    last,
    light=('mlp', 'mixer'),
    kind=FullComputingLayer,
) -> nn.Module:
    """The computing layer with the structure of a layer.

    Matrices are fused as in the light operators; vectors (norms, biases, LayerScale) and tables of relative positions
    by one number per neighbour; in mode 'own' all stays the layer's own.

    Args:
        plan, block, neighbours: Those of ``build``.
        borrowed (callable): ``borrowed(block, name)`` gives a block's parameter of this name in a list.
        last (tuple): The last modules, or parameters, of the layer's branches, which start small.
        light (tuple[str]): The family's other operators. Defaults to those of encoder layers.
        kind (type): The computing layer's class. Defaults to FullComputingLayer.

    Raises:
        PlanError: No neighbour has a parameter that the layer has.
    """
    parts = (*block.named_modules(), *block.named_parameters())
    last = {name for name, part in parts if any(part is each for each in last)}
    block = copy.deepcopy(block)  # the backbone stays whole if another slot turns out to be impossible
    syntheses = {}
    light = ' or '.join(map(repr, light))
    for name, own in block.named_parameters() if plan.mode != 'own' else ():
        shape = tuple(own.shape)
        if not any(borrowed(neighbour, name) for neighbour in neighbours):
            raise PlanError(
                f'replace.operator={plan.operator!r} needs a neighbour built like the replaced {type(block).__name__}'
                f', but none has {name!r} (they are {", ".join(type(n).__name__ for n in neighbours)}): '
                f'expected {light}'
            )
        settings = dict(rate=1.0)  # quicker coefficients diverge under SGD
        if name in last or name.rpartition('.')[0] in last:
            settings['start'] = START
        if len(shape) == 1 or 'relative_position' in name:
            settings['type'] = 'scalar'
        elif plan.fusion['type'] == 'mix' and any(part in name for part in ('qkv', 'in_proj', 'c_attn')):
            settings['groups'] = 3 * plan.fusion['groups']  # query, key and value are not mixed with each other
        dim = int(len(shape) > 1 and shape[0] <= shape[1])
        syntheses[name] = synthesize(plan, neighbours, borrowed, name, shape, dim, **settings)
    for module in block.modules():
        if isinstance(module, _BatchNorm):  # statistics of another input
            module.reset_running_stats()
    return kind(block, syntheses, neighbours, borrowed, plan.detach)


def check_half(block: nn.Module) -> None:
    """Check that a layer runs on a grid of any size.

    Raises:
        PlanError: Its attention knows one grid only, by tables of relative positions or by rotations.
    """
    windows = hasattr(block.attn, 'w_msa') or hasattr(block, 'shift_size')  # of Swin: they stay as large as they are
    table = any('relative_position' in name for name, _ in block.attn.named_parameters())
    takes = inspect.signature(block.forward).parameters
    if table and not windows:
        wrong = 'has relative positions of one grid'
    elif 'rope' in takes or getattr(block.attn, 'rope', None) is not None:
        wrong = 'rotates by positions of one grid'
    elif 'rel_pos_bias' in takes:
        wrong = 'is given relative positions of one grid'
    else:
        return
    raise PlanError(
        f"replace.operator='half' cannot run a {type(block).__name__} on half the grid: its attention {wrong}; "
        "expected 'mlp', 'mixer' or 'full'"
    )


def fit_windows(block: nn.Module) -> None:
    """Let a layer with windows run on half the grid: they are padded where it is smaller, and masks are of its size.

    mm's layers of detection and segmentation do so by themselves.
    """
    if hasattr(block.attn, 'pad_small_map'):  # of mmpretrain
        block.attn.pad_small_map = True
    if getattr(block, 'attn_mask', None) is not None:  # of timm, made once
        block.input_resolution = tuple((side + 1) // 2 for side in block.input_resolution)
        block.attn_mask = block.get_attn_mask().to(block.attn_mask)


TABLE = 'relative_position_bias_table'


def finish(backbone: nn.Module) -> None:
    """Prepare for initialization code that looks up every table of relative positions of a checkpoint in the model."""
    if isinstance(backbone, BaseModule) and any(key.endswith(TABLE) for key in backbone.state_dict()):
        specialize(backbone, _WithTables)


class _WithTables(Specialized):
    """Swin, BEiT and MAE bring the tables of a checkpoint to the sizes of their own: replaced blocks have none."""

    _initializing = False

    def init_weights(self) -> None:
        self._initializing = True
        try:
            super().init_weights()
        finally:
            del self._initializing

    def state_dict(self, *args, **kwargs) -> dict:
        state = super().state_dict(*args, **kwargs)
        return _Lookup(state) if self._initializing else state


class _Lookup(dict):
    """A state dict in which a replaced block's table is the one of a block near it; loading drops it later."""

    def __missing__(self, key: str) -> Tensor:
        if not key.endswith(TABLE):
            raise KeyError(key)
        return self[max(filter(lambda k: k.endswith(TABLE), self), key=lambda k: len(os.path.commonprefix([k, key])))]
