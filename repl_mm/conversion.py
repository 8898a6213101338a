"""Conversion: computing layers fitted to stock weights, on a few hundred unlabelled images.

A network with stock weights starts near the network *without* the replaced blocks. Here the parameters of its
computing layers, and nothing else, are fitted so that it does what the stock network does: first each layer to the
block that it replaces, in order, on what the layers before it really put out; then all of them together to the outputs
of the backbone, because what reproduces a block best is not what serves the network best.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from .augment import BatchCrop, BatchFlip
from .calibration import calibrate
from .surgery import computing_layers, unfold
from .tables import markdown

AT_ZERO = 0.05  # root mean square that counts for parameters that start at zero (biases)
HELD_OUT = 8  # one image of so many is for the errors
CACHE = 2**30  # bytes of inputs, and as many of targets, that the fit of one layer keeps


@dataclasses.dataclass(frozen=True)
class Error:
    """Squared distance to the stock network on held-out images, relative to what leaving the blocks out gives.

    Args:
        name (str): Dotted name of the computing layer, or 'outputs': all outputs of the backbone.
        before (float): As initialized.
        after (float): As fitted. 1 is as bad as no computing layer.
    """

    name: str
    before: float
    after: float


def table(errors: Sequence[Error]) -> str:
    """Return the errors as a Markdown table."""
    rows = [(error.name, '1', f'{error.before:.3f}', f'{error.after:.3f}') for error in errors]
    return markdown(('computing layer', 'removed', 'before', 'after'), rows)


def convert(
    backbone: nn.Module,
    stock: nn.Module,
    images: Tensor,
    block_steps: int = 150,
    steps: int = 300,
    batch: int = 48,
    lr: float = 0.02,
    head: Callable | None = None,
    answers: bool = False,
) -> list[Error]:
    """Fit the computing layers of a backbone to the blocks that they replace, in place.

    Args:
        backbone (nn.Module): A backbone with computing layers; its other blocks have the stock weights.
        stock (nn.Module): The backbone as it was before :func:`repl_mm.apply_repl`.
        images (Tensor): Normalized images ``(N, 3, H, W)``; no labels are needed. An eighth of them is held out for
            the errors.
        block_steps (int): Steps for each computing layer. Defaults to 150.
        steps (int): Steps for all of them together, on shifted and mirrored images. Defaults to 300.
        batch (int): Images in a step. Defaults to 48.
        lr (float): Step size of Adam as a share of a parameter's root mean square; six times as much for one layer
            alone. So a step means the same for coefficients of any number and scale, and for free weights. Defaults
            to 0.02.
        head (Callable | None): What a model makes of the backbone's outputs, a classifier its logits; it counts as one
            more output. Defaults to None.
        answers (bool): Whether all layers together learn what ``head`` answers, by the :func:`divergence` of its
            logits, and nothing else: better for RepL's layers of a ViT of many classes. Defaults to False.

    Returns:
        list[Error]: Of each computing layer, on the stock network's own activations, and of the outputs. Empty if no
        computing layer has parameters.

    Raises:
        ValueError: There are too few images, or there is no ``head`` whose ``answers`` could be learned; nothing is
            changed then.
    """
    if answers and head is None:
        raise ValueError('answers=True is not valid without a head: expected what gives the logits of a classifier')
    layers = {name: layer for name, layer in computing_layers(backbone) if list(layer.parameters())}
    if not layers:
        return []
    if len(images) < HELD_OUT:
        raise ValueError(
            f'images: {len(images)} are too few, expected at least {HELD_OUT}; one of {HELD_OUT} is held out'
        )
    with frozen(backbone, stock):
        return _convert(layers, backbone, stock, images, block_steps, steps, batch, lr, head, answers)


@contextmanager
def frozen(*nets: nn.Module) -> Iterator[None]:
    """Put networks into eval mode without gradients, and back into their own state, whatever happens meanwhile."""
    modes = [(module, module.training) for net in nets for module in net.modules()]
    parameters = [(p, p.requires_grad, p.grad) for net in nets for p in net.parameters()]
    try:
        for net in nets:
            unfold(net)  # folded weights would not follow the fit
            net.eval()
            net.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training  # not by train(), which knows one mode for all submodules
        for parameter, required, grad in parameters:
            parameter.requires_grad_(required)
            parameter.grad = grad


def _convert(layers, backbone, stock, images, block_steps, steps, batch, lr, head, answers) -> list[Error]:
    """Do what :func:`convert` says, on networks in eval mode."""
    held_out, images = images.split([len(images) // HELD_OUT, len(images) - len(images) // HELD_OUT])
    held_out, batches = held_out.split(batch), images.split(batch)
    calibrate(backbone, batches)  # operators 'full' and 'half' have norms of their own

    def results(outputs):
        return [*tensors(outputs), *([] if head is None else [head(outputs)])]

    before = _errors(layers, backbone, stock, held_out, results)

    with closing(track(layers.items(), 'fitting block by block')) as items:
        for name, layer in items:
            fit_block(layer, name, backbone, stock, batches, block_steps, batch, lr)

    shift, mirror = BatchCrop(images.shape[-1] // 8), BatchFlip()

    def loss(chosen):
        x, _ = mirror(*shift(images[chosen], chosen))
        with torch.no_grad():
            targets = stock(x)
        if answers:
            return divergence(head(backbone(x)), head(targets))
        return distance(results(backbone(x)), results(targets))

    _fit(layers.values(), loss, len(images), steps, batch, lr, 'fitting together')
    after = _errors(layers, backbone, stock, held_out, results)
    return [Error(name, before[name], after[name]) for name in before]


def fit_block(
    layer: nn.Module,
    name: str,
    backbone: nn.Module,
    stock: nn.Module,
    batches: Sequence[Tensor],
    steps: int,
    batch: int,
    lr: float,
) -> None:
    """Fit one computing layer to the block that it replaces, by what comes to its place in a backbone.

    Args:
        layer (nn.Module): The layer.
        name (str): Dotted name of its place.
        backbone (nn.Module): What its inputs are taken from, in eval mode.
        stock (nn.Module): What its targets are taken from, in eval mode.
        batches (Sequence[Tensor]): Normalized images, each ``(N, 3, H, W)``; not all where they exceed ``CACHE``.
        steps (int): As ``block_steps`` of :func:`convert`.
        batch (int): Images in a step.
        lr (float): As in :func:`convert`.
    """
    inputs, rest, targets = _pairs(name, backbone, stock, batches)

    def loss(chosen):
        return F.mse_loss(layer(inputs[chosen], *rest), targets[chosen]) / targets.var()

    _fit([layer], loss, len(inputs), steps, batch, 6 * lr)


def tensors(outputs) -> list[Tensor]:
    """All tensors of a backbone's outputs, whose tuples may hold tuples."""
    return [outputs] if isinstance(outputs, Tensor) else [tensor for output in outputs for tensor in tensors(output)]


