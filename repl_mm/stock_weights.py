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

from .config import build

HEADS = ('head.', 'fc.', 'linear.')  # what public classifiers call their last layer
# timm's names of a ViT -> mmseg's
TIMM = {
    'patch_embed.proj.': 'patch_embed.projection.',
    'blocks.': 'layers.',
    '.norm': '.ln',
    '.attn.qkv.': '.attn.attn.in_proj_',
    '.attn.proj.': '.attn.attn.out_proj.',
    '.mlp.fc1.': '.ffn.layers.0.0.',
    '.mlp.fc2.': '.ffn.layers.1.',
}


def read_stock(path: str, prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read a checkpoint.

    Args:
        path (str): File, or a name that mmengine knows, such as ``torchvision://resnet50``.
        prefix (str): Of the backbone in the config's model, for instance ``'backbone.'``.

    Returns:
        tuple[dict, dict]: The backbone's tensors by their names in it, and all others by their names in the model.

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
    timm = 'blocks.0.attn.qkv.weight' in state
    backbone = {mmseg_name(key) if timm else key: state[key] for key in state if key not in heads}
    return backbone, {f'head.{key.partition(".")[2]}': value for key, value in heads.items()}


def mmseg_name(key: str) -> str:
    """mmseg's name of a tensor of timm's VisionTransformer."""
    for timm, mmseg in TIMM.items():
        key = key.replace(timm, mmseg)
    return f'ln1{key.removeprefix("norm")}' if key.startswith('norm.') else key


def load_backbone(settings: dict, scope: str | None, state: dict[str, Tensor]) -> tuple[nn.Module, list[str]]:
    """Build a stock backbone with weights, which it reads by its own code: that knows other names and sizes.

    Args:
        settings (dict): Config of the backbone.
        scope (str | None): The config's ``default_scope``.
        state (dict): The weights.

    Returns:
        tuple[nn.Module, list[str]]: The backbone, and the names in ``state`` that have no place in it.

    Raises:
        ValueError: Tensors of the backbone are not among the weights.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / 'stock.pth')
        torch.save(dict(state_dict=state), file)
        backbone = build(dict(settings, init_cfg=ConfigDict(type='Pretrained', checkpoint=file)), scope)
        with torch.no_grad():
            for tensor in backbone.state_dict().values():
                if tensor.is_floating_point():
                    tensor.fill_(torch.nan)
        with quiet_log():  # mmengine's says of every tensor where it comes from
            backbone.init_weights()
    own = backbone.state_dict()
    left = [name for name, tensor in own.items() if tensor.isnan().any()]
    if left:
        raise ValueError(
            f'has no values for {len(left)} of {len(own)} tensors of the stock {type(backbone).__name__} '
            f"({shorten(left)}): expected its weights, in its own names, or timm's of a ViT; mmseg's wheel has "
            'converters for others in .mim/tools/model_converters'
        )
    return backbone, [name for name in state if name not in own]


@contextmanager
def quiet_log() -> Iterator[None]:
    """Warnings only in mmengine's log."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)


def shorten(names: Sequence[str]) -> str:
    """The first names of a list, for a message."""
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
