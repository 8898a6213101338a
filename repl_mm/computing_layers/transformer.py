"""The computing layer of transformer encoder layers."""

import copy
import math

import torch.nn.functional as F
from torch import Tensor, nn

from .base import ComputingLayer
from .merged import MergedTransformer, add_to_tokens, mean_token, plain_conv, plain_linear


class TransformerComputingLayer(ComputingLayer):
    """``x + drop(branch(norm(x)))``: a narrow MLP with synthesized weights, and no attention.

    The norm has no parameters: the neighbours' are part of the weights that their MLPs lend, as are LayerScale and, as
    a last column, the biases. Only the output is kept for backward: weights and hidden activations are recomputed.

    Args:
        syntheses (dict[str, Synthesis]): By operator: ``fc1`` ``(hidden, C + 1)``; where the MLPs of the family have a
            depthwise convolution, ``spatial`` ``(hidden, kernel * kernel + 1)``; ``fc2`` ``(C, hidden)`` with a bias.
            ``value`` ``(width, C + 1)`` and ``proj`` ``(C, width)``, if given, mix the tokens without attention: every
            token receives the projected value of the mean token.
        neighbours, neighbour_weights, detach: See :class:`ComputingLayer`.
        activation (nn.Module): Between the linear layers.
        drop (nn.Module): Dropout and stochastic depth of the replaced layer.
        eps (float): Of the norm.

    Shape: ``(N, L, C)`` to the same; ``(H, W)`` with ``H * W == L``, as one argument or as two, is needed for
    ``spatial``. Without ``spatial`` also ``(N, H, W, C)``.
    """

    def __init__(self, syntheses, neighbours, neighbour_weights, detach, activation, drop, eps):
        super().__init__(syntheses, neighbours, neighbour_weights, detach)
        self.activation = activation
        self.drop = drop
        self.eps = eps

    def branch(self, x: Tensor, weights: tuple, hw_shape: tuple[int, int] | None = None) -> Tensor:
        """The MLP and the token mixing, without the shortcut."""
        weights = dict(zip(self.names, weights, strict=True))
        x = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        hidden = linear(x, weights['fc1'][0])
        if 'spatial' in weights:
            hidden = depthwise(hidden, weights['spatial'][0], hw_shape)
        out = F.linear(self.activation(hidden), *weights['fc2'])
        if 'value' in weights:
            out = add_to_tokens(out, F.linear(linear(mean_token(x), weights['value'][0]), *weights['proj']))
        return out

    def make_plain(self) -> nn.Module:
        weights = dict(zip(self.names, self.synthesize(), strict=True))
        fc1 = weights['fc1'][0]
        modules = dict(norm=nn.LayerNorm(fc1.shape[1] - 1, self.eps, elementwise_affine=False))
        modules['fc1'] = plain_linear(fc1[:, :-1], fc1[:, -1])
        if 'spatial' in weights:
            spatial = weights['spatial'][0]
            size = math.isqrt(spatial.shape[1] - 1)
            kernel = spatial[:, :-1].reshape(-1, 1, size, size)
            modules['spatial'] = plain_conv(kernel, spatial[:, -1], groups=len(kernel), padding=size // 2)
        modules |= dict(activation=copy.deepcopy(self.activation), fc2=plain_linear(*weights['fc2']))
        if 'value' in weights:
            value = weights['value'][0]
            modules |= dict(value=plain_linear(value[:, :-1], value[:, -1]), proj=plain_linear(*weights['proj']))
        return MergedTransformer(modules, copy.deepcopy(self.drop))

    def compute(self, x: Tensor, hw_shape=None, width: int | None = None, **attention) -> Tensor:
        """What else a layer is called with (a mask, rotations of positions) is for attention, which is not here."""
        hw_shape = hw_shape if width is None else (hw_shape, width)
        return x + self.drop(self.with_weights(self.branch, x, hw_shape))


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ W.T + b`` for a weight ``(out, in + 1)`` whose last column is the bias."""
    return F.linear(x, weight[:, :-1], weight[:, -1])


def depthwise(x: Tensor, weight: Tensor, hw_shape: tuple[int, int]) -> Tensor:
    """Depthwise convolution of tokens ``(N, H * W, C)``; weight ``(C, k * k + 1)``, the last column the bias."""
    size = math.isqrt(int(weight.shape[1]) - 1)  # torch.jit.trace gives shapes as tensors
    kernel = weight[:, :-1].reshape(-1, 1, size, size)
    x = x.transpose(1, 2).unflatten(2, hw_shape)
    x = F.conv2d(x, kernel, weight[:, -1], padding=size // 2, groups=len(kernel))
    return x.flatten(2).transpose(1, 2)
