"""Activation space: the computing layers that stand in the slots.

A computing layer gets its weights from :mod:`repl_mm.fusion` and applies them to ``x``, the output of the preceding
block. It holds its neighbours in a plain tuple: they are not its children, so their parameters appear once in
``parameters()`` and in checkpoints. All parameters of a computing layer have ``.repl.`` in their name, for
``paramwise_cfg.custom_keys``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy
from torch.utils.checkpoint import checkpoint

from .fusion import Synthesis


class ComputingLayer(nn.Module):
    """Base of what stands in a slot; alone it is the identity, the control ``mode='remove'``.

    Subclasses define ``compute()``.
    """

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        if isinstance(x, Proxy):
            # mmengine's efficient_conv_bn_eval traces a backbone to find its convolutions with norms: for it, a
            # computing layer is one node
            return x.tracer.create_proxy('call_module', x.tracer.path_of_module(self), (x,), {})
        return self.compute(x, *args, **kwargs)

    def compute(self, x: Tensor, *args, **kwargs) -> Tensor:
        """The layer's output for the preceding block's output ``x``; of the same shape."""
        return x

    def synthesize(self) -> tuple:
        """All (weight, bias) pairs that the layer synthesizes; empty if there are none."""
        return ()


class Synthesizing(nn.Module):
    """Mixin for modules that synthesize weights: recomputed in backward instead of saved, and foldable.

    Subclasses define ``synthesize()``.
    """

    _folded: tuple | None = None

    def fold(self) -> None:
        """Synthesize once, for use in eval mode until :meth:`unfold`, ``train()`` or a load of weights."""
        with torch.no_grad():
            self._folded = self.synthesize()

    def weights(self) -> tuple:
        """What ``synthesize()`` gives; the folded result in eval mode, where there is one."""
        return (not self.training and self._folded) or self.synthesize()

    def unfold(self) -> None:
        """Synthesize at every forward again."""
        self._folded = None

    def train(self, mode: bool = True):
        if mode:
            self.unfold()
        return super().train(mode)

    def _load_from_state_dict(self, *args, **kwargs):
        self.unfold()
        super()._load_from_state_dict(*args, **kwargs)


def recomputed(function, *args):
    """``function(*args)``; with gradients, its inner tensors are recomputed in backward instead of saved.

    The recomputation stops as soon as everything that was saved is there again: the last operator is not run twice.
    """
    if torch.is_grad_enabled():
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return function(*args)


class ResidualSurrogate(Synthesizing, ComputingLayer):
    """``relu(x + branch(x))``, the branch a chain of convolutions with synthesized weights and ReLU between them.

    No activation norm (it would need statistics that ``norm_eval`` never lets it learn): the inner weights are
    normalized, the last one starts small. Only the output is kept for backward: weights and hidden activations are
    recomputed.

    Args:
        convs (dict[str, tuple]): Per convolution, in order, its :class:`Synthesis` and the settings of
            ``F.conv2d`` (stride, padding, dilation, groups).
        neighbours (tuple[nn.Module]): The preceding and, if there is one, the succeeding block.
        neighbour_weights (callable): ``neighbour_weights(block, name)`` gives the list of a block's weights that the
            convolution called ``name`` is synthesized from.
        detach (bool): No gradient to the neighbours.

    Shape: ``(N, C, H, W)`` to the same.
    """

    def __init__(self, convs: dict, neighbours: tuple, neighbour_weights, detach: bool):
        super().__init__()
        self.repl = nn.ModuleDict({name: synthesis for name, (synthesis, _) in convs.items()})
        self.settings = [settings for _, settings in convs.values()]
        self.neighbours = tuple(neighbours)
        self.neighbour_weights = neighbour_weights
        self.detach = detach

    def synthesize(self) -> tuple[tuple[Tensor, Tensor], ...]:
        # Weight space stays in full precision under AMP: it is small, and norms are sensitive.
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return tuple(
                synthesis(borrow(self.neighbours, self.neighbour_weights, name, self.detach))
                for name, synthesis in self.repl.items()
            )

    def branch(self, x: Tensor) -> Tensor:
        """The chain of convolutions, without the shortcut."""
        for i, ((weight, bias), settings) in enumerate(zip(self.weights(), self.settings, strict=True)):
            x = F.conv2d(F.relu_(x) if i else x, weight, bias, **settings)
        return x

    def compute(self, x: Tensor) -> Tensor:
        return F.relu_(x + recomputed(self.branch, x))


class SynthesizedConv2d(Synthesizing):
    """A convolution in the structure of a replaced block, its weight synthesized (``operator='full'``).

    Args:
        synthesis (Synthesis): Weight and bias.
        settings (dict): stride, padding, dilation, groups for ``F.conv2d``.
        neighbours (tuple[nn.Module]): The blocks to borrow from.
        neighbour_weights (callable): As in :class:`ResidualSurrogate`.
        name (str): Dotted name of the convolution in the block.
        detach (bool): No gradient to the neighbours.
    """

    def __init__(self, synthesis: Synthesis, settings: dict, neighbours, neighbour_weights, name: str, detach: bool):
        super().__init__()
        self.synthesis = synthesis
        self.settings = settings
        self.neighbours = tuple(neighbours)
        self.neighbour_weights = neighbour_weights
        self.name = name
        self.detach = detach

    def synthesize(self) -> tuple[Tensor, Tensor | None]:
        weights = borrow(self.neighbours, self.neighbour_weights, self.name, self.detach)
        device = (weights[0] if weights else next(self.parameters())).device
        with torch.autocast(device.type, enabled=False):
            return self.synthesis(weights)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = recomputed(self.weights)
        return F.conv2d(x, weight, bias, **self.settings)


class FullSurrogate(ComputingLayer):
    """The structure of the replaced block with synthesized convolutions (``operator='full'``).

    Args:
        block (nn.Module): The replaced block, its convolutions already :class:`SynthesizedConv2d`.
    """

    def __init__(self, block: nn.Module):
        super().__init__()
        self.repl = block

    def init_weights(self) -> None:
        """Initialize as the stock block does, ``zero_init_residual`` included; mmengine calls it from scratch only."""
        if hasattr(self.repl, 'init_weights'):
            self.repl.init_weights()

    def compute(self, x: Tensor, *args, **kwargs) -> Tensor:
        return self.repl(x, *args, **kwargs)

    def synthesize(self) -> tuple:
        return tuple(m.synthesize() for m in self.modules() if isinstance(m, SynthesizedConv2d))


def borrow(neighbours: tuple, neighbour_weights, name: str, detach: bool) -> list[Tensor]:
    """The neighbours' weights for one operator: preceding first, then succeeding."""
    weights = [weight for block in neighbours for weight in neighbour_weights(block, name)]
    return [weight.detach() for weight in weights] if detach else weights
