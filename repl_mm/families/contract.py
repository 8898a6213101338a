"""What a family of backbones has to say, and the check that it says it."""

import inspect
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from ..computing_layers import ComputingLayer, dotted
from ..plan import Plan, PlanError, make_plan


class Family(Protocol):
    """A family of backbones: a module, or any other object, with these names.

    It may also have ``branches(backbone)``, the numbers of the stages with which another branch of the network begins
    (neighbours are of one branch), ``finish(backbone)``, which is called when all computing layers are in place, and
    ``BUILT``, names of classes that it serves and that no config can name: they are no types.

    What is around a network of another class has ``BACKBONES``, ``REFUSED`` and ``inner(backbone)``, which gives the
    network: the network's own family serves it.

    Attributes:
        BACKBONES (Sequence[str]): Class names of the backbones that it serves; subclasses are served too.
        REFUSED (Mapping[str, str]): Class names that it cannot serve, with the reason that users will read.
        OPERATORS (Sequence[str]): Names of its operators, the default first.
        DEFAULTS (Mapping): ``every``, ``ratio`` and ``fusion`` where ``replace`` does not give them.
    """

    BACKBONES: Sequence[str]
    REFUSED: Mapping[str, str]
    OPERATORS: Sequence[str]
    DEFAULTS: Mapping

    def misfit(self, backbone: nn.Module) -> str | None:
        """What a backbone of a served name lacks or has otherwise than the family expects; None if it fits."""

    def stages(self, backbone: nn.Module) -> Sequence:
        """The stages, each with ``len(stage)``, ``stage[i]`` and ``stage[i] = layer``."""

    def frozen(self, backbone: nn.Module) -> Iterable[int]:
        """The stages that are not trained: they keep their blocks."""

    def openers(self, backbone: nn.Module) -> Iterable[int]:
        """The stages whose first block cannot be replaced, because it sets stride or width."""

    def build(self, plan: Plan, block: nn.Module, neighbours: tuple[nn.Module, ...]) -> nn.Module:
        """The computing layer for a replaced block, between its one or two neighbours."""


FUNCTIONS = dict(misfit=1, stages=1, frozen=1, openers=1, build=3)  # with the number of arguments
OPTIONAL = ('branches', 'finish')
AROUND = dict(inner=1)  # all functions of what is around a network of another class
TABLES = ('BACKBONES', 'REFUSED', 'OPERATORS', 'DEFAULTS')


def check_family(family, taken: Container[str] = ()) -> None:
    """Check everything that is known of a family before it is used.

    Args:
        family (module): What is to be a :class:`Family`.
        taken (Container[str]): Names of types that exist already. Defaults to none.

    Raises:
        TypeError: Something is missing or of another kind; the message names it.
        KeyError: A type for one of its backbones exists already.
    """
    title = f'the family {getattr(family, "__name__", None) or type(family).__name__!r}'
    around = hasattr(family, 'inner')
    functions, tables = (AROUND, TABLES[:2]) if around else (FUNCTIONS, TABLES)
    missing = [name for name in (*tables, *functions) if not hasattr(family, name)]
    if missing:
        raise TypeError(f'{title} has no {", ".join(missing)}: see repl_mm.families.contract.Family')
    for name in {'BACKBONES', 'OPERATORS', 'BUILT'} & {*dir(family)}:
        value = getattr(family, name)
        if not _names(value) or not value or len({*value}) < len(value):
            raise TypeError(f"{title}: {name}={value!r} is not valid: expected a tuple of names, such as ('A', 'B')")
    if not isinstance(family.REFUSED, Mapping) or not _names([*family.REFUSED]) or not all(family.REFUSED.values()):
        raise TypeError(f'{title}: REFUSED={family.REFUSED!r} is not valid: expected a dict of names with reasons')
    if not around:
        _check_defaults(family, title)
    optional = {name: 1 for name in OPTIONAL if hasattr(family, name)}
    for name, count in (functions | optional).items():
        _check_function(getattr(family, name), count, f'{title}: {name}')
    types = [f'RepL{name}' for name in (*family.BACKBONES, *family.REFUSED)]
    known = [name for i, name in enumerate(types) if name in taken or name in types[:i]]
    if known:
        raise KeyError(f'{title}: the type {known[0]!r} exists already')


