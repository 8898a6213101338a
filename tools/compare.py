"""Trains configs with and without RepL over several seeds and puts accuracy and cost side by side.

Between the arms of a config nothing but the backbone's words changes::

    python tools/compare.py configs/retinanet_r34_repl_bccd.py --arms e2e fuse remove --seeds 0 1 2 --out work_dirs/cmp
    python tools/compare.py configs/classification/{resnet32,resnet110}_repl_cifar10.py --out work_dirs/cmp \\
        --arms e2e fuse remove share own full e2e:depth=20 fuse:drop_path_rate=0.1 fuse:with_cp=True

    e2e       the stock backbone, no block replaced
    fuse      RepL; share, own, remove: the same slots with that `mode`
    full      fused weights in the structure of the replaced block (`mode='fuse', operator='full'`)
    detach    RepL without gradient to the neighbours through the computing layers (`mode='fuse', detach=True`)
    KEY=VALUE RepL with other words in `replace`, for instance `operator=mlp` or `operator=mlp,ratio=0.5`

After a colon any of these takes words of the backbone itself, and with the prefix `model.` words of the model:
`e2e:depth=20` (a shallower stock net), `fuse:drop_path_rate=0.1`, `e2e:base_channels=12,model.in_channels=48`.

Every run is an ordinary `tools/train.py` run in OUT/<config>/<arm>/seed_<seed>. In the name of an arm's folder a `+`
stands for every character but letters, digits and _ . = , - : `fuse+with_cp=True`. Started again, the command skips
what is finished and resumes what was cut off. It writes OUT/compare.json, OUT/compare.md and OUT/compare.png.

In the values of --cfg-options, {arm} and {config} are the names of these folders, so that each arm can start from
weights of its own::

    python tools/compare.py ... --cfg-options load_from=work_dirs/converted/{config}/{arm}.pth
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
from _common import check_checkpoint, check_data, read_config, set_data_root, stop
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
REFERENCES = ('e2e', 'remove')  # what every arm is compared with
METRICS = ('coco/bbox_mAP', 'mIoU', 'accuracy/top1')
TRAIN = Path(__file__).with_name('train.py')


# ---- the arms ----


def read_words(text):
    """The words that a text such as ``operator=mlp,ratio=0.5`` gives.

    Args:
        text (str): ``KEY=VALUE[,KEY=VALUE ...]``; a value that is no Python literal is a string.

    Returns:
        dict: The values by key.

    Raises:
        ValueError: A key or a value is missing.
    """
    words = {}
    for word in re.split(r',(?=[\w.]+=)', text):  # a comma inside a list separates no words
        key, equals, value = word.partition('=')
        if not (key and equals and value):
            raise ValueError(f'{word!r} is not KEY=VALUE')
        try:
            words[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            words[key] = value
    return words


def read_arm(arm):
    """What an arm changes.

    Args:
        arm (str): Key of :data:`ARMS`, or words of ``replace`` such as ``operator=mlp,ratio=0.5``; behind a colon,
            words of the backbone such as ``depth=20``.

    Returns:
        tuple[dict, dict]: The words of ``replace`` (None for ``e2e``) and those of the backbone.

    Raises:
        argparse.ArgumentTypeError: It is neither.
    """
    plan, *settings = re.split(r':(?=[\w.]*(?:=|$))', arm, maxsplit=1)
    try:
        return ARMS[plan] if plan in ARMS else read_words(plan), read_words(settings[0]) if settings else {}
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f'{arm!r} is no arm: {error}; expected one of {", ".join(ARMS)} or KEY=VALUE[,KEY=VALUE] of replace, then '
            'perhaps :KEY=VALUE[,KEY=VALUE] of the backbone'
        ) from None


def folder_name(arm):
    """The name of an arm's folder: a colon would make the path look like a URL, and a shell reads brackets."""
    return re.sub(r'[^\w.=,-]', '+', arm)


