"""The computing layer of transformer encoder layers at half the resolution (``operator='half'``)."""

from torch import Tensor, nn

from .full import FullComputingLayer
from .merged import MergedHalfTokens, TokenGrid, add_at_half


class HalfTokensComputingLayer(FullComputingLayer):
    """``x + up(layer(pool(x)) - pool(x))``: the replaced encoder layer on the token grid at half the resolution.

    ``pool`` averages 2x2 tokens (at an odd border those that there are), ``up`` repeats what the layer added to each
    of them. A class token, as every token in front of the grid, runs along and gets its own addition.

    Args:
        block, syntheses, neighbours, neighbour_weights, detach: See :class:`FullComputingLayer`.

    Shape: ``(N, L, C)`` to the same, with ``(H, W)``, ``H * W == L``, as one argument or as two; without them the grid
    is the one that ``grid`` saw last. ``(N, H, W, C)`` to the same.
    """

    operator = 'half'

    def __init__(self, block: nn.Module, syntheses: dict, neighbours: tuple, neighbour_weights, detach: bool):
        super().__init__(block, syntheses, neighbours, neighbour_weights, detach)
        self.grid = TokenGrid()

    def make_plain(self) -> nn.Module:
        return MergedHalfTokens(super().make_plain().repl, self.grid)

    def compute(self, x: Tensor, *shape, **attention) -> Tensor:
        """What a layer adds at half the resolution.

        Raises:
            ValueError: The layer is called with a mask or the like, or the tokens are not those of the grid.
        """
        return add_at_half(super().compute, x, self.grid, *shape, **attention)
