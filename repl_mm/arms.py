"""The language of arms: what is compared with what, in one word each.

::

    e2e       the stock backbone, no block replaced
    fuse      RepL; remove, patch, linear, share, own, random: the same slots with that `mode`
    full      fused weights in the structure of the replaced block (`mode='fuse', operator='full'`)
    detach    RepL without gradient to the neighbours through the computing layers (`mode='fuse', detach=True`)
    KEY=VALUE RepL with other words in `replace`, for instance `operator=mlp` or `operator=mlp,ratio=0.5`

After a colon any of these takes words of the backbone itself, and with the prefix `model.` words of the model:
`e2e:depth=20` (a shallower stock net), `fuse:drop_path_rate=0.1`, `e2e:base_channels=12,model.in_channels=48`.
Two words without a value switch something on in the built backbone: `efficient_conv_bn_eval` (mmengine's) and
`non_reentrant` (the checkpoints of `with_cp=True`, as RepL needs them): `e2e:with_cp=True,non_reentrant`.
"""

import ast
import copy
import re
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval_for_single_model
from torch import nn

from .config import (
    ConfigError,
    build,
    find_backbones,
    has_repl_type,
    init_keys,
    repl_type,
    stock_config,
    stock_type,
    takes_words,
    type_name,
    with_backbones,
    without_objects,
    without_weights,
)
from .inputs import ImageInput, WordInput
from .non_reentrant import is_non_reentrant, make_all_non_reentrant
from .plan import MODES
from .surgery import check_keys

PLANS = {
    'e2e': None,
    'fuse': dict(mode='fuse'),
    **{mode: dict(mode=mode) for mode in MODES if mode != 'fuse'},
    'full': dict(mode='fuse', operator='full'),
    'detach': dict(mode='fuse', detach=True),
}
REFERENCES = ('e2e', 'remove')  # what every arm is compared with
DEFAULTS = ('e2e', 'fuse', 'remove')
SWITCHES = ('efficient_conv_bn_eval', 'non_reentrant')
_SWITCH = rf'(?:{"|".join(SWITCHES)})(?=,|$)'


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Attributes:
        name (str): Its text, see :mod:`repl_mm.arms`.
        replace (dict | None): Words of ``replace``; None: the stock backbone.
        settings (dict): Words of the backbone.
        model_settings (dict): Words of the model by dotted key, ``model.`` included.
        switches (tuple[str, ...]): Of :data:`SWITCHES`.
        inputs (ImageInput | WordInput): What the backbone is measured on.
    """

    name: str
    replace: dict | None
    settings: dict = field(default_factory=dict)
    model_settings: dict = field(default_factory=dict)
    switches: tuple[str, ...] = ()
    inputs: ImageInput | WordInput = ImageInput()


# ---- reading --------------------------------------------------------------------------------------------------------


def read_arm(text: str, inputs: ImageInput | WordInput | None = None) -> Arm:
    """Return the arm that a text names.

    Args:
        text (str): See :mod:`repl_mm.arms`.
        inputs (ImageInput | WordInput | None): What the backbone is measured on. Defaults to None, 2 images of
            800x1344.

    Raises:
        ValueError: It names none.
    """
    plan, *rest = _cut(text)
    try:
        settings, switches = _read_words(rest[0], SWITCHES) if rest else ({}, ())
        words = PLANS[plan] if plan in PLANS else _read_words(plan)[0]
    except ValueError as error:
        raise ValueError(
            f'{text!r} is no arm: {error}; expected one of {", ".join(PLANS)} or KEY=VALUE[,KEY=VALUE] of replace, '
            f'then perhaps :KEY=VALUE[,KEY=VALUE] of the backbone, {" or ".join(SWITCHES)}'
        ) from None
    model_settings = {key: settings.pop(key) for key in list(settings) if key.startswith('model.')}
    return Arm(text, words, settings, model_settings, switches, inputs or ImageInput())


def _cut(text: str) -> list[str]:
    """A text in two parts at its first colon, if there is one outside of brackets."""
    depth = 0
    for index, sign in enumerate(text):
        depth += (sign in '([{') - (sign in ')]}')
        if sign == ':' and not depth:
            return [text[:index], text[index + 1 :]]
    return [text]


def _read_words(text: str, switches: tuple[str, ...] = ()) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Values by key of a text such as ``operator=mlp,ratio=0.5``, and its switches.

    A value that is no Python literal is a string.
    """
    words, switched = {}, []
    for word in re.split(rf',(?=[\w.]+=|{_SWITCH})', text):  # a comma inside a list separates no words
        key, equals, value = word.partition('=')
        if word in switches:
            switched.append(word)
            continue
        if key in switches:
            raise ValueError(f'{word!r}: {key} is a switch and has no value')
        if not (key and equals and value):
            raise ValueError(f'{word!r} is not KEY=VALUE')
        try:
            words[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            words[key] = value
    return words, tuple(switched)


def default_arms(cfg: Config, inputs: ImageInput | WordInput | None = None) -> list[Arm]:
    """Return what is worth to set beside each other in a table of costs.

    Args:
        cfg (Config): A config with stock or RepL backbones.
        inputs (ImageInput | WordInput | None): What the backbones are measured on. Defaults to None, 2 images of
            800x1344.

    Returns:
        list[Arm]: e2e, fuse and remove; e2e and fuse with ``with_cp`` and, if their norms are batch norms, with
        ``efficient_conv_bn_eval``. What a backbone has no key for, or has already, is left out.

    Raises:
        ValueError: The scope of the config has no such backbone.
    """
    texts = list(DEFAULTS)
    nodes = [stock_config(node) for node in find_backbones(cfg.get('model')).values()]
    keys = [init_keys(node, cfg.get('default_scope')) | node for node in nodes]
    if all('with_cp' in found and not found['with_cp'] for found in keys):
        # mm's reentrant checkpoint leaves out the first block behind frozen stages: not an advantage of RepL's own
        texts += ['e2e:with_cp=True', 'e2e:with_cp=True,non_reentrant', 'fuse:with_cp=True']
    if all('BN' in str((found.get('norm_cfg') or {}).get('type', '')) for found in keys):
        texts += [f'{name}:efficient_conv_bn_eval' for name in ('e2e', 'fuse')]
    return [read_arm(text, inputs) for text in texts]


# ---- carrying out ---------------------------------------------------------------------------------------------------


def backbone_config(arm: Arm, node: dict) -> dict:
    """Return the config of an arm's backbone.

    Args:
        arm (Arm): The arm.
        node (dict): Config of the stock or RepL backbone; it stays as it is.

    Returns:
        dict: A copy in which only the arm's words differ; ``e2e`` has the stock type and no ``replace``.
    """
    cfg = without_objects(node)
    if arm.replace is None:
        cfg['type'] = stock_type(cfg)
        cfg.pop('replace', None)
    else:
        if not has_repl_type(cfg):
            cfg['type'] = repl_type(cfg)
        cfg['replace'] = {**check_keys(cfg.get('replace')), **copy.deepcopy(arm.replace)}
        if 'slots' not in arm.replace:
            cfg['replace'].update(_without_words(cfg['replace'], arm.replace))
    cfg.update(copy.deepcopy(arm.settings))
    return cfg


def _without_words(replace: dict, words: dict) -> dict:
    """The slots of a plan, without those of their own words that an arm gives to all of them."""
    slots = replace.get('slots')
    if not isinstance(slots, (list, tuple)):
        return {}
    left = [
        (*slot[:2], {key: value for key, value in slot[2].items() if key not in words})
        if isinstance(slot, (list, tuple)) and len(slot) == 3 and isinstance(slot[2], dict)
        else slot
        for slot in slots
    ]
    return dict(slots=[slot[:2] if len(slot) == 3 and not slot[2] else slot for slot in left])


def arm_config(arm: Arm, cfg: Config) -> Config:
    """Return the config that trains an arm.

    Args:
        arm (Arm): The arm.
        cfg (Config): A config with stock or RepL backbones; it stays as it is.

    Returns:
        Config: A copy with all backbones and the model's words changed, and the settings and hooks that carry out the
        switches. RepL where no RepL was gets the hook.

    Raises:
        ValueError: The model has no backbone that RepL serves.
    """
    paths = find_backbones(cfg.get('model'))
    cfg = copy.deepcopy(cfg)
    cfg.model = with_backbones(cfg.model, lambda node: backbone_config(arm, node))
    cfg.merge_from_dict(arm.model_settings)
    hooks = []
    if arm.replace is not None and not any('replace' in node or has_repl_type(node) for node in paths.values()):
        hooks.append(dict(type='repl_mm.RepLHook', shape=None))
    if 'non_reentrant' in arm.switches:
        hooks.append(dict(type='repl_mm.NonReentrantHook'))
    if hooks:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), *hooks]
    if 'efficient_conv_bn_eval' in arm.switches:
        names = ['.'.join(str(key).removesuffix('_cfg') for key in path) for path in paths]
        cfg.efficient_conv_bn_eval = names
    return cfg