def arm_config(cfg, arm):
    """The config of one arm.

    Args:
        cfg (Config): A config with one RepL backbone.
        arm (str): See :func:`read_arm`.

    Returns:
        Config: A copy in which only the arm's words differ; ``e2e`` has the stock type and no ``replace``.

    Raises:
        ValueError: The model has no RepL backbone.
    """
    cfg = copy.deepcopy(cfg)
    _, backbone = cost.find_backbone(cfg.model)
    name = str(backbone.type).rpartition('.')[2]
    if not name.startswith('RepL'):
        raise ValueError(f"model.backbone.type='{backbone.type}' is no RepL backbone, there is nothing to compare")
    replace, settings = read_arm(arm)
    if replace is None:
        backbone.type = cost.stock_type(backbone)
        backbone.pop('replace', None)
    else:
        backbone.replace = {**(backbone.get('replace') or {}), **replace}
    backbone.update({key: value for key, value in settings.items() if not key.startswith('model.')})
    cfg.merge_from_dict({key: value for key, value in settings.items() if key.startswith('model.')})
    return cfg


def with_options(cfg, options, **names):
    """A copy of a config with the settings of the command line.

    Args:
        cfg (Config): The config.
        options (dict): Values by dotted key.
        **names (str): What stands for ``{config}`` and ``{arm}`` in values.

    Returns:
        Config: The copy.
    """
    cfg, options = copy.deepcopy(cfg), copy.deepcopy(options)
    for key, value in options.items():
        for name, text in names.items():
            value = value.replace(f'{{{name}}}', text) if isinstance(value, str) else value
        options[key] = value
    cfg.merge_from_dict(options)
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

    The whole model is built, so that a word which it does not take is found before anything is trained.

    Args:
        cfg (Config): The arm's config.
        shape (Sequence[int]): Height and width.
        batch (int): Images in a step.

    Returns:
        dict: The counts.

    Raises:
        ValueError: The model cannot be built.
    """
    path, _ = cost.find_backbone(cfg.model)
    try:
        model = cost.build(cfg.model, cfg.get('default_scope'))
    except (TypeError, ValueError, KeyError, AssertionError) as error:  # what constructors say of their arguments
        raise ValueError(' '.join(str(error).split()) or repr(error)) from error
    moments, _ = cost.optimizer_moments(cfg)
    return asdict(cost.measure(model.get_submodule('.'.join(map(str, path))), shape, batch, moments))


def prepare(name, args):
    """Checks the arms of one config and counts their cost.

    Args:
        name (str): The config, as the command line names it.
        args (argparse.Namespace): Of :func:`parse_args`.

    Returns:
        dict: ``config``, its file name; ``batch`` and ``shape`` of the cost; ``arms``, by their names the ``folder``
        (Path), the ``config`` and the ``cost`` of each.

    Raises:
        ValueError: An arm is not possible.
    """
    cfg, path, arms = read_config(name), Path(name), {}
    for arm in args.arms:
        folder = args.out / path.stem / folder_name(arm)
        config = with_options(cfg, args.cfg_options, config=path.stem, arm=folder.name)
        if args.data_root:
            set_data_root(config, args.data_root)
        check_checkpoint(config.get('load_from'))
        arms[arm] = dict(folder=folder, config=arm_config(config, arm))
    check_data(config, 'train', 'val')
    batch, *shape = input_shape(config)
    shape = args.shape or shape
    for arm, row in arms.items():
        try:
            row['cost'] = measure(row['config'], shape, batch)
        except ValueError as error:
            raise ValueError(f'arm {arm!r}: {error}') from error
    return dict(config=path.name, batch=batch, shape=list(shape), arms=arms)


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
        jobs (int): Runs at a time. Each gets CPU cores of its own, and one GPU where there are several.
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
            for slot, (process, work_dir, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                slots.append(slot)
                reported = 0
                if process.returncode:
                    failed.append(work_dir)
                    print(failure(work_dir, process.returncode), flush=True)
                    continue
                seconds.append(time.time() - began)
                result = dict(run_result(work_dir), minutes=seconds[-1] / 60)
                (work_dir / 'result.json').write_text(json.dumps(result, indent=1))
            while waiting and slots:
                slot = slots.pop(0)
                running[slot] = (start(*waiting[0], train, jobs, slot), waiting.pop(0)[1], time.time())
            if time.time() - reported > report:
                reported = time.time()
                print(progress(len(tasks), len(failed), len(waiting), running, seconds, jobs), flush=True)
            time.sleep(poll)
    finally:
        for process, _, _ in running.values():
            process.terminate()
    return failed


def start(config, work_dir, seed, train, jobs, slot):
    """Starts one training run with its share of the machine; its output goes to ``train.log``.

    A run stays on its own cores: OpenMP's threads spin while they wait for each other, and where two runs meet on one
    core, that of one waits for a thread which the spinning of the other keeps from running. It costs a factor of 10
    and more.
    """
    cores = sorted(os.sched_getaffinity(0))
    cores = cores[slot % len(cores) :: jobs]  # one core at least, if there are more runs than cores
    threads = str(len(cores))
    env = dict(os.environ, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    if torch.cuda.device_count() > 1:
        visible = os.environ.get('CUDA_VISIBLE_DEVICES') or ','.join(map(str, range(torch.cuda.device_count())))
        env['CUDA_VISIBLE_DEVICES'] = visible.split(',')[slot % torch.cuda.device_count()]
    command = [sys.executable, train, config, '--work-dir', work_dir, '--resume', '--cfg-options']
    command.append(f'randomness.seed={seed}')
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / 'train.log').open('a') as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, env=env)
    os.sched_setaffinity(process.pid, cores)  # long before it starts threads: they inherit it
    return process


def failure(work_dir, returncode):
    """What is said of a failed run: its exit code and its last words, which tell the cause."""
    words = (work_dir / 'train.log').read_text(errors='replace').splitlines()
    last = next((line.strip() for line in reversed(words) if line.strip()), 'no output')
    return f'{work_dir}: failed with exit code {returncode}, see train.log there; its last line: {last}'


def progress(total, failed, waiting, running, seconds, jobs):
    """One line: what is done, what runs, and how long the rest takes."""
    left = [logged_eta(work_dir / 'train.log') for _, work_dir, _ in running.values()]
    spent = [time.time() - began for _, _, began in running.values()]
    per_run = statistics.mean(seconds or [a + b for a, b in zip(left, spent, strict=True) if a is not None] or [0])
    eta = 'not known yet'
    if per_run:
        rest = sum(per_run if a is None else a for a in left) + waiting * per_run
        eta = time.strftime('%H:%M:%S', time.gmtime(rest / max(1, min(jobs, len(running) + waiting))))
    names = ', '.join('/'.join(work_dir.parts[-3:]) for _, work_dir, _ in running.values()) or 'nothing'
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


def summarize(scores):
    """Mean, spread and paired differences of every arm.

    Args:
        scores (dict[str, dict[int, float]]): Score by arm and seed.

    Returns:
        dict[str, dict]: For every arm ``n``, ``mean``, ``std`` (of the sample; None for one run) and ``differences``,
        by those of :data:`REFERENCES` that it shares seeds with, see :func:`paired`.
    """
    rows = {}
    for arm, by_seed in scores.items():
        values = list(by_seed.values())
        std = statistics.stdev(values) if len(values) > 1 else None
        others = {name: paired(by_seed, scores[name]) for name in REFERENCES if name in scores and name != arm}
        differences = {name: found for name, found in others.items() if found['n']}
        rows[arm] = dict(n=len(values), mean=statistics.mean(values), std=std, differences=differences)
    return rows


def paired(scores, reference):
    """The paired difference of two arms.

    Args:
        scores (dict[int, float]): Score by seed.
        reference (dict[int, float]): Of the arm that it is compared with.

    Returns:
        dict: ``n``, the number of seeds that both have; ``mean`` of the differences (None without any); ``ci``, its
        95 % t-interval (None below two).
    """
    diffs = [scores[seed] - reference[seed] for seed in scores if seed in reference]
    mean = statistics.mean(diffs) if diffs else None
    if len(diffs) < 2:
        return dict(n=len(diffs), mean=mean, ci=None)
    half = float(stats.t.ppf(0.975, len(diffs) - 1)) * statistics.stdev(diffs) / len(diffs) ** 0.5
    return dict(n=len(diffs), mean=mean, ci=[mean - half, mean + half])


# ---- output ----


def table(result):
    """The comparison of one config as a Markdown table.

    Args:
        result (dict): The config's part of ``compare.json``.

    Returns:
        str: The table and a line that says what its columns are.
    """
    references = [name for name in REFERENCES if name in result['arms']]
    columns = ['arm', 'n', result['metric'], *(f'difference to {name}' for name in references)]
    columns += ['trained params', 'train FLOPs', 'activations', 'step']
    lines = [columns, ['---', *['---:'] * (len(columns) - 1)]]
    first = 'e2e' if 'e2e' in result['arms'] else next(iter(result['arms']))
    base = result['arms'][first]
    for arm, row in result['arms'].items():
        spread = '' if row['std'] is None else f' ± {row["std"]:.2g}'
        differences = [difference_text(row['differences'].get(name)) for name in references]
        counts = [f'{row["cost"]["params"] / 1e6:.2f} M', f'{row["cost"]["flops"] / 1e9:.1f} G']
        counts.append(f'{row["cost"]["activation_bytes"] / 2**20:.1f} MiB')
        keys = ('params', 'flops', 'activation_bytes')
        counts = [f'{c} ({row["cost"][k] / base["cost"][k]:.2f})' for c, k in zip(counts, keys, strict=True)]
        step = f'{row["step_time"]:.3g} s ({row["step_time"] / base["step_time"]:.2f})'
        lines.append([arm, str(row['n']), f'{row["mean"]:#.4g}{spread}', *differences, *counts, step])
    note = (
        f'Seeds {", ".join(map(str, result["seeds"]))}: mean ± standard deviation, paired '
        f'difference with 95 % t-interval. Cost of the backbone at '
        f'{result["batch"]}x3x{"x".join(map(str, result["shape"]))}, in brackets relative to {first}; step: median '
        f'time of a training step of the whole model, {result["jobs"]} runs at a time.'
    )
    lines = ['| ' + ' | '.join(line) + ' |' for line in lines]
    return '\n'.join([f'## {result["config"]}', '', *lines, '', note, ''])


def difference_text(difference):
    """A paired difference with its interval, as in ``+0.33 [+0.16, +0.5]``; empty for None."""
    if difference is None:
        return ''
    text = f'{difference["mean"]:+.3g}'
    return text + (' [{:+.3g}, {:+.3g}]'.format(*difference['ci']) if difference['ci'] else '')


def plot(results, path):
    """Draws accuracy against saved activations and train FLOPs, both relative to E2E, a row of panels per config.

    Args:
        results (dict[str, dict]): Content of ``compare.json``.
        path (str | Path): The picture to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4 * len(results)), layout='constrained')
    panels = figure.subplots(len(results), 2, sharey='row', squeeze=False)
    for row, result in zip(panels, results.values(), strict=True):
        plot_one(result, row)
    figure.savefig(path, dpi=150)


