"""Which blocks to replace: their influence on a trained network, what they save, and the best set under a budget.

    python tools/plan.py CONFIG STOCK --images DIR --flops 0.8          # blocks left out, one by one
    python tools/plan.py CONFIG STOCK --images DIR --flops 0.8 --fit    # fitted computing layers in their places
    python tools/plan.py CONFIG                                         # no weights: plans and what they save

CONFIG may have a stock or a RepL backbone; STOCK is what tools/convert.py takes: weights of a backbone, or of a whole
model, whose outputs count then. No label is read. It writes a table, a picture, and a config that inherits CONFIG.
"""

import copy
import json
import shlex
import warnings
from functools import partial
from pathlib import Path

from _arguments import Options, Parser, add_budgets, read_budget, seed, side
from _common import one_line_errors, read_quietly, stop
from _files import check_folder, save_whole
from _images import FEWEST, read_images
from _trained import load_stock, model_head, module_name, one_backbone
from mmengine.device import get_device
from mmengine.runner import set_random_seed

from repl_mm import PlanError, apply_repl, choosing, config, cost
from repl_mm.families import find_family
from repl_mm.heads import WithoutHeads, countable
from repl_mm.pictures import pictures_in
from repl_mm.plan import PLAIN
from repl_mm.surgery import check_keys
from repl_mm.tables import markdown

PIXELS = 16 * 800 * 1344  # of all pictures, where their number is not given


def parse_args(argv=None):
    parser = Parser(__doc__, allow_abbrev=False)
    parser.add_argument('config', help='config file, or a name as mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    parser.add_argument('stock', nargs='?', help='weights of the stock model')
    parser.add_argument(
        '--images',
        type=Path,
        metavar='DIR',
        help="folder with unlabelled pictures, or the data_root of the config's dataset if that is not in pictures",
    )
    add_budgets(parser)
    parser.add_argument('--fit', action='store_true', help="measure with each block's computing layer, fitted to it")
    parser.add_argument(
        '--shape',
        type=side,
        nargs=2,
        metavar=('H', 'W'),
        help="of pictures (default: the size in the config's data preprocessor, else 800 1344)",
    )
    parser.add_argument('--num', type=int, help='images at most (default: 512; 16 of 800x1344)')
    parser.add_argument('--batch', type=int, help="images in a training step (default: the config's, else 2)")
    parser.add_argument('--block-steps', type=int, default=150, help='of each fit (default: 150)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/plan'), help='folder (default: work_dirs/plan)')
    parser.add_argument('--seed', type=seed, default=0, help='default: 0')
    parser.add_argument('--cfg-options', nargs='+', action=Options, default={}, help='override settings')
    args = parser.parse_args(argv)
    if (args.stock is None) != (args.images is None):
        given, lacking = ('STOCK', '--images DIR') if args.stock else ('--images', 'STOCK')
        parser.error(f'{given} without {lacking}: expected both, or none of them')
    for key, low in (('num', FEWEST), ('batch', 1), ('block_steps', 0)):
        if getattr(args, key) is not None and getattr(args, key) < low:
            parser.error(f'--{key.replace("_", "-")} {getattr(args, key)}: must be at least {low}')
    if args.fit and not args.stock:
        parser.error('--fit without STOCK and --images DIR: there is nothing to fit to')
    if args.kinds and not args.fit:
        parser.error('--kinds without --fit: left out, a block is the same whatever would stand there')
    read_budget(args)
    return args


def counters(cfg, name, args, shape):
    """Return what counts the cost of a backbone alone, and for ``--memory`` with all that stands behind it."""
    inputs, (moments, _) = cost.ImageInput(shape, args.batch), config.optimizer_moments(cfg)
    alone = partial(cost.measure, inputs=inputs, moments=moments)
    if args.measure != 'memory':
        print(f'Counted: the backbone alone, {inputs}')
        return alone, alone
    kind, whole = countable(cfg, name, alone)
    more = ' without what its heads do, which cannot be counted,' if kind is WithoutHeads else ''
    print(f'Counted: the whole model{more or ","} {inputs}')
    return alone, whole


def share_of_memory(args, savings):
    """Return the share of the stock model's memory that ``--memory`` leaves; end in one line if all fits."""
    needed = choosing.memory(savings.cost())
    if args.limit >= needed:
        stop(f'--memory {args.limit / 1e9:g}GB: {needed / 1e9:.3g}GB are counted of the stock model; expected less')
    left = f'{args.limit / needed:.3f} of the {needed / 1e9:.3g}GB that are counted of the stock model'
    print(f'--memory {args.limit / 1e9:g}GB: {left}')
    return args.limit / needed


