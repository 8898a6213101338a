"""Public weights of stock networks, by mm's names and timm's."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from .config import build, type_name, without_weights

HEADS = ('head.', 'fc.', 'linear.')  # what public classifiers call their last layer
# timm's names of a ViT -> mm's, and mmseg's alone; layer scale (DINOv2, DeiT III) is mmpretrain's alone
TIMM = {
    'patch_embed.proj.': 'patch_embed.projection.',
    'blocks.': 'layers.',
    '.norm': '.ln',
    '.mlp.fc1.': '.ffn.layers.0.0.',
    '.mlp.fc2.': '.ffn.layers.1.',
    '.ls1.gamma': '.attn.gamma1.weight',
    '.ls2.gamma': '.ffn.gamma2.weight',
}
MMSEG = {'.attn.qkv.': '.attn.attn.in_proj_', '.attn.proj.': '.attn.attn.out_proj.'}


def read_stock(path: str, prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read a checkpoint.

    Args:
        path (str): File, or a name that mmengine knows, such as ``torchvision://resnet50``.
        prefix (str): Of the backbone in the config's model, for instance ``'backbone.'``.

    Returns:
        tuple[dict, dict]: The backbone's tensors by their names in it, and all others by their names in the model.
            Of a classifier that is no mm model, the first are all of it: ``head.`` may be a norm of the backbone's.

    Raises:
        ValueError: It cannot be had, or is none.
    """
    try:
        state = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    except (OSError, ImportError) as error:  # no network, or torchvision's names without torchvision
        raise ValueError(f'cannot be had: {error}; expected a file, or a name that is reached from here') from error
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError('is no checkpoint, or holds more than weights: expected tensors by name') from error
    if not isinstance(state, dict):
        raise ValueError(f'holds {type(state).__name__}: expected tensors by name')
    state = next((state[key] for key in ('state_dict', 'model') if key in state), state)
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    if any(key.startswith(prefix) for key in state):
        backbone = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        return backbone, {key: value for key, value in state.items() if not key.startswith(prefix)}
    heads = {key: value for key, value in state.items() if key.startswith(HEADS)}
    return state, {f'head.{key.partition(".")[2]}': value for key, value in heads.items()}


def mm_name(key: str, names: dict[str, str]) -> str:
    """mm's name of a tensor of timm's VisionTransformer."""
    for timm, mm in names.items():
        key = key.replace(timm, mm)
    return f'ln1{key.removeprefix("norm")}' if key.startswith('norm.') else key


def load_backbone(settings: dict, scope: str | None, state: dict[str, Tensor]) -> tuple[nn.Module, list[str]]:
    """Build a stock backbone with weights.

    They are in its own names, or in others that its own code reads: that of mm's backbones, of timm in a
    ``TIMMBackbone``. timm's names of a ViT are those of mm's ViTs too.

    Args:
        settings (dict): Config of the backbone.
        scope (str | None): The config's ``default_scope``.
        state (dict): The weights.

    Returns:
        tuple[nn.Module, list[str]]: The backbone, and the names in ``state`` that have no place in it.

    Raises:
        ValueError: Tensors of the backbone are not among the weights.
    """
    settings = without_weights(settings)
    backbone = build(settings, scope)
    own = backbone.state_dict()
    if 'blocks.0.attn.qkv.weight' in state and 'layers.0.ln1.weight' in own:
        names = {**TIMM, **(MMSEG if 'layers.0.attn.attn.in_proj_weight' in own else {})}
        state = {mm_name(key, names): value for key, value in state.items()}
    fitting = {key: state[key] for key in own if key in state and state[key].shape == own[key].shape}
    left = [key for key, tensor in own.items() if tensor.is_floating_point() and key not in fitting]
    if not left:  # mm's converters of foreign names would spoil these
        backbone.load_state_dict(fitting, strict=False)
    else:
        read = read_by_timm if type_name(settings).endswith('TIMMBackbone') else read_by_mm
        with tempfile.TemporaryDirectory() as folder:
            backbone, left = read(settings, scope, state, str(Path(folder) / 'stock.pth'))
    if left:
        raise ValueError(
            f'has no values for {len(left)} of {len(own)} tensors of the stock {type(backbone).__name__} '
            f"({shorten(left)}): expected its weights, in its own names or in timm's of a ViT; mmseg's wheel "
            'has converters for others in .mim/tools/model_converters'
        )
    foreign = type_name(settings).endswith('TIMMBackbone') and not fitting
    return backbone, [key for key in state if not (foreign or key in own or key.startswith(HEADS))]


def read_by_mm(settings: dict, scope: str | None, state: dict[str, Tensor], file: str) -> tuple[nn.Module, list[str]]:
    """Build a backbone that reads weights by its own code.

    Args:
        settings (dict): Config of the backbone.
        scope (str | None): The config's ``default_scope``.
        state (dict): The weights.
        file (str): Where they are written for it.

    Returns:
        tuple[nn.Module, list[str]]: The backbone, and the names of its tensors that got no values.
    """
    if type_name(settings) == 'SwinTransformer' and not settings.get('convert_weights'):  # mmdet's reads no others
        state = state | {f'backbone.{key}': value for key, value in state.items()}
    torch.save(dict(state_dict=state), file)
    backbone = build(dict(settings, init_cfg=ConfigDict(type='Pretrained', checkpoint=file)), scope)
    with torch.no_grad():
        for tensor in backbone.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
    with quiet_log():  # mmengine's says of every tensor where it comes from
        backbone.init_weights()
    return backbone, [name for name, tensor in backbone.state_dict().items() if tensor.isnan().any()]


def read_by_timm(
    settings: dict, scope: str | None, state: dict[str, Tensor], file: str
) -> tuple[nn.Module, list[str]]:
    """The same for what is around a network of timm, which reads weights as it is built: those without values first.

    Raises:
        ValueError: timm finds that they are not the network's.
    """
    nothing = {key: torch.full_like(x, torch.nan) if x.is_floating_point() else x for key, x in state.items()}
    overlay = dict(settings.get('pretrained_cfg_overlay') or {}, file=file)
    for values in (nothing, state):
        torch.save(values, file)
        try:
            backbone = build(dict(settings, pretrained=True, pretrained_cfg_overlay=overlay), scope)
        except (RuntimeError, KeyError) as error:
            raise ValueError(f'was not read by timm: {" ".join(str(error).split())[:300]}') from error
        if values is nothing:
            own = backbone.state_dict()
            left = [name for name, x in own.items() if x.is_floating_point() and not x.isnan().all()]
    return backbone, left


@contextmanager
def quiet_log() -> Iterator[None]:
    """Errors only in mmengine's log: the caller names what got no values in one line."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(level)


def shorten(names: Sequence[str]) -> str:
    """The first names of a list, for a message."""
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
