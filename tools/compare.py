"""Train configs with and without RepL over several seeds and put accuracy and cost side by side.

Between the arms of a config nothing but the words of its backbones changes; these may be stock or RepL::

    python tools/compare.py configs/retinanet_r34_repl_bccd.py --arms e2e fuse remove --seeds 0 1 2 --out work_dirs/cmp
    python tools/compare.py configs/classification/{resnet32,resnet110}_repl_cifar10.py --out work_dirs/cmp \\
        --arms e2e fuse remove share own full e2e:depth=20 fuse:drop_path_rate=0.1 fuse:with_cp=True

Every run is an ordinary `tools/train.py` run in OUT/<config>/<arm>/seed_<seed>. In the name of an arm's folder a `+`
stands for every character but letters, digits and _ . = , - : `fuse+with_cp=True`. Started again, the command skips
what is finished and resumes what was cut off. It writes OUT/compare.json, .md and .png, and a chart, OUT/bubbles.png.

In the values of --cfg-options, {arm} and {config} are the names of these folders, so that each arm can start from
weights of its own::

    python tools/compare.py ... --cfg-options load_from=work_dirs/converted/{config}/{arm}.pth
"""

import json
import signal
import sys
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path

from _arguments import Options, Parser
from _common import stop

from repl_mm import arms as language
from repl_mm import comparison, cost
from repl_mm.comparison.summary import METRICS
from repl_mm.config import (
    build,
    check_types,
    config_file,
    example_input,
    input_size,
    optimizer_moments,
    read_config,
    set_data_root,
    unknown_type,
)
from repl_mm.data_checks import DataError, check_checkpoint, check_data

TRAIN = Path(__file__).with_name('train.py')


def parse_args(argv=None):
    parser = Parser(f'{__doc__}\n{language.__doc__}')
    parser.add_argument('configs', nargs='+', metavar='config', help='config with stock or RepL backbones')
    parser.add_argument('--arms', nargs='+', default=list(language.DEFAULTS), help='default: e2e fuse remove')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--out', type=Path, required=True, help='folder of the comparison')
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time (default: 1)')
    parser.add_argument('--metric', help=f'default: the first that is there of {", ".join(METRICS)}')
    parser.add_argument(
        '--shape', type=int, nargs='+', metavar='N', help='H W, or words, of the cost (default: the first batch)'
    )
    parser.add_argument('--data-root', help='folder of the dataset, in place of data_root in all of the config')
    parser.add_argument('--cfg-options', nargs='+', action=Options, default={}, help='settings for all arms')
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f'--jobs {args.jobs}: must be at least 1')
    try:
        for arm in args.arms:
            language.read_arm(arm)
    except ValueError as error:
        parser.error(f'--arms: {error}')
    stems = [Path(config.rpartition('::')[2]).stem for config in args.configs]
    for what, folders in (('config', stems), ('--arms', [comparison.folder_name(arm) for arm in args.arms])):
        twice = next((folder for folder in folders if folders.count(folder) > 1), None)
        if twice:
            parser.error(f'{what}: two of them would have the same folder {twice!r}; expected different names')
    return args


def check_arm(text, config, inputs):
    """Read an arm and build its whole model, so that a word which it does not take is found before any training.

    Args:
        text (str): The arm, as the command line names it.
        config (Config): Of a stock or RepL model.
        inputs (ImageInput | WordInput): What the backbone sees.

    Returns:
        tuple[Arm, Config]: The arm, and the config of its runs.

    Raises:
        ValueError: The arm is not possible.
    """
    arm = language.read_arm(text, inputs)
    config = language.arm_config(arm, config)
    try:
        model = build(config.model, config.get('default_scope'))
        if 'efficient_conv_bn_eval' in arm.switches:
            attrgetter(*config.efficient_conv_bn_eval)(model)  # as mmengine looks for them
    except AttributeError as error:
        raise ValueError(f'arm {text!r}: mmengine finds no {config.efficient_conv_bn_eval} in this model') from error
    except (TypeError, ValueError, KeyError, AssertionError) as error:  # what constructors say
        reason = unknown_type(error) or ' '.join(str(error).split()) or repr(error)
        raise ValueError(f'arm {text!r}: {reason}') from error
    return arm, config


