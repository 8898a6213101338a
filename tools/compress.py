"""Make a trained network cheaper: choose blocks, replace them, fit the layers, heal the network, test it, report.

    python tools/compress.py CONFIG STOCK OUT_DIR --images DIR --flops 0.8 --heal-steps 400

CONFIG, STOCK and the budgets are those of tools/plan.py; no label is read but for the test. DIR is a folder of
pictures, or the data_root of the config's dataset where that is not in pictures. Every stage is a tool of its own
(plan, convert, heal, merge, test); what is done is not done again, so the same command goes on where it was stopped.
OUT_DIR has a report, report.md, the config plan/NAME_chosen.py and the checkpoint healed.pth.
"""

import json
import os
from pathlib import Path

from _arguments import Parser, Words, add_budgets, rate, read_budget, seed, side
from _common import one_line_errors, read_quietly
from _files import check_folder
from _images import FEWEST, pictures_of
from _stages import Stages, read_json
from _trained import check_answers, check_healing, load_stock, module_name, one_backbone

from repl_mm import apply_repl, config, cost
from repl_mm.classification import classifier_head
from repl_mm.compression import page, plot_healing, score
from repl_mm.data_checks import DataError, check_data
from repl_mm.heads import trained_model
from repl_mm.surgery import check_keys


