"""Borrowing: how a computing layer reads the weights of its neighbours, and what it refuses to read.

A neighbour stays a block of the network: tools fuse, quantize, prune or shard it and know nothing of the layer that
borrows from it. What changes the *meaning* of a borrowed weight is an error then, at the next synthesis; what keeps it
(new parameters of the same shapes, exchanged norms, masks of ``torch.nn.utils.prune``) is not.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


class BorrowError(RuntimeError):
    """A weight cannot be borrowed any more; the message names the block, and what happened to it."""


def tensor_of(module: nn.Module, name: str) -> Tensor | None:
    """The tensor that a module uses as its parameter ``name``, as its next forward pass will see it.

    ``torch.nn.utils.prune`` and the older weight and spectral norms make it in a hook before the module's forward: it
    is made here as the hook makes it, because a neighbour behind the computing layer has not run yet.

    Args:
        module (nn.Module): The module.
        name (str): Name of its parameter.

    Returns:
        Tensor | None: None if the module has none of this name.
    """
    parameter = module._parameters.get(name)
    if parameter is not None:
        return parameter
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
            return hook.apply_mask(module)
        if isinstance(hook, WeightNorm) and hook.name == name:
            return hook.compute_weight(module)
        if isinstance(hook, SpectralNorm) and hook.name == name:
            return hook.compute_weight(module, do_power_iteration=False)
    return getattr(module, name, None)


class Neighbour:
    """A block that lends weights, and what is watched of it.

    Args:
        block (nn.Module): The block. Held here, it is no child of the computing layer.
        name (str): Its dotted name in the backbone, for messages. Defaults to its class name.
    """

    def __init__(self, block: nn.Module, name: str | None = None):
        self.block = block
        self.name = name or type(block).__name__
        places = [(parent, key, child) for parent in block.modules() for key, child in parent._modules.items()]
        places = [(parent, key, child) for parent, key, child in places if child is not None]
        # Norms may be exchanged (mmengine does it with SyncBN), not fused away; the others hold what is borrowed.
        self.norms = [(parent, key) for parent, key, child in places if isinstance(child, _NormBase)]
        self.holders = [
            (parent, key, child)
            for parent, key, child in places
            if not isinstance(child, _NormBase) and next(child.parameters(), None) is not None
        ]

    def check(self) -> None:
        """Check that no operator was fused, quantized or otherwise exchanged.

        Raises:
            BorrowError: One was.
        """
        for parent, key in self.norms:
            if isinstance(parent._modules.get(key), nn.Identity):
                raise BorrowError(self.complaint(f'its norm {key!r} was fused into another operator'))
        for parent, key, child in self.holders:
            now = parent._modules.get(key)
            if now is not child:
                raise BorrowError(
                    self.complaint(f'its {key!r} was exchanged, {type(child).__name__} by {type(now).__name__}')
                )

    def borrow(self, weights: Callable, name: str, shapes: list[tuple]) -> list[Tensor]:
        """The block's weights for one operator.

        Args:
            weights (Callable): ``weights(block, name)`` gives them.
            name (str): Name of the operator.
            shapes (list[tuple]): What their shapes were when the computing layer was built.

        Raises:
            BorrowError: A weight is sharded, quantized, or of another shape.
        """
        found = weights(self.block, name)
        if not torch.compiler.is_compiling():  # dynamo asks for no types of its own
            self.check_kinds(found, name)
        now = [tuple(weight.shape) for weight in found]
        if now != shapes:
            raise BorrowError(
                self.complaint(f'its weights for {name!r} are of shapes {now} now, {shapes} before (pruned, sharded)')
            )
        return found

    def check_kinds(self, weights: list, name: str) -> None:
        """Check that weights for an operator are whole and plain tensors.

        Raises:
            BorrowError: One is not.
        """
        for weight in weights:
            kind = type(weight)
            flattened = isinstance(weight, nn.Parameter) and getattr(weight, '_fsdp_flattened', False)  # by FSDP1
            if flattened or kind.__module__.startswith('torch.distributed'):
                raise BorrowError(
                    self.complaint(
                        f'it is sharded apart from them ({kind.__name__})',
                        'shard the backbone or its stages as one unit, fully_shard(model.backbone), not its blocks',
                    )
                )
            if not isinstance(weight, Tensor) or not (kind.__module__ + '.').startswith('torch.'):
                raise BorrowError(self.complaint(f'a weight for {name!r} was quantized or wrapped ({kind.__name__})'))

    def complaint(self, what: str, remedy: str | None = None) -> str:
        """The message of an error."""
        remedy = remedy or 'fold the computing layers before, repl_mm.fold(model.eval()), or leave this block as it is'
        return f'block {self.name!r} lends its weights to computing layers and was changed: {what}; {remedy}'
