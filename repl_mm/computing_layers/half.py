"""The computing layer of residual blocks at half the resolution."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import LARGE, ComputingLayer, recomputed
from .merged import MergedResidual, plain_conv


def normalized(norm: nn.Module, x: Tensor) -> Tensor:
    """What a norm gives; a batch norm in training uses what it has learned where a channel has one value only.

    A 2x2 map of one picture, which the block could still normalize, has one position left at half the resolution.
    """
    alone = isinstance(norm, nn.BatchNorm2d) and norm.training and x.numel() == x.shape[1]
    if not alone or norm.running_mean is None:
        return norm(x)
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


class HalfComputingLayer(ComputingLayer):
    """``last(x + drop(up(branch(x))))``: the chain of a residual block at half the resolution.

    The first convolution of the branch has stride 2, ``up`` repeats every position. The convolutions have synthesized
    weights, a norm of the layer's own after each and the activation between.

    The last norm starts at a tenth, so that a converted network starts near the network without the block.
    Initialization from scratch may set it as it sets all norms; where the kept blocks start at nothing (mm's
    ``zero_init_residual``), so does the layer. Under the replaced block's ``with_cp`` only the input is kept for
    backward; norms then update their statistics twice in a step, as those of mm's blocks do.

    Args:
        convs (dict[str, tuple]): Per convolution, in order, its :class:`repl_mm.fusion.Synthesis`, the settings of
            ``F.conv2d`` (stride, padding, dilation, groups) and its norm.
        last_norm (callable): Gives the last norm of a kept block, None if it has none.
        neighbours, neighbour_weights, detach: See :class:`ComputingLayer`.
        drop (nn.Module | None): Stochastic depth of the replaced block. Defaults to None, nothing.
        activation (nn.Module | None): Between norm and convolution; without parameters. Defaults to None, ReLU.
        last (nn.Module | None): Behind the addition; ``nn.Identity()`` for nothing. Defaults to None, ReLU.

    Shape: ``(N, C, H, W)`` to the same.
    """

    def __init__(
        self, convs: dict, last_norm, neighbours, neighbour_weights, detach, drop=None, activation=None, last=None
    ):
        syntheses = {name: synthesis for name, (synthesis, *_) in convs.items()}
        super().__init__(syntheses, neighbours, neighbour_weights, detach)
        self.last_norm = last_norm
        self.settings = [settings for _, settings, _ in convs.values()]
        self.repl['norms'] = nn.ModuleList(norm for *_, norm in convs.values())
        nn.init.constant_(self.repl['norms'][-1].weight, 0.1)
        self.drop = drop or nn.Identity()
        self.activation = activation or nn.ReLU(inplace=True)
        self.last = last or nn.ReLU(inplace=True)

    @torch.no_grad()
    def begin(self, rescale: bool = True) -> None:
        super().begin(rescale)
        # between blocks that start as nothing, a layer that starts whole drowns what all others learn
        weights = [getattr(self.last_norm(block), 'weight', None) for block in self.between]
        if rescale and weights and not any(weight is None or weight.is_meta or weight.any() for weight in weights):
            nn.init.zeros_(self.repl['norms'][-1].weight)

    def branch(self, x: Tensor) -> Tensor:
        """All but the shortcut."""
        out = x
        apart = self.mixed_apart(x.shape[0] * ((x.shape[2] + 1) // 2) * ((x.shape[3] + 1) // 2))
        pairs = self.synthesize(apart) if apart else self.weights()
        for i, (name, (weight, _), settings) in enumerate(zip(self.names, pairs, self.settings, strict=True)):
            out = self.activation(out) if i else out
            if name in apart:
                out = self.repl[name].source.mix_positions(out, lambda h, w=weight, s=settings: F.conv2d(h, w, **s))
            else:
                out = F.conv2d(out, weight, **settings)
            out = normalized(self.repl['norms'][i], out)
        return F.interpolate(out, x.shape[-2:])

    def make_plain(self) -> nn.Module:
        branch = {}
        parts = zip(self.names, self.synthesize(), self.settings, self.repl['norms'], strict=True)
        for name, (weight, bias), settings, norm in parts:
            if branch:
                branch[f'{name}_activation'] = copy.deepcopy(self.activation)
            branch |= {name: plain_conv(weight, bias, **settings), f'{name}_norm': copy.deepcopy(norm)}
        return MergedResidual(branch, copy.deepcopy(self.drop), copy.deepcopy(self.last), half=True)

    def compute(self, x: Tensor) -> Tensor:
        return self.last(x + self.drop(recomputed(self.branch, x) if self.is_recomputed(x) else self.branch(x)))

    def is_recomputed(self, x: Tensor) -> bool:
        """Whether only ``x`` is kept: as of the replaced block, or where the weights are larger than what they meet.

        Norms in train mode would update their statistics twice: they are recomputed on request only.
        """
        learns = any(module.training for module in self.repl['norms'])
        return torch.is_grad_enabled() and (self.with_cp or (self.size > max(x.numel(), LARGE) and not learns))