def plot_one(result, panels):
    """Draws the panels of one config: one point with its spread per arm, and its runs in gray."""
    first = 'e2e' if 'e2e' in result['arms'] else next(iter(result['arms']))
    base = result['arms'][first]
    keys = {'activation_bytes': 'saved activations', 'flops': 'train FLOPs'}
    for axes, (key, label) in zip(panels, keys.items(), strict=True):
        for arm, row in result['arms'].items():
            x = row['cost'][key] / base['cost'][key]
            axes.plot([x] * row['n'], list(row['scores'].values()), '.', color='gray', markersize=4)
            axes.errorbar(x, row['mean'], yerr=row['std'], marker='o', capsize=3, linestyle='none', label=arm)
        axes.margins(x=0.2)
        axes.set_xlabel(f'{label}, relative to {first}')
        axes.grid(alpha=0.3)
    panels[0].set(title=result['config'], ylabel=result['metric'])
    panels[1].legend(fontsize='small', loc='upper left', bbox_to_anchor=(1, 1))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', metavar='config', help='config with a RepL backbone')
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
            read_arm(arm)
    except argparse.ArgumentTypeError as error:
        parser.error(f'--arms: {error}')
    stems = [Path(config).stem for config in args.configs]
    for what, folders in (('config', stems), ('--arms', [folder_name(arm) for arm in args.arms])):
        twice = next((folder for folder in folders if folders.count(folder) > 1), None)
        if twice:
            parser.error(f'{what}: two of them would have the same folder {twice!r}; expected different names')
    return args


