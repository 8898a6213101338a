"""Features of test images in a plane, by t-SNE; and what a picture cannot prove, the accuracy of nearest neighbours.

Needs scikit-learn (extra ``tools``).
"""

import os
from collections.abc import Sequence
from contextlib import closing

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from ..config import ConfigError
from ..conversion import frozen
from ..heads import pooled

NEIGHBOURS = 10
LEGEND = 20  # classes that still have a line in a legend


def test_features(cfg: Config, backbone: nn.Module, num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, tuple]:
    """Return what a backbone makes of images of its config's test set: its last output, pooled.

    Args:
        cfg (Config): Of a classifier.
        backbone (nn.Module): A stock or RepL backbone; it stays as it is.
        num (int): Images, at most, drawn at random.
        seed (int): Of the draw: the same one for every network. Defaults to 0.

    Returns:
        tuple[np.ndarray, np.ndarray, tuple]: The features (N, C), the classes (N,) and the classes' names.

    Raises:
        ConfigError: The test set has no classes of images.
    """
    device = next(backbone.parameters()).device
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        whole = Runner.build_dataloader(dict(cfg.test_dataloader, num_workers=0, persistent_workers=False), seed=0)
        preprocessor = MODELS.build(cfg.model.data_preprocessor).to(device)
    chosen = torch.randperm(len(whole.dataset), generator=torch.Generator().manual_seed(seed))[:num].tolist()
    loader = DataLoader(Subset(whole.dataset, chosen), whole.batch_size, collate_fn=whole.collate_fn)
    features, labels = [], []
    with frozen(backbone), torch.no_grad(), closing(track(loader, 'features')) as batches:
        for batch in batches:
            data = preprocessor(batch)
            labels.append(_labels(data))
            features.append(pooled(backbone(data['inputs'])).float().cpu())
    names = (getattr(whole.dataset, 'metainfo', None) or {}).get('classes') or ()
    return torch.cat(features).numpy(), torch.cat(labels).cpu().numpy(), tuple(names)


test_features.__test__ = False  # for pytest


def _labels(data: dict) -> Tensor:
    """The classes of a preprocessed batch: ours, or mmpretrain's."""
    samples = data.get('data_samples')
    if isinstance(data.get('labels'), Tensor):
        return data['labels']
    if samples and all(hasattr(sample, 'gt_label') for sample in samples):
        return torch.cat([sample.gt_label for sample in samples])
    raise ConfigError("the config's test set has no classes of images: expected that of a classifier")


def neighbour_accuracy(features: np.ndarray, labels: np.ndarray, k: int = NEIGHBOURS) -> float:
    """Return the share of images whose class is that of most of their ``k`` nearest neighbours, themselves left out.

    Args:
        features (np.ndarray): (N, C).
        labels (np.ndarray): Classes, (N,).
        k (int): Neighbours, by Euclidean distance. Defaults to 10.

    Raises:
        ValueError: There are no more than ``k`` images.
    """
    from sklearn.neighbors import KNeighborsClassifier

    if len(features) <= k:
        raise ValueError(f'{len(features)} images have no {k} neighbours each: expected at least {k + 1}')
    return float(KNeighborsClassifier(k).fit(features, labels).score(None, labels))


def embed(arms: dict[str, np.ndarray], seed: int = 0, perplexity: float = 30) -> dict[str, np.ndarray]:
    """Place the features of several networks in a plane by t-SNE, all from the same start.

    The start is the plane of the first network's two principal components, as small as scikit-learn makes it: so what
    stands where is comparable.

    Args:
        arms (dict[str, np.ndarray]): Features (N, C) of the same images by network; C may differ.
        seed (int): Of t-SNE. Defaults to 0.
        perplexity (float): As of t-SNE. Defaults to 30.

    Returns:
        dict[str, np.ndarray]: By network (N, 2).

    Raises:
        ValueError: There are no more images than ``perplexity``, or not the same number of each network.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    first, *others = arms.values()
    if any(len(x) != len(first) for x in others) or len(first) <= perplexity:
        counts = ', '.join(f'{name} {len(x)}' for name, x in arms.items())
        raise ValueError(f'images ({counts}): expected more than {perplexity:g}, as many of each network')
    start = PCA(2, random_state=seed).fit_transform(first)
    start = start / start[:, 0].std() * 1e-4
    found = {}
    with closing(track(arms.items(), 't-SNE')) as turns:
        for name, features in turns:
            tsne = TSNE(2, perplexity=perplexity, init=start.copy(), random_state=seed, learning_rate='auto')
            found[name] = tsne.fit_transform(features.astype(np.float32))
    return found


def draw_embedding(
    planes: dict[str, np.ndarray], labels: np.ndarray, titles: Sequence[str], path: str | os.PathLike, names=()
) -> None:
    """Draw planes of :func:`embed` beside one another, a colour for each class.

    Args:
        planes (dict[str, np.ndarray]): By network (N, 2).
        labels (np.ndarray): Classes, (N,).
        titles (Sequence[str]): Above each of them: its accuracy belongs there.
        path (str | os.PathLike): The picture to write.
        names (Sequence[str]): Of the classes, for a legend of up to 20. Defaults to none, their numbers.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    classes = np.unique(labels)
    colours = colormaps['tab10' if len(classes) <= 10 else 'tab20' if len(classes) <= LEGEND else 'turbo']
    figure = Figure(figsize=(4 * len(planes) + 1, 4), layout='constrained')
    panels = figure.subplots(1, len(planes), squeeze=False)[0]
    for axes, plane, title in zip(panels, planes.values(), titles, strict=True):
        for number, label in enumerate(classes):
            points = plane[labels == label].T
            colour = colours(number if len(classes) <= LEGEND else number / len(classes))
            name = names[label] if len(names) > label else str(label)
            axes.scatter(*points, s=4, color=colour, linewidths=0, label=name)
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=9)
    if len(classes) <= LEGEND:
        figure.legend(*panels[0].get_legend_handles_labels(), loc='outside right upper', fontsize=8, markerscale=4)
    figure.savefig(path, dpi=100)
