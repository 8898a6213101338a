"""CSPDarknet (YOLOX), CSPNeXt (RTMDet) and Darknet-53 of mmdet: chains of blocks with nothing behind the shortcut.

A stage is the chain inside a CSP layer, or behind the first convolution of a Darknet stage. Chains without shortcuts
(the last one of a CSPDarknet) are no stages.
"""

import functools

from torch import nn

from . import residual
from .contract import Children, misfit_of_blocks, missing, missing_weights
from .residual import DEFAULTS, Parts  # noqa: F401  (part of the family)

BACKBONES = ('CSPDarknet', 'CSPNeXt', 'Darknet')
REFUSED = {}
OPERATORS = ('separable', 'half', 'full')
EXPECTED = 'lists of blocks with conv1 and conv2 in the CSP layers of stage1, stage2, ..., or in conv_res_block1, ...'


def misfit(backbone: nn.Module) -> str | None:
    """Every chain has blocks of ``conv1`` and ``conv2``, which are mmcv's modules of convolution and activation."""
    found = _chains(backbone)
    wrong = misfit_of_blocks(dict(found), _lacking) if found else 'it has no CSP layers and no conv_res_block1'
    return wrong and f'{wrong}; expected {EXPECTED}'


def _lacking(block: nn.Module) -> list[str]:
    for conv in ('conv1', 'conv2'):
        if missing(block, [f'{conv}.pointwise_conv']) and missing(block, [f'{conv}.conv']):
            return [conv]
    found = parts(block)
    return missing_weights(block, dict.fromkeys((*found.reduce, *found.spatial, *found.expand)), dim=4)


def _chains(backbone: nn.Module) -> list[tuple[str, nn.Sequential | Children]]:
    """Names of the parts of a backbone, and the blocks with a shortcut in them; parts without any are left out."""
    found = []
    for i in range(1, 10):
        stage = getattr(backbone, f'stage{i}', None)
        for j, layer in enumerate(stage if isinstance(stage, nn.Sequential) else ()):
            if hasattr(layer, 'blocks') and all(getattr(block, 'add_identity', True) for block in layer.blocks):
                found.append((f'stage{i}.{j}.blocks', layer.blocks))
        stage = getattr(backbone, f'conv_res_block{i}', None)
        if stage is not None:
            names = [name for name, _ in stage.named_children() if name.startswith('res')]
            found.append((f'conv_res_block{i}', Children(stage, names)))
    return found


def stages(backbone: nn.Module) -> list[nn.Sequential | Children]:
    """The chains of blocks with a shortcut."""
    return [blocks for _, blocks in _chains(backbone)]


def frozen(backbone: nn.Module) -> list[int]:
    """``frozen_stages=k`` freezes ``stage1`` .. ``stage<k>`` of a CSP network, and one less of a Darknet."""
    names = backbone.layers[1:] if hasattr(backbone, 'stem') else backbone.cr_blocks[1:]
    count = backbone.frozen_stages if hasattr(backbone, 'stem') else backbone.frozen_stages - 1
    still = names[: max(0, count)]
    return [i for i, (name, _) in enumerate(_chains(backbone)) if name.partition('.')[0] in still]


def openers(backbone: nn.Module) -> tuple:
    """None: a convolution in front of the blocks sets stride and width."""
    return ()


def parts(block: nn.Module) -> Parts:
    """The convolutions of a block by their roles: 1x1 and 3x3 in Darknets, 3x3, depthwise and 1x1 in CSPNeXt.

    With ``use_depthwise`` a 3x3 is a depthwise and a 1x1 one.
    """
    first, last = block.conv1, block.conv2
    split = hasattr(first, 'pointwise_conv')
    reduce = ('conv1.pointwise_conv.conv',) if split else ('conv1.conv',)
    module = first.pointwise_conv if split else first
    if hasattr(last, 'pointwise_conv'):
        spatial, expand = ('conv2.depthwise_conv.conv',), ('conv2.pointwise_conv.conv',)
        norms = tuple(_norm(part) for part in (module, last.depthwise_conv, last.pointwise_conv))
    else:
        spatial = expand = ('conv2.conv',)
        norms = (_norm(module), _norm(last))
    activation = module.activate if module.with_activation else nn.Identity()
    return Parts(reduce, spatial, expand, norms=norms, activation=activation, last=nn.Identity())


def _norm(module: nn.Module) -> nn.Module | None:
    """The norm of one of mmcv's modules."""
    return module.norm if module.with_norm else None


build = functools.partial(residual.build, parts)
