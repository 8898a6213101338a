"""How alike two activations are: cosine similarity and linear CKA; and how little each block changes what it gets."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .choosing import Place, replaceable
from .conversion import frozen
from .families import find_family


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
    a, b = (x - x.mean(0) for x in map(vectors, (a, b)))
    norms = (a.T @ a).norm() * (b.T @ b).norm()
    return ((a.T @ b).square().sum() / norms.clamp(min=1e-30)).item()


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
