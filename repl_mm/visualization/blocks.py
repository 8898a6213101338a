"""How alike the blocks of networks are, and whether that tells which of them can go."""

import math
import os
import statistics
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..choosing import Place, influences, name_of
from ..similarity import SIMILARITIES, block_similarities, rank_correlation
from ..tables import markdown


def neighbours(matrix: Tensor, places: Sequence[Place]) -> dict:
    """Say how alike blocks are that stand beside each other, and others.

    Args:
        matrix (Tensor): Linear CKA of all blocks of a network, (blocks, blocks).
        places (Sequence[tuple[int, int]]): The blocks, as (stage, index).

    Returns:
        dict: ``median`` and ``lowest`` of neighbours, ``at``, the names of the two that are least alike, and
        ``others``, the median of all other pairs (None where there are none).
    """
    beside = [float(matrix[i, i + 1]) for i in range(len(places) - 1)]
    apart = [float(matrix[i, j]) for i in range(len(places)) for j in range(i + 2, len(places))]
    worst = min(range(len(beside)), key=beside.__getitem__)
    return dict(
        median=statistics.median(beside),
        lowest=beside[worst],
        at=[name_of(places[worst]), name_of(places[worst + 1])],
        others=statistics.median(apart) if apart else None,
    )


def prediction(backbone: nn.Module, images: Tensor, head: Callable | None = None) -> dict:
    """Ask whether blocks whose output resembles their input can go: measure both, and correlate their ranks.

    Args:
        backbone (nn.Module): A stock backbone with trained weights; it stays as it is.
        images (Tensor): Normalized images (N, 3, H, W) where the backbone is.
        head (Callable | None): As in :func:`repl_mm.choose`. Defaults to None, the backbone's outputs count.

    Returns:
        dict: ``outputs``, 'model' or 'backbone': whose outputs counted; ``influence`` by the name of a block; and by
        kind ('cosine', 'cka') the ``similarity`` of its input and output by the same names, with ``rho`` and ``p`` of
        Spearman's rank correlation with the influence: negative if what is alike can go, None for fewer than three
        blocks.

    Raises:
        PlanError: No block can be replaced, or outputs are not finite.
    """
    influence = influences(backbone, images, head)
    found = dict(outputs='backbone' if head is None else 'model')
    found['influence'] = {name_of(place): value for place, value in influence.items()}
    for kind in SIMILARITIES:
        alike = block_similarities(backbone, images, kind)
        pair = [alike[place] for place in influence], list(influence.values())
        rho, p = rank_correlation(*pair) if len(influence) > 2 else (None, None)
        found[kind] = dict(similarity={name_of(place): alike[place] for place in influence}, rho=rho, p=p)
    return found


def similarity_tables(matrices: dict[tuple[str, str], Tensor], places: Sequence[Place], predictions: dict) -> str:
    """Return what :func:`draw_similarity` draws as Markdown tables: medians, extremes, rank correlations."""
    own, between, ranks = [], [], []
    for (rows, others), matrix in matrices.items():
        if rows == others:
            said = neighbours(matrix, places)
            rest = '' if said['others'] is None else f'{said["others"]:.3f}'
            own.append((rows, f'{said["median"]:.3f}', f'{said["lowest"]:.3f}', ' '.join(said['at']), rest))
        else:
            same = matrix.diagonal()
            said = f'{float(same.median()):.3f}', f'{float(same.min()):.3f}', name_of(places[int(same.argmin())])
            between.append((f'{rows}, {others}', *said))
    for name, found in predictions.items():
        for kind in SIMILARITIES:
            rho, p = found[kind]['rho'], found[kind]['p']
            said = ('-', '-') if rho is None else (f'{rho:+.2f}', f'{p:.2g}')
            ranks.append((name, kind, found['outputs'], str(len(found['influence'])), *said))
    tables = [
        (('arm', 'neighbours, median', 'lowest', 'of', 'all others, median'), own),
        (('the same block of', 'median', 'lowest', 'of'), between),
        (('rank correlation with influence', 'similarity', 'outputs of the', 'blocks', 'Spearman', 'p'), ranks),
    ]
    return '\n\n'.join(markdown(header, rows) for header, rows in tables if rows)


def draw_similarity(
    matrices: dict[tuple[str, str], Tensor],
    places: Sequence[Place],
    predictions: dict[str, dict],
    path: str | os.PathLike,
) -> None:
    """Draw linear CKA of the blocks of networks, and similarity against influence.

    Args:
        matrices (dict[tuple[str, str], Tensor]): By the names of two networks, the rows' first; twice the same one for
            a network with itself.
        places (Sequence[tuple[int, int]]): The blocks of all of them, as (stage, index).
        predictions (dict[str, dict]): By network, of :func:`prediction`.
        path (str | os.PathLike): The picture to write.
    """
    from matplotlib.figure import Figure

    count = len(matrices) + len(predictions)
    columns = 2 if count == 4 else min(count, 3)
    figure = Figure(figsize=(4.2 * columns, 4 * math.ceil(count / columns)), layout='constrained')
    panels = figure.subplots(math.ceil(count / columns), columns, squeeze=False).ravel()
    ticks = range(0, len(places), math.ceil(len(places) / 16))
    labels = [name_of(places[tick]) for tick in ticks]
    shown = []
    for axes, ((rows, others), matrix) in zip(panels, matrices.items(), strict=False):
        image = axes.imshow(matrix.numpy(), vmin=0, vmax=1, cmap='magma')
        axes.set_xticks(ticks, labels, fontsize=7, rotation=90)
        axes.set_yticks(ticks, labels, fontsize=7)
        axes.set_xlabel(f'block of {others}', fontsize=8)
        axes.set_ylabel(f'block of {rows}', fontsize=8)
        shown.append(axes)
    figure.colorbar(image, ax=shown, label='linear CKA', shrink=0.7)
    for axes, (name, found) in zip(panels[len(matrices) :], predictions.items(), strict=False):
        alike = found['cka']['similarity']
        axes.scatter(alike.values(), found['influence'].values(), s=12)
        for block, x in alike.items():
            axes.annotate(block, (x, found['influence'][block]), (3, 2), textcoords='offset points', fontsize=7)
        rho = found['cka']['rho']
        said = '' if rho is None else f', rank correlation {rho:+.2f}'
        axes.set_title(f'{name}: {len(alike)} blocks{said}', fontsize=9)
        axes.set_xlabel("CKA of a block's input and output", fontsize=8)
        axes.set_ylabel('influence: left out', fontsize=8)
        if min(found['influence'].values()) > 0:
            axes.set_yscale('log')
    for axes in panels[count:]:
        axes.axis('off')
    figure.savefig(path, dpi=100)
