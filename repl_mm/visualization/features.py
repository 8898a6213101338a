"""Feature maps of several networks on the same pictures: their mean, and their principal components as colours."""

import io
import os
from collections.abc import Sequence

import numpy as np
import torch
from mmengine.visualization import Visualizer
from torch import Tensor, nn

from ..conversion import frozen, tensors
from ..similarity import vectors

SPREAD = 2.5  # standard deviations of a component from the middle of a colour to its end


@torch.no_grad()
def feature_maps(backbone: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the feature maps that a backbone puts out, its stages; class tokens are left out.

    Args:
        backbone (nn.Module): A stock or RepL backbone; it stays as it is.
        images (Tensor): Normalized images (N, 3, H, W).

    Returns:
        list[Tensor]: Of each stage (N, C, h, w), on the CPU.

    Raises:
        ValueError: It puts out none.
    """
    with frozen(backbone):
        maps = [x.float().cpu() for x in tensors(backbone(images)) if x.dim() == 4]
    if not maps:
        raise ValueError(f'{type(backbone).__name__} puts out no feature maps (N, C, H, W)')
    return maps


def pca_colours(maps: Sequence[Tensor]) -> list[Tensor]:
    """Show the three principal components of the channels, over all pictures, as red, green and blue.

    Components have no sign and no fixed order, so those of every further network are rotated onto those of the first:
    where two networks do the same, the colours are the same. A rotation of the colours is all that this changes.

    Args:
        maps (Sequence[Tensor]): Of one stage of each network, (N, C, H, W); the networks may differ in C.

    Returns:
        list[Tensor]: Of each network (N, H, W, 3), from 0 to 1.

    Raises:
        ValueError: The maps are of different sizes.
    """
    sizes = {(len(x), *x.shape[2:]) for x in maps}
    if len(sizes) > 1:
        shapes = ' and '.join(str(tuple(x.shape)) for x in maps)
        raise ValueError(f'feature maps of {shapes} cannot be compared: expected the same sizes')
    colours = []
    for x in maps:
        points = vectors(x)
        points = points - points.mean(0)
        directions = torch.linalg.eigh(points.T @ points).eigenvectors[:, -3:].flip(1)
        scores = points @ directions
        scores = torch.nn.functional.pad(scores, (0, 3 - scores.shape[1]))
        scores = scores / scores.std(0).clamp(min=1e-12)
        if colours:
            left, _, right = torch.linalg.svd(scores.T @ colours[0])
            scores = scores @ left @ right
        colours.append(scores)
    shape = (len(maps[0]), *maps[0].shape[2:], 3)
    return [(0.5 + scores / (2 * SPREAD)).clamp(0, 1).reshape(shape).float() for scores in colours]


def draw_features(
    arms: dict[str, Sequence[Tensor]], pictures: np.ndarray, path: str | os.PathLike, names: Sequence[str] = ()
) -> None:
    """Draw the feature maps of several networks, a row for each picture and network.

    In each row: the picture, and of each stage the mean of its channels (each map from its own least to its own
    greatest value, drawn by mmengine's ``Visualizer.draw_featmap``) and their principal components as colours.

    Args:
        arms (dict[str, Sequence[Tensor]]): Of each network its maps, as of :func:`feature_maps`.
        pictures (np.ndarray): uint8, (N, H, W, 3), in RGB order.
        path (str | os.PathLike): The picture to write.
        names (Sequence[str]): Of the stages. Defaults to their numbers.

    Raises:
        ValueError: The networks have different numbers of stages, or maps of different sizes.
    """
    from matplotlib.figure import Figure
    from PIL import Image  # matplotlib needs it

    counts = {name: len(maps) for name, maps in arms.items()}
    if len({*counts.values()}) > 1:
        raise ValueError(f'networks of different numbers of feature maps ({counts}): expected the same stages')
    stages = list(zip(*arms.values(), strict=True))  # of each stage the maps of all networks
    names = names or [f'stage {number}' for number in range(len(stages))]
    colours = [pca_colours(maps) for maps in stages]
    rows, columns = len(pictures) * len(arms), 1 + 2 * len(stages)
    height = 1.5 * pictures.shape[1] / pictures.shape[2]
    figure = Figure(figsize=(1.5 * columns, height * rows + 0.5), layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False)
    for row, line in enumerate(panels):
        picture, arm = divmod(row, len(arms))
        drawn = [pictures[picture]]
        for maps, tints in zip(stages, colours, strict=True):
            drawn += [Visualizer.draw_featmap(maps[arm][picture]), tints[arm][picture].numpy()]
        for axes, image in zip(line, drawn, strict=True):
            axes.imshow(image, extent=(0, pictures.shape[2], pictures.shape[1], 0))
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(list(arms)[arm], fontsize=9)
    titles = [f'{name}\n{kind}' for name in names for kind in ('mean', 'PCA')]
    for axes, title in zip(panels[0], ['picture', *titles], strict=True):
        axes.set_title(title, fontsize=9)
    with io.BytesIO() as drawing:  # maps are noisy: a palette makes the file three times smaller
        figure.savefig(drawing, dpi=80)
        Image.open(drawing).convert('RGB').quantize(256).save(path, optimize=True)
