"""The registries of scope ``repl_mm``: a config may say ``type='repl_mm.RepLResNet'`` without any import.

Builders, hooks and optimizer wrappers are registered at mmengine's root registry as well, so that after
``custom_imports = dict(imports=['repl_mm'])`` the plain names work in every scope. What is for classification and
language is in this scope only: ``default_scope = 'repl_mm'``, or the prefix.
"""

from collections.abc import Callable

from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import FUNCTIONS as ROOT_FUNCTIONS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import METRICS as ROOT_METRICS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import OPTIM_WRAPPERS as ROOT_OPTIM_WRAPPERS
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.registry import Registry, root

PACKAGES = ('mmdet', 'mmseg', 'mmpretrain')  # scopes with stock backbones, and with RepL types of their own
# settings of a backbone that say where its weights come from
WEIGHTS = ('init_cfg', 'pretrained', 'checkpoint_path')


def _child(parent: Registry, *locations: str) -> Registry:
    return Registry(parent.name, parent=parent, scope='repl_mm', locations=[f'repl_mm.{name}' for name in locations])


MODELS = _child(ROOT_MODELS, 'backbones', 'classification', 'healing', 'language')
HOOKS = _child(ROOT_HOOKS, 'hook')
OPTIM_WRAPPERS = _child(ROOT_OPTIM_WRAPPERS, 'optim')
DATASETS = _child(ROOT_DATASETS, 'classification', 'language', 'pictures')
METRICS = _child(ROOT_METRICS, 'classification', 'language')
FUNCTIONS = _child(ROOT_FUNCTIONS, 'classification')
TRANSFORMS = _child(ROOT_TRANSFORMS, 'classification.transforms')

# Nothing of ours is in the others. Without them mmengine would warn of every look-up under default_scope='repl_mm';
# without a module to import it would look for one by itself, and warn as well.
for _parent in [found for found in vars(root).values() if isinstance(found, Registry)]:
    if 'repl_mm' not in _parent.children:
        _child(_parent, 'registry')


def class_of(registry: Registry, kind, scope: str | None):
    """The class that a config's ``type`` names, with a scope or without; it may be the class itself.

    Args:
        registry (Registry): A root registry.
        kind (str | type): The ``type``.
        scope (str | None): The config's ``default_scope``.

    Returns:
        type | None: None if there is no such class.
    """
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(scope) as found:
        return found.get(kind)


def register(registry: Registry, name: str, thing) -> None:
    """Register a thing in one of the registries above and at the root."""
    for where in (registry, registry.parent):
        where.register_module(name=name, module=thing)


class _Children(dict):
    """The children of a registry, by scope; ``added(child)`` is called with each that joins them."""

    def __init__(self, children: dict, added: Callable[[Registry], None]):
        super().__init__(children)
        self.added = added

    def __setitem__(self, scope: str, child: Registry) -> None:
        super().__setitem__(scope, child)
        self.added(child)


def with_every_package(action: Callable[[Registry], None]) -> None:
    """Call an action with every other package's registry of models: at once, or as soon as the package makes it.

    ``type='mmdet.X'`` is looked up in mmdet's own registry and nowhere else, and within mmdet the prefix does not even
    lead to the root's: what is to have such a type must stand in mmdet's registry. mmengine imports that when the
    first config asks for it; importing it ourselves would load mmdet into every program that imports ``repl_mm``.
    mmengine tells nobody of a new child, hence the dict that does, in a place that mmengine has no setter for.
    """

    def added(child: Registry) -> None:
        if child.scope != MODELS.scope:
            action(child)

    for child in list(ROOT_MODELS.children.values()):
        added(child)
    ROOT_MODELS._children = _Children(ROOT_MODELS.children, added)
