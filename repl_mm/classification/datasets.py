"""CIFAR-10, SVHN, STL-10 and ImageNet, each read from its official files. Nothing is downloaded.

The small ones lie in memory as one uint8 array, and a batch is one indexing of it: their loaders need no workers.
Every sample or batch is a dict of ``inputs``, uint8 images in RGB order (..., 3, H, W), and ``labels``, their classes.
"""

import codecs
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import Compose, default_collate
from torch.utils.data import Dataset

from ..data_checks import DataError
from ..pictures import PICTURES
from ..registry import DATASETS, FUNCTIONS


@FUNCTIONS.register_module()
def collate(samples) -> dict:
    """Collate samples into a batch; what a dataset gave as a batch already stays as it is."""
    return samples if isinstance(samples, dict) else default_collate(samples)


class Images(Dataset):
    """Base of the datasets.

    Args:
        data_root (str): Folder of the official files.
        split (str): One of the class's ``SPLITS``. Defaults to 'train'.
        indices (int | Sequence[int] | None): Only the first so many images, or those of these numbers. Defaults to
            None, all of them.
        pipeline (Sequence[dict]): Transforms of single images, mm's and those of
            :mod:`repl_mm.classification.transforms`; the last one is ``PackImage``. Defaults to none.
        num_classes (int | None): Number of classes that the data must have. Defaults to None, any.

    Attributes:
        images: The images, as :meth:`read` gives them.
        labels (Tensor): Their classes, int64.
        metainfo (dict): ``classes``, the names of the classes in their order.

    Raises:
        DataError: A file is missing, cut off or something else.
    """

    SPLITS = ('train', 'test')

    def __init__(self, data_root, split='train', indices=None, pipeline=(), num_classes=None):
        if split not in self.SPLITS:
            valid = ' or '.join(map(repr, self.SPLITS))
            raise ValueError(f'{type(self).__name__}.split={split!r} is not valid: expected {valid}')
        self.images, labels, classes = self.read(Path(data_root), split)
        self.labels = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
        if num_classes not in (None, len(classes)):
            raise DataError(f"'{data_root}', split {split!r}: {len(classes)} classes found, expected {num_classes}")
        if indices is not None:
            chosen = np.arange(len(self))[:indices] if isinstance(indices, int) else np.asarray(indices)
            self.images, self.labels = self.images[chosen], self.labels[chosen]
        self.metainfo = dict(classes=tuple(classes))
        self.pipeline = Compose(pipeline)

    def read(self, root: Path, split: str) -> tuple:
        """Read the files of a split.

        Returns:
            tuple: The images (something that arrays of numbers index), their classes, the names of the classes.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        return self.pipeline(self.sample(index))

    def sample(self, index: int) -> dict:
        """What goes into the pipeline: ``img`` in BGR order (H, W, 3), or ``img_path``; and ``label``."""
        raise NotImplementedError


class ArrayImages(Images):
    """Base of the datasets in memory: ``images`` is a uint8 tensor (N, 3, H, W)."""

    def __getitem__(self, index: int) -> dict:
        if self.pipeline.transforms:
            return super().__getitem__(index)
        return dict(inputs=self.images[index], labels=self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> dict | list[dict]:
        """What torch's loader asks for: images and labels of these numbers, a whole batch if there is no pipeline."""
        return [self[index] for index in indices] if self.pipeline.transforms else self[indices]

    def sample(self, index: int) -> dict:
        image = self.images[index].permute(1, 2, 0).flip(2).numpy()
        return dict(img=image, img_shape=image.shape[:2], label=self.labels[index])


@DATASETS.register_module()
class CIFAR10(ArrayImages):
    """CIFAR-10: 50,000 and 10,000 images of 32x32 pixels.

    ``data_root`` is the folder ``cifar-10-batches-py`` of the python version, or the one that it lies in.
    """

    def read(self, root, split):
        root = _inner(root, 'cifar-10-batches-py')
        meta = _unpickle(root / 'batches.meta')
        try:
            classes = [name.decode() for name in meta[b'label_names']]
            num = int(meta[b'num_cases_per_batch'])
        except (KeyError, AttributeError, TypeError, ValueError):
            raise DataError(f"'{root / 'batches.meta'}' does not name the classes of the python batches") from None
        names = [f'data_batch_{i}' for i in range(1, 6)] if split == 'train' else ['test_batch']
        images, labels = [], []
        for path in (root / name for name in names):
            batch = _unpickle(path)
            data, found = (batch.get(key) for key in (b'data', b'labels'))
            if not isinstance(data, np.ndarray) or data.shape != (num, 3072) or data.dtype != np.uint8:
                have = f'{data.dtype} {data.shape}' if isinstance(data, np.ndarray) else type(data).__name__
                raise DataError(f"'{path}' holds data of {have}; expected uint8 ({num}, 3072), by batches.meta")
            images.append(data)
            labels.append(_classes(found, num, len(classes), path))
        return torch.from_numpy(np.concatenate(images)).view(-1, 3, 32, 32), np.concatenate(labels), classes


@DATASETS.register_module()
class SVHN(ArrayImages):
    """SVHN, cropped digits: 73,257 and 26,032 images of 32x32 pixels; 'extra' has 531,131 more (needs scipy).

    ``data_root`` is the folder of ``train_32x32.mat`` and its siblings. The files' label 10 is the digit 0.
    """

    SPLITS = ('train', 'test', 'extra')

    def read(self, root, split):
        try:
            from scipy.io import loadmat
        except ImportError:
            raise DataError("SVHN is stored in MATLAB files, which scipy reads: install 'scipy'") from None
        path = _file(root / f'{split}_32x32.mat')
        try:
            found = loadmat(path, variable_names=('X', 'y'))
            images, labels = found['X'], found['y'].ravel()
        except Exception as error:  # noqa: BLE001  (scipy raises whatever its parser stumbles on)
            raise DataError(f"'{path}' is cut off or no MATLAB 5 file with X and y: {_line(error)}") from None
        if images.ndim != 4 or images.shape[:3] != (32, 32, 3) or images.dtype != np.uint8:
            raise DataError(f"'{path}' holds X of {images.dtype} {images.shape}; expected uint8 (32, 32, 3, N)")
        labels = _classes(labels, images.shape[3], 10, path, first=1) % 10
        images = torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1)))
        return images, labels, [str(digit) for digit in range(10)]


@DATASETS.register_module()
class STL10(ArrayImages):
    """STL-10, its labelled images: 5,000 and 8,000 of 96x96 pixels.

    ``data_root`` is the folder ``stl10_binary``, or the one that it lies in.
    """

    def read(self, root, split):
        root = _inner(root, 'stl10_binary')
        path = _file(root / f'{split}_X.bin')
        images = np.fromfile(path, np.uint8)
        if not images.size or images.size % (3 * 96 * 96):
            raise DataError(f"'{path}' has {images.size} bytes; expected a multiple of 27648, the bytes of an image")
        images = images.reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)  # the files go column by column
        classes = _file(root / 'class_names.txt').read_text().split()
        path = _file(root / f'{split}_y.bin')
        labels = _classes(np.fromfile(path, np.uint8), len(images), len(classes), path, first=1)
        return torch.from_numpy(np.ascontiguousarray(images)), labels - 1, classes


@DATASETS.register_module()
class ImageNet(Images):
    """ImageNet, or any dataset with a folder of pictures per class: ``train/n01440764/n01440764_18.JPEG``.

    ``data_root`` is the folder of ``train`` and ``val``; classes are numbered in the order of their folders' names.
    """

    SPLITS = ('train', 'val')

    def read(self, root, split):
        root = root / split
        if not root.is_dir():
            raise DataError(f"'{root}' not found; expected a folder with one folder of pictures per class")
        classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        if not classes:
            raise DataError(f"'{root}' has no folders; expected one folder of pictures per class")
        paths, labels = [], []
        for label, name in enumerate(classes):
            names = sorted(n for n in os.listdir(root / name) if n.lower().endswith(PICTURES))
            if not names:
                raise DataError(f"'{root / name}' has no pictures; expected files that end in {', '.join(PICTURES)}")
            paths += [os.fsencode(root / name / n) for n in names]
            labels += [label] * len(names)
        return np.array(paths), labels, classes  # one array of bytes, which the loader's workers share

    def sample(self, index):
        return dict(img_path=os.fsdecode(self.images[index]), label=self.labels[index])


def _inner(root: Path, name: str) -> Path:
    """The folder ``name`` in ``root``, if it is there, else ``root``."""
    return root / name if (root / name).is_dir() else root


def _file(path: Path) -> Path:
    """The path.

    Raises:
        DataError: It is no file.
    """
    if not path.is_file():
        raise DataError(f"'{path}' not found; expected the official file of this name")
    return path


def _line(error: Exception) -> str:
    return ' '.join(str(error).split()) or type(error).__name__


def _classes(labels, num: int, num_classes: int, path: Path, first: int = 0) -> np.ndarray:
    """The labels as an array.

    Raises:
        DataError: They are not ``num`` whole numbers, counted from ``first``.
    """
    labels = np.asarray([] if labels is None else labels)
    if labels.shape != (num,):
        raise DataError(f"'{path}' has {labels.size} labels for {num} images; expected one for each")
    if labels.dtype.kind not in 'ui' or labels.min() < first or labels.max() >= first + num_classes:
        last = first + num_classes - 1
        raise DataError(f"'{path}' has labels outside of {first}..{last}: {labels.min()}..{labels.max()}")
    return labels.astype(np.int64)


class _Unpickler(pickle.Unpickler):
    """A reader of arrays that runs nothing that a file brings along."""

    allowed = {
        ('numpy', 'ndarray'): np.ndarray,
        ('numpy', 'dtype'): np.dtype,
        ('_codecs', 'encode'): codecs.encode,  # bytes
        ('numpy.core.multiarray', '_reconstruct'): np.empty(0).__reduce__()[0],
    }

    def find_class(self, module, name):
        try:
            return self.allowed[module.replace('._core.', '.core.'), name]
        except KeyError:
            raise pickle.UnpicklingError(f'{module}.{name} is not allowed in a dataset') from None


def _unpickle(path: Path) -> dict:
    """The dict of a file of CIFAR-10.

    Raises:
        DataError: It is missing, cut off, or something else.
    """
    with _file(path).open('rb') as file:
        try:
            content = _Unpickler(file, encoding='bytes').load()
        except Exception as error:  # noqa: BLE001  (pickle raises whatever a wrong file makes it do)
            raise DataError(f"'{path}' is cut off or no python batch of CIFAR-10: {_line(error)}") from None
    if not isinstance(content, dict):
        raise DataError(f"'{path}' holds {type(content).__name__}; expected the dict of a python batch of CIFAR-10")
    return content