def parse_args(argv=None):
    parser = Parser(__doc__, allow_abbrev=False)
    parser.add_argument('config', help='config file, or a name as mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    parser.add_argument('stock', help='weights of the stock model')
    parser.add_argument('out', type=Path, metavar='OUT_DIR', help='folder to write')
    parser.add_argument('--images', type=Path, metavar='DIR', required=True, help='folder of unlabelled pictures')
    add_budgets(parser)
    parser.add_argument(
        '--shape', type=side, nargs=2, default=[224, 224], metavar=('H', 'W'), help='of pictures (default: 224 224)'
    )
    parser.add_argument('--num', type=int, default=512, help='images to choose and to fit with (default: 512)')
    parser.add_argument('--fit-steps', type=int, default=300, help='of fitting the layers together (default: 300)')
    parser.add_argument('--block-steps', type=int, default=150, help='of fitting one layer (default: 150)')
    parser.add_argument(
        '--answers', action='store_true', help="fit to a classifier's answers; best for a transformer's RepL layers"
    )
    parser.add_argument('--heal-steps', type=int, default=400, help='0 for none (default: 400)')
    parser.add_argument('--lr', type=rate, default=3e-4, help='of healing (default: 3e-4)')
    parser.add_argument(
        '--batch', type=int, help="images in a step, of healing and for what is counted (default: the config's)"
    )
    parser.add_argument('--amp', action='store_true', help='heal with automatic mixed precision')
    parser.add_argument('--merge', action='store_true', help='plain modules in the place of the layers at last')
    parser.add_argument('--data-root', help='folder of the test set, in place of data_root in all of the config')
    parser.add_argument('--seed', type=seed, default=0, help='default: 0')
    parser.add_argument('--cfg-options', nargs='+', action=Words, default={}, help='override settings')
    parser.add_argument(
        '--heal-options',
        nargs='+',
        action=Words,
        default={},
        metavar='KEY=VALUE',
        help='settings of healing alone, as of heal.py',
    )
    parser.set_defaults(cfg_options_words=[], heal_options_words=[])
    args = parser.parse_args(argv)
    for key, low in (('num', FEWEST), ('fit_steps', 0), ('block_steps', 0), ('heal_steps', 0), ('batch', 1)):
        if getattr(args, key) is not None and getattr(args, key) < low:
            parser.error(f'--{key.replace("_", "-")} {getattr(args, key)}: must be at least {low}')
    read_budget(args)
    return args


def test_note(cfg, whole, stock):
    """Return why nothing can be tested, or None."""
    if not whole:
        return f"Nothing was tested: '{stock}' has the weights of the backbone alone, or those of other classes."
    if not cfg.get('test_dataloader') or not cfg.get('test_evaluator'):
        return 'Nothing was tested: the config has no test set.'
    try:
        check_data(cfg, 'test')
    except DataError as error:
        return f'Nothing was tested: {error}'
    return None


def main(argv=None):
    args = parse_args(argv)
    cfg = read_quietly(args)
    path, settings = one_backbone(cfg, args.config)
    name = module_name(cfg, path)
    pictures = pictures_of(cfg, args.images, '--images')
    root = args.data_root or (None if pictures else str(args.images))
    with one_line_errors():
        if root:
            config.set_data_root(cfg, root)
        check_keys(settings.get('replace'))
        stock, rest = load_stock(cfg, name, settings, args.stock)
        whole = trained_model(cfg, name, rest)[1]
        if args.answers:
            check_answers(classifier_head(cfg, rest), args.stock)
    check_folder(args.out, f"OUT_DIR '{args.out}'")
    if args.heal_options:
        check_healing(cfg, args.stock, args.images, args.heal_options)
    with Stages(args.out) as stages:
        try:
            compress(args, cfg, settings, stock, root, whole, stages)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(str(error) or 'interrupted; the same command goes on from here') from None


def compress(args, cfg, settings, stock, root, whole, stages):
    """Run all stages, and write the report.

    Args:
        args (argparse.Namespace): The parsed arguments.
        cfg (Config): The config.
        settings (dict): Of its backbone.
        stock (nn.Module): The stock backbone.
        root (str | None): Folder of the test set, if not the config's.
        whole (bool): Whether STOCK has the weights of the whole model.
        stages (Stages): What runs them.
    """
    out, planned = args.out, args.out / 'plan'
    given, weights = (Path(word) if os.path.isfile(word) else word for word in (args.config, args.stock))
    limit = f'{args.limit / 1e6}MB' if args.measure == 'memory' else args.limit
    batch = ['--batch', args.batch] if args.batch else []
    kinds = ['--kinds', *(name for name, _ in args.kinds)] if args.kinds else []
    fitted = ['--answers', '--block-steps', 0] if args.answers else ['--block-steps', args.block_steps]
    written = {name: str((out / f'{name}.pth').absolute()) for name in ('converted', 'healed', 'merged', 'stock')}
    common = ['--shape', *args.shape, '--seed', args.seed]
    stages.run(
        'plan', lambda: read_json(planned / 'plan.json') and any(planned.glob('*_chosen.py')), 'plan.py', given,
        weights, '--images', args.images, f'--{args.measure}', limit, '--fit', '--num', args.num, '--block-steps',
        args.block_steps, '--out', planned, *common, *batch, *kinds, *args.cfg_options_words,
    )  # fmt: skip
    plan = json.loads((planned / 'plan.json').read_text())
    chosen = next(planned.glob('*_chosen.py'))
    stages.run(
        'convert', (out / 'converted.pth').is_file, 'convert.py', weights, chosen, written['converted'], '--fit',
        args.images, '--num', args.num, '--steps', args.fit_steps, *fitted, *common,
    )  # fmt: skip
    last = 'converted'
    if args.heal_steps:
        last = 'healed'
        stages.run(
            'heal', (out / 'healed.pth').is_file, 'heal.py', chosen, weights, out / 'converted.pth',
            written['healed'], '--images', args.images, '--steps', args.heal_steps, '--shape', *args.shape,
            '--work-dir', out / 'heal', '--seed', args.seed, '--lr', args.lr, *batch, *(['--amp'] if args.amp else []),
            *args.heal_options_words,
        )  # fmt: skip
    files = dict(stock=out / 'stock.pth', converted=out / 'converted.pth') | {last: out / f'{last}.pth'}
    configs = dict.fromkeys(files, chosen)
    if args.merge:
        files['merged'], configs['merged'] = out / 'merged.pth', out / 'merged.py'
        stages.run('merge', configs['merged'].is_file, 'merge.py', chosen, files[last], written['merged'])
    note = test_note(cfg, whole, args.stock)
    notes, scores = [note] if note else [], dict.fromkeys(files)
    if note is None:
        cfg.model = config.with_backbones(cfg.model, config.stock_config)
        configs['stock'] = out / 'stock.py'
        cfg.dump(configs['stock'])
        stages.run(
            'stock', files['stock'].is_file, 'convert.py', weights, str(configs['stock'].absolute()), written['stock']
        )
        for name, file in files.items():
            folder = out / 'test' / name
            tested = stages.run(
                f'test {name}', lambda folder=folder: score(folder) is not None, 'test.py', configs[name], file,
                '--work-dir', folder, *(['--data-root', root] if root else []), needed=False,
            )  # fmt: skip
            scores[name] = score(folder)
            if not tested:
                notes.append(f'`tools/test.py` failed on {name}.pth: the same command tests it again.')
                if name == 'stock':  # then it is the test set
                    break
    with one_line_errors():
        compressed = config.build(config.stock_config(settings), cfg.get('default_scope'))
        words = {**plan['words'], 'slots': plan['slots']}
        apply_repl(compressed, **words, **(dict(merged=True) if args.merge else {}))
    inputs = cost.ImageInput(plan['shape'], plan['batch'])
    costs = cost.measure(stock, inputs), cost.measure(compressed, inputs)
    healing = 'healing.png' if args.heal_steps and plot_healing(out / 'heal', out / 'healing.png') else None
    text = page(Path(args.config).stem, plan, scores, stages.took, costs, notes, healing)
    (out / 'report.md').write_text(text)
    print(f'\n{text}\n{out / "report.md"}; load_from={str(files[last])!r} with {chosen}')


if __name__ == '__main__':
    main()
