"""Trains one config with and without RepL over several seeds and puts accuracy and cost side by side.

Between the arms nothing but the backbone's config words changes::

    python tools/compare.py configs/retinanet_r34_repl_bccd.py --arms e2e fuse remove --seeds 0 1 2 --out work_dirs/cmp

    e2e       the stock backbone, no block replaced
    fuse      RepL; share, own, remove: the same slots with that `mode`
    full      fused weights in the structure of the replaced block (`mode='fuse', operator='full'`)
    detach    RepL without gradient to the neighbours through the computing layers (`mode='fuse', detach=True`)
    KEY=VALUE RepL with other words in `replace`, for instance `operator=mlp` or `operator=mlp,ratio=0.5`

Every run is an ordinary `tools/train.py` run in OUT/<arm>/seed_<seed>. Started again, the command skips what is
finished and resumes what was cut off. It writes OUT/compare.json, OUT/compare.md and OUT/compare.png.
"""

import argparse
import ast
import copy
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from _common import check_data, one_line_errors, read_config, set_data_root, stop
from mmengine.config import DictAction
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from scipy import stats

from repl_mm import cost

ARMS = {
    'e2e': None,
    'fuse': dict(mode='fuse'),
    'remove': dict(mode='remove'),
    'share': dict(mode='share'),
    'own': dict(mode='own'),
    'full': dict(mode='fuse', operator='full'),
    'detach': dict(mode='fuse', detach=True),
}
METRICS = ('coco/bbox_mAP', 'mIoU', 'accuracy/top1')
TRAIN = Path(__file__).with_name('train.py')


# ---- the arms ----


