"""Turns stock weights into weights of a RepL model: drops the replaced blocks and fits the computing layers to them.

Only the computing layers' parameters are fitted, on a few hundred unlabelled images, in minutes; without
``--calibrate`` they keep their start. No label is read, no other weight is changed::

    python tools/convert.py resnet50.pth configs/retinanet_r50_repl_coco.py out.pth --calibrate data/coco/val2017

STOCK may be weights of a backbone (a classifier's, say, or timm's for a ViT) or of a whole mm model, whose other parts
are taken over. OUT has the names of the config's model: ``load_from=out.pth``, or in the backbone
``init_cfg=dict(type='Pretrained', checkpoint='out.pth', prefix='backbone.')``.
"""

import argparse
import copy
import tempfile
from pathlib import Path

import mmcv
import torch
from _common import check_checkpoint, one_line_errors, read_config, set_data_root, stop
from mmengine.config import DictAction
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader, Runner
from rich.progress import track

from repl_mm import apply_repl, conversion, cost
from repl_mm.surgery import check_keys

PICTURES = ('.jpg', '.jpeg', '.png')
CLASSIFIERS = ('ImageClassifier', 'DistilledClassifier')
HEADS = ('head.', 'fc.', 'linear.')  # what public classifiers call their last layer
# timm's names of a ViT -> mmseg's
TIMM = {
    'patch_embed.proj.': 'patch_embed.projection.',
    'blocks.': 'layers.',
    '.norm': '.ln',
    '.attn.qkv.': '.attn.attn.in_proj_',
    '.attn.proj.': '.attn.attn.out_proj.',
    '.mlp.fc1.': '.ffn.layers.0.0.',
    '.mlp.fc2.': '.ffn.layers.1.',
}


def read_stock(path, prefix):
    """Reads a checkpoint.

    Args:
        path (str): File, or a name that mmengine knows, such as ``torchvision://resnet50``.
        prefix (str): Of the backbone in the config's model, for instance ``'backbone.'``.

    Returns:
        tuple[dict, dict]: The backbone's tensors by their names in it, and all others by their names in the model.
    """
    state = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    state = next((state[key] for key in ('state_dict', 'model') if key in state), state)
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    if any(key.startswith(prefix) for key in state):
        backbone = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        return backbone, {key: value for key, value in state.items() if not key.startswith(prefix)}
    heads = {key: value for key, value in state.items() if key.startswith(HEADS)}
    timm = 'blocks.0.attn.qkv.weight' in state
    backbone = {mmseg_name(key) if timm else key: state[key] for key in state if key not in heads}
    return backbone, {f'head.{key.partition(".")[2]}': value for key, value in heads.items()}


def mmseg_name(key):
    """mmseg's name of a tensor of timm's VisionTransformer."""
    for timm, mmseg in TIMM.items():
        key = key.replace(timm, mmseg)
    return f'ln1{key.removeprefix("norm")}' if key.startswith('norm.') else key


