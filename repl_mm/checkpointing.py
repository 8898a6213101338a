"""Activation checkpointing of blocks whose parameters are also used outside them.

mm blocks with ``with_cp=True`` call torch's *reentrant* checkpoint: its nested backward gives a parameter its gradient
apart from the outer backward. A neighbour's parameters get gradient from its computing layer too, so DDP would see
them ready twice and stop. The non-reentrant checkpoint saves the same memory and has one backward only.
"""

import functools

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class _NonReentrant:
    """Mixin that checkpoints the whole block without reentrance, in place of the block's own ``with_cp``."""

    def forward(self, *args, **kwargs):
        if torch.is_grad_enabled():
            return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)
        return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol):
        # The class is made at run time: pickle and deepcopy must find it through its base.
        return _rebuild, (type(self).__mro__[2],), self.__dict__


@functools.lru_cache
def _non_reentrant(base: type) -> type:
    return type(base.__name__, (_NonReentrant, base), {'__module__': base.__module__})


def _rebuild(base: type) -> nn.Module:
    cls = _non_reentrant(base)
    return cls.__new__(cls)


def make_non_reentrant(block: nn.Module) -> None:
    """Change a block with ``with_cp=True`` in place to non-reentrant checkpointing; others are left as they are.

    The block keeps its class name, ``isinstance`` relations, attributes and state_dict keys; ``with_cp`` reads False.
    """
    if getattr(block, 'with_cp', False):
        block.with_cp = False
        block.__class__ = _non_reentrant(type(block))
