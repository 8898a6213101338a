"""What tools for a trained network share: its config's one backbone, its weights, and pictures without labels."""

import copy
from contextlib import closing

import mmcv
import torch
from _common import one_line_errors, set_data_root, stop
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from rich.progress import track

from repl_mm import config
from repl_mm.classification import ClsDataPreprocessor
from repl_mm.classification.datasets import pictures_in
from repl_mm.classification.transforms import LoadImage
from repl_mm.data_checks import check_checkpoint
from repl_mm.registry import class_of
from repl_mm.stock_weights import load_backbone, read_stock, shorten

FEWEST = 16  # images from which anything can be told


def one_backbone(cfg, name):
    """Return the path in the model and the settings of a config's backbone; end in one line if it has several or none.

    Args:
        cfg (Config): The config.
        name (str): What the user calls it.
    """
    with one_line_errors():
        backbones = config.find_backbones(cfg.get('model'))
    if len(backbones) > 1:
        names = ', '.join('.'.join(map(str, path)) for path in backbones)
        stop(f"config '{name}': expected one backbone, the model has {names}")
    ((path, settings),) = backbones.items()
    return path, settings


def load_stock(cfg, path, settings, weights):
    """Build the stock backbone of a config with trained weights; end in one line if they are not for it.

    Args:
        cfg (Config): The config.
        path (tuple): Of the backbone in the config's model.
        settings (dict): Of the stock or RepL backbone.
        weights (str): File, or a name that mmengine knows.

    Returns:
        tuple[nn.Module, dict]: The backbone, and the tensors of all else by their names in the model.
    """
    try:
        with one_line_errors():
            check_checkpoint(weights)
        state, rest = read_stock(weights, '.'.join(map(str, path)) + '.')
        with one_line_errors():
            stock, unused = load_backbone(config.stock_config(settings), cfg.get('default_scope'), state)
    except ValueError as error:
        stop(f"'{weights}' {error}")
    if unused:
        print(f'{len(unused)} of {len(state)} tensors have no place in the stock backbone: {shorten(unused)}')
    return stock, rest


def read_images(cfg, folder, num, shape, option):
    """Read unlabelled images: pictures of a folder, or the training images of the dataset if they are in no pictures.

    Args:
        cfg (Config): The config.
        folder (Path): Folder with pictures, however deep, or the dataset's ``data_root``.
        num (int): At most so many.
        shape (Sequence[int]): Height and width to which pictures are resized and cropped.
        option (str): What the user calls the folder, for messages.

    Returns:
        Tensor: Normalized as for the model, (N, 3, H, W).
    """
    if not folder.is_dir():
        stop(f"{option} '{folder}': no such folder; expected one of pictures, or the dataset's data_root")
    files = pictures_in(folder)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')), one_line_errors():
        if files:
            files = [files[i] for i in torch.randperm(len(files))[:num]]
            # closed here: closed by a garbage collection amid another display of progress, it would wait for that one
            with closing(track(files, 'reading pictures')) as progress:
                pictures = [read_picture(file, shape) for file in progress]
            images = normalize(cfg, torch.stack(pictures))
        else:
            set_data_root(cfg, str(folder))
            loader = dict(copy.deepcopy(cfg.train_dataloader), batch_size=num)
            batch = next(iter(Runner.build_dataloader(loader, seed=0)))
            images = MODELS.build(cfg.model.data_preprocessor)(batch)['inputs']
    if len(images) < FEWEST:
        stop(f"{option} '{folder}': {len(images)} images, expected at least {FEWEST}")
    return images


def read_picture(file, shape):
    """Read a picture as uint8 tensor (3, H, W) in BGR order: resized so that it covers the shape, and cropped."""
    image = LoadImage()(dict(img_path=str(file)))['img']
    height, width = image.shape[:2]
    factor = max(shape[0] / height, shape[1] / width)
    size = max(shape[1], round(width * factor)), max(shape[0], round(height * factor))
    image = mmcv.imresize(image, size)
    top, left = ((have - want) // 2 for want, have in zip(shape, image.shape, strict=False))
    return torch.from_numpy(image[top : top + shape[0], left : left + shape[1]].transpose(2, 0, 1).copy())


def normalize(cfg, images):
    """Normalize pictures as the model of a config has them.

    Args:
        cfg (Config): The config.
        images (Tensor): uint8, (N, 3, H, W), in BGR order.

    Returns:
        Tensor: float32, (N, 3, H, W).
    """
    settings = cfg.model.get('data_preprocessor') or {}
    while 'data_preprocessor' in settings:  # of several branches, as semi-supervised detectors have
        settings = settings['data_preprocessor']
    kind = class_of(MODELS, settings.get('type'), cfg.get('default_scope'))
    if isinstance(kind, type) and issubclass(kind, ClsDataPreprocessor):  # its images come in RGB order
        return MODELS.build(settings)(dict(inputs=images.flip(1), labels=torch.zeros(len(images))))['inputs']
    # those of the mm packages ask for annotations too
    swap = settings.get('bgr_to_rgb', False) or settings.get('rgb_to_bgr', False)
    preprocessor = ImgDataPreprocessor(settings.get('mean'), settings.get('std'), bgr_to_rgb=swap)
    return preprocessor(dict(inputs=list(images)))['inputs']
