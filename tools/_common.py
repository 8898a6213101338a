"""What the tools share: arguments, the config, and errors that end in one line.

Nothing here imports mmdet, mmseg or mmpretrain: the config's ``default_scope`` decides what is loaded.
"""

import argparse
import importlib.metadata
import importlib.util
import inspect
import os
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.hub import get_config
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, OPTIM_WRAPPERS, RUNNERS
from mmengine.runner import Runner
from mmengine.utils import digit_version

from repl_mm import PlanError  # the import also allows mmengine's own classes in weights-only loading
from repl_mm.classification import DataError

warnings.filterwarnings('ignore', message='pkg_resources is deprecated')  # mmengine 0.10.7 uses it, again and again


def stop(message):
    """Ends the program with one line and exit code 1."""
    sys.exit(f'{Path(sys.argv[0]).name}: {message}')


@contextmanager
def one_line_errors():
    """Ends in one line on an error in the plan or in a dataset's files; every other error keeps its traceback."""
    try:
        yield
    except (PlanError, DataError) as error:
        message = str(error).rpartition('DataError: ')[2]  # a loader's worker puts its traceback in front
        stop(' '.join(message.split()))


def make_parser(description):
    """Returns a parser with the arguments that training and testing have in common."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file, or PACKAGE::PATH for one that an installed mm package carries')
    parser.add_argument('--work-dir', help='folder of logs and checkpoints (default: ./work_dirs/CONFIG_NAME)')
    parser.add_argument('--data-root', help='folder of the dataset, in place of data_root in all of the config')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings, as key=value; lists as key="[a,b]" or key=a,b, nested ones as key="[(a,b),(c,d)]"',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # torch.distributed.launch has passed both spellings
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def load_config(args):
    """Reads the config that the parsed ``args`` name and puts their settings into it.

    Args:
        args (argparse.Namespace): Of :func:`make_parser`.

    Returns:
        Config: With ``work_dir`` and ``launcher`` set.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.data_root is not None:
        set_data_root(cfg, args.data_root)
    cfg.launcher = args.launcher
    # the command line goes before the config, the config before its name
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'./work_dirs/{Path(args.config).stem}'
    return cfg


def read_config(name):
    """Returns the config of a file, or of ``PACKAGE::PATH`` out of an installed mm package."""
    package, in_package, _ = name.partition('::')
    try:
        if not in_package:
            return Config.fromfile(name)
        if not importlib.util.find_spec(package):  # else mmengine would install it
            stop(f"config '{name}': {package} is not installed")
        return get_config(name)
    except (FileNotFoundError, ModuleNotFoundError) as error:  # of the config, of a base, or of the package of a base
        stop(f"config '{name}': {error}")


def check_checkpoint(path):
    """Ends in one line if a checkpoint is a local file that does not exist."""
    if path and '://' not in path and not os.path.exists(path):
        stop(f"checkpoint '{path}' not found")


def set_data_root(cfg, folder):
    """Moves every path of the dataloaders and evaluators from the config's ``data_root`` to ``folder``."""
    old = cfg.get('data_root')
    if not isinstance(old, str):
        stop('--data-root: the config has no data_root to replace; use --cfg-options train_dataloader.dataset...')

    def move(node):
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            if isinstance(value, (dict, list)):
                move(value)
            elif isinstance(value, str) and value.startswith(old):
                node[key] = os.path.join(folder, value[len(old) :].lstrip('/'))

    for phase in ('train', 'val', 'test'):
        for part in ('dataloader', 'evaluator'):
            move(cfg.get(f'{phase}_{part}') or {})
    cfg.data_root = os.path.join(folder, '')


def check_data(cfg, *phases):
    """Ends in one line if a dataset or an evaluator of the config reads a path that does not exist, or cannot work.

    Args:
        cfg (Config): The config.
        *phases (str): Of 'train', 'val' and 'test'.
    """
    missing = {path for phase in phases for path in expected_paths(cfg, phase) if not os.path.exists(path)}
    if missing:
        stop(
            f'dataset not found, expected: {", ".join(sorted(missing))} (in {os.getcwd()}); '
            '--data-root FOLDER names another place'
        )
    check_metrics(cfg, *phases)


def expected_paths(cfg, phase):
    """Yields the local files and folders that the datasets and evaluators of ``phase`` read, wrappers included."""
    loader = cfg.get(f'{phase}_dataloader')
    if not loader:
        return
    for dataset in inner_datasets(loader['dataset']):
        prefix = dataset.get('data_prefix')
        parts = [dataset.get('ann_file'), *(prefix.values() if isinstance(prefix, dict) else [prefix])]
        names = [name for part in parts for name in (part if isinstance(part, (list, tuple)) else [part])]
        names = [name for name in names if isinstance(name, str) and name] or ['']
        paths = [os.path.join(dataset.get('data_root') or '', name) for name in names]
        if not (is_remote(dataset, paths) or downloads_itself(cfg, dataset)):
            yield from filter(None, paths)
    for evaluator in evaluators(cfg, phase):
        path = evaluator.get('ann_file')
        if isinstance(path, str) and not is_remote(evaluator, [path]):
            yield path


