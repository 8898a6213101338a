"""Backbone families: where the blocks are, and which tensors of two blocks correspond.

A family is a module that has what :class:`repl_mm.families.contract.Family` lists. A new one is one such module and
one entry in ``FAMILIES``; from outside, :func:`repl_mm.register_family`.
"""

from collections.abc import Callable
from types import SimpleNamespace

from torch import nn

from ..plan import PlanError
from . import convnext, csp, decoder, dual, hrnet, inverted, mscan, pyramid, resnet, swin, timm, vit
from .contract import OPTIONAL, Family

FAMILIES: list[Family] = [resnet, vit, swin, pyramid, hrnet, csp, inverted, mscan, dual, convnext, decoder, timm]


def find_family(backbone: nn.Module) -> Family:
    """The family of a backbone: one that serves its class by name, and that its structure fits.

    Raises:
        PlanError: There is none; the message names the reason and what is served.
    """
    names = [cls.__name__ for cls in type(backbone).__mro__]
    misfits = []
    for family in FAMILIES:
        for name in names:
            if name in family.REFUSED:
                raise PlanError(f'RepL cannot replace blocks of {name}: {family.REFUSED[name]}')
        served = [name for name in names if name in (*family.BACKBONES, *getattr(family, 'BUILT', ()))]
        if served and hasattr(family, 'inner'):
            return _around(family.inner, find_family(family.inner(backbone)))
        if served:
            try:
                misfit = family.misfit(backbone)
            except Exception as error:  # whatever it looked for in an object of another make
                misfit = repr(error)
            if misfit is None:
                return family
            misfits.append((served[0], misfit))
    if misfits:
        cls, (name, misfit) = type(backbone), misfits[0]
        raise PlanError(f'RepL serves {name}, but {cls.__module__}.{cls.__qualname__} is built otherwise: {misfit}')
    served = ', '.join(name for family in FAMILIES for name in family.BACKBONES)
    raise PlanError(f'RepL does not know the backbone {names[0]}: expected one of {served}, or a subclass')


def branches_of(family: Family, backbone: nn.Module) -> tuple[int, ...]:
    """The stages with which another branch of a network begins; none where its family knows no branches."""
    return tuple(family.branches(backbone)) if hasattr(family, 'branches') else ()


def _around(inner: Callable[[nn.Module], nn.Module], family: Family) -> Family:
    """The family of what is around a network of a family."""

    def of_inner(function: Callable) -> Callable:
        return lambda backbone: function(inner(backbone))

    names = [name for name in ('misfit', 'stages', 'frozen', 'openers', *OPTIONAL) if hasattr(family, name)]
    return SimpleNamespace(
        **{name: getattr(family, name) for name in ('BACKBONES', 'REFUSED', 'OPERATORS', 'DEFAULTS', 'build')},
        **{name: of_inner(getattr(family, name)) for name in names},
    )
