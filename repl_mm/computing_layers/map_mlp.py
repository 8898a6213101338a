"""The computing layer of blocks that are an MLP at every position of a map: ConvNeXt, PoolFormer."""

import copy
import math

import torch.nn.functional as F
from torch import Tensor, nn

from .base import ComputingLayer
from .merged import MergedMapMLP, plain_conv, plain_linear
from .transformer import linear


class MapMLPComputingLayer(ComputingLayer):
    """``x + drop(mlp(norm(depthwise(x))))`` with synthesized weights: a narrow MLP at every position of a map.

    The norm is one of the channels of each position, and has no parameters: the neighbours' are part of the weights
    that their MLPs lend, as are LayerScale and, as a last column, the biases. Only the output is kept for backward.

    Args:
        syntheses (dict[str, Synthesis]): By operator: ``spatial`` ``(C, kernel * kernel + 1)``, the depthwise
            convolution, if there is one; ``fc1`` ``(hidden, C + 1)``; ``fc2`` ``(C, hidden)`` with a bias.
        neighbours, neighbour_weights, detach: See :class:`ComputingLayer`.
        spatial (dict | None): Padding and dilation of the depthwise convolution; None if there is none.
        activation (nn.Module): Between the linear layers.
        drop (nn.Module): Stochastic depth of the replaced block.
        eps (float): Of the norm.

    Shape: ``(N, C, H, W)`` to the same.
    """

    def __init__(self, syntheses, neighbours, neighbour_weights, detach, *, spatial, activation, drop, eps):
        super().__init__(syntheses, neighbours, neighbour_weights, detach)
        self.spatial = spatial
        self.activation = activation
        self.drop = drop
        self.eps = eps

    def branch(self, x: Tensor, weights: tuple) -> Tensor:
        """All but the shortcut; the linear layers on channels last."""
        weights = dict(zip(self.names, weights, strict=True))
        if 'spatial' in weights:
            kernel, bias = _kernel(weights['spatial'][0])
            x = F.conv2d(x, kernel, bias, groups=len(kernel), **self.spatial)
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        x = F.linear(self.activation(linear(x, weights['fc1'][0])), *weights['fc2'])
        return x.permute(0, 3, 1, 2)

    def make_plain(self) -> nn.Module:
        weights = dict(zip(self.names, self.synthesize(), strict=True))
        modules = {}
        if 'spatial' in weights:
            kernel, bias = _kernel(weights['spatial'][0])
            modules['spatial'] = plain_conv(kernel, bias, groups=len(kernel), **self.spatial)
        fc1 = weights['fc1'][0]
        modules['norm'] = nn.LayerNorm(fc1.shape[1] - 1, self.eps, elementwise_affine=False)
        modules['fc1'] = plain_linear(fc1[:, :-1], fc1[:, -1])
        modules |= dict(activation=copy.deepcopy(self.activation), fc2=plain_linear(*weights['fc2']))
        return MergedMapMLP(modules, copy.deepcopy(self.drop))

    def compute(self, x: Tensor) -> Tensor:
        return x + self.drop(self.with_weights(self.branch, x))


def _kernel(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A depthwise kernel ``(C, 1, k, k)`` and its bias, from ``(C, k * k + 1)``."""
    size = math.isqrt(int(weight.shape[1]) - 1)  # torch.jit.trace gives shapes as tensors
    return weight[:, :-1].reshape(-1, 1, size, size), weight[:, -1]
