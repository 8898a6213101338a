"""What the tools share: configs, the runner, and errors that end in one line.

Nothing here imports mmdet, mmseg or mmpretrain: the config's ``default_scope`` decides what is loaded.
"""

import errno
import os
import sys
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError

import torch
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from repl_mm import PlanError, config, data_checks
from repl_mm.config import ConfigError
from repl_mm.data_checks import DataError
from repl_mm.reading import read_weights_only

REFUSED = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM  # by a disk

warnings.filterwarnings('ignore', message='pkg_resources is deprecated')  # mmengine 0.10.7 uses it, again and again


def stop(message):
    """End the program with one line and exit code 1."""
    sys.exit(f'{Path(sys.argv[0]).name}: {message}')


def in_one_line(kind, error, trace):
    """Print an interruption, or what a disk refuses, in one line, all else as Python does."""
    name = Path(sys.argv[0]).name
    if issubclass(kind, KeyboardInterrupt):
        print(f'{name}: {str(error) or "interrupted"}', file=sys.stderr)
    elif issubclass(kind, OSError) and error.errno in REFUSED:
        print(f'{name}: {error.strerror}{f": {error.filename!r}" if error.filename else ""}', file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# a hook, as a caught interruption would be none to the shell, whose loop would go on
sys.excepthook = in_one_line


@contextmanager
def one_line_errors(*kinds):
    """End in one line on an error in the plan, the config or its files; every other one keeps its traceback.

    Args:
        *kinds (type): Further errors that end in one line.
    """
    try:
        yield
    except (PlanError, ConfigError, DataError, UnpicklingError, *kinds) as error:
        message = str(error).rpartition('DataError: ')[2]  # a loader's worker puts its traceback in front
        stop(' '.join(message.split()))
    except (KeyError, TypeError) as error:
        message = config.unknown_type(error)
        if message is None:
            raise
        stop(' '.join(message.split()))


def read_config(name):
    """Return the config of a file or of ``PACKAGE::PATH``; end in one line if it cannot be read."""
    with one_line_errors():
        return config.read_config(name)


def read_quietly(args):
    """Return the config of parsed arguments with its ``cfg_options``; checkpoints are read safely from then on.

    mmengine's log is quiet from then on: it says how every single tensor was initialized.
    """
    read_weights_only()
    MMLogger.get_current_instance().setLevel('WARNING')
    cfg = read_config(args.config)
    cfg.merge_from_dict(args.cfg_options)
    return cfg


def set_data_root(cfg, folder):
    """Move the config's data to a folder, see :func:`repl_mm.config.set_data_root`; end in one line if it has none."""
    with one_line_errors():
        config.set_data_root(cfg, folder)


def load_config(args):
    """Read the config that the parsed ``args`` name and put their settings into it; checkpoints are read safely then.

    Args:
        args (argparse.Namespace): Of :func:`_arguments.make_parser`.

    Returns:
        Config: With ``work_dir`` and ``launcher`` set.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    read_weights_only()
    cfg = read_config(args.config)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.data_root is not None:
        set_data_root(cfg, args.data_root)
    cfg.launcher = args.launcher
    # the command line goes before the config, the config before its name
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'./work_dirs/{Path(config.config_file(args.config)).stem}'
    return cfg


def check_files(cfg, *phases, option='--data-root'):
    """End in one line if a file is missing that the config reads, or is of no use; errors of the config come first.

    Args:
        cfg (Config): The config; ``load_from`` is checked as well.
        *phases (str): Of 'train', 'val' and 'test': whose datasets and metrics are checked.
        option (str): Of the tool, that names another folder of the data. Defaults to '--data-root'.
    """
    if not cfg.get('model'):
        stop('the config has no model')
    with one_line_errors():
        try:
            data_checks.check_checkpoint(cfg.get('load_from'))
            data_checks.check_data(cfg, *phases, option=option)
        except DataError:
            # what is wrong in the config would come out after the data has been fetched
            MMLogger.get_current_instance().setLevel('ERROR')
            config.check_types(cfg)
            with suppress(DataError):  # one more file that is missing, as a teacher's
                model = config.build(cfg.model, cfg.get('default_scope'))
                if 'train' in phases and cfg.get('optim_wrapper'):
                    build_optim_wrapper(model, cfg.optim_wrapper)
            raise


def replace_sync_bn(node):
    """Put BN in the place of every SyncBN of a model's config; return whether there was one."""
    if not isinstance(node, (dict, list, tuple)):
        return False
    found = isinstance(node, dict) and config.type_name(node) in ('SyncBN', 'SyncBatchNorm')
    if found:
        node['type'] = 'BN'
    return any([found, *map(replace_sync_bn, node.values() if isinstance(node, dict) else node)])


def build_runner(cfg):
    """Build the config's runner; several processes on a machine without an accelerator talk through gloo."""
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
    """End a process of a group whose work is done; do nothing without a group.

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
