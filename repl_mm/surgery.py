"""Surgery: a plan carried out on a built backbone."""

import functools
from collections.abc import Iterator

from torch import nn

from .checkpoint import attach_plan, begin
from .computing_layers import ComputingLayer, FullComputingLayer
from .families import branches_of, find_family
from .non_reentrant import make_non_reentrant
from .plan import KEYS, Plan, PlanError, make_plan


def check_keys(replace) -> dict:
    """Check that ``replace`` is a dict of known keys; None is the default plan.

    Raises:
        PlanError: It is something else, or holds an unknown key.
    """
    if replace is None:
        return {}
    if not isinstance(replace, dict):
        raise PlanError(f'replace={replace!r} is not valid: expected a dict with keys among {", ".join(KEYS)}')
    for key in replace:
        if key not in KEYS:
            raise PlanError(f'replace.{key}={replace[key]!r}: unknown key; expected one of {", ".join(KEYS)}')
    return dict(replace)


def apply_repl(backbone: nn.Module, **replace) -> Plan:
    """Apply Replacement Learning to a built backbone, in place.

    Needs no config, registry or Runner. Call it before the optimizer is built and before DDP or EMA wrap the model.

    Args:
        backbone (nn.Module): A backbone of a supported family (see :mod:`repl_mm.families`).
        **replace: Settings of :func:`repl_mm.plan.make_plan`: every, stages, slots, mode, operator, ratio, fusion,
            detach, merged.

    Returns:
        Plan: What was done; ``print(plan)`` shows it, ``plan_of(backbone)`` gives it again later.

    Raises:
        PlanError: A setting is not valid, the backbone is not supported or was changed already. The backbone is
            unchanged then.

    Example:
        >>> backbone = mmdet.models.ResNet(depth=50)
        >>> print(repl_mm.apply_repl(backbone, every=2))
    """
    replace = check_keys(replace)
    if plan_of(backbone) is not None:
        raise PlanError(
            f'RepL was applied to this {type(backbone).__name__} before: build a new one to change its plan'
        )
    family = find_family(backbone)
    stages = family.stages(backbone)
    plan = make_plan(
        type(backbone).__name__,
        [len(s) for s in stages],
        family.frozen(backbone),
        family.openers(backbone),
        branches_of(family, backbone),
        operators=family.OPERATORS,
        defaults=family.DEFAULTS,
        **replace,
    )

    # All computing layers are built before any takes its place: neighbours are looked up among the original blocks.
    layers = {}
    names = {id(module): name for name, module in backbone.named_modules()}
    for slot in plan.slots:
        between = tuple(stages[s][i] for s, i in filter(None, (slot.preceding, slot.succeeding)))
        block = stages[slot.stage][slot.index]
        here = plan.at(slot)
        layer = family.build(here, block, between)
        if here.mode == 'random':
            layer.replace_borrowed(seed=1000 * slot.stage + slot.index)
        layer = layer.to(next(block.parameters()))  # its device and precision
        layer.between = between
        layer.begin()
        layer.with_cp = layer.with_cp or getattr(block, 'with_cp', False)
        for neighbour in layer.neighbours:
            name = names[id(neighbour.block)]
            stage, _, key = name.rpartition('.')
            neighbour.stands_in(backbone.get_submodule(stage), key, name)
        if isinstance(layer, FullComputingLayer):
            layer.own.name = names[id(block)]
        layers[slot] = layer.plain() if plan.merged else layer
    for slot, layer in layers.items():
        stages[slot.stage][slot.index] = layer
        for neighbour in layer.neighbours:
            make_non_reentrant(neighbour.block)
    if hasattr(family, 'finish'):
        family.finish(backbone)
    attach_plan(backbone, plan)
    if hasattr(backbone, 'init_weights'):  # of this object alone; mmengine calls none in a plain nn.Sequential
        backbone.init_weights = functools.partial(_init_weights, backbone)
    backbone.repl_stock = None  # the builders know it
    return plan


def _init_weights(backbone: nn.Module, *args, **kwargs) -> None:
    """Initialize a backbone as its class does; computing layers begin with the weights that their neighbours got."""
    type(backbone).init_weights(backbone, *args, **kwargs)
    begin(backbone)


def plan_of(backbone: nn.Module) -> Plan | None:
    """The plan that was applied to a backbone, or None."""
    plan = getattr(backbone, 'repl', None)
    return plan if isinstance(plan, Plan) else None


def repl_backbones(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """All backbones in a model to which RepL was applied, with their dotted names."""
    return [(name, module) for name, module in model.named_modules() if plan_of(module) is not None]


def computing_layers(model: nn.Module) -> Iterator[tuple[str, ComputingLayer]]:
    """All computing layers of a model with their dotted names."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, ComputingLayer))


def fold(model: nn.Module) -> None:
    """Synthesize all weights of a model in eval mode once, until :func:`unfold`, ``train()`` or a load of weights."""
    for module in model.modules():
        if isinstance(module, ComputingLayer):
            module.fold()


def unfold(model: nn.Module) -> None:
    """Undo :func:`fold`."""
    for module in model.modules():
        if isinstance(module, ComputingLayer):
            module.unfold()