def arm_words(arm):
    """What an arm changes in ``replace``.

    Args:
        arm (str): Key of :data:`ARMS`, or words such as ``operator=mlp,ratio=0.5``.

    Returns:
        dict: The words; None for ``e2e``.

    Raises:
        argparse.ArgumentTypeError: It is neither.
    """
    if arm in ARMS:
        return ARMS[arm]
    words = {}
    for word in arm.split(','):
        key, equals, value = word.partition('=')
        if not (key and equals and value):
            raise argparse.ArgumentTypeError(f'{arm!r} is no arm: expected one of {", ".join(ARMS)}, or KEY=VALUE')
        try:
            words[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            words[key] = value
    return words


def arm_config(cfg, arm):
    """The config of one arm.

    Args:
        cfg (Config): A config with one RepL backbone.
        arm (str): See :func:`arm_words`.

    Returns:
        Config: A copy in which only the backbone's words differ; ``e2e`` has the stock type and no ``replace``.

    Raises:
        ValueError: The model has no RepL backbone.
    """
    cfg = copy.deepcopy(cfg)
    _, backbone = cost.find_backbone(cfg.model)
    name = str(backbone.type).rpartition('.')[2]
    if not name.startswith('RepL'):
        raise ValueError(f"model.backbone.type='{backbone.type}' is no RepL backbone, there is nothing to compare")
    if arm == 'e2e':
        backbone.type = name.removeprefix('RepL')
        backbone.pop('replace', None)
    else:
        backbone.replace = {**(backbone.get('replace') or {}), **arm_words(arm)}
    return cfg


def write_config(cfg, path):
    """Writes the config of a run, or checks that the one from an earlier start is the same.

    Args:
        cfg (Config): The config.
        path (Path): Where to write it.

    Raises:
        ValueError: The file there is a different config, so what lies beside it answers another question.
    """
    if path.is_file() and path.read_text() != cfg.pretty_text:
        raise ValueError(f"'{path.parent}' holds a run with other settings: choose another folder, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(cfg.pretty_text)


def input_shape(cfg):
    """Size of the first training batch.

    Args:
        cfg (Config): The compared config; its training data must be there.

    Returns:
        tuple[int]: Batch size, height and width as the backbone sees them.
    """
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        loader = dict(copy.deepcopy(cfg.train_dataloader), num_workers=0, persistent_workers=False)
        preprocessor = MODELS.build(cfg.model.data_preprocessor)
        batch = next(iter(Runner.build_dataloader(loader, seed=0)))
        inputs = preprocessor(batch, training=True)['inputs']
    return inputs.shape[0], *inputs.shape[-2:]


def measure(cfg, shape, batch):
    """Exact cost of an arm's backbone, see :func:`repl_mm.cost.measure`.

    Args:
        cfg (Config): The arm's config.
        shape (Sequence[int]): Height and width.
        batch (int): Images in a step.

    Returns:
        dict: The counts.
    """
    _, backbone = cost.find_backbone(cfg.model)
    backbone = {key: value for key, value in backbone.items() if key not in ('init_cfg', 'pretrained')}
    moments, _ = cost.optimizer_moments(cfg)
    return asdict(cost.measure(cost.build(backbone, cfg.get('default_scope')), shape, batch, moments))


# ---- running ----


def read_scalars(work_dir):
    """Records of all ``vis_data/scalars.json`` of a run, oldest first; a resumed run has several files.

    Args:
        work_dir (str | Path): Work dir of the run.

    Returns:
        list[dict]: Training records (they have a ``loss``) and validation records (they have metrics). What the RepL
        hook logs of the fusion coefficients is left out.
    """
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [record for record in records if not any(key.startswith('repl/') for key in record)]


def run_result(work_dir):
    """What a finished run reached.

    Args:
        work_dir (str | Path): Work dir of the run.

    Returns:
        dict: ``metrics`` of the last validation, and ``step_time``, the median over the log records in seconds.

    Raises:
        ValueError: The run left no validation record.
    """
    records = read_scalars(work_dir)
    times = [record['time'] for record in records if 'loss' in record]
    final = next((record for record in reversed(records) if 'loss' not in record), None)
    if final is None or not times:
        raise ValueError(f"'{work_dir}' has no training or no validation record")
    metrics = {key: value for key, value in final.items() if key not in ('time', 'data_time', 'step')}
    return dict(metrics=metrics, step_time=statistics.median(times))


def logged_eta(log):
    """Seconds of the last ``eta:`` in a log of mmengine.

    Args:
        log (Path): The log file.

    Returns:
        float: None before the first.
    """
    found = re.findall(r'eta: (?:(\d+) days?, )?(\d+):(\d+):(\d+)', log.read_text(errors='replace'))
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found[-1])
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def run_all(tasks, jobs, train=TRAIN, poll=0.5, report=60):
    """Runs what is not finished, ``jobs`` at a time, and writes ``result.json`` into each finished work dir.

    Args:
        tasks (list[tuple]): Config file, work dir and seed of each run.
        jobs (int): Runs at a time. Each gets its share of the CPU cores, and one GPU where there are several.
        train (Path): The training script.
        poll (float): Seconds between two looks at the runs.
        report (float): Seconds between two progress lines.

    Returns:
        list[Path]: Work dirs of the runs that failed.
    """
    waiting = [task for task in tasks if not (task[1] / 'result.json').is_file()]
    slots, running, failed, seconds = list(range(jobs)), {}, [], []
    reported = 0
    try:
        while waiting or running:
            while waiting and slots:
                slot = slots.pop(0)
                running[slot] = (start(*waiting[0], train, jobs, slot), waiting.pop(0)[1], time.time())
            for slot, (process, work_dir, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                slots.append(slot)
                reported = 0
                if process.returncode:
                    failed.append(work_dir)
                    print(f'{work_dir}: failed with exit code {process.returncode}, see train.log there', flush=True)
                    continue
                seconds.append(time.time() - began)
                result = dict(run_result(work_dir), minutes=seconds[-1] / 60)
                (work_dir / 'result.json').write_text(json.dumps(result, indent=1))
            if time.time() - reported > report:
                reported = time.time()
                print(progress(len(tasks), len(failed), len(waiting), running, seconds, jobs), flush=True)
            time.sleep(poll)
    finally:
        for process, _, _ in running.values():
            process.terminate()
    return failed


def start(config, work_dir, seed, train, jobs, slot):
    """Starts one training run with its share of the machine; its output goes to ``train.log``."""
    threads = str(max(1, len(os.sched_getaffinity(0)) // jobs))
    env = dict(os.environ, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    if torch.cuda.device_count() > 1:
        visible = os.environ.get('CUDA_VISIBLE_DEVICES') or ','.join(map(str, range(torch.cuda.device_count())))
        env['CUDA_VISIBLE_DEVICES'] = visible.split(',')[slot % torch.cuda.device_count()]
    command = [sys.executable, train, config, '--work-dir', work_dir, '--resume', '--cfg-options']
    command.append(f'randomness.seed={seed}')
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / 'train.log').open('a') as log:
        return subprocess.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, env=env)


def progress(total, failed, waiting, running, seconds, jobs):
    """One line: what is done, what runs, and how long the rest takes."""
    left = [logged_eta(work_dir / 'train.log') for _, work_dir, _ in running.values()]
    spent = [time.time() - began for _, _, began in running.values()]
    per_run = statistics.mean(seconds or [a + b for a, b in zip(left, spent, strict=True) if a is not None] or [0])
    eta = 'not known yet'
    if per_run:
        rest = sum(per_run if a is None else a for a in left) + waiting * per_run
        eta = time.strftime('%H:%M:%S', time.gmtime(rest / max(1, min(jobs, len(running) + waiting))))
    names = ', '.join('/'.join(work_dir.parts[-2:]) for _, work_dir, _ in running.values()) or 'nothing'
    return f'{total - waiting - len(running) - failed}/{total} runs done, running {names}, ETA {eta}'


# ---- statistics ----


def choose_metric(names, wanted=None):
    """The metric to compare.

    Args:
        names (Iterable[str]): Metrics that every run reports.
        wanted (str, optional): The one to take. Defaults to the first of :data:`METRICS` that is there.

    Returns:
        str: Its name.

    Raises:
        ValueError: The runs do not report it.
    """
    wanted = wanted or next((name for name in METRICS if name in names), ' or '.join(METRICS))
    if wanted not in names:
        valid = ', '.join(sorted(names)) or 'none'
        raise ValueError(f"--metric '{wanted}' is not reported by all runs, valid: {valid}")
    return wanted


def summarize(scores, reference='e2e'):
    """Mean, spread and paired difference of every arm.

    Args:
        scores (dict[str, dict[int, float]]): Score by arm and seed.
        reference (str): The arm that the others are compared with. Defaults to ``'e2e'``.

    Returns:
        dict[str, dict]: For every arm ``n``, ``mean`` and ``std`` (of the sample; None for one run). For every other
        arm than the reference also ``diff``, the mean difference over the ``diff_n`` seeds that both have, and
        ``diff_ci``, its 95 % t-interval (None for one seed).
    """
    rows = {}
    for arm, by_seed in scores.items():
        values = list(by_seed.values())
        std = statistics.stdev(values) if len(values) > 1 else None
        rows[arm] = dict(n=len(values), mean=statistics.mean(values), std=std)
        base = scores.get(reference, {})
        diffs = [by_seed[seed] - base[seed] for seed in by_seed if seed in base]
        if arm == reference or not diffs:
            continue
        rows[arm].update(diff=statistics.mean(diffs), diff_n=len(diffs), diff_ci=None)
        if len(diffs) > 1:
            half = float(stats.t.ppf(0.975, len(diffs) - 1)) * statistics.stdev(diffs) / len(diffs) ** 0.5
            rows[arm]['diff_ci'] = [rows[arm]['diff'] - half, rows[arm]['diff'] + half]
    return rows


# ---- output ----


def table(result):
    """The comparison as a Markdown table.

    Args:
        result (dict): Content of ``compare.json``.

    Returns:
        str: The table and a line that says what its columns are.
    """
    columns = [
        'arm',
        'n',
        result['metric'],
        'difference to e2e',
        'trained params',
        'train FLOPs',
        'activations',
        'step',
    ]
    lines = [columns, ['---', *['---:'] * (len(columns) - 1)]]
    base = result['arms'].get('e2e', next(iter(result['arms'].values())))
    for arm, row in result['arms'].items():
        spread = '' if row['std'] is None else f' ± {row["std"]:.2g}'
        diff = f'{row["diff"]:+.3g}' if 'diff' in row else ''
        if row.get('diff_ci'):
            diff += ' [{:+.3g}, {:+.3g}]'.format(*row['diff_ci'])
        counts = [f'{row["cost"]["params"] / 1e6:.2f} M', f'{row["cost"]["flops"] / 1e9:.1f} G']
        counts.append(f'{row["cost"]["activation_bytes"] / 2**20:.1f} MiB')
        keys = ('params', 'flops', 'activation_bytes')
        counts = [f'{c} ({row["cost"][k] / base["cost"][k]:.2f})' for c, k in zip(counts, keys, strict=True)]
        step = f'{row["step_time"]:.3g} s ({row["step_time"] / base["step_time"]:.2f})'
        lines.append([arm, str(row['n']), f'{row["mean"]:.4g}{spread}', diff, *counts, step])
    note = (
        f'{result["config"]}, seeds {", ".join(map(str, result["seeds"]))}: mean ± standard deviation, paired '
        f'difference with 95 % t-interval. Cost of the backbone at '
        f'{result["batch"]}x3x{"x".join(map(str, result["shape"]))}, in brackets relative to e2e; step: median time '
        f'of a training step of the whole model, {result["jobs"]} runs at a time.'
    )
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + f'\n\n{note}\n'


def plot(result, path):
    """Draws accuracy against saved activations and train FLOPs, both relative to E2E.

    Args:
        result (dict): Content of ``compare.json``.
        path (str | Path): The picture to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout='constrained')
    panels = figure.subplots(1, 2, sharey=True)
    base = result['arms'].get('e2e', next(iter(result['arms'].values())))
    keys = {'activation_bytes': 'saved activations', 'flops': 'train FLOPs'}
    for axes, (key, label) in zip(panels, keys.items(), strict=True):
        for arm, row in result['arms'].items():
            x = row['cost'][key] / base['cost'][key]
            axes.plot([x] * row['n'], list(row['scores'].values()), '.', color='gray', markersize=4)
            point = axes.errorbar(x, row['mean'], yerr=row['std'], marker='o', capsize=3)
            axes.annotate(arm, (x, row['mean']), (5, 5), textcoords='offset points', color=point[0].get_color())
        axes.margins(x=0.2)
        axes.set_xlabel(f'{label} of the backbone, relative to e2e')
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(result['metric'])
    figure.savefig(path, dpi=150)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config with a RepL backbone')
    parser.add_argument('--arms', nargs='+', default=['e2e', 'fuse', 'remove'], help='default: e2e fuse remove')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--out', type=Path, required=True, help='folder of the comparison')
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time (default: 1)')
    parser.add_argument('--metric', help=f'default: the first that is there of {", ".join(METRICS)}')
    parser.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'), help='of the cost (default: the first batch)'
    )
    parser.add_argument('--data-root', help='folder of the dataset, in place of data_root in all of the config')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='settings for all arms')
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f'--jobs {args.jobs}: must be at least 1')
    try:
        for arm in args.arms:
            arm_words(arm)
    except argparse.ArgumentTypeError as error:
        parser.error(f'--arms: {error}')
    return args


def main(argv=None):
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the runs are ended as well
    cfg = read_config(args.config)
    cfg.merge_from_dict(args.cfg_options)
    if args.data_root:
        set_data_root(cfg, args.data_root)
    check_data(cfg, 'train', 'val')
    configs, tasks = {}, []
    try:
        for arm in args.arms:
            configs[arm] = arm_config(cfg, arm)
            write_config(configs[arm], args.out / arm / 'config.py')
    except ValueError as error:
        stop(error)
    batch, *shape = input_shape(cfg)
    shape = args.shape or shape
    with one_line_errors():  # a wrong plan ends here, before the first run
        costs = {arm: measure(config, shape, batch) for arm, config in configs.items()}
    for seed in args.seeds:  # all arms of a seed first: an early stop leaves pairs
        tasks += [(args.out / arm / 'config.py', args.out / arm / f'seed_{seed}', seed) for arm in args.arms]
    failed = run_all(tasks, args.jobs)

    runs = {arm: {} for arm in args.arms}
    for _, work_dir, seed in tasks:
        if work_dir not in failed:
            runs[work_dir.parent.name][seed] = json.loads((work_dir / 'result.json').read_text())
    runs = {arm: by_seed for arm, by_seed in runs.items() if by_seed}
    names = [set(run['metrics']) for by_seed in runs.values() for run in by_seed.values()]
    try:
        metric = choose_metric(set.intersection(*names) if names else (), args.metric)
    except ValueError as error:
        stop(error)
    scores = {arm: {seed: run['metrics'][metric] for seed, run in by_seed.items()} for arm, by_seed in runs.items()}
    arms = summarize(scores)
    for arm, row in arms.items():
        row.update(scores=scores[arm], cost=costs[arm], runs=runs[arm])
        row['step_time'] = statistics.median(run['step_time'] for run in runs[arm].values())
    result = dict(config=Path(args.config).name, metric=metric, seeds=args.seeds, jobs=args.jobs, batch=batch)
    result.update(shape=list(shape), arms=arms)
    (args.out / 'compare.json').write_text(json.dumps(result, indent=1))
    (args.out / 'compare.md').write_text(table(result))
    plot(result, args.out / 'compare.png')
    print(table(result))
    if failed:
        stop(f'{len(failed)} of {len(tasks)} runs failed: {", ".join(map(str, failed))}')


if __name__ == '__main__':
    main()
