"""What a config says: its backbones, their stock and RepL twins, its training input, its data.

Types may be names, names with a scope or a module path, and, in pure-Python configs, classes and builder functions.
"""

import copy
import difflib
import importlib.util
import inspect
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.logging import MessageHub
from mmengine.registry import (
    DATASETS,
    EVALUATOR,
    HOOKS,
    METRICS,
    MODELS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    TRANSFORMS,
    DefaultScope,
    Registry,
    root,
)
from mmengine.runner import Runner
from torch import nn
from torch.utils._pytree import tree_leaves

from .families import FAMILIES, decoder
from .inputs import ImageInput, WordInput, make_input
from .registry import MODELS as REPL_MODELS
from .registry import PACKAGES, WEIGHTS, class_of
from .surgery import check_keys, repl_backbones

NO_PATHS = ('type', '_scope_', 'backend_args', 'file_client_args')  # keys whose values are no paths of data
HEALING = ('student', 'teacher', 'temperature', 'norm_eval')  # words of a HealedModel, beside its model's
PATHS = ('ann_file', 'data_prefix', 'img_path', 'img_prefix', 'seg_map_path', 'seg_prefix', 'proposal_file')


class ConfigError(ValueError):
    """A config that cannot be read, or that lacks what is asked of it."""


# ---- types ----------------------------------------------------------------------------------------------------------


def type_name(cfg: Any) -> str:
    """Return the bare name of a type.

    Args:
        cfg (Any): A config with a ``type``, or what may stand there: a name, with or without a scope or a module path,
            a class, a builder function.

    Returns:
        str: For instance 'ResNet' or 'RepLResNet'; '' if there is none.
    """
    return _type_text(cfg).rpartition('.')[2]


def _type_text(cfg: Any) -> str:
    """Type with its scope or module path."""
    kind = cfg.get('type', '') if isinstance(cfg, dict) else cfg
    if isinstance(kind, LazyAttr | LazyObject):
        return f'{kind.module}.{kind}'
    if isinstance(kind, str):
        return kind
    name = getattr(kind, '__name__', '')
    return f'{kind.__module__}.{name}' if name else ''


def without_objects(node: Any) -> Any:
    """Return a copy of a part of a config with names in place of classes and functions: it can be written then."""
    if isinstance(node, dict):
        return type(node)({key: without_objects(value) for key, value in node.items()})
    if isinstance(node, list | tuple):
        return type(node)(without_objects(value) for value in node)
    return _type_text(node) if inspect.isclass(node) or inspect.isfunction(node) else copy.deepcopy(node)


def has_repl_type(node: dict) -> bool:
    """Return whether the config of a module names one of our RepL types: mmpretrain has a RepLKNet of its own."""
    return type_name(node) in _repl_types()


def _repl_types() -> dict[str, Callable]:
    """Builders of RepL backbones by name."""
    REPL_MODELS.import_from_location()
    return {name: found for name, found in REPL_MODELS.module_dict.items() if name.startswith('RepL')}


def served_backbones() -> list[str]:
    """Return the names of all stock backbones that RepL serves."""
    return sorted(name for family in FAMILIES for name in family.BACKBONES)


def unknown_type(error: Exception) -> str | None:
    """Return one line for an error of building: a type that no registry has, or an argument that it does not take.

    Args:
        error (Exception): What mmengine raised.

    Returns:
        str | None: With names that would be valid, the closest first; None if it is another error.
    """
    found = re.search(r'(\S+) is not in the (\S+)::(.+?) registry', str(error))
    if isinstance(error, KeyError) and found:
        name, scope, kind = (word.strip('\'"') for word in found.groups())
        bare = name.rpartition('.')[2]
        ours = kind == 'model' and bare.startswith('RepL')
        if ours:
            valid = [f'RepL{stock}' for stock in served_backbones()]
        else:
            registries = [r for r in vars(root).values() if isinstance(r, Registry) and r.name == kind]
            valid = [key for registry in registries for key in _registered(registry)]
        near = difflib.get_close_matches(bare, valid, n=3)
        others = [key for key in valid if key not in near] if ours else []
        expected = f': expected one of {", ".join([*near, *others])}' if near or others else ''
        return f"type='{name}' is not known in scope {scope} ({kind}){expected}"
    if isinstance(error, TypeError) and re.search(r'unexpected keyword argument|required positional arg', str(error)):
        return str(error)
    if isinstance(error, KeyError) and error.args and ' ' in str(error.args[0]):  # a sentence, not a key
        return str(error.args[0])
    return None


