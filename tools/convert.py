"""Turn stock weights into weights of a RepL model: drop the replaced blocks and fit the computing layers to them.

Only the computing layers' parameters are fitted, on a few hundred unlabelled images, in minutes; without ``--fit``
they keep their start. No label is read, no other weight is changed::

    python tools/convert.py resnet50.pth configs/retinanet_r50_repl_coco.py out.pth --fit data/coco/val2017

STOCK may be weights of a backbone (a classifier's, say, or timm's for a ViT) or of a whole mm model, whose other parts
are taken over. OUT has the names of the config's model: ``load_from=out.pth``, or in the backbone
``init_cfg=dict(type='Pretrained', checkpoint='out.pth', prefix='backbone.')``.
"""

import copy
from pathlib import Path

from _arguments import Options, Parser, rate, seed, side
from _common import one_line_errors, read_quietly
from _files import check_out, save_whole
from _images import FEWEST, read_images
from _trained import check_answers, load_stock, module_name, one_backbone
from mmengine.device import get_device
from mmengine.runner import set_random_seed

from repl_mm import apply_repl, config, conversion
from repl_mm.classification import classifier_head
from repl_mm.surgery import check_keys


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('stock', help='weights of the stock model')
    parser.add_argument('config', help='config with a RepL backbone')
    parser.add_argument('out', type=Path, help='checkpoint to write, .pth')
    parser.add_argument(
        '--fit',
        type=Path,
        metavar='IMAGES',
        help="folder with unlabelled pictures, or the data_root of the config's dataset if that is not in pictures",
    )
    parser.add_argument('--num', type=int, default=512, help='images at most (default: 512)')
    parser.add_argument(
        '--shape', type=side, nargs=2, default=[224, 224], metavar=('H', 'W'), help='of pictures (default: 224 224)'
    )
    parser.add_argument('--steps', type=int, default=300, help='of fitting together (default: 300)')
    parser.add_argument('--block-steps', type=int, default=150, help='for each computing layer (default: 150)')
    parser.add_argument('--batch', type=int, default=48, help='images in a step (default: 48)')
    parser.add_argument('--lr', type=rate, default=0.02, help="step as a share of a parameter's size (default: 0.02)")
    parser.add_argument(
        '--answers', action='store_true', help="together to a classifier's answers alone; best with --block-steps 0"
    )
    parser.add_argument('--seed', type=seed, default=0, help='default: 0')
    parser.add_argument('--cfg-options', nargs='+', action=Options, default={}, help='override settings')
    args = parser.parse_args(argv)
    for key, low in (('num', FEWEST), ('batch', 1), ('steps', 0), ('block_steps', 0)):
        if getattr(args, key) < low:
            parser.error(f'--{key.replace("_", "-")} {getattr(args, key)}: must be at least {low}')
    if args.answers and not args.fit:
        parser.error('--answers: is for --fit IMAGES')
    return args


def main(argv=None):
    args = parse_args(argv)
    set_random_seed(args.seed)
    cfg = read_quietly(args)
    check_out(args.out, [args.stock])
    path, settings = one_backbone(cfg, args.config)
    name = module_name(cfg, path)
    stock, rest = load_stock(cfg, name, settings, args.stock)
    backbone = copy.deepcopy(stock)
    if config.has_repl_type(settings):
        with one_line_errors():
            print(apply_repl(backbone, **check_keys(settings.get('replace'))))
    if args.fit:
        head = classifier_head(cfg, rest, get_device())
        if args.answers:
            check_answers(head, args.stock)
        images = read_images(cfg, args.fit, args.num, args.shape, '--fit').to(get_device())
        nets = [net.to(get_device()) for net in (backbone, stock)]
        steps = args.block_steps, args.steps, args.batch, args.lr
        errors = conversion.convert(*nets, images, *steps, head, args.answers)
        print(f'\nSquared error against the stock network on {len(images) // conversion.HELD_OUT} held-out images:\n')
        print(conversion.table(errors))
    state = {f'{name}.{key}': value.cpu() for key, value in backbone.state_dict().items()}
    save_whole(dict(state_dict={**state, **rest}, meta=dict(stock=Path(args.stock).name)), args.out)
    print(f"\n{args.out}: {len(state)} tensors of the backbone, {len(rest)} others; load_from='{args.out}'")


if __name__ == '__main__':
    main()