def collect(study, args):
    """What the runs of one config reached.

    Args:
        study (dict): Of :func:`prepare`.
        args (argparse.Namespace): Of :func:`parse_args`.

    Returns:
        dict: The config's part of ``compare.json``.

    Raises:
        ValueError: No run has finished, or ``--metric`` is not reported by all.
    """
    runs = {}
    for arm, row in study['arms'].items():
        files = {seed: row['folder'] / f'seed_{seed}' / 'result.json' for seed in args.seeds}
        runs[arm] = {seed: json.loads(file.read_text()) for seed, file in files.items() if file.is_file()}
    runs = {arm: by_seed for arm, by_seed in runs.items() if by_seed}
    names = [set(run['metrics']) for by_seed in runs.values() for run in by_seed.values()]
    metric = choose_metric(set.intersection(*names) if names else (), args.metric)
    scores = {arm: {seed: run['metrics'][metric] for seed, run in by_seed.items()} for arm, by_seed in runs.items()}
    arms = summarize(scores)
    for arm, row in arms.items():
        row.update(scores=scores[arm], cost=study['arms'][arm]['cost'], runs=runs[arm])
        row['step_time'] = statistics.median(run['step_time'] for run in runs[arm].values())
    result = dict(config=study['config'], metric=metric, seeds=args.seeds, jobs=args.jobs)
    return dict(result, batch=study['batch'], shape=study['shape'], arms=arms)


