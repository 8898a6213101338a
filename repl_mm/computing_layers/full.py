"""The computing layer with the structure of the replaced block (``operator='full'``), for every family."""

import copy
import functools

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from .base import ComputingLayer, recomputed
from .borrowing import Watch
from .merged import MergedBlock


class FullComputingLayer(ComputingLayer):
    """The replaced block itself, run with synthesized weights in place of its own.

    The block loses the parameters that are synthesized. Empty tensors stand in their places, because initialization
    code of mm backbones walks over all linear layers and convolutions; they are no buffers, because EMAHook would swap
    what is folded there with its copy's. What is not synthesized (batch norms) stays the layer's own.

    Args:
        block (nn.Module): The replaced block, or a copy of it; it is changed. Its ``with_cp`` becomes the computing
            layer's: a checkpoint inside the block would be recomputed without the synthesized weights.
        syntheses (dict[str, Synthesis]): By the dotted name of the parameter in the block.
        neighbours, neighbour_weights, detach: See :class:`ComputingLayer`.
    """

    operator = 'full'

    def __init__(self, block: nn.Module, syntheses: dict, neighbours: tuple, neighbour_weights, detach: bool):
        super().__init__(syntheses, neighbours, neighbour_weights, detach)
        self.repl['block'] = block
        for name in self.names:
            owner, leaf = self.place(name)
            delattr(owner, leaf)
            setattr(owner, leaf, torch.empty(0))
        self.own = Watch(block, role='stands in a slot with synthesized weights')
        self.with_cp = getattr(block, 'with_cp', False)
        block.with_cp = False

    def place(self, name: str) -> tuple[nn.Module, str]:
        """The module in the block that holds a parameter, and the parameter's name there."""
        parent, _, leaf = name.rpartition('.')
        return self.repl['block'].get_submodule(parent), leaf

    def init_weights(self) -> None:
        """Initialize as the stock block does, ``zero_init_residual`` included; mmengine calls it from scratch only."""
        if hasattr(self.repl['block'], 'init_weights'):
            self.repl['block'].init_weights()

    def make_plain(self) -> nn.Module:
        self.own.check()
        weights = self.synthesize()
        block = copy.deepcopy(self.repl['block'])
        for name, (weight, _) in zip(self.names, weights, strict=True):
            path, _, leaf = name.rpartition('.')
            owner = block.get_submodule(path)
            if leaf not in owner._parameters:
                delattr(owner, leaf)
            owner.register_parameter(leaf, nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format)))
        block.with_cp = self.with_cp
        return MergedBlock(block)

    def set_folded(self, weights: tuple) -> None:
        super().set_folded(weights)
        for name, (weight, _) in zip(self.names, weights, strict=True):
            self.put(name, weight.detach())

    def unfold(self) -> None:
        super().unfold()
        for name in self.names:
            self.put(name, torch.empty(0))

    def put(self, name: str, weight: Tensor) -> None:
        """Put a tensor into the place of a parameter, unless another tool made one of what was folded there."""
        owner, leaf = self.place(name)
        if leaf not in owner._parameters:
            setattr(owner, leaf, weight)

    def run(self, synthesize, *args, **kwargs) -> Tensor:
        """The block with the weights that ``synthesize()`` gives."""
        # views: a free weight (mode 'own') is a parameter, and would become one of the block
        weights = {name: weight.view_as(weight) for name, (weight, _) in zip(self.names, synthesize(), strict=True)}
        return functional_call(self.repl['block'], weights, args, kwargs)

    def compute(self, x: Tensor, *args, **kwargs) -> Tensor:
        with_cp = self.with_cp and torch.is_grad_enabled() and not torch.jit.is_tracing()
        if not self.names or (self._folded and not self.training):
            run = self.repl['block']  # it has its weights
        else:
            self.own.check()
            if torch.jit.is_tracing():
                raise RuntimeError(
                    f'torch.jit.trace cannot record weights that operator={self.operator!r} synthesizes: call '
                    'repl_mm.fold(model.eval()) before'
                )
            # within a checkpoint of its own, the synthesis is recomputed with the block
            run = functools.partial(self.run, self.weights if with_cp else functools.partial(recomputed, self.weights))
        if with_cp:
            return checkpoint(run, x, *args, use_reentrant=False, **kwargs)
        return run(x, *args, **kwargs)
