"""What RepL costs in training, side by side with the stock backbone: exact counts, and measured steps on request.

    python tools/cost.py configs/retinanet_r50_repl_coco.py
    python tools/cost.py mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --json cost.json --plot cost.png --time
    python tools/cost.py configs/retinanet_r50_repl_coco.py --arms e2e fuse remove own full e2e:depth=34

The counts need no data, no weights and no GPU. The config may have stock or RepL backbones.
"""

import dataclasses
import json
import os
import warnings

import torch
from _arguments import Options, Parser
from _common import stop

from repl_mm import arms as language
from repl_mm import config, cost

SMALL = {
    cost.ImageInput: (64, 64),
    cost.WordInput: (64,),
}  # where operations are short


def parse_args(args=None):
    parser = Parser(f'{__doc__}\n{language.__doc__}', allow_abbrev=False)
    parser.add_argument('config', help='config file, or a name as mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    parser.add_argument('--arms', nargs='+', help='default: e2e fuse remove and what the backbone has switches for')
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar='N',
        help="image, H W (default: the size in the config's data preprocessor, else 800 1344); words of a text",
    )
    parser.add_argument('--batch', type=int, default=2, help='images or texts in a step')
    parser.add_argument('--jobs', type=int, default=2, help='processes that count (where the system can fork)')
    parser.add_argument('--json', metavar='OUT', help='write all counts to this file')
    parser.add_argument('--plot', metavar='OUT', help='draw the relative costs into this picture')
    parser.add_argument(
        '--time',
        type=int,
        nargs='?',
        const=5,
        metavar='ROUNDS',
        help='measure steps as well, at that size and at 64x64 or what is smaller (5 rounds if no number)',
    )
    parser.add_argument('--time-shape', type=int, nargs='+', metavar='N', help='input of the steps, else --shape')
    parser.add_argument('--time-batch', type=int, help='images in a measured step, else --batch')
    parser.add_argument('--device', help='of the measured steps; cuda if there is one, else cpu')
    parser.add_argument('--cfg-options', nargs='+', action=Options, help='settings of the config to override')
    args = parser.parse_args(args)
    if args.time is not None and args.time < 1:
        parser.error(f'--time {args.time}: must be at least 1')
    return args


def count_arms(args, cfg):
    """Return the arms of a config, their rows, and the optimizer's name."""
    inputs = config.example_input(cfg, args.shape, args.batch)
    if args.arms:
        arms = [language.read_arm(text, inputs) for text in args.arms]
        optional = []
    else:
        arms = language.default_arms(cfg, inputs)
        optional = [arm.name for arm in arms[len(language.DEFAULTS) :]]
    moments, optimizer = config.optimizer_moments(cfg)
    rows = cost.count_all(arms, cfg, moments, params_outside(arms, cfg), optional, args.jobs)
    return arms, rows, optimizer


def params_outside(arms, cfg):
    """Return the trainable parameters of each arm's model outside of its backbones by name; none if they are unknown.

    Raises:
        ValueError: The model does not take the words of an arm.
    """
    scope = cfg.get('default_scope')
    try:
        plain = config.params_outside(cfg.model, scope)
    except Exception as error:  # any model of any package: the backbone's cost does not hang on it
        print(f'the whole model was not built, only its backbone: {error}')
        return {}
    found = {arm.name: plain for arm in arms}
    for arm in arms:
        if arm.model_settings:
            try:
                found[arm.name] = config.params_outside(language.arm_config(arm, cfg).model, scope)
            except (AttributeError, TypeError, ValueError, KeyError, AssertionError) as error:
                raise ValueError(f'arm {arm.name!r}: {error}') from error
    return found


def main(args=None):
    args = parse_args(args)
    warnings.filterwarnings('ignore', message='.*use_reentrant.*')  # of mm's blocks, as they are
    try:
        device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        batch = args.batch if args.time_batch is None else args.time_batch
        for path in filter(None, (args.json, args.plot)):
            os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        cfg = config.read_config(args.config)
        cfg.merge_from_dict(args.cfg_options or {})
        steps = config.example_input(cfg, args.time_shape or args.shape, batch)
        arms, rows, optimizer = count_arms(args, cfg)
    except (RuntimeError, ValueError) as error:
        stop(' '.join(str(error).split()))
    print(cost.table(rows, os.path.basename(args.config), optimizer))
    out = dict(config=args.config, optimizer=optimizer, rows=list(cost.relative(rows)))
    if args.time:
        arms = [arm for arm, row in zip(arms, rows, strict=True) if row.cost]
        limit = SMALL[type(steps)]
        shape = steps.shape[-len(limit) :]
        small = tuple(map(min, limit, shape))
        sizes = dict(time=steps)
        if small != shape:
            sizes['time_small'] = config.example_input(cfg, small, batch)
        for key, inputs in sizes.items():
            timed = [dataclasses.replace(arm, inputs=inputs) for arm in arms]
            try:
                out[key] = cost.time_arms(timed, cfg, args.time, device)
            except (RuntimeError, AssertionError, ValueError) as error:
                if key == 'time':
                    raise
                print(f'no steps at {inputs}: {error}')  # a backbone of one size of picture
                continue
            print(cost.time_table(out[key], f'Steps on {device}, {inputs}: median over {args.time} rounds'))
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(out, file, indent=1)
    if args.plot:
        cost.plot(rows, args.plot)


if __name__ == '__main__':
    main()