def main(argv=None):
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the runs are ended as well
    studies = []
    for name in args.configs:  # all, before the first is trained
        try:
            studies.append(prepare(name, args))
        except ValueError as error:  # PlanError and DataError are some
            stop(f'{name}: {error}')
    arms = [arm for study in studies for arm in study['arms'].values()]
    folders = [arm['folder'] for arm in arms]
    try:
        for arm in arms:
            write_config(arm['config'], arm['folder'] / 'config.py')
    except ValueError as error:
        stop(error)
    # all arms of a seed first: an early stop leaves pairs
    tasks = [(folder / 'config.py', folder / f'seed_{seed}', seed) for seed in args.seeds for folder in folders]
    failed = run_all(tasks, args.jobs)
    results, problems = {}, []
    for study in studies:
        try:
            results[Path(study['config']).stem] = collect(study, args)
        except ValueError as error:  # the other configs have their table all the same
            problems.append(f'{study["config"]}: {error}')
    if failed:
        problems.append(f'{len(failed)} of {len(tasks)} runs failed: {", ".join(map(str, failed))}')
    if results:
        text = '\n'.join(map(table, results.values()))
        (args.out / 'compare.json').write_text(json.dumps(results, indent=1))
        (args.out / 'compare.md').write_text(text)
        plot(results, args.out / 'compare.png')
        print(text)
    if problems:
        stop('; '.join(problems))


if __name__ == '__main__':
    main()
