"""Activation checkpointing of blocks whose parameters are also used outside them.

mm blocks with ``with_cp=True`` call torch's *reentrant* checkpoint: its nested backward gives a parameter its gradient
apart from the outer backward. A neighbour's parameters get gradient from its computing layer too, so DDP would see
them ready twice and stop. The non-reentrant checkpoint saves the same memory and has one backward only.
"""

import torch
from mmengine.hooks import Hook
from torch import nn
from torch.utils.checkpoint import checkpoint

from .registry import HOOKS, register
from .subclass import Specialized, specialize


class _NonReentrant(Specialized):
    """Checkpoints the whole block without reentrance, in place of the block's own ``with_cp``."""

    def forward(self, *args, **kwargs):
        if torch.is_grad_enabled() and not torch.jit.is_tracing():
            return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)
        return super().forward(*args, **kwargs)


def make_non_reentrant(block: nn.Module) -> None:
    """Change a block with ``with_cp=True`` in place to non-reentrant checkpointing; others are left as they are.

    ``with_cp`` reads False afterwards.
    """
    if getattr(block, 'with_cp', False):
        block.with_cp = False
        specialize(block, _NonReentrant)


def is_non_reentrant(block: nn.Module) -> bool:
    """Return whether a block checkpoints itself without reentrance."""
    return isinstance(block, _NonReentrant)


def make_all_non_reentrant(model: nn.Module) -> None:
    """Change all blocks of a model as :func:`make_non_reentrant` does.

    A backbone has ``with_cp`` as its blocks have, but checkpoints nothing itself: of nested modules, the innermost one
    is the block.
    """
    found = {module for module in model.modules() if getattr(module, 'with_cp', False)}
    for module in found:
        if found.isdisjoint(list(module.modules())[1:]):
            make_non_reentrant(module)


class NonReentrantHook(Hook):
    """Make the checkpoints of ``with_cp=True`` non-reentrant before training, also in a stock backbone."""

    def before_train(self, runner) -> None:
        """Change the blocks of the runner's model."""
        make_all_non_reentrant(runner.model)


register(HOOKS, 'NonReentrantHook', NonReentrantHook)
