"""What the families of convolutional residual blocks have in common: ``last(x + branch(x))`` on feature maps.

A family says by :class:`Parts` which convolutions of a block play which role; the computing layers follow from that.
"""

import copy
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

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

OPERATORS = ('separable', 'conv', 'half', 'full')
DEFAULTS = dict(every=2, ratio=0.5, fusion=dict(type='mix', groups=None))
START = 0.1  # of the last operator of a branch: a converted network starts near the network without the block


class Parts(NamedTuple):
    """What computing layers have to know of a residual block: dotted names of its convolutions by their roles.

    Args:
        reduce (tuple[str]): Into the hidden width; empty where the hidden channels are the block's input.
        spatial (tuple[str]): Inside it. The one of ``reduce`` or ``expand`` where the block has none of its own: its
            hidden channels are those that it writes, or reads.
        expand (tuple[str]): Out of it.
        conv (tuple[str]): All convolutions of a block of two that are as wide as the block; operator 'conv' borrows
            from these. Defaults to none.
        norms (tuple[nn.Module | None]): Behind each convolution, in order. Defaults to none.
        activation (nn.Module | None): Between the convolutions. Defaults to None, ReLU.
        last (nn.Module | None): Behind the addition; ``nn.Identity()`` for nothing. Defaults to None, ReLU.
        drop (nn.Module | None): Stochastic depth. Defaults to None, nothing.
    """

    reduce: tuple[str, ...]
    spatial: tuple[str, ...]
    expand: tuple[str, ...]
    conv: tuple[str, ...] = ()
    norms: tuple[nn.Module | None, ...] = ()
    activation: nn.Module | None = None
    last: nn.Module | None = None
    drop: nn.Module | None = None

    @property
    def chain(self) -> tuple[str, ...]:
        """tuple[str]: The roles that have convolutions of their own, in order."""
        inner = () if self.spatial in (self.reduce, self.expand) else ('spatial',)
        return (*(('reduce',) if self.reduce else ()), *inner, 'expand')


def weights(read: Callable[[nn.Module], Parts], block: nn.Module, role: str) -> list[Tensor]:
    """A block's weights for a role, or for a dotted name, each ``(out, in / groups, kh, kw)``.

    Parts of one operator are joined. A block without a convolution for 'reduce' reads its channels as they are.
    """
    if role.endswith('.weight'):
        try:
            return [tensor_of(block.get_submodule(role.removesuffix('.weight')), 'weight')]
        except AttributeError:  # a block of another kind
            return []
    parts = read(block)
    found = [tensor_of(block.get_submodule(name), 'weight') for name in getattr(parts, role)]
    if not found:
        like = tensor_of(block.get_submodule(parts.spatial[0]), 'weight')
        return [torch.eye(len(like), dtype=like.dtype, device=like.device)[:, :, None, None]]
    if role == 'spatial' and parts.spatial == parts.expand:
        return [found[0].transpose(0, 1)]
    return [torch.cat(found)] if role == 'spatial' and len(found) > 1 else found


