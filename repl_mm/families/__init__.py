"""Backbone families: where the blocks are, and which tensors of two blocks correspond.

A family is a module with

* ``BACKBONES``: class names of the backbones it serves; subclasses are served too;
* ``REFUSED``: class names it cannot serve, with the reason;
* ``OPERATORS``: names of its operators, the default first; ``DEFAULTS``: its ``every``, ``ratio`` and ``fusion``;
* ``stages(backbone)``: the stages, each a container of blocks that takes ``stage[i] = layer``;
* ``frozen(backbone)``: the stages that are not trained;
* ``openers(backbone)``: the stages whose first block cannot be replaced;
* ``build(plan, block, neighbours)``: the computing layer for a replaced block;
* ``finish(backbone)``, if there is need for it: called when all computing layers are in place.

A new family is one such module and one entry in ``FAMILIES``; from outside, :func:`repl_mm.register_family`.
"""

from torch import nn

from ..plan import PlanError
from . import pyramid, resnet, swin, vit

FAMILIES = [resnet, vit, swin, pyramid]


def find_family(backbone: nn.Module):
    """The family module of a backbone.

    Raises:
        PlanError: No family serves this class; the message names the reason and what is served.
    """
    names = [cls.__name__ for cls in type(backbone).__mro__]
    for family in FAMILIES:
        for name in names:
            if name in family.REFUSED:
                raise PlanError(f'RepL cannot replace blocks of {name}: {family.REFUSED[name]}')
        if any(name in family.BACKBONES for name in names):
            return family
    served = ', '.join(name for family in FAMILIES for name in family.BACKBONES)
    raise PlanError(f'RepL does not know the backbone {names[0]}: expected one of {served}, or a subclass')
