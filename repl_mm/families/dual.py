"""DDRNet and PIDNet of mmseg: chains of BasicBlocks and Bottlenecks in two branches of different resolution.

The stem and the branch of low resolution are one branch of stages, the branch of high resolution is another; PIDNet's
third branch has no chains. The last block of a chain has no activation behind the addition.
"""

import functools

from torch import nn

from . import residual
from .contract import misfit_of_blocks, missing, missing_weights
from .residual import DEFAULTS, OPERATORS, Parts  # noqa: F401  (part of the family)

BACKBONES = ('DDRNet', 'PIDNet')
REFUSED = {
    'STDCNet': 'its blocks concatenate what their convolutions give, and have no shortcut',
    'STDCContextPathNet': 'the blocks of its STDCNet concatenate what their convolutions give, and have no shortcut',
}
LISTS = (('context_branch_layers', 'spatial_branch_layers'), ('i_branch_layers', 'p_branch_layers'))


def misfit(backbone: nn.Module) -> str | None:
    """A stem and two lists of chains, of blocks of mmcv's modules of convolution and activation."""
    found = dict(_chains(backbone))
    wrong = misfit_of_blocks(found, _lacking) if len(found) > 1 else 'it has no two branches'
    return wrong and f'{wrong}; expected stem, and {" and ".join(LISTS[0])} or {" and ".join(LISTS[1])}'


def _lacking(block: nn.Module) -> list[str]:
    lacking = missing(block, ['conv1', 'conv2'])
    if lacking:
        return lacking
    found = parts(block)
    return missing_weights(block, dict.fromkeys((*found.reduce, *found.spatial, *found.expand)), dim=4)


def _chains(backbone: nn.Module) -> list[tuple[str, nn.Sequential]]:
    """All chains of blocks by name, in order."""
    low, high = next((pair for pair in LISTS if hasattr(backbone, pair[0])), LISTS[0])
    lists = (('stem', getattr(backbone, 'stem', ())), *((name, getattr(backbone, name, ())) for name in (low, high)))
    found = [(f'{name}.{i}', chain) for name, chains in lists for i, chain in enumerate(chains)]
    return [(name, chain) for name, chain in found if isinstance(chain, nn.Sequential)]


def stages(backbone: nn.Module) -> list[nn.Sequential]:
    """The chains of the stem and of the branch of low resolution, then those of the branch of high resolution."""
    return [chain for _, chain in _chains(backbone)]


def frozen(backbone: nn.Module) -> tuple:
    """None: these backbones have no ``frozen_stages``."""
    return ()


def openers(backbone: nn.Module) -> list[int]:
    """The stages whose first block changes stride or width."""
    return [i for i, stage in enumerate(stages(backbone)) if getattr(stage[0], 'downsample', None) is not None]


def branches(backbone: nn.Module) -> list[int]:
    """The first stage of the other branch, and those of Bottlenecks, which BasicBlocks have nothing in common with."""
    chains = _chains(backbone)
    kinds = [(name.startswith(('spatial', 'p_')), hasattr(chain[0], 'conv3')) for name, chain in chains]
    return [i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]]


def parts(block: nn.Module) -> Parts:
    """The convolutions of a BasicBlock or a Bottleneck by their roles."""
    names = ('conv1', 'conv2', 'conv3') if hasattr(block, 'conv3') else ('conv1', 'conv2')
    modules = [getattr(block, name) for name in names]
    convs = [f'{name}.conv' for name in names]
    basic = len(names) == 2
    return Parts(
        (convs[0],),
        (convs[0 if basic else 1],),
        (convs[-1],),
        conv=tuple(convs) if basic else (),
        norms=tuple(module.norm if module.with_norm else None for module in modules),
        activation=modules[0].activate,
        last=getattr(block, 'act', nn.Identity()),
    )


# both add to what their blocks give, in place
build = functools.partial(residual.build, parts, copies=True)
