"""Turn stock weights into weights of a RepL model: drop the replaced blocks and fit the computing layers to them.

Only the computing layers' parameters are fitted, on a few hundred unlabelled images, in minutes; without ``--fit``
they keep their start. No label is read, no other weight is changed::

    python tools/convert.py resnet50.pth configs/retinanet_r50_repl_coco.py out.pth --fit data/coco/val2017

STOCK may be weights of a backbone (a classifier's, say, or timm's for a ViT) or of a whole mm model, whose other parts
are taken over. OUT has the names of the config's model: ``load_from=out.pth``, or in the backbone
``init_cfg=dict(type='Pretrained', checkpoint='out.pth', prefix='backbone.')``.
"""

import argparse
import copy
from pathlib import Path

import mmcv
import torch
from _common import one_line_errors, read_config, set_data_root, stop
from mmengine.config import DictAction
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from rich.progress import track

from repl_mm import apply_repl, config, conversion
from repl_mm.classification import ClsDataPreprocessor, classifier_head
from repl_mm.classification.datasets import PICTURES
from repl_mm.classification.transforms import LoadImage
from repl_mm.data_checks import DataError, check_checkpoint
from repl_mm.reading import read_weights_only
from repl_mm.registry import class_of
from repl_mm.stock_weights import load_backbone, read_stock, shorten
from repl_mm.surgery import check_keys


def read_images(cfg, folder, num, shape):
    """Read images to fit on: pictures of a folder, or the training images of the dataset if they are in no pictures.

    Args:
        cfg (Config): The config.
        folder (Path): Folder with pictures, however deep, or the dataset's ``data_root``.
        num (int): At most so many.
        shape (Sequence[int]): Height and width to which pictures are resized and cropped.

    Returns:
        Tensor: Normalized as for the model, (N, 3, H, W).
    """
    if not folder.is_dir():
        stop(f"--fit '{folder}': no such folder")
    files = sorted(path for path in folder.rglob('*') if path.suffix.lower() in PICTURES)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')), one_line_errors():
        if files:
            files = [files[i] for i in torch.randperm(len(files))[:num]]
            pictures = [read_picture(file, shape) for file in track(files, 'reading pictures')]
            images = normalize(cfg, torch.stack(pictures))
        else:
            set_data_root(cfg, str(folder))
            loader = dict(copy.deepcopy(cfg.train_dataloader), batch_size=num)
            batch = next(iter(Runner.build_dataloader(loader, seed=0)))
            images = MODELS.build(cfg.model.data_preprocessor)(batch)['inputs']
    if len(images) < 16:
        stop(f"--fit '{folder}': {len(images)} images, expected at least 16")
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


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('stock', help='weights of the stock model')
    parser.add_argument('config', help='config with a RepL backbone')
    parser.add_argument('out', type=Path, help='checkpoint to write')
    parser.add_argument(
        '--fit',
        type=Path,
        metavar='IMAGES',
        help="folder with unlabelled pictures, or the data_root of the config's dataset if that is not in pictures",
    )
    parser.add_argument('--num', type=int, default=512, help='images at most (default: 512)')
    parser.add_argument(
        '--shape', type=int, nargs=2, default=[224, 224], metavar=('H', 'W'), help='of pictures (default: 224 224)'
    )
    parser.add_argument('--steps', type=int, default=300, help='of fitting together (default: 300)')
    parser.add_argument('--block-steps', type=int, default=150, help='for each computing layer (default: 150)')
    parser.add_argument('--batch', type=int, default=48, help='images in a step (default: 48)')
    parser.add_argument('--lr', type=float, default=0.1, help="step as a share of a parameter's size (default: 0.1)")
    parser.add_argument('--seed', type=int, default=0, help='default: 0')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='override settings')
    args = parser.parse_args(argv)
    for key, low in (('num', 1), ('batch', 1), ('steps', 0), ('block_steps', 0), ('lr', 0)):
        if getattr(args, key) < low:
            parser.error(f'--{key.replace("_", "-")} {getattr(args, key)}: must be at least {low}')
    return args


def main(argv=None):
    args = parse_args(argv)
    torch.manual_seed(args.seed)
    read_weights_only()
    MMLogger.get_current_instance().setLevel('WARNING')  # mmengine logs how every single tensor was initialized
    cfg = read_config(args.config)
    cfg.merge_from_dict(args.cfg_options)
    with one_line_errors():
        backbones = config.find_backbones(cfg.get('model'))
        check_checkpoint(args.stock)
    if len(backbones) > 1:
        names = ', '.join('.'.join(map(str, path)) for path in backbones)
        stop(f"config '{args.config}': expected one backbone, the model has {names}")
    ((path, settings),) = backbones.items()
    prefix = '.'.join(map(str, path)) + '.'
    scope, stock_settings = cfg.get('default_scope'), config.stock_config(settings)
    try:
        state, rest = read_stock(args.stock, prefix)
        with one_line_errors():
            stock, unused = load_backbone(stock_settings, scope, state)
            if unused:
                print(f'{len(unused)} of {len(state)} tensors have no place in the stock backbone: {shorten(unused)}')
            backbone = copy.deepcopy(stock)
            if config.has_repl_type(settings):
                print(apply_repl(backbone, **check_keys(settings.get('replace'))))
    except DataError as error:
        stop(error)
    except ValueError as error:
        stop(f"'{args.stock}' {error}")
    if args.fit:
        images = read_images(cfg, args.fit, args.num, args.shape).to(get_device())
        nets, head = [net.to(get_device()) for net in (backbone, stock)], classifier_head(cfg, rest, get_device())
        errors = conversion.convert(*nets, images, args.block_steps, args.steps, args.batch, args.lr, head)
        print(f'\nSquared error against the stock network on {len(images) // conversion.HELD_OUT} held-out images:\n')
        print(conversion.table(errors))
    state = {prefix + key: value.cpu() for key, value in backbone.state_dict().items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict={**state, **rest}, meta=dict(stock=Path(args.stock).name)), args.out)
    print(f"\n{args.out}: {len(state)} tensors of the backbone, {len(rest)} others; load_from='{args.out}'")


if __name__ == '__main__':
    main()
