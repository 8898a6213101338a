"""Pictures of trained networks, several arms beside one another: feature maps, t-SNE, similarity of blocks.

    python tools/visualize.py features --arm e2e CONFIG STOCK.pth --arm repl CONFIG REPL.pth --images DIR
    python tools/visualize.py tsne --arm e2e CONFIG STOCK.pth --arm repl CONFIG REPL.pth --data-root DIR
    python tools/visualize.py similarity --arm e2e CONFIG STOCK.pth --arm repl CONFIG REPL.pth --images DIR

A config with a stock backbone takes weights as tools/convert.py does, of a backbone or a whole model; one with a RepL
backbone takes what training or tools/convert.py wrote from it. tsne needs a classifier's config and its test set.
"""

import json
import warnings
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

import torch
from _arguments import Options, Parser, seed
from _common import one_line_errors, read_quietly, set_data_root, stop
from _files import save_whole
from _images import read_images
from _trained import load_stock, model_head, module_name, one_backbone
from mmengine.device import get_device

from repl_mm import config, visualization
from repl_mm.checkpoint import PLAN_KEY
from repl_mm.choosing import name_of
from repl_mm.data_checks import check_checkpoint, check_data
from repl_mm.pictures import plain_preprocessor
from repl_mm.similarity import block_outputs, cka_matrix
from repl_mm.stock_weights import read_stock
from repl_mm.surgery import plan_of
from repl_mm.tables import markdown

NEEDS = dict(tsne=('sklearn', 'scikit-learn'), similarity=('scipy', 'scipy'))
COMMANDS = dict(  # with the number of images
    features=('feature maps on the same pictures: mean, and principal components as colours', 3),
    tsne=('test features in a plane, with the accuracy of nearest neighbours', 2000),
    similarity=('linear CKA between all blocks and between arms, and whether it predicts influence', 64),
)


def parse_args(argv=None):
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, (text, num) in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text)
        words = ('NAME', 'CONFIG', 'CHECKPOINT')
        sub.add_argument('--arm', nargs=3, action='append', required=True, metavar=words, help='one of the networks')
        if name == 'tsne':
            sub.add_argument('--data-root', help='folder of the dataset, in place of data_root in all of the config')
        else:
            text = "folder with pictures, or the data_root of the config's dataset, for images of its test set"
            sub.add_argument('--images', type=Path, metavar='DIR', required=True, help=text)
            text = 'of pictures (default: 224 224)'
            sub.add_argument('--shape', type=int, nargs=2, default=[224, 224], metavar=('H', 'W'), help=text)
        if name == 'features':
            sub.add_argument(
                '--stages', type=int, nargs='+', help="the backbone's out_indices (default: the config's)"
            )
        sub.add_argument('--num', type=int, default=num, help=f'images at most (default: {num})')
        sub.add_argument('--out', type=Path, default=Path('work_dirs/visualize'), help='folder to write')
        sub.add_argument('--seed', type=seed, default=0, help='of the choice of images (default: 0)')
        sub.add_argument('--cfg-options', nargs='+', action=Options, default={}, help='settings, of all arms')
    args = parser.parse_args(argv)
    names = [name for name, *_ in args.arm]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        parser.error(f'--arm {twice}: two arms have this name, expected different ones')
    if args.num < 1:
        parser.error(f'--num {args.num}: must be at least 1')
    return args


# ---- arms -----------------------------------------------------------------------------------------------------------


def load_arm(file, weights, args):
    """Return the config of an arm, its backbone with weights, and what gives its head for images."""
    cfg = read_quietly(Namespace(config=file, cfg_options=args.cfg_options))
    path, settings = one_backbone(cfg, file)
    if config.takes_words(settings):
        stop(f"config '{file}' has a {config.type_name(settings)}, which takes words: expected a backbone for images")
    if getattr(args, 'stages', None):
        settings['out_indices'] = tuple(args.stages)
    name = module_name(cfg, path)
    load = load_repl if config.has_repl_type(settings) else load_stock
    backbone, rest = load(cfg, name, settings, weights)
    backbone.to(get_device())
    return cfg, backbone, lambda images: model_head(cfg, name, rest, backbone, images)[0]


def load_repl(cfg, name, settings, weights):
    """Build a RepL backbone with weights of its own, as :func:`load_stock`; end in one line if they are not for it."""
    with one_line_errors():
        check_checkpoint(weights)
        backbone = config.build(config.without_weights(settings), cfg.get('default_scope'))
        try:
            state, rest = read_stock(weights, f'{name}.')
            if PLAN_KEY not in state:
                raise ValueError('has no RepL plan: expected what training or tools/convert.py wrote from the config')
            backbone.load_state_dict(state)
        except (ValueError, RuntimeError) as error:  # RuntimeError: of load_state_dict
            stop(f"'{weights}': {' '.join(str(error).split())[:300]}")
    return backbone, rest