def load_backbone(settings, scope, state):
    """Builds a stock backbone with weights, which it reads by its own code: that knows other names and sizes.

    Args:
        settings (dict): Config of the backbone.
        scope (str | None): The config's ``default_scope``.
        state (dict): The weights.

    Returns:
        nn.Module: The backbone.

    Raises:
        ValueError: Tensors of the backbone are not among the weights.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / 'stock.pth')
        torch.save(dict(state_dict=state), file)
        backbone = cost.build(dict(settings, init_cfg=dict(type='Pretrained', checkpoint=file)), scope)
        with torch.no_grad():
            for tensor in backbone.state_dict().values():
                if tensor.is_floating_point():
                    tensor.fill_(torch.nan)
        backbone.init_weights()
    unused = [name for name in state if name not in backbone.state_dict()]
    if unused:
        print(f'{len(unused)} of {len(state)} tensors have no place in the stock backbone: {shorten(unused)}')
    left = [name for name, tensor in backbone.state_dict().items() if tensor.isnan().any()]
    if left:
        raise ValueError(
            f'has no values for {len(left)} of {len(backbone.state_dict())} tensors of the stock '
            f"{type(backbone).__name__} ({shorten(left)}): expected its weights, in its own names or timm's; "
            "mmseg's wheel has converters for others in .mim/tools/model_converters"
        )
    return backbone


def classifier_head(cfg, weights):
    """What a classifier makes of its backbone's outputs.

    Args:
        cfg (Config): The config.
        weights (dict): Tensors of the model outside of its backbone.

    Returns:
        Callable: It gives the logits; None for another model, or if the weights are of other classes.
    """
    if str(cfg.model.type).rpartition('.')[2] not in CLASSIFIERS:
        return None
    # without a teacher, which may be what this command is to make
    settings = {key: cfg.model[key] for key in ('backbone', 'num_classes', 'in_channels')}
    model = cost.build(dict(type='repl_mm.ImageClassifier', **settings), cfg.get('default_scope'))
    own = model.head.state_dict()
    head = {name: weights.get(f'head.{name}') for name in own}
    if any(tensor is None or tensor.shape != own[name].shape for name, tensor in head.items()):
        return None
    model.head.load_state_dict(head)
    return model.to(get_device()).eval().requires_grad_(False).classify


def shorten(names):
    """The first names of a list, for a message."""
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')


def read_images(cfg, folder, num, shape):
    """Images to fit on: pictures of a folder, or the training images of the dataset if they are in no pictures.

    Args:
        cfg (Config): The config.
        folder (Path): Folder with pictures, however deep, or the dataset's ``data_root``.
        num (int): At most so many.
        shape (Sequence[int]): Height and width to which pictures are resized and cropped.

    Returns:
        Tensor: Normalized as for the model, (N, 3, H, W).
    """
    if not folder.is_dir():
        stop(f"--calibrate '{folder}': no such folder")
    files = sorted(path for path in folder.rglob('*') if path.suffix.lower() in PICTURES)
    preprocessor = cfg.model.data_preprocessor
    if files:
        files = [files[i] for i in torch.randperm(len(files))[:num]]
        pictures = [read_picture(file, shape) for file in track(files, 'reading pictures')]
        to_rgb = preprocessor.get('bgr_to_rgb', preprocessor.type == 'ClsDataPreprocessor')
        normalize = ImgDataPreprocessor(preprocessor.mean, preprocessor.std, bgr_to_rgb=to_rgb)
        images = normalize(dict(inputs=pictures))['inputs']
    else:
        set_data_root(cfg, str(folder))
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')), one_line_errors():
            loader = dict(copy.deepcopy(cfg.train_dataloader), batch_size=num)
            batch = next(iter(Runner.build_dataloader(loader, seed=0)))
            images = MODELS.build(preprocessor)(batch)['inputs']
    if len(images) < 16:
        stop(f"--calibrate '{folder}': {len(images)} images, expected at least 16")
    return images


def read_picture(file, shape):
    """A picture as uint8 tensor (3, H, W) in BGR order: resized so that it covers the shape, and cropped."""
    image = mmcv.imread(file)
    factor = max(want / have for want, have in zip(shape, image.shape, strict=False))
    image = mmcv.imrescale(image, factor + 1e-6)
    top, left = ((have - want) // 2 for want, have in zip(shape, image.shape, strict=False))
    return torch.from_numpy(image[top : top + shape[0], left : left + shape[1]].transpose(2, 0, 1).copy())


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('stock', help='weights of the stock model')
    parser.add_argument('config', help='config with a RepL backbone')
    parser.add_argument('out', type=Path, help='checkpoint to write')
    parser.add_argument(
        '--calibrate',
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
    MMLogger.get_current_instance().setLevel('WARNING')  # mmengine logs how every single tensor was initialized
    cfg = read_config(args.config)
    cfg.merge_from_dict(args.cfg_options)
    check_checkpoint(args.stock)
    try:
        path, settings = cost.find_backbone(cfg.model)
    except ValueError as error:
        stop(f"config '{args.config}': {error}")
    prefix = '.'.join(map(str, path)) + '.'
    state, rest = read_stock(args.stock, prefix)
    try:
        with one_line_errors():
            stock = load_backbone(cost.stock(settings), cfg.get('default_scope'), state)
            backbone = copy.deepcopy(stock)
            if 'RepL' in settings.type:
                print(apply_repl(backbone, **check_keys(settings.get('replace'))))
    except ValueError as error:
        stop(f"'{args.stock}' {error}")
    if args.calibrate:
        images = read_images(cfg, args.calibrate, args.num, args.shape).to(get_device())
        nets, head = [net.to(get_device()) for net in (backbone, stock)], classifier_head(cfg, rest)
        errors = conversion.convert(*nets, images, args.block_steps, args.steps, args.batch, args.lr, head)
        print(f'\nSquared error against the stock network on {len(images) // 8} held-out images:\n')
        print(conversion.table(errors))
    state = {prefix + key: value.cpu() for key, value in backbone.state_dict().items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict={**state, **rest}, meta=dict(stock=Path(args.stock).name)), args.out)
    print(f"\n{args.out}: {len(state)} tensors of the backbone, {len(rest)} others; load_from='{args.out}'")


if __name__ == '__main__':
    main()
