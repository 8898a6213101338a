"""Activation checkpointing of blocks whose parameters are also used outside them.

mm blocks with ``with_cp=True`` call torch's *reentrant* checkpoint: its nested backward gives a parameter its gradient
apart from the outer backward. A neighbour's parameters get gradient from its computing layer too, so DDP would see
them ready twice and stop. The non-reentrant checkpoint saves the same memory and has one backward only.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

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