def _check_defaults(family, title: str) -> None:
    defaults = family.DEFAULTS
    if not isinstance(defaults, Mapping) or {*defaults} != {'every', 'ratio', 'fusion'}:
        raise TypeError(f'{title}: DEFAULTS={defaults!r} is not valid: expected every, ratio and fusion')
    if not isinstance(defaults['fusion'], dict) or 'type' not in defaults['fusion']:
        raise TypeError(f"{title}: DEFAULTS={defaults!r} is not valid: expected fusion=dict(type='mix', groups=...)")
    try:
        make_plan('any', [3], operators=family.OPERATORS, defaults=defaults)
    except (PlanError, TypeError, KeyError, AttributeError) as error:
        raise TypeError(f'{title}: DEFAULTS={defaults!r} is not valid: {error!r}') from None


def _names(value) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    return all(isinstance(name, str) and name.isidentifier() for name in value)


def _check_function(function, count: int, title: str) -> None:
    try:
        inspect.signature(function).bind(*range(count))
    except (TypeError, ValueError) as error:
        raise TypeError(f'{title} is not valid: expected a function of {count} arguments ({error})') from None


class Children:
    """Some children of a module as a list of blocks that can be replaced: a stage.

    Args:
        parent (nn.Module): The module.
        names (Iterable[str]): Names of its children, in order.
    """

    def __init__(self, parent: nn.Module, names: Iterable[str]):
        self.parent = parent
        self.names = list(names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> nn.Module:
        return getattr(self.parent, self.names[index])

    def __setitem__(self, index: int, layer: nn.Module) -> None:
        setattr(self.parent, self.names[index], layer)


def listed(backbone: nn.Module, *names: str) -> dict[str, nn.Module]:
    """The members of the first list of modules that a backbone has by one of these names, by their dotted names.

    timm's FeatureListNet has the members of a list ``stages`` as children ``stages_0``, ``stages_1``, ...

    Returns:
        dict[str, nn.Module]: Empty if there is no such list.
    """
    for name in names:
        found = getattr(backbone, name, None)
        if isinstance(found, nn.ModuleList | nn.Sequential):
            return {f'{name}.{key}': module for key, module in found.named_children()}
        single = {key: child for key, child in backbone.named_children() if re.fullmatch(rf'{name}_\d+', key)}
        if single:
            return single
    return {}


def misfit_of_blocks(stages: Mapping, lacks: Callable[[nn.Module], list[str]]) -> str | None:
    """Say what is wrong with the first block that lacks something, or with a stage that is no list: for misfits.

    Args:
        stages (Mapping): The stages by name. What stands there in place of blocks already is passed over.
        lacks (callable): ``lacks(block)`` gives the names of what a block has not.
    """
    for name, stage in stages.items():
        if not all(hasattr(stage, method) for method in ('__len__', '__getitem__', '__setitem__')):
            return f'{name} ({type(stage).__name__}) is no list of blocks'
        for index in range(len(stage)):
            block = stage[index]
            lacking = [] if isinstance(block, ComputingLayer) else lacks(block)
            if lacking:
                key = stage.names[index] if isinstance(stage, Children) else str(index)
                return f'{dotted(name, key)} ({type(block).__name__}) has no {", ".join(lacking)}'
    return None


def missing(thing, names: Iterable[str]) -> list[str]:
    """Which of these dotted names a thing has not: for :meth:`Family.misfit`."""
    return [name for name in names if _find(thing, name) is None]


def missing_weights(block: nn.Module, names: Iterable[str], dim: int) -> list[str]:
    """Which of these dotted names are no part of a block with a ``weight`` of ``dim`` dimensions."""
    weights = {name: _find(block, f'{name}.weight') for name in names}
    return [name for name, weight in weights.items() if not isinstance(weight, Tensor) or weight.dim() != dim]


def _find(thing, path: str):
    for name in path.split('.'):
        thing = getattr(thing, name, None)
    return thing