def evaluators(cfg, phase):
    """Returns the list of the configs of the metrics of ``phase``."""
    found = cfg.get(f'{phase}_evaluator') or []
    return [found] if isinstance(found, dict) else found


def check_metrics(cfg, *phases):
    """Ends in one line if a metric of the config cannot work with what is installed, before anything is computed."""
    kinds = [str(metric.get('type')).lower() for phase in phases for metric in evaluators(cfg, phase)]
    if hasattr(np, 'in1d') or not any('cityscapesmetric' in kind for kind in kinds):
        return
    version = importlib.metadata.version('cityscapesscripts')
    if digit_version(version) <= digit_version('2.3.0'):
        stop(
            f'CityscapesMetric: cityscapesscripts {version} calls numpy.in1d, which numpy {np.__version__} does not '
            "have: install 'numpy<2.4'"
        )


def inner_datasets(node):
    """Yields the configs of the datasets that read files, out of wrappers such as RepeatDataset or ConcatDataset."""
    inner = node.get('dataset') or node.get('datasets')
    if inner is None:
        yield node
    else:
        for child in [inner] if isinstance(inner, dict) else inner:
            yield from inner_datasets(child)


def is_remote(node, paths):
    """Whether a dataset or a metric reads from elsewhere than the file system."""
    backend = (node.get('backend_args') or {}).get('backend', 'local')
    return backend != 'local' or any('://' in path for path in paths)


def downloads_itself(cfg, dataset):
    """Whether the class of a dataset fetches its files, as mmpretrain's CIFAR does."""
    kind = dataset['type']
    if isinstance(kind, str):
        kind = DATASETS.get(kind if '.' in kind else f'{cfg.get("default_scope", "mmengine")}.{kind}')
    switch = inspect.signature(kind).parameters.get('download') if kind else None
    return switch is not None and bool(dataset.get('download', switch.default))


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Automatic mixed precision in bfloat16 on the CPU, where mmengine's AmpOptimWrapper refuses to work.

    bfloat16 has the exponent range of float32, so the loss is not scaled. Arguments are those of OptimWrapper.
    """

    @contextmanager
    def optim_context(self, model):
        """Runs the forward pass of ``model`` in bfloat16."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


def enable_amp(cfg):
    """Switches the config's optimizer wrapper to automatic mixed precision."""
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        stop(f"--amp works with optim_wrapper.type='OptimWrapper' or 'AmpOptimWrapper', not with {kind!r}")
    if get_device() == 'cpu':
        cfg.optim_wrapper.type = 'CPUAmpOptimWrapper'
        for key in ('loss_scale', 'dtype'):
            cfg.optim_wrapper.pop(key, None)
    else:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def replace_sync_bn(node):
    """Puts BN in the place of every SyncBN of a model's config; returns whether there was one."""
    if not isinstance(node, (dict, list, tuple)):
        return False
    found = isinstance(node, dict) and node.get('type') == 'SyncBN'
    if found:
        node['type'] = 'BN'
    return any([found, *map(replace_sync_bn, node.values() if isinstance(node, dict) else node)])


def build_runner(cfg):
    """Builds the config's runner; several processes on a machine without an accelerator talk through gloo."""
    if cfg.get('default_scope') == 'mmdet':
        from mmdet.utils import setup_cache_size_limit_of_dynamo

        setup_cache_size_limit_of_dynamo()
    if cfg.launcher == 'pytorch' and get_device() == 'cpu':
        # mmengine would ask CUDA for a device, both here and when it wraps the model
        torch.distributed.init_process_group('gloo')
        if replace_sync_bn(cfg.model) and is_main_process():
            print('SyncBN needs an accelerator: BN in its place, with statistics of each process of its own')
        stock = dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
        cfg.model_wrapper_cfg = dict(cfg.get('model_wrapper_cfg') or stock, device_ids=None)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def end_process_group():
    """Ends a process of a group whose work is done; does nothing without a group.

    With gloo (no accelerator) the process ends here, not by way of the interpreter's own end: its threads are still
    there then, and now and then one of them aborts the process, for which the launcher reports a failure.
    """
    if not torch.distributed.is_initialized():
        return
    on_cpu = torch.distributed.get_backend() == 'gloo'
    torch.distributed.destroy_process_group()
    if on_cpu:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
