"""How alike two activations are: cosine similarity and linear CKA; and how little each block changes what it gets."""

from collections.abc import Sequence
from contextlib import closing

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from .choosing import PIXELS, Place, replaceable
from .conversion import frozen, tensors
from .families import find_family

KEPT = 2**33  # bytes of activations that are looked at together


def cosine(a: Tensor, b: Tensor) -> float:
    """Mean cosine similarity of the vectors of two activations, position by position.

    Args:
        a (Tensor): Feature map (N, C, H, W), or tokens (N, L, C).
        b (Tensor): Of the same shape.

    Returns:
        float: From -1 to 1; 1 if they are the same up to a positive factor for each position.
    """
    return torch.nn.functional.cosine_similarity(*map(vectors, (a, b))).mean().item()


def linear_cka(a: Tensor, b: Tensor) -> float:
    """Linear centred kernel alignment of two activations (Kornblith et al., arXiv 1905.00414), over all positions.

    Args:
        a (Tensor): Feature map (N, C, H, W), or tokens (N, L, C).
        b (Tensor): As many positions, of any number of channels.

    Returns:
        float: From 0 to 1; 1 if they are the same up to rotation, scale and shift of the channels.
    """
    a, b = map(_centred, (a, b))
    return _cka(a, b, *map(_own, (a, b)))


def _centred(x: Tensor) -> Tensor:
    x = vectors(x)
    return x - x.mean(0)


def _own(a: Tensor) -> Tensor:
    """The part of linear CKA's denominator that one activation gives."""
    return (a.T @ a).norm()


def _cka(a: Tensor, b: Tensor, own_a: Tensor, own_b: Tensor) -> float:
    return ((a.T @ b).square().sum() / (own_a * own_b).clamp(min=1e-30)).item()


def cka_matrix(rows: Sequence[Tensor], columns: Sequence[Tensor] | None = None) -> Tensor:
    """Linear CKA of every activation with every other one, as :func:`linear_cka` has it.

    Of two feature maps of different sizes the finer one is averaged onto the grid of the coarser one.

    Args:
        rows (Sequence[Tensor]): Feature maps (N, C, H, W), or tokens (N, L, C), of the same N images.
        columns (Sequence[Tensor] | None): Others, of the same images. Defaults to None, the same ones.

    Returns:
        Tensor: float64, (rows, columns).

    Raises:
        ValueError: Two of them have no positions in common, as tokens beside feature maps.
    """
    same, columns = columns is None, rows if columns is None else columns
    found = torch.ones(len(rows), len(columns), dtype=torch.float64)
    pairs = [(i, j) for i in range(len(rows)) for j in range(len(columns)) if not same or i < j]
    own = {}  # of each activation on each grid, which many pairs share
    with closing(track(pairs, 'comparing blocks')) as turns:
        for i, j in turns:
            a, b = on_one_grid(rows[i], columns[j])
            keys = ('row', i, a.shape), ('row' if same else 'column', j, b.shape)
            a, b = map(_centred, (a, b))
            for key, x in zip(keys, (a, b), strict=True):
                if key not in own:
                    own[key] = _own(x)
            found[i, j] = _cka(a, b, *(own[key] for key in keys))
            if same:
                found[j, i] = found[i, j]
    return found


