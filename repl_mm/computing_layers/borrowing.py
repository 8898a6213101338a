"""Borrowing: how a computing layer reads the weights of its neighbours, and what it refuses to read.

A neighbour stays a block of the network: tools fuse, quantize, prune or shard it and know nothing of the layer that
borrows from it. What changes the *meaning* of a borrowed weight is an error then, at the next synthesis; what keeps it
(new parameters of the same shapes, exchanged norms, masks of ``torch.nn.utils.prune``) is not.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)
FOLD = 'fold the computing layers before, repl_mm.fold(model.eval()), or leave this block as it is'
SHARD = 'shard the backbone as one unit, fully_shard(model.backbone), not its blocks'


class BorrowError(RuntimeError):
    """A weight cannot be borrowed any more; the message names the block, and what happened to it."""


class _Unusable(Exception):
    """A tensor that is no plain, whole weight: what it is, and what to do."""


_lenders: list[nn.Module] | None = None  # while they are recorded


@contextmanager
def recorded() -> Iterator[list[nn.Module]]:
    """Note which modules :func:`tensor_of` reads."""
    global _lenders
    _lenders = []
    try:
        yield _lenders
    finally:
        _lenders = None


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
    if _lenders is not None:
        _lenders.append(module)
    tensor = module._parameters.get(name)
    if tensor is None:
        tensor = _made_by_hook(module, name)
    if tensor is not None and not torch.compiler.is_compiling():  # dynamo does not look into types
        _check_kind(tensor, name)
    return tensor


def _made_by_hook(module: nn.Module, name: str) -> Tensor | None:
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
            return hook.apply_mask(module)
        if isinstance(hook, WeightNorm) and hook.name == name:
            return hook.compute_weight(module)
        if isinstance(hook, SpectralNorm) and hook.name == name:
            return _spectral(hook, module)
    return getattr(module, name, None)


def _spectral(hook: SpectralNorm, module: nn.Module) -> Tensor:
    """The weight as the hook makes it without a power iteration, by vectors that its next one does not change."""
    weight = getattr(module, f'{hook.name}_orig')
    u, v = (getattr(module, f'{hook.name}_{letter}').clone() for letter in 'uv')
    return weight / torch.dot(u, torch.mv(hook.reshape_weight_to_matrix(weight), v))


def _is_sharded(tensor) -> bool:
    """Whether a tensor is sharded by FSDP2, or by FSDP1."""
    flattened = isinstance(tensor, nn.Parameter) and getattr(tensor, '_fsdp_flattened', False)
    return flattened or type(tensor).__module__.startswith('torch.distributed')


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters of a model are sharded now: outside of its forward pass they are."""
    return any(map(_is_sharded, model.parameters()))


def _check_kind(tensor, name: str) -> None:
    """Check that a weight is a whole and plain tensor."""
    kind = type(tensor)
    if _is_sharded(tensor):
        raise _Unusable(f'its {name!r} is sharded apart from them ({kind.__name__})', SHARD)
    if not isinstance(tensor, Tensor) or not (kind.__module__ + '.').startswith('torch.'):
        raise _Unusable(f'its {name!r} was quantized or wrapped ({kind.__name__})', FOLD)


def _holds_nothing(module: nn.Module | None) -> bool:
    return module is None or next(itertools.chain(module.parameters(), module.buffers()), None) is None


class Watch:
    """What may not happen to a block whose weights are used elsewhere, or come from elsewhere.

    Args:
        block (nn.Module): The block. Held here, it is no child of the computing layer.
        lenders (list[nn.Module]): Modules in it that lend their tensors. Defaults to none: all norms are watched then.
        role (str): What is special with the block, for messages. Defaults to lending weights.
    """

    def __init__(self, block: nn.Module, lenders=(), role: str = 'lends its weights to computing layers'):
        self.block = block
        self.name = type(block).__name__
        self.role = role
        self.place: tuple | None = None
        holders = {id(module) for lender in lenders for module in block.modules() if _contains(module, lender)}
        beside = None
        if lenders:
            beside = {id(m) for m in block.modules() if any(child in lenders for child in m.children())}
        places = [
            (parent, key, child, dotted(name, key))
            for name, parent in block.named_modules()
            for key, child in parent._modules.items()
            if child is not None
        ]
        # Norms may be exchanged (mmengine does it with SyncBN), not fused away: those beside what is lent, or all.
        self.norms = [
            found
            for found in places
            if isinstance(found[2], _NormBase)
            and not _holds_nothing(found[2])
            and (beside is None or id(found[0]) in beside)
        ]
        self.fixed = [found for found in places if id(found[2]) in holders and not isinstance(found[2], NORMS)]

    def stands_in(self, stage: nn.Module, key: str, name: str) -> None:
        """Say where the block stands: it may be wrapped there, or moved, but not go.

        Args:
            stage (nn.Module): The module that has the block as a child.
            key (str): The child's name there.
            name (str): The block's dotted name in the backbone.
        """
        self.name = name
        self.place = stage, key

    def check(self) -> None:
        """Check that the block stands in its stage, and that no operator was fused, quantized or exchanged.

        Raises:
            BorrowError: Not so.
        """
        if self.place is not None:
            stage, key = self.place
            if stage._modules.get(key) is not self.block and not _contains(stage, self.block):
                raise BorrowError(self.complaint('it stands in its stage no more'))
        for parent, key, child, name in self.norms:
            now = parent._modules.get(key)
            if now is not child and _holds_nothing(now) and not isinstance(now, NORMS):
                raise BorrowError(self.complaint(f'its norm {name!r} was fused into another operator'))
        for parent, key, child, name in self.fixed:
            now = parent._modules.get(key)
            if now is not child:
                change = f'{type(child).__name__} by {type(now).__name__} of {type(now).__module__}'
                raise BorrowError(self.complaint(f'its {name!r} was exchanged, {change}'))

    def borrow(self, weights: Callable, name: str, shapes: list[tuple]) -> list[Tensor]:
        """The block's weights for one operator.

        Args:
            weights (Callable): ``weights(block, name)`` gives them.
            name (str): Name of the operator.
            shapes (list[tuple]): What their shapes were when the computing layer was built.

        Raises:
            BorrowError: A weight is sharded, quantized, or of another shape.
        """
        try:
            found = weights(self.block, name)
        except _Unusable as error:
            raise BorrowError(self.complaint(*error.args)) from None
        now = [tuple(weight.shape) for weight in found]
        if now != shapes:
            raise BorrowError(
                self.complaint(f'its weights for {name!r} are of shapes {now} now, {shapes} before (pruned, sharded)')
            )
        return found

    def complaint(self, what: str, remedy: str = FOLD) -> str:
        """The message of an error."""
        return f'block {self.name!r} {self.role} and was changed: {what}; {remedy}'


def _contains(module: nn.Module, inner: nn.Module) -> bool:
    return any(found is inner for found in module.modules())


def dotted(*names: str) -> str:
    """Names in one with dots between them; empty ones, as that of the root, are left out."""
    return '.'.join(filter(None, names))