def _registered(registry: Registry) -> list[str]:
    """The names in a root registry and in those of the packages that have been loaded."""
    return [name for each in (registry, *registry.children.values()) for name in each.module_dict]


def check_optimizer(cfg: Config) -> None:
    """Check that the optimizer of a config exists; mmengine's own constructors stumble over one that does not.

    Raises:
        ConfigError: It does not.
    """
    _check_type(OPTIMIZERS, 'optim_wrapper.optimizer', (cfg.get('optim_wrapper') or {}).get('optimizer'), cfg)


def check_types(cfg: Config) -> None:
    """Check that the types of a config's hooks, schedulers, metrics, datasets and transforms are registered.

    Raises:
        ConfigError: One is not; or ``default_scope`` is of no package that is here.
    """
    scope = cfg.get('default_scope')
    if scope is not None and not importlib.util.find_spec(scope) and scope not in MODELS.children:
        raise ConfigError(f"default_scope='{scope}': no package of this name is installed")
    check_optimizer(cfg)
    parts = [
        (HOOKS, 'custom_hooks', cfg.get('custom_hooks')),
        (PARAM_SCHEDULERS, 'param_scheduler', cfg.get('param_scheduler')),
    ]
    for phase in ('train', 'val', 'test'):
        evaluator = cfg.get(f'{phase}_evaluator')
        if isinstance(evaluator, dict) and 'metrics' in evaluator:  # as mmengine tells an evaluator from a metric
            parts.append((EVALUATOR, f'{phase}_evaluator', dict(dict(type='Evaluator'), **evaluator)))
            evaluator = evaluator['metrics']
        parts.append((METRICS, f'{phase}_evaluator', evaluator))
        dataset = (cfg.get(f'{phase}_dataloader') or {}).get('dataset')
        parts.append((DATASETS, f'{phase}_dataloader.dataset', dataset))
        if isinstance(dataset, dict):
            parts.append((TRANSFORMS, f'{phase}_dataloader.dataset.pipeline', dataset.get('pipeline')))
    for registry, key, nodes in parts:
        for node in nodes if isinstance(nodes, list | tuple) else [nodes]:
            _check_type(registry, key, node, cfg)


def _check_type(registry: Registry, key: str, node: Any, cfg: Config) -> None:
    """Check that a registry has the type of a part of a config, if it is a name."""
    kind = node.get('type') if isinstance(node, dict) else None
    scope = node.get('_scope_', cfg.get('default_scope')) if isinstance(node, dict) else None
    if not isinstance(kind, str) or class_of(registry, kind, scope) is not None:
        return
    near = difflib.get_close_matches(kind.rpartition('.')[2], _registered(registry), n=3)
    raise ConfigError(f"{key}: type='{kind}' is not known" + (f': expected one as {", ".join(near)}' if near else ''))


# ---- backbones of a model -------------------------------------------------------------------------------------------


def all_backbones(model: dict) -> dict[tuple, dict]:
    """Find all backbones in a model's config, of RepL, of a stock type that it serves, or of any other.

    They stand where a key speaks of a backbone: ``backbone``, ``backbone_cfg``, ``image_encoder``; RepL types stand
    anywhere.

    Args:
        model (dict): ``cfg.model``.

    Returns:
        dict[tuple, dict]: The backbones' configs by their path, for instance ``('detector', 'backbone')``.
    """
    nodes = _dicts(model)
    return {p: node for p, node in nodes if has_repl_type(node) or (_speaks_of_backbone(p) and type_name(node))}


