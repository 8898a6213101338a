"""Images without labels for the tools: of a folder of pictures, or of the config's dataset."""

import copy
import os
from contextlib import closing

import torch
import torch.nn.functional as F
from _common import one_line_errors, set_data_root, stop
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from rich.progress import track

from repl_mm.data_checks import DataError, expected_paths
from repl_mm.pictures import check_pictures, covering, pictures_in, plain_preprocessor, read_image

FEWEST = 16  # images from which anything can be told


def pictures_of(cfg, folder, option):
    """Return the files of pictures in a folder, see :func:`repl_mm.pictures.pictures_in`.

    Ends in one line if there is no such folder, or if it has the config's label maps among them.

    Args:
        cfg (Config): The config.
        folder (Path): The folder.
        option (str): What the user calls it.
    """
    if not folder.is_dir():
        stop(f"{option} '{folder}': no such folder; expected one of pictures, or the dataset's data_root")
    if not any(folder.iterdir()):
        stop(f"{option} '{folder}' is empty; expected a folder of pictures, or the dataset's data_root")
    files = pictures_in(folder)
    try:
        if files:
            check_pictures(cfg, folder, files)
    except DataError as error:
        stop(f'{option} {error}')
    return files


def read_images(cfg, folder, num, shape, option, fewest=FEWEST, phase='train'):
    """Read unlabelled images: pictures of a folder, or the images of the dataset if they are in no pictures.

    Which ones, if there are more than ``num``, is drawn by torch's seed.

    Args:
        cfg (Config): The config.
        folder (Path): Folder with pictures, however deep, or the dataset's ``data_root``.
        num (int): At most so many.
        shape (Sequence[int]): Height and width to which pictures are resized and cropped.
        option (str): What the user calls the folder, for messages.
        fewest (int): At least so many. Defaults to 16.
        phase (str): Whose images of the dataset, 'train' or 'test'; of the latter at random. Defaults to 'train'.

    Returns:
        Tensor: Normalized as for the model, (N, 3, H, W).
    """
    files, pictures, broken = pictures_of(cfg, folder, option), [], []
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')), one_line_errors():
        if files:
            # closed here: closed by a garbage collection amid another display of progress, it would wait for that one
            files = [files[i] for i in torch.randperm(len(files))]
            with closing(track(files, 'reading pictures', total=min(num, len(files)))) as progress:
                for file in progress:
                    if len(pictures) == num:
                        break
                    try:
                        pictures.append(covering(read_image(file), shape))
                    except DataError as error:
                        broken.append(str(error))
            if broken:
                print(f'{option}: {len(broken)} pictures left out, first: {broken[0]}')
            images = normalize(cfg, torch.stack(pictures)) if pictures else pictures
        else:
            set_data_root(cfg, str(folder))
            if not (loader := copy.deepcopy(cfg.get(f'{phase}_dataloader'))):
                stop(f"{option} '{folder}': no pictures there, and the config has no {phase}_dataloader; expected one")
            if missing := sorted(path for path in expected_paths(cfg, phase) if not os.path.exists(path)):
                what = f"no pictures there, nor '{missing[0]}' of the config's dataset"
                stop(f"{option} '{folder}': {what}; expected either")
            for key in ('batch_sampler', 'drop_last'):
                loader.pop(key, None)
            # each image once, whatever training draws; a test set may come class by class
            loader.update(batch_size=num, sampler=dict(type='DefaultSampler', shuffle=True))
            batch = next(iter(Runner.build_dataloader(loader, seed=torch.initial_seed() % 2**31)))  # as --seed says
            images = MODELS.build(cfg.model.data_preprocessor)(batch)['inputs']
    if len(images) < fewest:
        cause = f'; {len(broken)} cannot be read, first: {broken[0]}' if broken else ''
        stop(f"{option} '{folder}': {len(images)} images, expected at least {fewest}{cause}")
    return images


def normalize(cfg, images):
    """Normalize pictures as the model of a config has them.

    Args:
        cfg (Config): The config.
        images (Tensor): uint8, (N, 3, H, W), in BGR order.

    Returns:
        Tensor: float32, (N, 3, H, W).
    """
    images = MODELS.build(plain_preprocessor(cfg))(dict(inputs=images))['inputs']
    size = (cfg.model.get('data_preprocessor') or {}).get('size')
    if isinstance(size, int):  # of a classifier that resizes its images
        images = F.interpolate(images, (size, size), mode='bilinear', antialias=True)
    return images
