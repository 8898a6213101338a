"""The computing layer of decoder-only transformers: no token may see a later one."""

import copy

from torch import Tensor, nn

from .base import ComputingLayer
from .merged import MergedDecoder, mean_so_far, plain_linear, remember
from .transformer import linear


class DecoderComputingLayer(ComputingLayer):
    """``x + drop(branch(norm(x)))``: a narrow MLP with synthesized weights, and no attention.

    The norm has no parameters: the neighbours' are part of the weights that they lend. Only the output is kept for
    backward: weights and hidden activations are recomputed.

    Args:
        syntheses (dict[str, Synthesis]): By operator: ``fc1`` ``(hidden, C + 1)``, ``fc2`` ``(C, hidden)`` with a
            bias; of gated MLPs ``gate`` ``(hidden, C + 1)``. ``value`` ``(width, C + 1)`` and ``proj`` ``(C, width)``,
            if given, mix the tokens without attention: every token receives the projected value of the mean of those
            that attention would let it see.
        neighbours, neighbour_weights, detach: See :class:`ComputingLayer`.
        activation (nn.Module): Between the linear layers, or behind the gate.
        drop (nn.Module): Dropout of the replaced layer.
        norm (nn.Module): In front of the branch, without parameters.
        place (int): The layer's number, of its place in a cache.

    Shape: ``(N, L, C)`` to the same.
    """

    def __init__(self, syntheses, neighbours, neighbour_weights, detach, activation, drop, norm, place):
        super().__init__(syntheses, neighbours, neighbour_weights, detach)
        self.activation = activation
        self.drop = drop
        self.norm = norm
        self.place = place

    def branch(self, x: Tensor, weights: tuple, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        """The MLP and the token mixing, without the shortcut; ``tokens`` are None if ``x`` is all of them."""
        weights = dict(zip(self.names, weights, strict=True))
        y = self.norm(x)
        hidden = linear(y, weights['fc1'][0])
        if 'gate' in weights:
            hidden = self.activation(linear(y, weights['gate'][0])) * hidden
        else:
            hidden = self.activation(hidden)
        out = nn.functional.linear(hidden, *weights['fc2'])
        if 'value' in weights:
            seen = mean_so_far(y if tokens is None else self.norm(tokens), x.shape[1], mask)
            out = out + nn.functional.linear(linear(seen, weights['value'][0]), *weights['proj'])
        return out

    def make_plain(self) -> nn.Module:
        weights = dict(zip(self.names, self.synthesize(), strict=True))
        modules = dict(norm=copy.deepcopy(self.norm), activation=copy.deepcopy(self.activation))
        for name, (weight, bias) in weights.items():
            inner = name in ('fc1', 'gate', 'value')  # their last column is the bias
            modules[name] = plain_linear(weight[:, :-1], weight[:, -1]) if inner else plain_linear(weight, bias)
        return MergedDecoder(modules, copy.deepcopy(self.drop), self.place)

    def compute(self, x: Tensor, cache=None, attention_mask: Tensor | None = None, *args, **kwargs) -> Tensor:
        """What else a layer is called with (positions, rotations) is for attention, which is not here."""
        # not in what backward computes again
        tokens = remember(x, cache, attention_mask, self.place) if 'value' in self.names else None
        return x + self.drop(self.with_weights(self.branch, x, tokens, attention_mask))