def find_backbones(model: dict | None) -> dict[tuple, dict]:
    """Find the backbones that RepL works on, anywhere in a model's config.

    These are all RepL backbones: those with a RepL type or a key ``replace``. Without any, they are the stock
    backbones that RepL serves.

    Args:
        model (dict | None): ``cfg.get('model')``.

    Returns:
        dict[tuple, dict]: The backbones' configs by their path, for instance ``('detector', 'backbone')``.

    Raises:
        ValueError: There is none.
    """
    if not model:
        raise ConfigError('the config has no model: expected one with a backbone')
    stock = all_backbones(model)
    found = {path: node for path, node in stock.items() if 'replace' in node or has_repl_type(node)}
    if found:
        return found
    served = {path: node for path, node in stock.items() if _is_served(node)}
    if served:
        return served
    if not stock:
        raise ConfigError('the model of the config has no backbone: expected a dict with a type, as in model.backbone')
    raise ConfigError(_unsupported([type_name(node) for node in stock.values()]))


def _is_served(node: dict) -> bool:
    return has_repl_type(node) or f'RepL{type_name(node)}' in _repl_types()


def _unsupported(types: list[str]) -> str:
    types = ', '.join(map(repr, dict.fromkeys(types)))
    return f'RepL does not support backbone type {types}, only {", ".join(served_backbones())}'


def _speaks_of_backbone(path: tuple) -> bool:
    key = next((key for key in reversed(path) if isinstance(key, str)), '')
    return 'backbone' in key or key == 'image_encoder'


def _dicts(node: Any, path: tuple = ()) -> Iterator[tuple[tuple, dict]]:
    """All dicts in a config with their paths."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from _dicts(value, (*path, key))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _dicts(value, (*path, index))


def with_backbones(model: dict, function: Callable[[dict], dict]) -> dict:
    """Return a copy of a model's config in which each backbone of :func:`find_backbones` is what a function gives.

    Args:
        model (dict): ``cfg.model``.
        function (Callable): Takes the config of a backbone and returns another one.
    """
    paths = find_backbones(model)
    model = copy.deepcopy(model)
    for path in paths:
        model = _changed(model, path, function)
    return model


def _changed(node: Any, path: tuple, function: Callable) -> Any:
    if not path:
        return function(node)
    node = list(node) if isinstance(node, tuple) else node
    node[path[0]] = _changed(node[path[0]], path[1:], function)
    return node


# ---- stock and RepL -------------------------------------------------------------------------------------------------


def stock_type(backbone: dict) -> Any:
    """Return the stock type of a RepL backbone's config; any other type as it is.

    The scope is that of the RepL type; for our own scope it is none, unless the stock backbone is ours as well.
    """
    if not has_repl_type(backbone):
        return backbone['type']
    name = type_name(backbone).removeprefix('RepL')
    package = _package(backbone)
    if package:
        return f'{package}.{name}'
    return f'repl_mm.{name}' if name in REPL_MODELS.module_dict else name


def repl_type(backbone: dict) -> str:
    """Return the RepL type of a stock or RepL backbone's config, in the scope of the same package.

    Raises:
        ValueError: The type is a class that no registry has, for which there is no RepL type.
    """
    if not _is_served(backbone):
        raise ConfigError(_unsupported([type_name(backbone)]))
    name = type_name(backbone).removeprefix('RepL')
    return f'{_package(backbone) or "repl_mm"}.RepL{name}'


def _package(backbone: dict) -> str:
    """The package whose registry has a type, by its scope or its class; '' for the plain name or our own.

    Raises:
        ValueError: The type is a class that no registry has.
    """
    text, name = _type_text(backbone), type_name(backbone)
    package, _, rest = text.partition('.')
    if not rest or package == 'repl_mm':
        return ''
    if package in {*PACKAGES, *MODELS.children}:
        return package
    if name in _repl_types():
        return ''
    for registry in (MODELS, *MODELS.children.values()):
        if name in registry.module_dict and _type_text(registry.module_dict[name]) == text:
            return '' if registry is MODELS else registry.scope
    raise ConfigError(
        f"there is no RepL type for the class {text}: expected one that a package's registry has, as 'mmdet.{name}', "
        'or your own that is registered (docs/families.md)'
    )


def stock_config(backbone: dict) -> dict:
    """Return the config of the stock backbone: the same keys without ``replace``, the stock type, no weights."""
    cfg = {key: value for key, value in without_weights(backbone).items() if key != 'replace'}
    return dict(cfg, type=stock_type(cfg))


def without_weights(backbone: dict) -> dict:
    """Return the config of a backbone without what says where its weights come from.

    mmseg's ``TIMMBackbone`` would fetch weights by default: there, ``pretrained`` is False.
    """
    cfg = {key: value for key, value in backbone.items() if key not in WEIGHTS}
    return dict(cfg, pretrained=False) if type_name(cfg).endswith('TIMMBackbone') else cfg


def repl_config(backbone: dict, **replace: Any) -> dict:
    """Return the config of the RepL backbone, without weights.

    Args:
        backbone (dict): Config of a stock or RepL backbone.
        **replace: Words of ``replace`` to change; without any it is the configured or the default plan.
    """
    cfg = stock_config(backbone)
    return dict(cfg, type=repl_type(cfg), replace={**check_keys(backbone.get('replace')), **replace})


def plain_config(model: dict) -> dict:
    """Return the config of a model itself for that of a healed one; any other as it is."""
    if type_name(model) != 'HealedModel':
        return model
    return dict({key: value for key, value in model.items() if key not in HEALING}, type=model['student'])


# ---- building -------------------------------------------------------------------------------------------------------


def build(cfg: dict, scope: str | None = None) -> nn.Module:
    """Build a module from its config within a config's ``default_scope``."""
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(copy.deepcopy(dict(cfg)))