def show_plans(stock, replace, words, alone, count, args):
    """Print the config's plan, what each operator would save in its slots, and plans of every n-th block."""
    plan = apply_repl(copy.deepcopy(stock), **replace)
    print(f'No weights and no pictures: nothing is measured.\n\n{plan}\n')
    slots = [(slot.stage, slot.index) for slot in plan.slots]
    rows = [cost.Row('e2e', alone(stock))]
    arms = {operator: dict(mode='fuse', operator=operator) for operator in find_family(stock).OPERATORS}
    for name, arm in (arms | {mode: dict(mode=mode) for mode in PLAIN}).items():
        try:
            rows.append(cost.Row(name, choosing.Savings(stock, {**words, **arm}, alone).cost(slots)))
        except PlanError as error:
            rows.append(cost.Row(name, note=str(error)))
    print(cost.table(rows, 'What would stand in these slots:'), '\n')
    savings, found = choosing.Savings(stock, words, count), {}
    limit = share_of_memory(args, savings) if args.measure == 'memory' else args.limit
    for every in range(1, 7):
        try:
            plan = apply_repl(copy.deepcopy(stock), **words, every=every)
        except PlanError:
            continue
        places = tuple((slot.stage, slot.index) for slot in plan.slots)
        if places in found:  # in short stages every=4 and every=5 are the same
            continue
        left = [savings.left(places, name) for name in choosing.MEASURES]
        meets = savings.left(places, args.measure) <= limit
        found[places] = f'every={every}', len(places), *(f'{number:.3f}' for number in left), 'yes' if meets else ''
    found = sorted(found.values(), key=lambda row: row[2 + list(choosing.MEASURES).index(args.measure)])
    title = f'{args.measure} <= {limit:.3g}'
    print('Every n-th block, ranked by saving only, which says nothing of accuracy; left of the stock network:')
    print(markdown(('plan', 'blocks', *choosing.MEASURES, title), found))
    if not any(row[-1] for row in found):
        print(f'None of them leaves {title}.')


def choose(cfg, path, name, settings, stock, rest, words, args):
    """Choose by measurement, print how, and write a picture and a config."""
    file = args.out / f'{Path(args.config.rpartition("::")[2]).stem}_chosen.py'
    inherit = partial(config.inherit, args.config, file, path, options=args.cfg_options)
    check_folder(args.out, f"--out '{args.out}'")
    inherit(backbone := dict(type=config.repl_type(settings)))  # what is wrong with it, before minutes of measuring
    most = PIXELS // (args.shape[0] * args.shape[1]) if pictures_in(args.images) else 512
    num, device = args.num or max(FEWEST, min(512, most)), get_device()
    images, stock = read_images(cfg, args.images, num, args.shape, '--images').to(device), stock.to(device)
    head, counted = model_head(cfg, name, rest, stock, images, answers=args.fit or words.get('mode') == 'remove')
    _, count = counters(cfg, name, args, tuple(images.shape[-2:]))
    if args.measure == 'memory':
        args.limit = share_of_memory(args, choosing.Savings(stock, words, count))
    print(f'{len(images)} images; what counts: {counted}')
    choice = choosing.choose(
        stock, images, args.limit, args.measure, args.fit, head, count, args.block_steps, dict(args.kinds), **words
    )
    args.out.mkdir(parents=True, exist_ok=True)
    file.write_text(inherit(dict(backbone, replace=choice.replace)))
    choosing.plot(choice, args.out / 'plan.png')
    saved = dict(choice.to_dict(), counted=counted, shape=list(images.shape[-2:]), batch=args.batch)
    save_whole(json.dumps(saved, indent=1), args.out / 'plan.json')
    words = ', '.join(f'{key}={value!r}' for key, value in choice.replace.items())
    print(f'\n{choice}\n\nreplace=dict({words})\n{file} inherits {args.config}; the picture: {args.out / "plan.png"}')
    files = args.stock, file, args.out / 'converted.pth', '--fit', args.images
    drawn = '--num', num, '--shape', *args.shape, '--seed', args.seed
    print(f'Next: python tools/convert.py {shlex.join(map(str, (*files, *drawn)))}')


def main(argv=None):
    args = parse_args(argv)
    set_random_seed(args.seed)
    warnings.filterwarnings('ignore', message='.*use_reentrant.*')  # of mm's blocks, as they are
    cfg = read_quietly(args)
    path, settings = one_backbone(cfg, args.config)
    name = module_name(cfg, path) if args.stock or args.measure == 'memory' else None
    if len(shape := config.example_input(cfg).shape) != 2:
        stop(f"config '{args.config}': its backbone takes words: expected one that takes images")
    args.shape = args.shape or shape
    args.batch = args.batch or (cfg.get('train_dataloader') or {}).get('batch_size') or 2
    try:
        with one_line_errors(OSError):  # as of a teacher's config that is not there
            replace = check_keys(settings.get('replace'))
            words = {key: value for key, value in replace.items() if key not in choosing.PLACES}
            if args.stock is None:
                stock = config.build(config.stock_config(settings), cfg.get('default_scope'))
                show_plans(stock, replace, words, *counters(cfg, name, args, args.shape), args)
            else:
                stock, rest = load_stock(cfg, name, settings, args.stock)
                choose(cfg, path, name, settings, stock, rest, words, args)
    except RuntimeError as error:  # what cannot be counted
        if 'cannot be counted' not in str(error):
            raise
        text = ' '.join(str(error).split())
        if args.measure == 'memory':
            cause = str(error.__cause__).splitlines()[0]
            text = f'--memory: the model cannot be counted ({cause}): expected --flops, --activations or --params'
        stop(text)


if __name__ == '__main__':
    main()
