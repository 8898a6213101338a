"""Merging: a trained network of plain modules, which borrows nothing any more."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .checkpoint import PLAN_KEY, encode_plan
from .computing_layers import is_sharded
from .plan import Plan
from .surgery import computing_layers, repl_backbones

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest output; else that of bfloat16
COARSE = 5e-2


class MergeError(RuntimeError):
    """A model that cannot be merged; it is as it was."""


@torch.no_grad()
def merge(model: nn.Module, example: Tensor | None = None) -> nn.Module:
    """Put plain modules with weights of their own in the place of every computing layer, in place.

    Nothing is borrowed any more: the model trains on with free weights, and is what every tool of PyTorch understands.
    It has the same outputs; that is checked, layer by layer, on an example. Its plan says ``merged=True``: a config
    builds such a model with ``replace=dict(..., merged=True)``, and does not load weights of the other kind.

    Args:
        model (nn.Module): A model with one or more RepL backbones, or a RepL backbone. It is put in no other mode.
        example (Tensor | None): Images ``(N, C, H, W)``, or texts ``(N, L)``, as a backbone takes them. Defaults to
            None, random ones.

    Returns:
        nn.Module: The model itself.

    Raises:
        MergeError: There is nothing to merge, parameters are sharded, the example does not fit, or a merged layer
            gives other outputs.
        BorrowError: A neighbour was changed so that its weights mean something else.
    """
    backbones = [backbone for _, backbone in repl_backbones(model) if not backbone.repl.merged]
    if not backbones:
        raise MergeError(
            f'there is nothing to merge in this {type(model).__name__}: expected a model with a RepL backbone that is '
            'not merged yet'
        )
    if is_sharded(model):
        raise MergeError('the parameters are sharded: merge before fully_shard, or a model that was saved whole')
    merged = [_merged_layers(backbone, example) for backbone in backbones]
    pairs = list(zip(backbones, merged, strict=True))
    before = [({name: b.get_submodule(name) for name in layers}, b.repl) for b, layers in pairs]
    try:
        for backbone, layers in pairs:
            replace_layers(backbone, layers, dataclasses.replace(backbone.repl, merged=True))
    except BaseException:  # an interrupt as well: all of them or none
        for backbone, (layers, plan) in zip(backbones, before, strict=True):
            replace_layers(backbone, layers, plan)
        raise
    return model


def replace_layers(backbone: nn.Module, layers: dict[str, nn.Module], plan: Plan) -> None:
    """Put layers in their places, and say so in the plan."""
    for name, layer in layers.items():
        backbone.set_submodule(name, layer)
    set_plan(backbone, plan)


def set_plan(backbone: nn.Module, plan: Plan) -> None:
    """Change the plan that a backbone carries."""
    backbone.repl = plan
    setattr(backbone, PLAN_KEY, encode_plan(plan))


def _merged_layers(backbone: nn.Module, example: Tensor | None) -> dict[str, nn.Module]:
    """The plain layers of a backbone by name, each of which gives what the layer gives on the example."""
    layers = dict(computing_layers(backbone))
    plain = {name: layer.plain() for name, layer in layers.items()}
    parameter = next(backbone.parameters())
    if example is None:
        example = example_images(backbone)
    calls = {}

    def record(name):
        def hook(layer, args, kwargs, out):
            calls[name] = args, kwargs, out.clone()  # DDRNet adds to it in place

        return hook

    handles = [layer.register_forward_hook(record(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        with in_eval_mode(backbone):
            try:
                if example.is_floating_point():
                    backbone(example.to(parameter))
                else:  # a cache would get the tokens once more below
                    backbone(example.to(parameter.device), use_cache=False)
            except (RuntimeError, ValueError, IndexError, AssertionError) as error:
                shape = tuple(example.shape)
                raise MergeError(
                    f'the backbone does not take the example {shape}: give merge() images that it takes ({error})'
                ) from error
            if missed := [name for name in layers if name not in calls]:
                raise MergeError(f'the backbone does not run its layer {missed[0]!r}: it cannot be compared')
            for name, (args, kwargs, out) in calls.items():
                with in_eval_mode(plain[name]):
                    _check_same(name, out, plain[name](*args, **kwargs))
    finally:
        for handle in handles:
            handle.remove()
    return plain


def _check_same(name: str, out: Tensor, merged: Tensor) -> None:
    error = (merged.float() - out.float()).abs().max().item() / max(out.float().abs().max().item(), 1e-12)
    tolerance = TOLERANCE.get(out.dtype, COARSE)
    if not error <= tolerance:  # NaN is no agreement
        raise MergeError(
            f'merged, the layer {name!r} gives another output: {error:.1e} of the largest, expected {tolerance:.0e} '
            'at most; the model is as it was'
        )


def example_images(backbone: nn.Module, shape: tuple[int, int] | None = None, batch: int = 1) -> Tensor:
    """Random images that a backbone takes, or random texts.

    Args:
        backbone (nn.Module): The backbone.
        shape (tuple[int] | None): Height and width. Defaults to None, its ``img_size`` if it has one, else 64x64.
        batch (int): Images. Defaults to 1.
    """
    generator = torch.Generator().manual_seed(0)
    if hasattr(backbone, 'get_input_embeddings'):
        return torch.randint(backbone.config.vocab_size, (batch, *(shape or (16,))), generator=generator)
    first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    size = shape or getattr(backbone, 'img_size', None) or 64
    shape = (size, size) if isinstance(size, int) else tuple(size)
    # YOLOX's stem lays 2x2 pixels on each other as channels
    apart = any(type(module).__name__ == 'Focus' for module in backbone.modules())
    return torch.randn(batch, first.in_channels // (4 if apart else 1), *shape, generator=generator)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """All modules in eval mode, and each as it was afterwards; what is folded stays folded."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode
