"""Pictures without labels: those of a folder, as a dataset of a Runner too."""

import os
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import ImgDataPreprocessor
from torch import Tensor
from torch.utils.data import Dataset

from .data_checks import DataError, inner_datasets
from .registry import DATASETS, MODELS, class_of

LABELS, IMAGES = ('seg_map_path', 'seg'), ('img_path', 'img')  # words of a dataset's data_prefix in mmseg and mmdet
PICTURES = ('.jpeg', '.jpg', '.png', '.bmp', '.webp')


def pictures_in(folder: str | os.PathLike) -> list[Path]:
    """Return the files of pictures in a folder, however deep and behind links, in order."""
    found, seen = [], {os.path.realpath(folder)}
    for here, below, files in os.walk(folder, followlinks=True):
        found += [Path(here, name) for name in files if Path(name).suffix.lower() in PICTURES]
        fresh = []
        for name in sorted(below, key=lambda name: (os.path.islink(os.path.join(here, name)), name)):
            real = os.path.realpath(os.path.join(here, name))  # a link may lead back, or to what was there before
            if real not in seen:
                seen.add(real)
                fresh.append(name)
        below[:] = fresh
    return sorted(found)


def check_pictures(cfg: Config, folder: str | os.PathLike, files: list[Path]) -> None:
    """Check that a folder of pictures has none of a config's label maps among them.

    Args:
        cfg (Config): The config.
        folder (str): The folder.
        files (list[Path]): Its pictures, see :func:`pictures_in`.

    Raises:
        DataError: Some lie in a folder of the name that the config's training data or its test data have them in.
    """
    root = Path(folder).resolve()
    folders = sorted({path.resolve() for path in {path.parent for path in files}})
    for phase in ('train', 'test'):
        for dataset in inner_datasets((cfg.get(f'{phase}_dataloader') or {}).get('dataset') or {}):
            prefix = dataset.get('data_prefix')
            words = prefix if isinstance(prefix, dict) else {}
            labels, images = (next(filter(None, map(words.get, keys)), '') for keys in (LABELS, IMAGES))
            if not isinstance(labels, str) or not isinstance(images, str):
                continue
            labels, images = (os.path.normpath(name).strip('/') for name in (labels, images))
            if labels == '.' or Path(images).is_relative_to(labels):
                continue
            if f'/{labels}/' in f'{root.parent}/':  # a name that all have, of pictures or not
                continue
            below = next((name for name in folders if f'/{labels}/' in f'{name}/'), None)
            if below:
                raise DataError(f"'{folder}' has label maps, in '{below}': expected the folder of the pictures")


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read a picture as uint8 (H, W, 3) in BGR order.

    Raises:
        DataError: The file is missing, cut off, or no picture.
    """
    import mmcv

    try:
        with open(path, 'rb') as file:
            content = file.read()
    except OSError as error:
        raise DataError(f"'{path}': {error.strerror}; expected a picture") from None
    # a decoder fills in gray where a JPEG has been cut off, and warns at best
    if content.startswith(b'\xff\xd8') and b'\xff\xd9' not in content[-4096:]:
        raise DataError(f"'{path}' is cut off: a JPEG without its end ({len(content)} bytes)")
    try:
        image = mmcv.imfrombytes(content) if content else None
    except Exception:  # noqa: BLE001  (OpenCV's error, or that of a decoder)
        image = None
    if image is None:
        raise DataError(f"'{path}' is cut off or no picture ({len(content)} bytes)")
    return image


def covering(image: np.ndarray, shape: tuple[int, int]) -> Tensor:
    """Resize a picture so that it just covers a shape, and cut out the middle.

    Args:
        image (np.ndarray): (H, W, 3).
        shape (tuple[int]): Height and width.

    Returns:
        Tensor: (3, *shape).
    """
    import mmcv

    height, width = image.shape[:2]
    factor = max(shape[0] / height, shape[1] / width)
    image = mmcv.imresize(image, (max(shape[1], round(width * factor)), max(shape[0], round(height * factor))))
    top, left = ((have - want) // 2 for want, have in zip(shape, image.shape, strict=False))
    return torch.from_numpy(image[top : top + shape[0], left : left + shape[1]].transpose(2, 0, 1).copy())


@MODELS.register_module()
class PicturePreprocessor(ImgDataPreprocessor):
    """mmengine's, for pictures without labels; mmpretrain's classifiers give theirs one word more.

    Args:
        batch_augments: Not used: it is for labels. Defaults to None.
        **settings: As of ``ImgDataPreprocessor``.
    """

    def __init__(self, batch_augments=None, **settings):
        super().__init__(**settings)


def plain_preprocessor(cfg: Config) -> dict:
    """Return the config of a preprocessor that normalizes pictures as the model of a config has them, without labels.

    Args:
        cfg (Config): The config.

    Returns:
        dict: Of :class:`PicturePreprocessor`; it takes ``inputs``, uint8 (N, 3, H, W) in BGR order.
    """
    settings = cfg.model.get('data_preprocessor') or {}
    while 'data_preprocessor' in settings:  # of several branches, as semi-supervised detectors have
        settings = settings['data_preprocessor']
    kind = class_of(MODELS, settings.get('type'), cfg.get('default_scope'))
    swap = any(settings.get(word) for word in ('bgr_to_rgb', 'rgb_to_bgr', 'to_rgb')) or getattr(kind, 'rgb', False)
    return dict(
        type='repl_mm.PicturePreprocessor',
        mean=settings.get('mean'),
        std=settings.get('std'),
        bgr_to_rgb=swap,
    )


@DATASETS.register_module()
class PictureFolder(Dataset):
    """Pictures of a folder, of one size, without labels: cropped at random and mirrored.

    A picture that cannot be read is left out, with a line in the log; the next one stands in its place.

    Args:
        folder (str): However deep they lie in it.
        shape (tuple[int]): Height and width in pixels to which they are resized and cropped.
        zoom (float): How much larger than necessary they may be before they are cropped, at random. Defaults to 1.25.
        flip (bool): Whether half of them are mirrored. Defaults to True.

    Raises:
        DataError: The folder has no pictures, or none of them can be read.
        ValueError: A setting is not valid.
    """

    def __init__(self, folder, shape, zoom=1.25, flip=True):
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(f'PictureFolder.shape={shape!r} is not valid: expected (height, width)')
        if isinstance(zoom, bool) or not isinstance(zoom, int | float) or zoom < 1:
            raise ValueError(f'PictureFolder.zoom={zoom!r} is not valid: expected a number of at least 1')
        self.files = pictures_in(folder)
        if not self.files:
            raise DataError(f"PictureFolder.folder='{folder}': no pictures; expected some of {', '.join(PICTURES)}")
        self.shape = tuple(shape)
        self.zoom = zoom
        self.flip = flip

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        """A picture as ``inputs``, uint8 (3, H, W) in BGR order."""
        for turn in range(len(self)):
            try:
                image = read_image(self.files[(index + turn) % len(self)])
                break
            except DataError as error:
                print_log(f'left out: {error}', logger='current', level=30)
        else:
            raise DataError(f'none of {len(self)} pictures can be read, first {self.files[0]}')
        zoom, *where = np.random.uniform(size=3)
        size = [round(side * (1 + zoom * (self.zoom - 1))) for side in self.shape]
        picture = covering(image, size)
        top, left = (int(u * (have - want + 1)) for u, have, want in zip(where, size, self.shape, strict=True))
        picture = picture[:, top : top + self.shape[0], left : left + self.shape[1]]
        if self.flip and np.random.rand() < 0.5:
            picture = picture.flip(2)
        return dict(inputs=picture.contiguous())
