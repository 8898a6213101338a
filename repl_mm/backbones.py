"""The registered builders: ``RepL`` + the name of a stock backbone.

A builder takes the stock backbone's own settings and ``replace``, builds the stock backbone in the config's own scope,
changes its blocks in place and returns that very object: class, attributes, surviving state_dict keys and everything
that depends on them (layer-wise lr decay, checkpoint prefixes, ``pretrained=``) stay as they are.

``type='RepLResNet'`` and ``type='repl_mm.RepLResNet'`` build the class of the config's scope, and
``type='mmdet.RepLResNet'`` mmdet's. A pure-Python config imports them from here:
``from repl_mm.backbones import RepLResNet``.
"""

import copy
import inspect
import sys
from collections.abc import Callable
from importlib.util import find_spec

from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope, Registry

from .config import without_weights
from .families import FAMILIES
from .families.contract import Family, check_family
from .plan import PlanError
from .registry import MODELS, PACKAGES, register, with_every_package
from .surgery import apply_repl, check_keys


def _current_scope() -> str | None:
    current = DefaultScope.get_current_instance()
    return None if current is None else current.scope_name


def _scopes() -> list[str]:
    """Where to look for a stock backbone: the current scope, what is imported, what is installed, our own."""
    current = _current_scope()
    scopes = [] if current is None else [current]
    scopes += [s for s in PACKAGES if sys.modules.get(s)]
    scopes += [s for s in PACKAGES if find_spec(s) is not None]
    return list(dict.fromkeys([*scopes, 'repl_mm']))


def _registry(scope: str) -> Registry | None:
    """A scope's registry of models; None if no package of this name is installed."""
    with ROOT_MODELS.switch_scope_and_registry(scope) as registry:
        return None if registry is ROOT_MODELS else registry


def _look_up(name: str, scope: str) -> type | None:
    """A scope's class of this name, or None."""
    registry = _registry(scope)
    return None if registry is None else registry.get(name)


def stock_class(name: str) -> type:
    """The stock class called ``name``, of the current scope if it has one.

    Raises:
        PlanError: No installed package has such a backbone, or the current scope is of no installed package.
    """
    current = _current_scope()
    for scope in _scopes():
        cls = _look_up(name, scope)
        if cls is not None:
            return cls
        if scope == current != 'mmengine' and _registry(scope) is None:
            raise PlanError(
                f"type='RepL{name}' is built in scope {scope!r} (_scope_ or default_scope), which is not "
                f'installed here: expected one of {", ".join(s for s in PACKAGES if find_spec(s) is not None)}'
            )
    raise PlanError(
        f"type='RepL{name}' needs a stock backbone {name!r}, which none of {', '.join(PACKAGES)} has here: install "
        'one of them, or use a backbone that the installed one has'
    )


def _class_in(name: str, scope: str) -> type:
    """The stock class that ``type='<scope>.RepL<name>'`` asks for.

    Within the scope itself mmengine does not tell the prefix from the plain name, which may fall back to others.

    Raises:
        PlanError: The scope has no such class.
    """
    if _current_scope() == scope:
        return stock_class(name)
    cls = _look_up(name, scope)
    if cls is None:
        others = [s for s in (*_scopes(), *ROOT_MODELS.children) if s != scope and _look_up(name, s) is not None]
        have = f"; type='{others[0]}.RepL{name}' is there" if others else ''
        raise PlanError(f"type='{scope}.RepL{name}' is not possible: {scope} has no backbone {name!r}{have}")
    return cls


def _stock_settings(cls: type, args: tuple, kwargs: dict) -> dict | None:
    """Config of the stock twin of a backbone, without weights; None if arguments have no names."""
    names = []
    for base in cls.__mro__:  # a subclass may pass *args on
        if '__init__' not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        names += [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        if not any(p.kind is p.VAR_POSITIONAL for p in parameters):
            break
    if len(args) > len(names):
        return None
    settings = {**dict(zip(names, args, strict=False)), **kwargs}
    settings = without_weights(dict(type=cls, **settings))
    scope = _current_scope()
    return dict(copy.deepcopy(settings), **({} if scope is None else dict(_scope_=scope)))


def _builder(name: str, scope: str | None = None) -> Callable:
    """The builder of a stock backbone; of a scope's own one, if there is one given."""

    def build(*args, replace=None, **kwargs):
        replace = check_keys(replace)
        cls = stock_class(name) if scope is None else _class_in(name, scope)
        stock = _stock_settings(cls, args, kwargs)  # now: mm's code changes what it is given
        backbone = cls(*args, **kwargs)
        apply_repl(backbone, **replace)
        backbone.repl_stock = stock
        return backbone

    build.__name__ = build.__qualname__ = f'RepL{name}'
    build.__doc__ = f"""Build the stock ``{name}`` and apply RepL to it, see :func:`repl_mm.apply_repl`.

    Its attribute ``repl_stock`` is the config of the stock twin then, without weights.

    Args:
        replace (dict | None): Settings of the plan. Defaults to None, the default plan.
        *args, **kwargs: The stock backbone's own settings.
    """
    return build


def _refusal(name: str, reason: str) -> Callable:
    def refuse(*args, **kwargs):
        raise PlanError(f"type='RepL{name}' is not possible: {reason}; use the stock type {name!r}")

    refuse.__name__ = refuse.__qualname__ = f'RepL{name}'
    return refuse


def _register_types(family: Family) -> None:
    for name in family.BACKBONES:
        register(MODELS, f'RepL{name}', _builder(name))
    for name, reason in family.REFUSED.items():
        register(MODELS, f'RepL{name}', _refusal(name, reason))


def _register_bound_types(family: Family, registry: Registry) -> None:
    """The types with the prefix of a package, in its own registry."""
    own = {f'RepL{name}': _builder(name, registry.scope) for name in family.BACKBONES}
    own |= {f'RepL{name}': _refusal(name, reason) for name, reason in family.REFUSED.items()}
    for name, builder in own.items():
        if name not in registry.module_dict:  # else the package has a type of its own by this name
            registry.register_module(name=name, module=builder)


def _serve(registry: Registry) -> None:
    for family in FAMILIES:
        _register_bound_types(family, registry)


def register_family(family: Family) -> None:
    """Serve a family of backbones from outside this package, before those that are there.

    ``apply_repl`` serves its backbones then, and ``RepL`` + their names are types for configs; do it once, in a module
    that the config's ``custom_imports`` names.

    Args:
        family (module): Has what :class:`repl_mm.families.contract.Family` lists.

    Raises:
        TypeError: It has not; nothing is registered then.
        KeyError: A type of this name is registered already; nothing is registered then.
    """
    check_family(family, taken={*MODELS.module_dict, *ROOT_MODELS.module_dict})
    _register_types(family)
    for scope, registry in ROOT_MODELS.children.items():
        if scope != MODELS.scope:
            _register_bound_types(family, registry)
    FAMILIES.insert(0, family)


def __getattr__(name: str) -> Callable:
    """Give the builders by name, those of families from outside included."""
    if name.startswith('RepL') and name in MODELS.module_dict:
        return MODELS.module_dict[name]
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


for _family in FAMILIES:
    _register_types(_family)
with_every_package(_serve)
