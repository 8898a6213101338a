"""The registered builders: ``RepL`` + the name of a stock backbone.

A builder takes the stock backbone's own settings and ``replace``, builds the stock backbone in the config's own scope,
changes its blocks in place and returns that very object: class, attributes, surviving state_dict keys and everything
that depends on them (layer-wise lr decay, checkpoint prefixes, ``pretrained=``) stay as they are.
"""

import sys
from importlib.util import find_spec

from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope

from .families import FAMILIES
from .plan import PlanError
from .registry import MODELS, register
from .surgery import apply_repl, check_keys

SCOPES = ('mmdet', 'mmseg', 'mmpretrain')


def _scopes() -> list[str]:
    """Where to look for a stock backbone: the current scope, what is imported, what is installed, our own."""
    current = DefaultScope.get_current_instance()
    scopes = [current.scope_name] if current is not None else []
    scopes += [s for s in SCOPES if sys.modules.get(s)]
    scopes += [s for s in SCOPES if find_spec(s) is not None]
    return list(dict.fromkeys([*scopes, 'repl_mm']))


def stock_class(name: str) -> type:
    """The stock class called ``name``, of the current scope if it has one.

    Raises:
        PlanError: No installed package has such a backbone, or the current scope is of no installed package.
    """
    current = DefaultScope.get_current_instance()
    for scope in _scopes():
        with ROOT_MODELS.switch_scope_and_registry(scope) as registry:
            if registry is ROOT_MODELS:
                if current is not None and scope == current.scope_name != 'mmengine':
                    raise PlanError(
                        f"type='RepL{name}' is built in scope {scope!r} (_scope_ or default_scope), which is not "
                        f'installed here: expected one of {", ".join(s for s in SCOPES if find_spec(s) is not None)}'
                    )
                continue
            cls = registry.get(name)
            if cls is not None:
                return cls
    raise PlanError(
        f"type='RepL{name}' needs a stock backbone {name!r}, which none of {', '.join(SCOPES)} has here: install one "
        'of them, or use a backbone that the installed one has'
    )


def _builder(name: str):
    def build(*args, replace=None, **kwargs):
        replace = check_keys(replace)
        backbone = stock_class(name)(*args, **kwargs)
        apply_repl(backbone, **replace)
        return backbone

    build.__name__ = build.__qualname__ = f'RepL{name}'
    build.__doc__ = f"""Build the stock ``{name}`` and apply RepL to it, see :func:`repl_mm.apply_repl`.

    Args:
        replace (dict | None): Settings of the plan. Defaults to None, the default plan.
        *args, **kwargs: The stock backbone's own settings.
    """
    return build


def _refusal(name: str, reason: str):
    def refuse(*args, **kwargs):
        raise PlanError(f"type='RepL{name}' is not possible: {reason}; use the stock type {name!r}")

    refuse.__name__ = refuse.__qualname__ = f'RepL{name}'
    return refuse


def _register_types(family) -> None:
    for name in family.BACKBONES:
        register(MODELS, f'RepL{name}', _builder(name))
    for name, reason in family.REFUSED.items():
        register(MODELS, f'RepL{name}', _refusal(name, reason))


def register_family(family) -> None:
    """Serve a family of backbones from outside this package, before those that are there.

    ``apply_repl`` serves its backbones then, and ``RepL`` + their names are types for configs; do it once, in a module
    that the config's ``custom_imports`` names.

    Args:
        family (module): Has what :mod:`repl_mm.families` lists.

    Raises:
        KeyError: A type of this name is registered already.
    """
    _register_types(family)
    FAMILIES.insert(0, family)


for _family in FAMILIES:
    _register_types(_family)