def read_arms(args):
    """Return by name what :func:`load_arm` gives of each arm, and the same images as each of them takes them."""
    arms = {name: load_arm(file, weights, args) for name, file, weights in args.arm}
    images = {}
    for name, (cfg, *_) in arms.items():
        torch.manual_seed(args.seed)  # the same ones
        found = read_images(cfg, args.images, args.num, args.shape, '--images', fewest=1, phase='test')
        images[name] = found.to(get_device())
    return arms, images


def as_pictures(cfg, images):
    """Return normalized images as they were, uint8 (N, H, W, 3) in RGB order."""
    settings = plain_preprocessor(cfg)
    if settings['mean'] is not None:
        std, mean = (torch.tensor(settings[key], device=images.device).view(-1, 1, 1) for key in ('std', 'mean'))
        images = images * std + mean
    images = images if settings['bgr_to_rgb'] else images.flip(1)
    return images.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


# ---- commands -------------------------------------------------------------------------------------------------------


def features(args, file):
    arms, images = read_arms(args)
    maps = {name: visualization.feature_maps(net, images[name]) for name, (_, net, _) in arms.items()}
    first, (cfg, *_) = next(iter(arms.items()))
    names = [f'stage {stage}' for stage in args.stages or ()]
    visualization.draw_features(maps, as_pictures(cfg, images[first]), file, names)
    print('maps of ' + ', '.join('x'.join(map(str, x.shape[1:])) for x in maps[first]))


def tsne(args, file):
    found = {}
    for name, config_file, weights in args.arm:
        cfg, backbone, _ = load_arm(config_file, weights, args)
        if args.data_root:
            set_data_root(cfg, args.data_root)
        check_data(cfg, 'test')
        found[name], labels, classes = visualization.test_features(cfg, backbone, args.num, args.seed)
    shares = {name: visualization.neighbour_accuracy(x, labels) for name, x in found.items()}
    planes = visualization.embed(found, args.seed)
    titles = [f'{name}: {share:.1%} by nearest neighbours' for name, share in shares.items()]
    visualization.draw_embedding(planes, labels, titles, file, classes)
    drawn = {name: visualization.neighbour_accuracy(plane, labels) for name, plane in planes.items()}
    save_whole(
        json.dumps(dict(images=len(labels), features=shares, picture=drawn), indent=1), file.with_suffix('.json')
    )
    rows = [(name, f'{share:.1%}', f'{drawn[name]:.1%}') for name, share in shares.items()]
    print(f'Accuracy by the {visualization.NEIGHBOURS} nearest of {len(labels)} test images\n')
    print(markdown(('arm', 'of the features', 'of the picture'), rows))


def similarity(args, file):
    arms, images = read_arms(args)
    outputs = {name: block_outputs(net, images[name]) for name, (_, net, _) in arms.items()}
    first, *others = outputs
    places = list(outputs[first])
    other = next((name for name in others if list(outputs[name]) != places), None)
    if other:
        stop(f'--arm {other}: it has other blocks than {first}, expected arms of one network')
    values = {name: list(found.values()) for name, found in outputs.items()}
    matrices = {(name, name): cka_matrix(found) for name, found in values.items()}
    matrices |= {(first, name): cka_matrix(values[first], values[name]) for name in others}
    stock = {name: arm for name, arm in arms.items() if plan_of(arm[1]) is None}
    found = {n: visualization.prediction(net, images[n], head(images[n])) for n, (_, net, head) in stock.items()}
    visualization.draw_similarity(matrices, places, found, file)
    data = dict(blocks=list(map(name_of, places)), images=len(images[first]), prediction=found)
    data['cka'] = {' / '.join(names): matrix.tolist() for names, matrix in matrices.items()}
    save_whole(json.dumps(data, indent=1), file.with_suffix('.json'))
    print(f'{len(images[first])} images, linear CKA of what {len(places)} blocks put out\n')
    print(visualization.similarity_tables(matrices, places, found))


def main(argv=None):
    args = parse_args(argv)
    package, distribution = NEEDS.get(args.command, (None, None))
    if package and not find_spec(package):
        stop(f"{args.command} needs {distribution}: pip install {distribution}, or '.[tools]' of this package")
    warnings.filterwarnings('ignore', message='.*use_reentrant.*')  # of mm's blocks, as they are
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f'{args.command}.png'
    with one_line_errors(ValueError):
        dict(features=features, tsne=tsne, similarity=similarity)[args.command](args, file)
    print(f'\n{file}')


if __name__ == '__main__':
    main()
