"""The computing layer of convolutional residual blocks."""

import copy
import math
from collections.abc import Collection

import torch.nn.functional as F
from torch import Tensor, nn

from .base import LARGE, ComputingLayer, no_autocast, recomputed
from .merged import MergedResidual, plain_conv


class ResidualComputingLayer(ComputingLayer):
    """``last(x + drop(branch(x)))``; the branch is a chain of convolutions with synthesized weights.

    No activation norm (it would need statistics that ``norm_eval`` never lets it learn): the inner weights start with
    output channels of one length, the last one starts small. Only the output is kept for backward, and the weights
    where they are small beside it: hidden activations are recomputed.

    Args:
        convs (dict[str, tuple]): Per convolution, in order, its :class:`repl_mm.fusion.Synthesis` and the settings of
            ``F.conv2d`` (stride, padding, dilation, groups).
        neighbours, neighbour_weights, detach: See :class:`ComputingLayer`.
        drop (nn.Module | None): Stochastic depth of the replaced block. Defaults to None, nothing.
        activation (nn.Module | None): Between the convolutions; without parameters. Defaults to None, ReLU.
        last (nn.Module | None): Behind the addition; ``nn.Identity()`` for nothing. Defaults to None, ReLU.

    Shape: ``(N, C, H, W)`` to the same.
    """

    def __init__(self, convs: dict, neighbours, neighbour_weights, detach, drop=None, activation=None, last=None):
        syntheses = {name: synthesis for name, (synthesis, _) in convs.items()}
        super().__init__(syntheses, neighbours, neighbour_weights, detach)
        self.made_size = sum(math.prod(synthesis.source.shape) for synthesis in syntheses.values())
        self.settings = [settings for _, settings in convs.values()]
        self.drop = drop or nn.Identity()
        self.activation = activation or nn.ReLU(inplace=True)
        self.last = last or nn.ReLU(inplace=True)

    def branch(self, x: Tensor, weights: tuple, apart: Collection[str] = ()) -> Tensor:
        """The chain of convolutions, without the shortcut; some are done by ``mix_positions``."""
        for i, (name, (weight, bias), settings) in enumerate(zip(self.names, weights, self.settings, strict=True)):
            x = self.activation(x) if i else x
            if name in apart:
                with no_autocast():
                    x = self.repl[name].source.mix_positions(x, weight, bias)
            else:
                x = F.conv2d(x, weight, bias, **settings)
        return x

    def is_dear(self, x: Tensor) -> bool:
        """Only the weights themselves are kept: cheap, but where they are large or not small beside a large ``x``."""
        return self.made_size > (x.numel() / 64 if x.numel() > LARGE else LARGE)

    def make_plain(self) -> nn.Module:
        branch = {}
        for name, (weight, bias), settings in zip(self.names, self.synthesize(), self.settings, strict=True):
            if branch:
                branch[f'{name}_activation'] = copy.deepcopy(self.activation)
            branch[name] = plain_conv(weight, bias, **settings)
        return MergedResidual(branch, copy.deepcopy(self.drop), copy.deepcopy(self.last), half=False)

    def compute(self, x: Tensor) -> Tensor:
        apart = self.mixed_apart(x.numel() // x.shape[1])
        if not apart:
            return self.last(x + self.drop(self.with_weights(self.branch, x)))

        def run(x):  # of so few positions nothing is large
            return self.branch(x, self.synthesize(apart), apart)

        return self.last(x + self.drop(recomputed(run, x) if self.with_cp else run(x)))