def prepare(name, args):
    """Check the arms of one config and count their cost.

    Args:
        name (str): The config, as the command line names it.
        args (argparse.Namespace): Of :func:`parse_args`.

    Returns:
        dict: ``config``, its file name; ``batch`` and ``shape`` of the cost; ``arms``, by their names the ``folder``
        (Path), the ``config`` and the ``cost`` of each.

    Raises:
        ValueError: An arm is not possible, or a file is missing.
    """
    cfg, path, configs, folders = read_config(name), Path(config_file(name)), {}, {}
    for arm in args.arms:
        folders[arm] = args.out / path.stem / comparison.folder_name(arm)
        configs[arm] = comparison.with_options(cfg, args.cfg_options, config=path.stem, arm=folders[arm].name)
        if args.data_root:
            set_data_root(configs[arm], args.data_root)
    try:
        for config in configs.values():
            check_checkpoint(config.get('load_from'))
        check_data(config, 'train', 'val')
    except DataError:
        for arm, config in configs.items():  # what is wrong in the config is to be known before the data is fetched
            check_types(config)
            check_arm(arm, config, example_input(config, args.shape, 1))
        raise
    batch, *shape = input_size(config)
    inputs = cost.make_input(args.shape or shape, batch)
    arms = {}
    for text, config in configs.items():
        row = cost.count(language.read_arm(text, inputs), config, optimizer_moments(config)[0])
        _, config = check_arm(text, config, inputs)
        arms[text] = dict(folder=folders[text], config=config, cost=asdict(row.cost))
    return dict(config=path.name, batch=batch, shape=list(inputs.shape), arms=arms)


def collect(study, args):
    """Return the part of ``compare.json`` of one config, prepared by :func:`prepare`.

    Raises:
        ValueError: No run has finished, or ``--metric`` is not reported by all.
    """
    found = comparison.collect({arm: row['folder'] for arm, row in study['arms'].items()}, args.seeds, args.metric)
    for arm, row in found['arms'].items():
        row['cost'] = study['arms'][arm]['cost']
    return dict(study, metric=found['metric'], seeds=args.seeds, jobs=args.jobs, arms=found['arms'])


def main(argv=None):
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the runs are ended as well
    studies = []
    for name in args.configs:  # all, before the first is trained
        try:
            studies.append(prepare(name, args))
        except (RuntimeError, ValueError) as error:  # PlanError and DataError are some
            stop(f'{name}: {error}')
    arms = [arm for study in studies for arm in study['arms'].values()]
    folders = [arm['folder'] for arm in arms]
    try:
        for arm in arms:
            comparison.write_config(arm['config'], arm['folder'] / 'config.py')
    except ValueError as error:
        stop(error)
    # all arms of a seed first: an early stop leaves pairs
    tasks = [(folder / 'config.py', folder / f'seed_{seed}', seed) for seed in args.seeds for folder in folders]
    failed = comparison.run_all(tasks, args.jobs, TRAIN)
    results, problems = {}, []
    for study in studies:
        try:
            results[Path(study['config']).stem] = collect(study, args)
        except ValueError as error:  # the other configs have their table all the same
            problems.append(f'{study["config"]}: {error}')
    if failed:
        problems.append(f'{len(failed)} of {len(tasks)} runs failed: {", ".join(map(str, failed))}')
    if results:
        text = '\n'.join(map(comparison.table, results.values()))
        (args.out / 'compare.json').write_text(json.dumps(results, indent=1), encoding='utf-8')
        (args.out / 'compare.md').write_text(text, encoding='utf-8')
        comparison.plot(results, args.out / 'compare.png')
        comparison.plot_bubbles(results, args.out / 'bubbles.png')
        print(text)
    if problems:
        stop('; '.join(problems))


if __name__ == '__main__':
    main()
