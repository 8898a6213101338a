"""Measure inference: latency and throughput of merged networks, arms interleaved in one process.

    python tools/benchmark.py configs/retinanet_r50_repl_coco.py --arms e2e fuse remove --backends torch onnx onnx-int8

Whole networks, up to the raw outputs of the heads, with random weights. *Ratio*: the median of an arm's times
relative to the first arm's within the same round. *Kept*: the share of the saving that removing the same blocks gives.
"""

import json
import os
import warnings

import torch
from _arguments import Options, Parser
from _common import one_line_errors
from mmengine.logging import MMLogger

from repl_mm import MergeError, PlanError, config
from repl_mm import arms as language
from repl_mm.cost import ImageInput
from repl_mm.deployment import ExportError
from repl_mm.deployment.benchmark import BACKENDS, benchmark
from repl_mm.tables import amount, markdown
from repl_mm.visualization import Bubble, draw_bubbles

PICTURES = ('png', 'jpg', 'svg', 'pdf')


def parse_args(args=None):
    parser = Parser(f'{__doc__}\n{language.__doc__}')
    parser.add_argument('config', help='config file, or a name as mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    parser.add_argument('--arms', nargs='+', default=list(language.DEFAULTS), help='default: e2e fuse remove')
    parser.add_argument(
        '--backends', nargs='+', default=['torch', 'onnx'], choices=BACKENDS, help='default: torch onnx'
    )
    parser.add_argument('--batch', type=int, nargs='+', default=[1], help='images in a call (default: 1)')
    parser.add_argument('--shape', type=int, nargs=2, default=[800, 1344], metavar=('H', 'W'), help='of the images')
    parser.add_argument('--rounds', type=int, default=10, help='measured calls of every arm (default: 10)')
    parser.add_argument('--device', help='of torch and compile; cuda if there is one, else cpu')
    parser.add_argument('--accuracy', type=float, nargs='+', help='one figure for every arm, for --plot')
    parser.add_argument('--json', metavar='OUT', help='write all times to this file')
    parser.add_argument('--plot', metavar='OUT', help='draw accuracy against throughput into this picture')
    parser.add_argument('--cfg-options', nargs='+', action=Options, help='settings of the config to override')
    args = parser.parse_args(args)
    if min(args.batch) < 1 or args.rounds < 1:
        parser.error('--batch and --rounds: must be at least 1')
    if bool(args.plot) != bool(args.accuracy) or (args.accuracy and len(args.accuracy) != len(args.arms)):
        parser.error(f'--plot and --accuracy belong together, with one figure for each of the {len(args.arms)} arms')
    if args.plot and args.plot.rpartition('.')[2] not in PICTURES:
        parser.error(f"--plot '{args.plot}': expected a file name that ends with .{', .'.join(PICTURES)}")
    return args


def table(rows):
    """Return the results as a Markdown table."""
    cells = [
        (
            row['backend'],
            str(row['batch']),
            row['name'],
            amount(row['params']),
            f'{1000 * row["latency"]:.1f}',
            f'{1000 * row["p95"]:.1f}',
            f'{row["throughput"]:.2f}',
            f'{row["ratio"]:.3f}',
            '{:.3f} .. {:.3f}'.format(*row['quartiles']),
            '' if row['kept'] is None else f'{row["kept"]:.0%}',
        )
        for row in rows
    ]
    header = ('engine', 'batch', 'arm', 'params', 'ms', 'p95', 'images/s', 'ratio', 'quartiles', 'kept')
    return markdown(header, cells, left=3)


def read_device(name):
    """The device of this name; None: cuda if there is one, else cpu."""
    try:
        device = torch.device(name or ('cuda' if torch.cuda.is_available() else 'cpu'))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f'--device {name}: expected cpu, or an accelerator that is there ({error})') from None
    return device


def plot(rows, accuracy, path):
    """Draw accuracy against throughput, an area by parameters for every arm, a colour for every engine and batch."""
    bubbles = [
        Bubble(
            row['throughput'],
            accuracy[row['name']],
            row['params'],
            f'{row["backend"]}, batch {row["batch"]}',
            row['name'],
        )
        for row in rows
    ]
    draw_bubbles({'': bubbles}, path, 'images per second', 'accuracy', log=True)


def main(args=None):
    args = parse_args(args)
    warnings.filterwarnings('ignore')
    MMLogger.get_current_instance().setLevel('ERROR')
    for path in filter(None, (args.json, args.plot)):
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    with one_line_errors(ExportError, MergeError, ValueError):
        cfg = config.read_config(args.config)
        cfg.merge_from_dict(args.cfg_options or {})
        device = read_device(args.device)
        arms = [language.read_arm(text, ImageInput(args.shape, 1)) for text in args.arms]
        if len({arm.name for arm in arms}) < len(arms):
            raise PlanError(f'--arms {" ".join(args.arms)}: an arm is named twice')
        rows = benchmark(arms, cfg, args.backends, args.batch, args.rounds, device)
    where = f'{device} ({torch.get_num_threads()} threads)' if device.type == 'cpu' else torch.cuda.get_device_name()
    print(f'Inference at {args.shape[0]}x{args.shape[1]}, {where}, {args.rounds} rounds\n\n{table(rows)}')
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(dict(config=args.config, shape=args.shape, device=where, rows=rows), file, indent=1)
    if args.plot:
        plot(rows, dict(zip(args.arms, args.accuracy, strict=True)), args.plot)


if __name__ == '__main__':
    main()