def init_keys(cfg: dict, scope: str | None = None) -> dict[str, Any]:
    """Return the arguments with their defaults that a config's class and its base classes take.

    Args:
        cfg (dict): Config of a stock module.
        scope (str | None): The config's ``default_scope``. Defaults to None, mmengine's own.

    Raises:
        ValueError: The scope has no such type.
    """
    scope = cfg.get('_scope_', scope)
    with DefaultScope.overwrite_default_scope(scope), MODELS.switch_scope_and_registry(None) as registry:
        kind = registry.get(cfg['type']) if isinstance(cfg['type'], str) else cfg['type']
    if kind is None:
        raise ConfigError(f'backbone type {cfg["type"]!r} is not registered in scope {scope!r}')
    keys = {}
    for base in reversed(kind.__mro__):
        if '__init__' in vars(base) and base is not object:
            keys.update((key, value.default) for key, value in inspect.signature(base.__init__).parameters.items())
    return keys


def params_outside(model: dict, scope: str | None = None) -> int:
    """Count the trainable parameters of a model outside of all its backbones: neck, heads.

    Args:
        model (dict): ``cfg.model``, with stock or RepL backbones.
        scope (str | None): The config's ``default_scope``. Defaults to None, mmengine's own.
    """
    built = build(with_backbones(model, repl_config), scope)
    built.train()
    inside = {id(p) for _, backbone in repl_backbones(built) for p in backbone.parameters()}
    return sum(p.numel() for p in built.parameters() if p.requires_grad and id(p) not in inside)


# ---- training -------------------------------------------------------------------------------------------------------


def optimizer_moments(cfg: Config) -> tuple[int, str]:
    """Return the fp32 values per trainable parameter in the state of a config's optimizer, and the optimizer's name.

    Returns:
        tuple[int, str]: 1 and 'SGD with momentum', mm's default, if the config names none.
    """
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    name = type_name(optimizer) or 'SGD'
    if name != 'SGD':
        return (2 if 'Adam' in name else 1), name
    if optimizer and not optimizer.get('momentum'):
        return 0, 'SGD without momentum'
    return 1, 'SGD with momentum'


def takes_words(backbone: dict) -> bool:
    """Return whether the backbone of a config takes numbers of words, not images."""
    return type_name(backbone).removeprefix('RepL') in decoder.BACKBONES


