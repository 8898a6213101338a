"""The registries of scope ``repl_mm``: a config may say ``type='repl_mm.RepLResNet'`` without any import.

Builders and hooks are registered at mmengine's root registry as well, so that after
``custom_imports = dict(imports=['repl_mm'])`` the plain names work in every scope.
"""

from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=ROOT_MODELS, scope='repl_mm', locations=['repl_mm.backbones'])
HOOKS = Registry('hook', parent=ROOT_HOOKS, scope='repl_mm', locations=['repl_mm.hook'])


def register(registry: Registry, name: str, thing) -> None:
    """Register a thing in one of the registries above and at the root."""
    for where in (registry, registry.parent):
        where.register_module(name=name, module=thing)
