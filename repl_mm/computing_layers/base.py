"""What all computing layers have in common: the identity, synthesized weights, recomputation, folding."""

import itertools
import math
from collections.abc import Collection, Iterator
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.utils.checkpoint import checkpoint

from .borrowing import Watch, recorded

# where autocast may be on
DEVICES = ['cpu', *([accelerator.type] if (accelerator := torch.accelerator.current_accelerator()) else [])]

LARGE = 2**22  # elements; a second synthesis is not worth fewer
SMALL = 2**16  # elements of an input, beside which nothing is worth to be computed twice


class ComputingLayer(nn.Module):
    """Base of what stands in a slot; without anything to synthesize it is the identity, the control ``mode='remove'``.

    Subclasses define ``compute()``. Weights are synthesized in full precision under AMP, and can be folded.

    Args:
        syntheses (dict[str, Synthesis]): How each operator's weight is made, by the operator's name; a name may hold
            dots. Defaults to none.
        neighbours (tuple[nn.Module]): The blocks that lend weights: the preceding and, if there is one, the succeeding
            block. Defaults to none, for free weights.
        neighbour_weights (callable): ``neighbour_weights(block, name)`` gives the list of a block's weights that the
            operator called ``name`` is synthesized from. Defaults to None.
        detach (bool): No gradient to the neighbours. Defaults to False.
        copies (bool): Whether the identity gives another tensor than ``x``: for backbones that change what their
            blocks give. Defaults to False.
    """

    _folded: tuple | None = None
    with_cp = False  # of the replaced block: memory is dearer than time
    merged = False  # whether it is made of plain modules
    random: int | None = None  # seed of the noise that stands in the place of what is borrowed
    between: tuple[nn.Module, ...] = ()  # the kept blocks on both sides, also where they lend nothing

    def __init__(self, syntheses=None, neighbours: tuple = (), neighbour_weights=None, detach=False, copies=False):
        super().__init__()
        self.copies = copies
        syntheses = syntheses or {}
        self.names = tuple(syntheses)
        self.repl = nn.ModuleDict({_key(name): synthesis for name, synthesis in syntheses.items()})
        self.neighbour_weights = neighbour_weights
        self.detach = detach
        self.lent = {name: [] for name in self.names}  # shapes, by neighbour
        watches = []
        for block in neighbours:
            with recorded() as lenders, torch.no_grad():
                for name, shapes in self.lent.items():
                    shapes.append([tuple(weight.shape) for weight in neighbour_weights(block, name)])
            watches.append(Watch(block, lenders))
        self.neighbours = tuple(watches)
        borrowed = itertools.chain.from_iterable(itertools.chain.from_iterable(self.lent.values()))
        self.size = sum(map(math.prod, borrowed))  # elements that the synthesis reads

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        if isinstance(x, Proxy):
            # mmengine's efficient_conv_bn_eval traces a backbone to find its convolutions with norms: for it, a
            # computing layer is one node
            return x.tracer.create_proxy('call_module', x.tracer.path_of_module(self), (x, *args), kwargs)
        return self.compute(x, *args, **kwargs)

    def compute(self, x: Tensor, *args, **kwargs) -> Tensor:
        """The layer's output for the preceding block's output ``x``; of the same shape."""
        return x.clone() if self.copies else x

    def plain(self) -> nn.Module:
        """A layer of plain modules that computes the same, with copies of the weights as they are now.

        Raises:
            BorrowError: A neighbour was changed so that its weights mean something else.
        """
        with torch.no_grad():
            plain = self.make_plain()
        plain.between = self.between
        frozen = [not p.requires_grad for p in self.parameters()]
        return plain.train(self.training).requires_grad_(not (frozen and all(frozen)))

    def make_plain(self) -> nn.Module:
        """What :meth:`plain` gives, still without mode, place and frozen parameters."""
        from .merged import MergedLayer  # a subclass of this class

        return MergedLayer(self.copies)

    def synthesize(self, without: Collection[str] = ()) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """All (weight, bias) pairs that the layer synthesizes; empty if there are none.

        Args:
            without (Collection[str]): Operators whose weight is not made: in its place stands what the source's
                ``mix_positions`` is given. Defaults to none.
        """
        if not self.names:
            return ()
        for neighbour in self.neighbours:
            neighbour.check()
        with no_autocast():
            return tuple(self.synthesize_one(name, name in without) for name in self.names)

    def synthesize_one(self, name: str, plain: bool = False) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of one operator; made in float32, and given, in the precision of the neighbours' weights."""
        weights = self.borrow(name)
        if plain:
            synthesis = self.repl[_key(name)]
            return synthesis.source.select(weights), synthesis.bias
        precision = weights[0].dtype if weights else torch.float32
        if precision in (torch.float16, torch.bfloat16):  # sums of many products
            weight, bias = self.repl[_key(name)]([weight.float() for weight in weights])
            return weight.to(precision), bias
        return self.repl[_key(name)](weights)

    def replace_borrowed(self, seed: int) -> None:
        """Put fixed random weights of the same shapes in the place of all that is borrowed: ``mode='random'``.

        They are in no state dict: the same seed gives them again. Gains of norms and LayerScales are ones: noise
        in their place would be no norm.

        Args:
            seed (int): Of the random numbers.
        """
        self.random = seed
        for key, noise in self._noise():
            self.register_buffer(key, noise, persistent=False)

    def _noise(self) -> Iterator[tuple[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.random)
        for name, shapes in self.lent.items():
            for index, shape in enumerate(itertools.chain.from_iterable(shapes)):
                if len(shape) == 1 and not name.endswith('bias'):
                    noise = torch.ones(shape, device='cpu')
                else:
                    noise = torch.randn(shape, generator=generator, device='cpu') / math.sqrt(math.prod(shape[1:]))
                yield f'noise/{_key(name)}/{index}', noise

    @torch.no_grad()
    def begin(self, rescale: bool = True) -> None:
        """Take the scale of the neighbours' weights into account, once: whenever they got new ones.

        Args:
            rescale (bool): Whether the layer's parameters follow; otherwise they belong to these weights already.
                Defaults to True.
        """
        if self.random is not None:
            for key, noise in self._noise():  # again: a layer that was built on the meta device has none yet
                self.get_buffer(key).copy_(noise)
        for name in self.names:
            synthesis, lent = self.repl[_key(name)], self._lent(name)
            if self.random is not None:
                noise = self.borrow(name)
                sizes = [a.square().mean().sqrt() / b.square().mean().sqrt() for a, b in zip(lent, noise, strict=True)]
                synthesis.begin(noise, sizes, rescale)
            else:
                synthesis.begin(lent, None, rescale)

    def borrow(self, name: str) -> list[Tensor]:
        """The neighbours' weights for one operator: preceding first, then succeeding.

        Raises:
            BorrowError: A neighbour was changed so that they mean something else.
        """
        if self.random is not None:
            shapes = itertools.chain.from_iterable(self.lent[name])
            return [self.get_buffer(f'noise/{_key(name)}/{index}') for index, _ in enumerate(shapes)]
        weights = self._lent(name)
        return [weight.detach() for weight in weights] if self.detach else weights

    def _lent(self, name: str) -> list[Tensor]:
        return [
            weight
            for neighbour, shapes in zip(self.neighbours, self.lent[name], strict=True)
            for weight in neighbour.borrow(self.neighbour_weights, name, shapes)
        ]

    def fold(self) -> None:
        """Synthesize once, for use in eval mode until :meth:`unfold`, ``train()`` or a load of weights."""
        with torch.no_grad():
            self.set_folded(tuple(tuple(t if t is None else t.detach() for t in pair) for pair in self.synthesize()))

    @property
    def folded(self) -> bool:
        """bool: Whether there are weights that were synthesized once."""
        return self._folded is not None

    def set_folded(self, weights: tuple) -> None:
        """Keep (weight, bias) pairs for use in eval mode."""
        self._folded = weights

    def weights(self) -> tuple:
        """What ``synthesize()`` gives; the folded result in eval mode, where there is one."""
        return (not self.training and self._folded) or self.synthesize()

    def with_weights(self, function, x: Tensor, *args):
        """``function(x, weights, *args)``; what it saves for backward, but the weights, is recomputed there.

        So is the synthesis under ``with_cp``, and where it :meth:`is_dear` to keep. For a small ``x`` all is kept.
        """
        if not self.folded and (self.with_cp or self.is_dear(x)):
            return recomputed(lambda x, *args: function(x, self.weights(), *args), x, *args)
        if x.numel() <= SMALL and not self.with_cp:
            return function(x, self.weights(), *args)
        flat = [tensor for pair in self.weights() for tensor in pair]

        def run(x, *rest):
            pairs = tuple(zip(rest[: len(flat) : 2], rest[1 : len(flat) : 2], strict=True))
            return function(x, pairs, *rest[len(flat) :])

        return recomputed(run, x, *flat, *args)

    def mixed_apart(self, positions: int) -> list[str]:
        """The operators that meet so few positions that their weight is not made: ``mix_positions`` does without."""
        if self.folded and not self.training:
            return []
        return [name for name in self.names if positions <= self.repl[_key(name)].source.few]

    def is_dear(self, x: Tensor) -> bool:
        """Whether the synthesis is rather done again in backward: its inner tensors are larger than ``x``, and large.

        They are a few times what it reads.
        """
        return 4 * self.size > max(x.numel(), LARGE)

    def unfold(self) -> None:
        """Synthesize at every forward again."""
        self._folded = None

    def train(self, mode: bool = True):
        if mode:
            self.unfold()
        return super().train(mode)

    def _apply(self, fn, *args, **kwargs):
        super()._apply(fn, *args, **kwargs)
        if self._folded is not None:  # what is folded goes where the parameters go
            with torch.no_grad():
                self.set_folded(tuple(tuple(t if t is None else fn(t) for t in pair) for pair in self._folded))
        return self

    def _load_from_state_dict(self, *args, **kwargs):
        self.unfold()
        super()._load_from_state_dict(*args, **kwargs)


def no_autocast() -> ExitStack:
    """A context in which no autocast is on: weight space is small, and norms are sensitive."""
    stack = ExitStack()
    for device in DEVICES:
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    return stack


def recomputed(function, *args):
    """``function(*args)``; with gradients, its inner tensors are recomputed in backward instead of saved.

    The recomputation stops as soon as everything that was saved is there again: the last operator is not run twice.
    ``torch.jit.trace`` cannot record it: there, all is saved.
    """
    if torch.is_grad_enabled() and not torch.jit.is_tracing():
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return function(*args)


def _key(name: str) -> str:
    """A dotted name as a name that a module may have.

    Initialization code of Swin, BEiT and MAE takes every key with 'relative_position_bias_table' in it for a table.
    """
    return name.replace('.', '/').replace('bias_table', 'table')
