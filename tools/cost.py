"""What RepL costs in training, side by side with the stock backbone: exact counts, and measured steps on request.

    python tools/cost.py configs/retinanet_r50_repl_coco.py
    python tools/cost.py mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --json cost.json --plot cost.png --time

The counts need no data, no weights and no GPU. A stock config is compared with the default plan.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import sys
import time
import warnings
from contextlib import ExitStack
from functools import partial

import torch
from _common import read_config, stop
from mmengine.config import DictAction
from mmengine.utils import ProgressBar, track_iter_progress
from rich.console import Console
from rich.table import Table

from repl_mm import computing_layers, cost


def parse_args(args=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('config', help='config file, or a name as mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    parser.add_argument('--shape', type=int, nargs=2, default=[800, 1344], metavar=('H', 'W'), help='input image')
    parser.add_argument('--batch', type=int, default=2, help='images in a step')
    parser.add_argument('--modes', nargs='+', choices=['fuse', 'remove', 'share', 'own'], help='modes beside E2E')
    parser.add_argument('--operators', nargs='+', default=[], help='further operators to compare')
    parser.add_argument('--frozen-stages', type=int, nargs='*', default=[-1, 1], help='further settings to compare')
    parser.add_argument('--jobs', type=int, default=2, help='processes that count (where the system can fork)')
    parser.add_argument('--json', metavar='OUT', help='write all counts to this file')
    parser.add_argument('--plot', metavar='OUT', help='draw the relative costs into this picture')
    parser.add_argument(
        '--time', type=int, nargs='?', const=5, metavar='ROUNDS', help='measure steps as well (5 rounds if no number)'
    )
    parser.add_argument('--time-shape', type=int, nargs=2, metavar=('H', 'W'), help='input of the steps, else --shape')
    parser.add_argument('--time-batch', type=int, help='images in a measured step, else --batch')
    parser.add_argument('--device', help='of the measured steps; cuda if there is one, else cpu')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='settings of the config to override')
    return parser.parse_args(args)


def step_seconds(work, device):
    """Seconds of one call, and on CUDA the peak of memory in bytes above what was allocated before it."""
    if device.type != 'cuda':
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin, None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - begin, torch.cuda.max_memory_allocated(device) - before


def train_step(backbone, image):
    """Forward and backward pass, as :func:`repl_mm.cost.measure` counts it."""
    outputs = [out for out in backbone(image) if out.requires_grad]
    torch.autograd.backward(outputs, [torch.ones_like(out) for out in outputs])


def time_arms(arms, scope, shape, batch, rounds, device):
    """Measure real steps of the backbones, interleaved in one process, in random order within every round.

    Args:
        arms (list[Arm]): The first one is what the others are compared with.
        scope (str): The config's ``default_scope``.
        shape (list[int]): Height and width.
        batch (int): Images in a step.
        rounds (int): Measured steps of every arm, after one step to warm up.
        device (torch.device): Where the steps run.

    Returns:
        list[dict]: For every arm its name, the seconds of its steps, the ratios to the first arm within the rounds
        with their median and quartiles, the time of the synthesis as a share of the step (0 without computing
        layers) and, on CUDA, the peak of memory in bytes: what a step allocates, gradients included, and the weights.
    """
    backbones = {arm.name: cost.build_arm(arm, scope).to(device) for arm in arms}
    seconds = {name: [] for name in backbones}
    synthesis = {name: [] for name in backbones}
    peaks = dict.fromkeys(backbones, 0)
    image = torch.rand(batch, 3, *shape, device=device)
    order = list(backbones)
    shuffle = random.Random(0).shuffle
    progress = ProgressBar((rounds + 1) * len(order), file=sys.stderr)
    for turn in range(rounds + 1):
        shuffle(order)
        for name in order:
            backbone = backbones[name]
            backbone.train()
            step, peak = step_seconds(lambda b=backbone: train_step(b, image), device)
            backbone.zero_grad()
            alone, _ = step_seconds(lambda b=backbone: cost.synthesize(b), device)
            backbone.zero_grad()
            if turn:  # the first one warms up
                seconds[name].append(step)
                synthesis[name].append(alone / step)
                peaks[name] = max(peaks[name], peak or 0)
            progress.update()
    print(file=sys.stderr)
    first = seconds[arms[0].name]
    results = []
    for name, backbone in backbones.items():
        ratios = [own / base for own, base in zip(seconds[name], first, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4, method='inclusive') if rounds > 1 else ratios * 3
        layers = any(list(layer.parameters()) for _, layer in computing_layers(backbone))
        weights = sum(p.numel() * p.element_size() for p in backbone.parameters())
        results.append(
            dict(
                name=name,
                seconds=seconds[name],
                ratios=ratios,
                median=median,
                quartiles=[low, high],
                synthesis_share=statistics.median(synthesis[name]) if layers else 0,
                peak_bytes=peaks[name] + weights if device.type == 'cuda' else None,
            )
        )
    return results


def time_table(results, title):
    """Print measured steps."""
    grid = Table(title=title, title_justify='left')
    for name in ('backbone', 's per step', 'relative to E2E', 'quartiles', 'synthesis', 'peak memory'):
        grid.add_column(name, justify='left' if name == 'backbone' else 'right')
    for result in results:
        low, high = result['quartiles']
        peak = result['peak_bytes']
        grid.add_row(
            result['name'],
            f'{statistics.median(result["seconds"]):.3g}',
            f'{result["median"]:.3f}',
            f'{low:.3f} .. {high:.3f}',
            f'{result["synthesis_share"]:.2%}' if result['synthesis_share'] else '-',
            f'{peak / 2**20:.0f} MiB' if peak else '-',
        )
    return grid


def count_arms(args, cfg):
    """Count all arms of a config: the arms, their rows, and the optimizer's name."""
    scope = cfg.get('default_scope')
    path, backbone = cost.find_backbone(cfg.model)
    arms = cost.arms_of(backbone, scope, args.modes, args.operators, args.frozen_stages)
    moments, optimizer = cost.optimizer_moments(cfg)
    try:
        rest = cost.params_outside(cfg.model, path, scope)
    except Exception as error:  # any model of any package: the backbone's cost does not hang on it
        rest = None
        print(f'the whole model was not built, only its backbone: {error}')
    one = partial(cost.count, scope=scope, shape=args.shape, batch=args.batch, moments=moments, rest=rest)
    with ExitStack() as stack:
        run = map
        if args.jobs > 1 and 'fork' in multiprocessing.get_all_start_methods():
            # one thread each: the OpenMP threads of a process do not survive a fork, and fake tensors need none
            context = multiprocessing.get_context('fork')
            run = stack.enter_context(context.Pool(args.jobs, torch.set_num_threads, (1,))).imap
        rows = list(track_iter_progress((run(one, arms), len(arms)), file=sys.stderr))
    return arms, rows, optimizer


def main(args=None):
    args = parse_args(args)
    warnings.filterwarnings('ignore', message='.*use_reentrant.*')  # of mm's blocks, as they are
    cfg = read_config(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    try:
        arms, rows, optimizer = count_arms(args, cfg)
    except (RuntimeError, ValueError) as error:
        print(file=sys.stderr)  # behind the progress
        stop(' '.join(str(error).split()))
    print(cost.table(rows, os.path.basename(args.config), optimizer))
    out = dict(config=args.config, optimizer=optimizer, rows=list(cost.relative(rows)))
    if args.time:
        device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        shape, batch = args.time_shape or args.shape, args.time_batch or args.batch
        counted = [row.name for row in rows if row.cost and row.group == arms[0].group]
        arms = [arm for arm in arms if arm.group == arms[0].group and arm.name in counted]
        out['time'] = time_arms(arms, cfg.get('default_scope'), shape, batch, args.time, device)
        title = f'Steps on {device}, {shape[0]}x{shape[1]}, batch {batch}: median over {args.time} rounds'
        Console(width=120).print(time_table(out['time'], title))
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(out, file, indent=1)
    if args.plot:
        cost.plot(rows, args.plot)


if __name__ == '__main__':
    main()
