"""Weight space: the weights of a computing layer, synthesized from its neighbours' weights.

Everything here works on weights only, never on activations. A *weight source* is a small module whose ``forward``
takes the neighbours' weights of one role (``[W_p]`` or ``[W_p, W_n]``) and returns one weight of a given shape:

* :class:`FusedWeight`: ``fuse(W_p, W_n) = sum_j T_j(W_j)`` with a learnable transformation ``T`` (RepL);
* :class:`UnitsWeight`: hidden units of both neighbours, whole (RepL at half the resolution);
* :class:`SharedWeight`: the preceding block's weight unchanged (control ``mode='share'``);
* :class:`OwnWeight`: a free weight (control ``mode='own'``).

The arbitrary scale of a convolution that is followed by a normalization never reaches the activations: coefficients
are divided by the lengths of the neighbours' weights, once, whenever these get new ones. In transformers the norms
stand before the linear layers, whose scale means something: there it is kept. :class:`Synthesis` makes weight and bias
of one operator.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TRANSFORMS = ('scalar', 'channel', 'mix')
SHORTEST = 0.1  # of a row, relative to the root mean square length of the rows
BLOCK = 64  # channels
LARGE = 2**16  # elements of a weight whose gradient is better made in its own order
EPS = 1e-12


def common_groups(groups: int | None, *sizes: int) -> int:
    """A number of groups that divides these numbers of channels; None for two, or groups of ``BLOCK`` channels."""
    return math.gcd(max(2, max(sizes, default=1) // BLOCK) if groups is None else groups, *sizes)


def spread(length: int, size: int) -> Tensor:
    """Indices that thin or stretch a dimension of ``size`` entries evenly to ``length`` entries.

    Returns:
        Tensor: ``length`` indices in ``[0, size)``, not decreasing. The identity if ``length == size``.
    """
    return torch.arange(length) * size // length


def align_kernel(weight: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Bring the trailing (spatial) dimensions of a convolution weight to ``kernel``.

    To one tap by the sum of all taps (the kernel's response to a constant input stays), to a larger kernel by
    zero padding, to a smaller one by its centre.

    Args:
        weight (Tensor): ``(out, in, *k)``.
        kernel (tuple[int]): Wanted spatial size, of the same number of dimensions and the same parity.

    Returns:
        Tensor: ``(out, in, *kernel)``.
    """
    if tuple(weight.shape[2:]) == tuple(kernel):
        return weight
    if all(size == 1 for size in kernel):
        return weight.sum(dim=tuple(range(2, weight.dim())), keepdim=True)
    margins = []
    for have, want in zip(reversed(weight.shape[2:]), reversed(kernel), strict=True):
        margins += [(want - have) // 2] * 2
    return nn.functional.pad(weight, margins)


def align_channels(weight: Tensor, dim: int, length: int) -> Tensor:
    """Bring dimension ``dim`` of ``weight`` to ``length`` by evenly spread selection (or repetition); sum for one."""
    if weight.shape[dim] == length:
        return weight
    if length == 1:
        return weight.sum(dim, keepdim=True)
    size = weight.shape[dim]
    if size % length == 0:  # a view
        return weight[:: size // length] if dim == 0 else weight[:, :: size // length]
    if length % size == 0:
        return weight.repeat_interleave(length // size, dim)
    return weight.index_select(dim, spread(length, size).to(weight.device))


def row_lengths(matrix: Tensor) -> Tensor:
    """Lengths of the rows of a matrix, to divide by.

    Trained networks have dead channels, whose rows are shorter than the others by many orders of magnitude. Brought to
    unit length, they would be noise, and their gradients as many orders too large: a row counts for at least
    ``SHORTEST`` of the root mean square length.

    Args:
        matrix (Tensor): ``(rows, columns)``.

    Returns:
        Tensor: ``(rows,)``, float32, above 0.
    """
    lengths = matrix.detach().float().norm(dim=1)
    return lengths.clamp_min(SHORTEST * lengths.norm() / math.sqrt(len(lengths))).clamp_min(EPS)


class WeightSource(nn.Module):
    """Base of the weight sources.

    Args:
        shape (tuple[int]): Shape ``(out, in, *k)`` of the weight to be made; ``(out,)`` for a vector.
        neighbours (list[tuple[int]]): Shapes of the weights that ``forward`` will be given.
        dim (int): The *hidden* dimension, 0 (output channels) or 1 (input channels): the one along which the
            transformation acts. The other one is aligned without parameters. Defaults to 0.
        start (float): Root mean square length, at the start, of the weights of an output channel. Defaults to 1.
    """

    few: float = 0  # positions up to which ``mix_positions``, which makes no weight, is the cheaper way to apply it

    def __init__(self, shape: tuple[int, ...], neighbours: list[tuple[int, ...]], dim: int = 0, start: float = 1.0):
        super().__init__()
        self.shape = tuple(shape)
        self.dim = dim
        self.neighbour_shapes = [tuple(n) for n in neighbours]

    def matrix(self, weight: Tensor) -> Tensor:
        """A neighbour's weight as ``(its hidden size, outer size)``, its outer channels and kernel aligned."""
        if weight.dim() == 1:
            return weight[:, None]
        weight = align_kernel(weight, self.shape[2:])
        weight = align_channels(weight, 1 - self.dim, self.shape[1 - self.dim])
        return weight.transpose(0, self.dim).flatten(1)

    def unmatrix(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`matrix` for the wanted shape."""
        if len(self.shape) == 1:
            return matrix[:, 0]
        shape = list(self.shape)
        shape[0], shape[self.dim] = shape[self.dim], shape[0]
        return matrix.reshape(shape).transpose(0, self.dim)

    def begin(self, weights: list[Tensor], sizes: list[Tensor] | None = None, rescale: bool = True) -> None:
        """Take the neighbours' scale into account, once: whenever they got new weights.

        Args:
            weights (list[Tensor]): What ``forward`` will be given.
            sizes (list[Tensor] | None): Root mean squares of what ``weights`` stands in the place of. Defaults to
                None, of themselves.
            rescale (bool): Whether the parameters follow; otherwise they belong to these weights already. Defaults to
                True.
        """

    def extra_repr(self) -> str:
        return f'{self.neighbour_shapes} -> {self.shape}, hidden dim {self.dim}'


class OwnWeight(WeightSource):
    """A free weight, independent of the neighbours (control ``mode='own'``)."""

    def __init__(self, shape, neighbours=(), dim=0, start=1.0):
        super().__init__(shape, list(neighbours), dim, start)
        self.weight = nn.Parameter(torch.randn(self.shape) * start / math.sqrt(math.prod(self.shape[1:])))

    def forward(self, weights: list[Tensor]) -> Tensor:
        return self.weight


class SharedWeight(WeightSource):
    """The preceding block's weight, aligned in shape and otherwise unchanged (control ``mode='share'``).

    It has the scale of that weight, whatever ``start`` says.
    """

    def forward(self, weights: list[Tensor]) -> Tensor:
        return self.unmatrix(align_channels(self.matrix(weights[0]), 0, self.shape[self.dim]))


class FusedWeight(WeightSource):
    r"""The learnable transformation: :math:`K = \sum_j T_j(W_j)`, linear in the neighbours' weights.

    ``T_j`` is

    * ``scalar``: one number per neighbour (``W_i = a W_(i-1) + b W_(i+1)``, arXiv 2410.01239);
    * ``channel``: one number per hidden channel and neighbour;
    * ``mix``: a matrix that mixes hidden channels, block-diagonal with ``groups`` blocks.

    ``scalar`` starts at the mean of the neighbours, scaled; the others start with every hidden unit taken whole from
    one neighbour, in turn: the surrogate starts as a sub-network of both blocks. All parameters are at least 1-d.

    Args:
        type (str): One of ``TRANSFORMS``. Defaults to 'mix'.
        groups (int | None): Blocks of the mixing matrix; lowered to a common divisor of the channel counts. Defaults
            to None, two, or more, so that blocks have at most ``BLOCK`` channels of a neighbour.
        normalize (bool): Whether only the direction of a neighbour's rows counts at the start, and ``start`` is their
            length; otherwise their length is kept, and ``start`` is a factor. The coefficients are divided by the
            lengths whenever the neighbours get new weights, see :meth:`begin`, not in every step. Defaults to True.
        rate (float): The coefficients are ``rate`` times the parameters. Adam moves all parameters by steps of one
            size: coefficients, of the size of 1, would hardly move where it suits weights of the size of 1 / rate.
            Defaults to 1.
    """

    def __init__(self, shape, neighbours, dim=0, start=1.0, type='mix', groups=None, normalize=True, rate=1.0):
        super().__init__(shape, neighbours, dim, start)
        self.normalize = normalize
        self.rate = rate
        if type not in TRANSFORMS:
            raise ValueError(f'unknown transformation {type!r}; valid are {", ".join(TRANSFORMS)}')
        self.type = type
        hidden = self.shape[dim]
        sizes = [n[dim] for n in self.neighbour_shapes]
        self.groups = common_groups(groups, hidden, *sizes)
        for j in range(len(sizes)):  # buffers: DDP makes them alike in all processes, as it does with the coefficients
            self.register_buffer(f'unit{j}', None, persistent=False)
        self.coefficients = nn.ParameterList()
        # hidden units of unit length make output channels of length sqrt(hidden / out)
        scale = start * math.sqrt(self.shape[0] / hidden) if normalize else start
        for j, size in enumerate(sizes):
            turn = (torch.arange(hidden) % len(sizes) == j).float() * scale
            if type == 'scalar':
                # the mean of two unrelated vectors of unit length has length 1 / sqrt(2)
                coefficient = torch.full((1,), scale / (math.sqrt(len(sizes)) if normalize else len(sizes)))
            elif type == 'mix':
                coefficient = torch.zeros(hidden, size)
                coefficient[torch.arange(hidden), spread(hidden, size)] = turn
                blocks = coefficient.view(self.groups, hidden // self.groups, self.groups, size // self.groups)
                coefficient = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
            else:
                coefficient = turn
            self.coefficients.append(nn.Parameter(coefficient / rate))
        self.few = self._few()

    @property
    def units(self) -> list[Tensor] | None:
        """list[Tensor] | None: The lengths that each neighbour's coefficients were divided by; None before."""
        units = [getattr(self, f'unit{j}') for j in range(len(self.coefficients))]
        return None if any(unit is None for unit in units) else units

    def shares(self) -> list[Tensor]:
        """Each neighbour's coefficients without gradient, as of rows of unit length if ``normalize``; for logs."""
        shares = [coefficient.detach() * self.rate for coefficient in self.coefficients]
        if self.units is None:
            return shares
        return [share * self._fitting(unit) for share, unit in zip(shares, self.units, strict=True)]

    def _fitting(self, unit: Tensor) -> Tensor:
        """A number per row of a neighbour, in the shape of its coefficients."""
        if self.type == 'mix':
            return unit.view(self.groups, 1, -1)
        if self.type == 'channel':
            return align_channels(unit[:, None], 0, self.shape[self.dim])[:, 0]
        return unit.square().mean().sqrt()

    @torch.no_grad()
    def begin(self, weights, sizes=None, rescale=True):
        if self.normalize:
            units = [row_lengths(self.matrix(weight)) for weight in weights]
        elif sizes is not None:
            counts = [shape[self.dim] for shape in self.neighbour_shapes]
            units = [(1 / size.clamp_min(EPS)).repeat(count) for size, count in zip(sizes, counts, strict=True)]
        else:
            return
        if rescale:
            before = self.units or [torch.ones_like(unit) for unit in units]
            for coefficient, old, new in zip(self.coefficients, before, units, strict=True):
                coefficient.data.mul_(self._fitting(old) / self._fitting(new))
        for j, unit in enumerate(units):
            setattr(self, f'unit{j}', unit)

    def transform(self, j: int, matrix: Tensor, total: Tensor | None) -> Tensor:
        """``T_j`` of one neighbour's matrix, ``(hidden_j, outer)`` -> ``(hidden, outer)``, added to ``total``."""
        factor = self.coefficients[j].to(matrix.dtype)
        if self.type == 'mix':
            matrix = matrix.view(self.groups, factor.shape[2], -1)
            if total is None:
                return torch.bmm(factor, matrix).flatten(0, 1)
            return torch.baddbmm(total.unflatten(0, (self.groups, -1)), factor, matrix).flatten(0, 1)
        matrix = align_channels(matrix, 0, self.shape[self.dim])
        return matrix * factor[:, None] if total is None else torch.addcmul(total, matrix, factor[:, None])

    def forward(self, weights: list[Tensor]) -> Tensor:
        total = None
        pointwise = len(self.shape) > 2 and math.prod(self.shape[2:]) == 1
        if self.type == 'mix' and self.dim == 1 and pointwise and math.prod(self.shape) >= LARGE:
            for weight, factor in zip(weights, self.coefficients, strict=True):
                total = self._mix_columns(weight, factor, total)
            total = total.transpose(0, 1).reshape(self.shape)
        else:
            for j, weight in enumerate(weights):
                total = self.transform(j, self.matrix(weight), total)
            total = self.unmatrix(total)
        return total if self.rate == 1 else total * self.rate

    def _mix_columns(self, weight: Tensor, factor: Tensor, total: Tensor | None) -> Tensor:
        """What :meth:`transform` does, as ``(groups, out, hidden)``.

        The weight's gradient lies in memory as the weight does, so that its sum with the neighbour's own gradient is
        quicker: where weights are large this saves more time than the product takes. It is three operations more.
        """
        weight = align_channels(align_kernel(weight, self.shape[2:]), 0, self.shape[0]).flatten(1)
        columns = weight.unflatten(1, (self.groups, -1)).transpose(0, 1)
        factor = factor.to(weight.dtype).transpose(1, 2)
        return torch.bmm(columns, factor) if total is None else torch.baddbmm(total, columns, factor)

    def _few(self) -> float:
        """Up to how many positions it takes fewer FLOPs to apply neighbours and mixing one after the other.

        Their product is the same 1x1 convolution, but it has to be made first, however few positions it meets.
        """
        if self.type != 'mix' or self.rate != 1 or len(self.shape) < 3 or math.prod(self.shape[2:]) > 1:
            return 0
        hidden, outer = self.shape[self.dim], self.shape[1 - self.dim]
        mixing = sum(coefficient.numel() for coefficient in self.coefficients)
        more = mixing + outer * (sum(shape[self.dim] for shape in self.neighbour_shapes) - hidden)
        return math.ceil(mixing * outer / more) - 1 if more > 0 else math.inf

    def select(self, weights: list[Tensor]) -> list[Tensor]:
        """The neighbours' matrices, for :meth:`mix_positions`; where columns are to be repeated, without that."""
        narrow = [self.dim == 0 and self.shape[1] % weight.shape[1] == 0 for weight in weights]
        pairs = zip(weights, narrow, strict=True)
        return [align_kernel(w, self.shape[2:]).flatten(1) if is_narrow else self.matrix(w) for w, is_narrow in pairs]

    def mix_positions(self, x: Tensor, matrices: list[Tensor], bias: Tensor | None) -> Tensor:
        """What a 1x1 convolution with the weight of :meth:`forward` gives, without making that weight.

        It is done in the precision of the matrices, as the synthesis is.

        Args:
            x (Tensor): ``(N, in, *spatial)``.
            matrices (list[Tensor]): What :meth:`select` gives.
            bias (Tensor | None): ``(out,)``.

        Returns:
            Tensor: ``(N, out, *spatial)``.
        """
        rows = x.flatten(2).transpose(1, 2).flatten(0, 1).to(matrices[0].dtype)  # (positions, in)
        inner, total = self.dim == 1, bias
        if bias is not None and not inner:
            total = bias.view(self.groups, 1, -1)
        for matrix, coefficient in zip(matrices, self.coefficients, strict=True):
            factor = coefficient.to(matrix.dtype)
            if inner:
                mixed = torch.bmm(self._grouped(rows), factor).transpose(0, 1).flatten(1)
                total = mixed @ matrix if total is None else torch.addmm(total, mixed, matrix)
            else:
                seen = rows if matrix.shape[1] == rows.shape[1] else rows.unflatten(1, (matrix.shape[1], -1)).sum(2)
                units, factor = self._grouped(F.linear(seen, matrix)), factor.transpose(1, 2)
                total = torch.bmm(units, factor) if total is None else torch.baddbmm(total, units, factor)
        total = total.to(x.dtype).unflatten(-2, (len(x), -1))
        if inner:
            return total.transpose(1, 2).unflatten(2, x.shape[2:])
        return total.permute(1, 0, 3, 2).reshape(len(x), -1, *x.shape[2:])

    def _grouped(self, rows: Tensor) -> Tensor:
        """``(positions, groups * k)`` as ``(groups, positions, k)``."""
        return rows.unflatten(1, (self.groups, -1)).transpose(0, 1)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, {self.type}, groups={self.groups}'


class UnitsWeight(WeightSource):
    r"""Hidden units taken whole: the first half of them from the preceding block, the second from the succeeding one.

    In all operators of a computing layer the same units come from the same block, so that what a unit reads, computes
    and writes belongs together: between the borrowed weights stands the nonlinearity that stands there in the blocks.
    A normalization has to follow the operator: scales are as they are. Where a neighbour's middle convolution is
    grouped in another way (Res2Net, ResNeSt, across stages of a RegNet), its rows and columns are brought to the
    operator's shape each by itself.

    The transformation, of the last operator of a branch, is

    * ``scalar``: one number per neighbour; ``channel``: one number per hidden unit;
    * ``mix``: a matrix that mixes the output channels, or, where the operator is 1x1, the hidden units, whichever are
      fewer; block-diagonal with ``mix_groups`` blocks.

    It starts as the identity.

    Args:
        groups (int): Groups of the convolution. Of a dense neighbour's weight the blocks on the diagonal are taken.
            Defaults to 1.
        type (str | None): The transformation. Defaults to None, none.
        mix_groups (int | None): Lowered to a common divisor of the channel counts. Defaults to None, as above.
    """

    def __init__(self, shape, neighbours, dim=0, groups=1, type=None, mix_groups=None):
        super().__init__(shape, neighbours, dim)
        self.type = type
        self.conv_groups = groups
        hidden, count = self.shape[dim], len(self.neighbour_shapes)
        bounds = [hidden * j // count for j in range(count + 1)]
        # runs of units as (neighbour, first unit, number of units, group); of a dense neighbour one for every group
        self.runs = []
        for j, neighbour in enumerate(self.neighbour_shapes):
            parts = groups if groups > 1 and neighbour[0] == neighbour[1] else 1
            for group in range(parts):
                first = max(bounds[j], hidden * group // parts)
                length = min(bounds[j + 1], hidden * (group + 1) // parts) - first
                if length > 0:
                    self.runs.append((j, first, length, group))
        self.outputs = len(self.shape) > 2 and math.prod(self.shape[2:]) > 1  # whether they are mixed
        mixed = self.shape[0] if self.outputs else hidden
        self.groups = common_groups(mix_groups, mixed)
        if type == 'mix':
            start = torch.eye(mixed // self.groups).repeat(self.groups, 1, 1)
        elif type == 'channel':
            start = torch.ones(hidden)
        elif type == 'scalar':
            start = torch.ones(count)
        self.coefficients = nn.ParameterList([] if type is None else [nn.Parameter(start)])
        if type == 'mix':  # to make the weight costs as much as to mix as many positions as the matrix has rows
            self.few = math.prod(self.shape) // mixed - 1

    def mix_positions(self, x: Tensor, operator: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply the operator of the plain weight, and the mixing in front of it or behind it, to a feature map.

        Args:
            x (Tensor): ``(N, C, H, W)``.
            operator (callable): Applies the weight that :meth:`select` gives.
        """
        weight = self.coefficients[0].flatten(0, 1)[:, :, None, None]
        if self.outputs:
            return F.conv2d(operator(x), weight, groups=self.groups)
        return operator(F.conv2d(x, weight, groups=self.groups))

    def select(self, weights: list[Tensor]) -> Tensor:
        """The chosen units side by side."""
        hidden, outer = self.shape[self.dim], self.shape[1 - self.dim]
        ready = []
        for weight in weights:
            # of a dense weight a group reads its own part; other widths are brought to that of the operator
            dense = self.conv_groups > 1 and weight.shape[0] == weight.shape[1]
            weight = align_channels(align_kernel(weight, self.shape[2:]), self.dim, hidden)
            ready.append(align_channels(weight, 1 - self.dim, hidden if dense else outer))
        parts = []
        for j, first, length, group in self.runs:
            part = ready[j].narrow(self.dim, first, length)
            parts.append(part if part.shape[1 - self.dim] == outer else part.narrow(1, group * outer, outer))
        return torch.cat(parts, self.dim) if len(parts) > 1 else parts[0]

    def forward(self, weights: list[Tensor]) -> Tensor:
        kernel = self.select(weights)
        if self.type is None:
            return kernel
        coefficient = self.coefficients[0].to(kernel.dtype)
        if self.type != 'mix':
            if self.type == 'scalar':
                coefficient = torch.cat([coefficient[j].expand(length) for j, _, length, _ in self.runs])
            return kernel * coefficient.view([-1 if d == self.dim else 1 for d in range(kernel.dim())])
        size = coefficient.shape[1]
        if self.outputs:
            mixed = torch.bmm(coefficient, kernel.reshape(self.groups, size, -1))
        elif self.groups == 1:
            mixed = kernel.flatten(1) @ coefficient[0]
        else:
            blocks = kernel.reshape(-1, self.groups, size).transpose(0, 1)
            mixed = torch.bmm(blocks, coefficient).transpose(0, 1)
        return mixed.reshape(self.shape)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, {self.type}, groups={self.groups}'


class Synthesis(nn.Module):
    r"""One operator's weight and bias.

    Args:
        source (WeightSource): Makes the weight.
        gain (float | None): A factor of the weight, shape ``(out,)``, for sources that have no scale of their own:
            output channels start with this length. Defaults to None, no factor.
        bias (bool): Whether to have a bias, shape ``(out,)``, which starts at 0. Defaults to True.
    """

    def __init__(self, source: WeightSource, gain: float | None = None, bias: bool = True):
        super().__init__()
        self.source = source
        out = source.shape[0]
        self.gain = None if gain is None else nn.Parameter(torch.full((out,), float(gain)))
        self.register_buffer('unit', None, persistent=False)  # the lengths that the gain was divided by
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None

    @torch.no_grad()
    def begin(self, weights: list[Tensor], sizes: list[Tensor] | None = None, rescale: bool = True) -> None:
        """See :meth:`WeightSource.begin`."""
        self.source.begin(weights, sizes, rescale)
        if self.gain is None:
            return
        unit = row_lengths(self.source(weights).flatten(1))
        if rescale:
            self.gain.data.mul_((torch.ones_like(unit) if self.unit is None else self.unit) / unit)
        self.unit = unit

    def forward(self, weights: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Synthesize.

        Args:
            weights (list[Tensor]): The neighbours' weights, as the source wants them.

        Returns:
            tuple: weight ``(out, in, *k)`` and bias ``(out,)`` or None.
        """
        weight = self.source(weights)
        if self.gain is not None:
            weight = weight * self.gain.to(weight.dtype).view(-1, *[1] * (weight.dim() - 1))
        return weight, self.bias


def build_source(mode: str, shape, neighbours, dim: int, start: float, fusion: dict) -> WeightSource:
    """The weight source of a mode with weights; ``fusion`` holds FusedWeight's further settings."""
    if mode == 'own':
        return OwnWeight(shape, neighbours, dim, start)
    if mode == 'share':
        return SharedWeight(shape, neighbours, dim, start)
    if mode not in ('fuse', 'random'):
        raise ValueError(f"replace.mode={mode!r} has no weights: this family's build() knows no such layer")
    return FusedWeight(shape, neighbours, dim, start, **fusion)