def on_one_grid(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two activations of as many positions: of two feature maps the finer one is averaged onto the coarser grid.

    Raises:
        ValueError: They have no positions in common.
    """
    if a.dim() == b.dim() == 4 and len(a) == len(b):
        grid = [min(sides) for sides in zip(a.shape[2:], b.shape[2:], strict=True)]
        return tuple(x if [*x.shape[2:]] == grid else F.adaptive_avg_pool2d(x, grid) for x in (a, b))
    if a.dim() != b.dim() or a.shape[:2] != b.shape[:2]:
        raise ValueError(
            f'activations of shapes {tuple(a.shape)} and {tuple(b.shape)} have no positions in common: expected '
            'networks of one kind, and the same images'
        )
    return a, b


def vectors(x: Tensor) -> Tensor:
    """An activation as double-precision vectors of its channels, (positions, C).

    Raises:
        ValueError: It is neither a feature map nor tokens.
    """
    if x.dim() == 4:
        x = x.permute(0, 2, 3, 1)
    elif x.dim() != 3:
        raise ValueError(f'an activation of shape {tuple(x.shape)}: expected (N, C, H, W) or (N, L, C)')
    return x.reshape(-1, x.shape[-1]).double()


SIMILARITIES = dict(cosine=cosine, cka=linear_cka)


def block_similarities(backbone: nn.Module, images: Tensor, kind: str = 'cosine') -> dict[Place, float]:
    """How alike the input and the output of each replaceable block are: what resembles an identity may be left out.

    Args:
        backbone (nn.Module): A stock backbone with trained weights; it stays as it is.
        images (Tensor): Normalized images (N, 3, H, W).
        kind (str): 'cosine' or 'cka'. Defaults to 'cosine'.

    Returns:
        dict[tuple[int, int], float]: By (stage, index).

    Raises:
        PlanError: No block can be replaced.
        ValueError: ``kind`` is not valid.
    """
    if kind not in SIMILARITIES:
        raise ValueError(f'kind={kind!r} is not valid: expected one of {", ".join(map(repr, SIMILARITIES))}')
    stages, found = find_family(backbone).stages(backbone), {}

    def hook(place):
        def record(block, args, output):
            found[place] = SIMILARITIES[kind](args[0], output)

        return record

    handles = [stages[s][i].register_forward_hook(hook((s, i))) for s, i in replaceable(backbone)]
    try:
        with frozen(backbone), torch.no_grad():
            backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def block_outputs(backbone: nn.Module, images: Tensor) -> dict[Place, Tensor]:
    """What each block of a backbone puts out, computing layers included.

    Args:
        backbone (nn.Module): A stock or RepL backbone; it stays as it is.
        images (Tensor): Normalized images (N, 3, H, W).

    Returns:
        dict[tuple[int, int], Tensor]: By (stage, index), in the order of the chain: feature maps (N, C, H, W), or
        tokens (N, L, C) where the block is not told their grid; on the CPU.

    Raises:
        PlanError: The backbone is not supported.
        ValueError: There is more of it than :data:`KEPT` bytes.
    """
    stages = find_family(backbone).stages(backbone)
    blocks = {(s, i): stage[i] for s, stage in enumerate(stages) for i in range(len(stage))}
    batches, found = images.split(max(1, PIXELS // images[0, 0].numel())), {place: [] for place in blocks}

    def hook(place):
        def record(block, args, output):
            x = tensors(output)[0]
            grid = args[1] if len(args) > 1 and isinstance(args[1], list | tuple | torch.Size) else ()
            if x.dim() == 3 and len(grid) == 2 and x.shape[1] == grid[0] * grid[1]:
                x = x.transpose(1, 2).unflatten(2, tuple(grid))
            found[place].append(x.to('cpu', copy=True))  # DDRNet changes it in place

        return record

    handles = [block.register_forward_hook(hook(place)) for place, block in blocks.items()]
    try:
        with frozen(backbone), torch.no_grad(), closing(track(batches, 'running the network')) as turns:
            for number, batch in enumerate(turns):
                backbone(batch)
                if not number:
                    size = sum(x.nbytes for parts in found.values() for x in parts) * len(images) / len(batch)
                    if size > KEPT:
                        raise ValueError(
                            f'{len(images)} images of {images.shape[-2]}x{images.shape[-1]}: what the blocks put out '
                            f'takes {size / 1e9:.1f} GB, at most {KEPT / 1e9:.1f} GB can be compared; expected fewer '
                            'or smaller images'
                        )
    finally:
        for handle in handles:
            handle.remove()
    return {place: torch.cat(parts) for place, parts in found.items()}


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Spearman's rank correlation, and how likely one so far from 0 is by chance (scipy's, of the extra `tools`).

    Args:
        a (Sequence[float]): One number for each of some things.
        b (Sequence[float]): Another one for each of them.

    Returns:
        tuple[float, float]: The correlation, from -1 to 1, and the two-sided p-value of permutations: of all of them
        for up to seven pairs, else of 9999 drawn ones.

    Raises:
        ValueError: There are fewer than three pairs.
    """
    from scipy.stats import permutation_test, rankdata, spearmanr

    if len(a) < 3:
        raise ValueError(f'{len(a)} pairs have no rank correlation: expected at least 3')
    ranks = rankdata(b)
    chance = permutation_test(
        (rankdata(a),), lambda x, axis: (x * ranks).sum(axis), permutation_type='pairings', vectorized=True, rng=0
    )
    return float(spearmanr(a, b).statistic), float(chance.pvalue)


def most_alike(similarities: dict[Place, float], num: int) -> list[Place]:
    """Return the places of the ``num`` blocks whose inputs and outputs are most alike, in the order of the chain."""
    return sorted(sorted(similarities, key=similarities.get, reverse=True)[:num])


def latest(places: Sequence[Place], num: int) -> list[Place]:
    """Return the last ``num`` places of a chain."""
    return list(places)[-num:]


def random_places(places: Sequence[Place], num: int, draws: int = 10, seed: int = 0) -> list[list[Place]]:
    """Return ``draws`` different sets of ``num`` places, at random; all there are where these are fewer."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for _ in range(100 * draws):
        chosen = torch.randperm(len(places), generator=generator)[:num].tolist()
        found[tuple(sorted(places[i] for i in chosen))] = None
        if len(found) == draws:
            break
    return [list(chosen) for chosen in found]