def build(
    read: Callable[[nn.Module], Parts],
    plan: Plan,
    block: nn.Module,
    neighbours: tuple[nn.Module, ...],
    step: int = 1,
    copies: bool = False,
    width: Callable[[nn.Module], int] | None = None,
) -> nn.Module:
    """The computing layer that replaces ``block``.

    Args:
        read (callable): Gives the :class:`Parts` of a block.
        plan (Plan): What stands in the slots.
        block (nn.Module): The replaced block.
        neighbours (tuple[nn.Module]): The one or two blocks that lend weights.
        step (int): Hidden widths are multiples of it. Defaults to 1.
        copies (bool): Whether the backbone changes what its blocks give, see :class:`ComputingLayer`. Defaults to
            False.
        width (callable | None): Gives the width of a block that ``plan.ratio`` is a part of. Defaults to None, its
            hidden width.

    Raises:
        PlanError: The plan's operator does not exist for this kind of block.
    """
    if plan.mode == 'remove':
        return ComputingLayer(copies=copies)
    parts = read(block)
    channels = block.get_submodule(parts.expand[0]).out_channels
    if plan.mode in ('patch', 'linear'):
        return PatchComputingLayer(channels, plan.mode == 'linear', maps=True, last=copy.deepcopy(parts.last))
    neighbours = plan.lenders(neighbours)
    synthesis = functools.partial(_synthesis, plan, neighbours, functools.partial(weights, read))
    if plan.operator == 'full':
        return _full(plan, block, neighbours, read, synthesis)
    activation, last = (copy.deepcopy(module) for module in (parts.activation, parts.last))
    if activation is not None and any(True for _ in activation.parameters()):
        raise PlanError(
            f'RepL cannot replace a {type(block).__name__} with an act_cfg that builds {type(activation).__name__}, '
            "which has parameters: expected one without, or replace.operator='full'"
        )
    settings = dict(
        neighbours=neighbours,
        neighbour_weights=functools.partial(weights, read),
        detach=plan.detach,
        drop=parts.drop,
        activation=activation,
        last=last,
    )
    if plan.operator == 'half':
        last_norm = functools.partial(_last_norm, read)
        return HalfComputingLayer(_half(plan, block, neighbours, read), last_norm, **settings)
    spatial = block.get_submodule(parts.spatial[0])
    kernel = spatial.kernel_size
    keeping = around(kernel, spatial.dilation)
    if plan.operator == 'conv':
        if not parts.conv:
            raise PlanError(
                f"replace.operator='conv' is not valid for bottleneck blocks such as {type(block).__name__}: one "
                "convolution at full width would cost more than the block; expected 'separable', 'half' or 'full'"
            )
        convs = dict(conv=(synthesis('conv', (channels, channels, *kernel), start=START), keeping))
    else:
        whole = width(block) if width else _width(block, parts)
        hidden = max(1, round(plan.ratio * whole / step)) * step
        gain = _gain(activation)
        convs = dict(
            reduce=(synthesis('reduce', (hidden, channels, 1, 1), start=gain), {}),
            # few numbers, which no mixing of the neighbours' could be cheaper than
            spatial=(_own((hidden, 1, *kernel), gain), dict(keeping, groups=hidden)),
            expand=(synthesis('expand', (channels, hidden, 1, 1), dim=1, start=START), {}),
        )
    return ResidualComputingLayer(convs, **settings)


def _last_norm(read: Callable[[nn.Module], Parts], block: nn.Module) -> nn.Module | None:
    """What stands behind the last convolution of a block."""
    norms = read(block).norms
    return norms[-1] if norms else None


def _width(block: nn.Module, parts: Parts) -> int:
    """The hidden width of a block."""
    return block.get_submodule((parts.reduce or parts.spatial)[0]).out_channels


def around(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> dict:
    """Settings of a convolution that keeps the size of its input."""
    return dict(padding=tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)), dilation=dilation)