def example_input(cfg: Config, shape: tuple[int, ...] | None = None, batch: int = 2) -> ImageInput | WordInput:
    """Return what the backbones of a config are measured on.

    Args:
        cfg (Config): A config with stock or RepL backbones.
        shape (tuple[int] | None): Height and width, or the number of words. Defaults to None: the ``size`` of the
            config's data preprocessor (classifiers, segmentors), without one 800x1344, or as many words as the network
            has positions, and no more than 1024.
        batch (int): Images or texts in a step. Defaults to 2.
    """
    if shape is None:
        words = [node for node in find_backbones(cfg.get('model')).values() if takes_words(node)]
        positions = [node.get('n_positions') or node.get('max_position_embeddings') or 1024 for node in words]
        size = (cfg.get('model', {}).get('data_preprocessor') or {}).get('size') or ImageInput().shape
        shape = (min(*positions, 1024),) if words else size
        shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
    return make_input(shape, batch)


def input_size(cfg: Config, phase: str = 'train') -> tuple[int, ...]:
    """Return the size of the first batch.

    Args:
        cfg (Config): A config whose data is there.
        phase (str): 'train', 'val' or 'test'. Defaults to 'train'.

    Returns:
        tuple[int]: Batch size, height and width as the backbone sees them, or batch size and number of words.
    """
    MessageHub.get_current_instance().update_info('iter', 0)  # YOLOX's resizing of batches asks a training for it
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        loader = dict(copy.deepcopy(cfg[f'{phase}_dataloader']), num_workers=0, persistent_workers=False)
        preprocessor = MODELS.build(cfg.model.data_preprocessor)
        batch = next(iter(Runner.build_dataloader(loader, seed=0)))
        inputs = tree_leaves(preprocessor(batch, training=phase == 'train')['inputs'])[
            0
        ]  # of the first branch, if it has some
    return inputs.shape[0], *inputs.shape[-2 if inputs.dim() > 2 else -1 :]


# ---- files ----------------------------------------------------------------------------------------------------------


def config_file(name: str) -> str:
    """Return the path of a config: a file's own, or that of ``PACKAGE::PATH`` in an installed package.

    Packages carry their configs in their folder ``.mim/configs``; ours are beside the package in a checkout.

    Raises:
        ConfigError: The package is not installed or carries no such config.
    """
    package, in_package, path = name.partition('::')
    if not in_package:
        return name
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if not (spec and spec.origin):
        raise ConfigError(f"config '{name}': {package} is not installed")
    inside = Path(spec.origin).parent
    folders = [inside / '.mim' / 'configs', *([inside.parent / 'configs'] if package == 'repl_mm' else [])]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise ConfigError(f"config '{name}': {package} carries no configs")
    if not (folder / path).is_file():
        below = {f.name: f.relative_to(folder) for f in sorted(folder.rglob('*.py')) if '_base_' not in f.parts}
        near = difflib.get_close_matches(Path(path).name, below, n=3)
        example = ' or '.join(f'{package}::{below[file]}' for file in near) or f'{package}::FOLDER/NAME.py of {folder}'
        raise ConfigError(f"config '{name}': {package} has no such config; expected one as {example}")
    return str(folder / path)


def read_config(name: str) -> Config:
    """Return the config of a file, or of ``PACKAGE::PATH`` out of an installed package, as ``mmdet::FOLDER/NAME.py``.

    A ``data_preprocessor`` beside the model, as mmpretrain's configs have it, is put into it, as a Runner does.

    Raises:
        ConfigError: The file, the package or a base is not there, or it is no config.
    """
    path = config_file(name)
    if os.path.isdir(path):
        raise ConfigError(f"config '{name}' is a folder: expected a file")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program: anything may go wrong in it
        said = error if isinstance(error, OSError | ImportError) else f'{type(error).__name__}: {error}'
        if '_get_package_and_cfg_path' in str(error):  # mmengine's own function
            said = (
                "in _base_ mmengine wants PACKAGE::FOLDER/NAME.py, as 'repl_mm::_base_/../NAME.py' for a name of ours"
            )
        raise ConfigError(f"config '{name}': {said}") from error
    if isinstance(cfg.get('model'), dict) and cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    return cfg