def build_backbones(arm: Arm, cfg: Config) -> list[tuple[nn.Module, ImageInput | WordInput]]:
    """Build the backbones of an arm, alone and without weights, in the config's own scope.

    Args:
        arm (Arm): The arm.
        cfg (Config): A config with stock or RepL backbones.

    Returns:
        list[tuple[nn.Module, ImageInput | WordInput]]: Each backbone, and the arm's input with as many channels, or
        words, as it takes.

    Raises:
        ValueError: The model has no backbone that RepL serves, a word of the arm is not possible, or a switch has
            nothing to act on.
        TypeError: A backbone has no such word.
    """
    model = arm_config(arm, cfg).model
    backbones = []
    for path in find_backbones(cfg.get('model')):
        node = model
        for key in path:
            node = node[key]
        node = without_weights(node)
        backbone = build(node, cfg.get('default_scope'))
        for switch in arm.switches:
            _switch_on(switch, backbone)
        backbones.append((backbone, fitted(arm.inputs, node)))
    return backbones


def fitted(inputs: ImageInput | WordInput, node: dict) -> ImageInput | WordInput:
    """Return an input with as many channels, or words, as the backbone of a config takes.

    Raises:
        ConfigError: The backbone takes words, and the input is of images, or the other way round.
    """
    words = takes_words(node)
    if words != isinstance(inputs, WordInput):
        wanted = 'words: expected one number, as 128' if words else 'images: expected height and width'
        raise ConfigError(f'shape={inputs.shape} is not valid for a {type_name(node)}, which takes {wanted}')
    return inputs.fitted(node)


def _switch_on(switch: str, backbone: nn.Module) -> None:
    """Switch something on in a built backbone, as the settings and hooks of :func:`arm_config` do in a run."""
    name = type(backbone).__name__
    if switch == 'non_reentrant':
        make_all_non_reentrant(backbone)
        if not any(map(is_non_reentrant, backbone.modules())):
            raise ValueError(f'{switch} does nothing: no block of this {name} has with_cp=True')
    else:
        if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in backbone.modules()):
            raise ValueError(f'{switch} does nothing: this {name} has no batch norms')
        turn_on_efficient_conv_bn_eval_for_single_model(backbone)