def distance(outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Mean squared distance, each output in units of its target's variance; in float32 at least."""
    exact = [x if x.dtype == torch.float64 else x.float() for x in (*outputs, *targets)]
    pairs = list(zip(exact[: len(outputs)], exact[len(outputs) :], strict=True))
    return sum(F.mse_loss(a, b) / b.var().clamp(min=1e-12) for a, b in pairs) / len(pairs)


def divergence(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of answers from those of the stock network, mean over images; in float32 at least.

    Args:
        logits (Tensor): (N, classes).
        targets (Tensor): Those of the stock network.
        temperature (float): Both are divided by it, and the result has its square, so that gradients keep their size.
            Defaults to 1.
    """
    logs = [F.log_softmax((x if x.dtype == torch.float64 else x.float()) / temperature, 1) for x in (logits, targets)]
    return F.kl_div(*logs, reduction='batchmean', log_target=True) * temperature**2


def _fit(
    layers: Iterable[nn.Module],
    loss: Callable,
    num: int,
    steps: int,
    batch: int,
    lr: float,
    progress: str | None = None,
) -> None:
    """Minimize ``loss(indices of images)`` over the layers' parameters by Adam; the rate falls as a cosine."""
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    sizes = [float(parameter.detach().square().mean().sqrt()) or AT_ZERO for parameter in parameters]
    groups = [dict(params=[p], lr=lr * size) for p, size in zip(parameters, sizes, strict=True)]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    with closing(track(range(steps), progress or '', disable=progress is None)) as numbers:
        for _ in numbers:
            optimizer.zero_grad()
            loss(torch.randint(num, (min(batch, num),))).backward()
            optimizer.step()
            schedule.step()
    optimizer.zero_grad()
    for parameter in parameters:
        parameter.requires_grad_(False)


class _Reached(Exception):
    """The block of interest has run; what lies behind it is not needed."""


@torch.no_grad()
def _record(net: nn.Module, name: str, batches: Iterable[Tensor], limit: float = float('inf')) -> list[tuple]:
    """Arguments and output of a block for batches of images, until its outputs exceed ``limit`` bytes."""
    records = []

    def hook(_, args, output):
        records.append((args, output))
        raise _Reached

    with net.get_submodule(name).register_forward_hook(hook):
        for batch in batches:
            with suppress(_Reached):
                net(batch)
            if sum(output.nbytes for _, output in records) > limit:
                break
    return records


def _pairs(
    name: str, backbone: nn.Module, stock: nn.Module, batches: Sequence[Tensor]
) -> tuple[Tensor, tuple, Tensor]:
    """What a computing layer receives (a tensor and further arguments), and what the stock block puts out."""
    inputs = [args for args, _ in _record(backbone, name, batches, CACHE)]
    targets = [output for _, output in _record(stock, name, batches[: len(inputs)])]
    return torch.cat([x for x, *_ in inputs]), inputs[0][1:], torch.cat(targets)


@torch.no_grad()
def _errors(layers: dict[str, nn.Module], backbone, stock, batches, results: Callable) -> dict[str, float]:
    """The errors of :class:`Error`, as they are now."""

    def total():
        return sum(distance(results(backbone(x)), results(stock(x))) * len(x) for x in batches)

    errors, whole = {}, total()  # first the whole backbone, which tells its layers how tokens lie
    for name, layer in layers.items():
        distances = [
            ((layer(*args) - output).square().sum(), (args[0] - output).square().sum())
            for args, output in _record(stock, name, batches)
        ]
        fitted, removed = map(sum, zip(*distances, strict=True))
        errors[name] = float(fitted / removed)
    with ExitStack() as hooks:
        for layer in layers.values():
            hooks.enter_context(layer.register_forward_hook(lambda _, args, output: args[0]))
        errors['outputs'] = float(whole / total())
    return errors
