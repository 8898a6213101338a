"""RepL tried on one backbone of a config."""

import torch
from mmengine.model import revert_sync_batchnorm
from torch.utils._pytree import tree_leaves

import repl_mm
from repl_mm import config
from repl_mm.families import FAMILIES
from repl_mm.registry import WEIGHTS

NO_PART = (*WEIGHTS, 'convert_weights')  # would download something, or say what it looks like
DROPS = ('drop_rate', 'attn_drop_rate', 'drop_path_rate')


def family_of(name: str) -> str | None:
    """Name of the family that serves, or refuses by name, a backbone class; None if no family knows it."""
    for family in FAMILIES:
        if name in family.BACKBONES or name in family.REFUSED:
            return family.__name__.rpartition('.')[2]
    return None


def essential(settings, size: int):
    """Settings without weights and drop rates, and for images of ``size``: BEiT takes those of ``img_size`` only."""
    if not isinstance(settings, dict):
        return settings
    kept = {key: essential(value, size) for key, value in settings.items() if key not in (*NO_PART, *DROPS)}
    return kept | dict(img_size=size) if 'img_size' in kept else kept


def first_sentence(error: Exception) -> str:
    """An exception in one short line."""
    return f'{type(error).__name__}: {error}'.splitlines()[0].split('. ')[0]


def build(settings: dict, scope: str) -> torch.nn.Module:
    """Build a backbone in a scope, its SyncBN made plain BN, in train mode."""
    backbone = revert_sync_batchnorm(config.build(settings, scope))
    backbone.train()
    return backbone


def run(backbone: torch.nn.Module, channels: int, size: int) -> None:
    """Forward and backward on random images.

    Raises:
        AssertionError: An output is not finite, or a parameter of a computing layer that leads to an output gets no
            finite gradient.
    """
    outputs = tree_leaves(backbone(torch.randn(2, channels, size, size)))
    assert all(out.isfinite().all() for out in outputs), 'an output is not finite'
    sum(out.square().mean() for out in outputs).backward()
    plan = repl_mm.plan_of(backbone)
    indices = getattr(backbone, 'out_indices', [len(plan.depths) - 1])  # of stages, or of the layers of the only stage
    for slot, (name, layer) in zip(plan.slots, repl_mm.computing_layers(backbone), strict=True):
        if (slot.index if len(plan.depths) == 1 else slot.stage) <= max(indices):
            for key, parameter in layer.named_parameters():
                assert parameter.grad is not None and parameter.grad.isfinite().all(), f'{name}.{key}: no gradient'


def try_backbone(settings: dict, scope: str, size: int = 96) -> tuple[str, str]:
    """Try RepL on one backbone.

    Args:
        settings (dict): Stock settings of the backbone, without weights.
        scope (str): The config's ``default_scope``.
        size (int): Height and width of the images. Defaults to 96.

    Returns:
        tuple[str, str]: One of ``STATUSES`` and the reason, empty if it works.
    """
    try:
        backbone = build(dict(settings, type=config.repl_type(settings)), scope)
        package = (settings['type'].rpartition('.')[0] or scope).partition('.')[0]
        assert type(backbone).__module__.startswith(f'{package}.'), f'this is not the backbone of {package}'
        run(backbone, settings.get('in_channels', 3), size)
        return 'works', ''
    except repl_mm.PlanError as error:
        status, reason = 'refused', str(error)
    except Exception as error:
        status, reason = 'fails', first_sentence(error)
    try:
        build(settings, scope)
    except Exception as error:
        return 'stock fails', first_sentence(error)
    return status, reason