def _gain(activation: nn.Module | None) -> float:
    """What undoes the loss of second moment by an activation, of normal input: the root of 2 for ReLU."""
    if activation is None:
        return 2**0.5
    normal = torch.special.ndtri((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000)
    return (normal.square().mean() / activation(normal.clone()).square().mean()).sqrt().item()


def _half(plan: Plan, block: nn.Module, neighbours: tuple[nn.Module, ...], read) -> dict[str, tuple]:
    """The block's own chain at half the resolution: half of its hidden units from each neighbour."""
    parts = read(block)
    convs = {role: block.get_submodule(getattr(parts, role)[0]) for role in parts.chain}
    spatial = block.get_submodule(parts.spatial[0])
    hidden, channels = _width(block, parts), convs['expand'].out_channels
    halved = tuple(max(1, d // 2) for d in spatial.dilation)  # reaches as far at half the resolution
    mixing = {} if plan.mode == 'share' else dict(type=plan.fusion['type'], mix_groups=plan.fusion.get('groups', 1))
    chain = {}
    for (role, conv), norm in zip(convs.items(), parts.norms, strict=True):
        groups, settings = 1, dict(dim=1, **mixing) if role == 'expand' else {}
        if role == 'spatial':
            # each neighbour's units read their like
            groups = math.lcm(2, conv.groups) if hidden % math.lcm(2, conv.groups) == 0 else conv.groups
            settings = dict(groups=groups)
        out, inner = (channels, hidden) if role == 'expand' else (hidden, channels if role == 'reduce' else hidden)
        shape = (out, inner // groups, *conv.kernel_size)
        shapes = [tuple(weight.shape) for neighbour in neighbours for weight in weights(read, neighbour, role)]
        if plan.mode == 'own':
            source = fusion.OwnWeight(shape, shapes, settings.get('dim', 0), start=2**0.5)
        else:
            source = fusion.UnitsWeight(shape, shapes, **settings)
        if chain:
            settings = dict(around(conv.kernel_size, halved), groups=groups)
        else:
            settings = dict(around(conv.kernel_size, conv.dilation), groups=groups, stride=2)
        norm = copy.deepcopy(_affine(plan, block, norm))
        norm.reset_parameters()
        chain[role] = (fusion.Synthesis(source, None, bias=False), settings, norm.requires_grad_(True))
    return chain


def _affine(plan: Plan, block: nn.Module, norm: nn.Module | None) -> nn.Module:
    """One of a block's norms, if an operator can use its like."""
    if getattr(norm, 'weight', None) is None or not hasattr(norm, 'reset_parameters'):
        raise PlanError(
            f'replace.operator={plan.operator!r} needs affine norms norm1 or bn1, norm2 or bn2 and so on in a '
            f"{type(block).__name__}, found {type(norm).__name__}: expected norm_cfg=dict(type='BN') or 'GN', or "
            "operator='separable'"
        )
    return norm


def _synthesis(plan, neighbours, lent, role, shape, dim=0, start=None, bias=True) -> fusion.Synthesis:
    shapes = [tuple(weight.shape) for block in neighbours for weight in lent(block, role)]
    source = fusion.build_source(plan.mode, shape, shapes, dim, start or 1.0, plan.fusion)
    # a shared weight has no scale of its own; where a norm follows, it needs none
    return fusion.Synthesis(source, start if plan.mode == 'share' else None, bias)


def _own(shape, start) -> fusion.Synthesis:
    """Taps of the layer's own; of a length exactly, for they are few."""
    source = fusion.OwnWeight(shape, start=start)
    source.weight.data *= start / fusion.row_lengths(source.weight.flatten(1)).view(-1, 1, 1, 1)
    return fusion.Synthesis(source)


def _full(plan: Plan, block: nn.Module, neighbours: tuple[nn.Module, ...], read, synthesis) -> nn.Module:
    for key, used in (('dcn', getattr(block, 'with_dcn', False)), ('plugins', getattr(block, 'with_plugins', False))):
        if used:
            raise PlanError(
                f"replace.operator='full' copies the structure of a block and cannot copy its {key}: expected a light "
                "operator such as 'separable', or a backbone without " + key
            )
    block = copy.deepcopy(block)  # the backbone stays whole if another slot turns out to be impossible
    parts = read(block)
    convs = {name: module for name, module in block.named_modules() if isinstance(module, nn.Conv2d)}
    syntheses = {}
    for name, conv in convs.items():
        key, shape = f'{name}.weight', tuple(conv.weight.shape)
        if neighbours and not any(weights(read, neighbour, key) for neighbour in neighbours):
            raise PlanError(
                f"replace.operator='full' needs a neighbour built like the replaced {type(block).__name__}, but none "
                f"has {key!r} (they are {', '.join(type(n).__name__ for n in neighbours)}): expected 'separable'"
            )
        dim = int(shape[1] < shape[0] and conv.groups == 1)
        # where no norm follows that could start small
        start = START if parts.norms[-1] is None and name in parts.expand else None
        syntheses[key] = synthesis(key, shape, dim, start, bias=False)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    norms = [m for m in block.modules() if hasattr(m, 'running_mean') or isinstance(m, nn.GroupNorm)]
    for norm in norms:
        norm.reset_parameters()
        norm.requires_grad_(True)  # those of norm_cfg=dict(requires_grad=False) have no statistics from before
    if parts.norms[-1] is not None:
        nn.init.constant_(_affine(plan, block, parts.norms[-1]).weight, START)
    return FullComputingLayer(block, syntheses, neighbours, functools.partial(weights, read), plan.detach)