def inherit(name: str, file: Path, path: tuple[str, ...], backbone: dict, options: dict | None = None) -> str:
    """Return the text of a config that inherits another one and has other words in its backbone.

    Args:
        name (str): The other config, as of :func:`read_config`.
        file (Path): Where the text will stand.
        path (tuple[str]): Of the backbone in the model.
        backbone (dict): The words; a dict among them takes the place of what is inherited.
        options (dict | None): Settings by dotted key that the text takes in as well. Defaults to None.

    Raises:
        ConfigError: The config is a pure-Python one, which is inherited by importing.
    """
    base = config_file(name)
    if Config._is_lazy_import(base):
        raise ConfigError(
            f"config '{name}' is a pure-Python one, which is inherited by importing: write the words into it"
        )
    if '::' not in name or name.startswith('repl_mm::'):  # mmengine does not find ours in an editable installation
        base, name = Path(base).resolve(), ''
        name = os.path.relpath(base, file.resolve().parent)
    inherited = Config.fromfile(config_file(name)) if '::' in name else Config.fromfile(str(base))
    changes = Config({})
    changes.merge_from_dict(options or {})
    changes, old = changes.to_dict(), inherited.to_dict()
    node = changes
    for key in ('model', *path):
        node = node.setdefault(key, {})
        old = old.get(key, {})
    for key, value in backbone.items():
        node[key] = dict(_delete_=True, **value) if isinstance(value, dict) and key in old else value
    return f'_base_ = {name!r}\n{Config(changes).pretty_text}'


def set_data_root(cfg: Config, folder: str) -> None:
    """Move every path of the dataloaders and evaluators from the config's ``data_root`` to a folder, in place.

    A path is below ``data_root`` if it is so by its components: data/cifar100 is not below data/cifar10. Where
    ``data_root`` is empty, everything is: then the known keys of relative paths (:data:`PATHS`) are moved, in nodes
    without a ``data_root`` of their own, and every other empty ``data_root``.

    Args:
        cfg (Config): The config.
        folder (str): Where the data is.

    Raises:
        ConfigError: The config has no ``data_root``.
    """
    old = cfg.get('data_root')
    if not isinstance(old, str):
        raise ConfigError(
            '--data-root: the config has no data_root to replace; use --cfg-options train_dataloader.dataset...'
        )
    for phase in ('train', 'val', 'test'):
        for part in ('dataloader', 'evaluator'):
            _move(cfg.get(f'{phase}_{part}') or {}, _plain(old), folder)
    cfg.data_root = os.path.join(folder, '')


def _plain(path: str) -> str:
    """A path without the signs that change nothing: a leading ./ and a trailing slash."""
    while path.startswith('./'):
        path = path[2:].lstrip('/')
    return '' if path == '.' else path.rstrip('/') or path


def _move(node: dict | list, old: str, folder: str) -> None:
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        if key in NO_PATHS:
            continue
        if not old and key in PATHS and node.get('data_root') is None:
            node[key] = _below(value, folder)
        elif isinstance(value, dict | list):
            _move(value, old, folder)
        elif not old and key == 'data_root' and value is not None and not _plain(value):
            node[key] = os.path.join(folder, '')
        elif old and isinstance(value, str) and f'{_plain(value)}/'.startswith(f'{old}/'):
            node[key] = os.path.join(folder, value[value.index(old) + len(old) :].lstrip('/'))


def _below(value: Any, folder: str) -> Any:
    """Relative paths, perhaps in a dict or a list, below a folder; what is absolute, remote or empty as it is."""
    if isinstance(value, dict):
        return type(value)({key: _below(item, folder) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(_below(item, folder) for item in value)
    if not isinstance(value, str) or not value or os.path.isabs(value) or '://' in value:
        return value
    return os.path.join(folder, value)
