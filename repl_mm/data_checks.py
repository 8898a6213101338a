"""Checks before anything is computed: are the files there that a config's datasets and metrics read?"""

import importlib.metadata
import inspect
import os
from collections.abc import Iterator

import numpy as np
from mmengine.registry import DATASETS
from mmengine.utils import digit_version

from .registry import class_of


class DataError(ValueError):
    """A file of a dataset or a teacher is missing, cut off or another; the message names it and what was expected."""


def check_checkpoint(path: str | None) -> None:
    """Check that a checkpoint exists, if it is a local file; None is none.

    Raises:
        DataError: It does not.
    """
    if path and '://' not in path and not os.path.isfile(os.path.expanduser(path)):
        raise DataError(f"checkpoint '{path}' not found")


def check_data(cfg, *phases: str, option: str = '--data-root') -> None:
    """Check that what the datasets and the metrics of a config read exists, and that they can work.

    Args:
        cfg (Config): The config.
        *phases (str): Of 'train', 'val' and 'test'.
        option (str): Of the tool, that names another folder. Defaults to '--data-root'.

    Raises:
        DataError: A path does not exist, or a metric cannot work with what is installed.
    """
    missing = {path for phase in phases for path in expected_paths(cfg, phase) if not os.path.exists(path)}
    if missing:
        raise DataError(
            f'dataset not found, expected: {", ".join(sorted(missing))} (in {os.getcwd()}); '
            f'{option} FOLDER names another place'
        )
    check_metrics(cfg, *phases)


def check_metrics(cfg, *phases: str) -> None:
    """Check that the metrics of a config can work with what is installed.

    Raises:
        DataError: One cannot.
    """
    kinds = [str(metric.get('type')).lower() for phase in phases for metric in evaluators(cfg, phase)]
    if hasattr(np, 'in1d') or not any('cityscapesmetric' in kind for kind in kinds):
        return
    try:
        version = importlib.metadata.version('cityscapesscripts')
    except importlib.metadata.PackageNotFoundError:
        raise DataError("CityscapesMetric needs cityscapesscripts: install it, and 'numpy<2.4'") from None
    if digit_version(version) <= digit_version('2.3.0'):
        raise DataError(
            f'CityscapesMetric: cityscapesscripts {version} calls numpy.in1d, which numpy {np.__version__} does not '
            "have: install 'numpy<2.4'"
        )


def expected_paths(cfg, phase: str) -> Iterator[str]:
    """Yield the local files and folders that the datasets and metrics of ``phase`` read, wrappers included."""
    loader = cfg.get(f'{phase}_dataloader')
    if not loader:
        return
    for dataset in inner_datasets(loader['dataset']):
        prefix = dataset.get('data_prefix')
        parts = [dataset.get('ann_file'), *(prefix.values() if isinstance(prefix, dict) else [prefix])]
        names = [name for part in parts for name in (part if isinstance(part, (list, tuple)) else [part])]
        names = [name for name in names if isinstance(name, str) and name] or ['']
        paths = [os.path.join(dataset.get('data_root') or '', name) for name in names]
        if not (is_remote(dataset, paths) or downloads_itself(cfg, dataset)):
            yield from filter(None, paths)
    for evaluator in evaluators(cfg, phase):
        path = evaluator.get('ann_file')
        if isinstance(path, str) and not is_remote(evaluator, [path]):
            yield path


def evaluators(cfg, phase: str) -> list[dict]:
    """The configs of the metrics of ``phase``."""
    found = cfg.get(f'{phase}_evaluator') or []
    return [found] if isinstance(found, dict) else found


def inner_datasets(node: dict) -> Iterator[dict]:
    """Yield the configs of the datasets that read files, out of wrappers such as RepeatDataset or ConcatDataset."""
    inner = node.get('dataset') or node.get('datasets')
    if inner is None:
        yield node
    else:
        for child in [inner] if isinstance(inner, dict) else inner:
            yield from inner_datasets(child)


def is_remote(node: dict, paths: list[str]) -> bool:
    """Whether a dataset or a metric reads from elsewhere than the file system."""
    backend = (node.get('backend_args') or {}).get('backend', 'local')
    return backend != 'local' or any('://' in path for path in paths)


def downloads_itself(cfg, dataset: dict) -> bool:
    """Whether the class of a dataset fetches its files, as mmpretrain's CIFAR does."""
    kind = class_of(DATASETS, dataset['type'], cfg.get('default_scope'))
    switch = inspect.signature(kind).parameters.get('download') if kind else None
    return switch is not None and bool(dataset.get('download', switch.default))
