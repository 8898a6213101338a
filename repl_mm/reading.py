"""Checkpoints are read as weights only: no file can run anything, and mmengine's own files can be read."""

import os
import re
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_checkpoint
from torch import nn

from .checkpoint import PLAN_KEY
from .data_checks import DataError

# What mmengine's objects store of their own classes: pickle writes a method as getattr(class, name).
METHODS = {
    HistoryBuffer: ('min', 'max', 'current', 'mean'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


def _method(owner: type, name: str):
    """Stand in for ``getattr`` in a checkpoint; it gives ``METHODS``.

    Raises:
        UnpicklingError: Another attribute is asked for.
    """
    if isinstance(owner, type) and name in METHODS.get(owner, ()):
        return getattr(owner, name)
    raise UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed in a checkpoint')


def allow_mmengine_checkpoints() -> None:
    """Allow torch's weights-only loading to read what mmengine's own checkpoints hold besides tensors.

    mmengine 0.10 stores its message hub (``HistoryBuffer`` objects with numpy arrays and methods, and the best score,
    which may be a numpy number) and all attributes of its schedulers. Exactly what is needed for that is allowed;
    every other global in a checkpoint is still refused. Called when ``repl_mm`` is imported.
    """
    try:
        from numpy._core.multiarray import _reconstruct, scalar
    except ImportError:  # numpy < 2
        from numpy.core.multiarray import _reconstruct, scalar
    functions = [
        (function, f'numpy.{core}.multiarray.{function.__name__}')  # the core's name in numpy 1 and numpy 2
        for function in (_reconstruct, scalar)
        for core in ('core', '_core')
    ]
    numbers = {type(np.dtype(code)) for code in ('?' + np.typecodes['AllInteger'] + np.typecodes['Float'])}
    methods = [*METHODS, (_method, 'builtins.getattr')]
    torch.serialization.add_safe_globals([np.ndarray, np.dtype, *numbers, *functions, *methods])


def read_checkpoint(file: str | os.PathLike, map_location: Any = None) -> Any:
    """Read a checkpoint of torch or mmengine as weights only.

    Args:
        file (str | os.PathLike): A local file.
        map_location (Any): As of ``torch.load``. Defaults to None.

    Raises:
        FileNotFoundError: There is no such file.
        UnpicklingError: It holds something else than weights and what mmengine stores beside them.
    """
    file = os.path.expanduser(file)
    if not os.path.isfile(file):
        raise FileNotFoundError(f"checkpoint '{file}' not found")
    allow_mmengine_checkpoints()  # again: OneDL's loader takes names away when it is done
    try:
        return torch.load(file, map_location=map_location, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # unpickling what is no pickle ends in errors of every kind
        raise UnpicklingError(
            f"checkpoint '{file}' was not loaded: it is damaged or holds more than weights{_unsafe(file, error)}, "
            "which could run anything; expected what torch.save(model.state_dict(), file) or mmengine's runner writes"
        ) from error


def _unsafe(file: str, error: Exception) -> str:
    """The names of what a refused file wants to run, if they can be told; none of torch's advice to let it."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # no zip file of torch's
        names = re.findall(r'Unsupported (?:global|class): (?:GLOBAL )?([\w.]+)|GLOBAL ([\w.]+)', str(error))
        names = [name for pair in names for name in pair if name]
    return f' ({", ".join(names)})' if names else ''


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """mmengine's loader of local files, as :func:`read_checkpoint`.

    Raises:
        UnpicklingError: The file is refused.
        DataError: It holds no dict.
    """
    checkpoint = read_checkpoint(filename, map_location)
    if not isinstance(checkpoint, dict):
        raise DataError(f"checkpoint '{filename}' holds {type(checkpoint).__name__}: expected tensors by name")
    return checkpoint


def load_from_http(filename: str, map_location: Any = None) -> Any:
    """mmengine's loader of http(s) addresses, as weights only; rank 0 downloads, the others read what it got."""

    def load():
        allow_mmengine_checkpoints()
        return torch.hub.load_state_dict_from_url(filename, map_location=map_location, weights_only=True)

    checkpoint = load() if get_rank() == 0 else None
    barrier()
    return checkpoint if get_rank() == 0 else load()


def read_weights_only() -> None:
    """Make this process read every checkpoint as weights only, whatever mmengine would do; our tools do so.

    mmengine 0.10.7 reads http addresses otherwise, and OneDL's mmengine reads any file otherwise once the safe way
    has failed. Local files and http addresses go through this module's reader; of all other ways, such as
    ``torchvision://``, torch itself asks the same by its environment variable. Whoever has set torch's variable of
    the contrary, ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD``, keeps it for those.
    """
    CheckpointLoader.register_scheme('', loader=load_from_local, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), loader=load_from_http, force=True)
    if not os.environ.get('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'):
        os.environ.setdefault('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')


def load_trained(model: nn.Module, path: str) -> dict:
    """Load a checkpoint of all of a model, and return it.

    Args:
        model (nn.Module): The model that it was trained with.
        path (str): File, or a name that mmengine knows.

    Raises:
        DataError: A tensor of the model is missing in it, or has another shape there.
    """
    checkpoint = load_checkpoint(model, path, map_location='cpu')
    state = {key.removeprefix('module.'): value for key, value in checkpoint.get('state_dict', checkpoint).items()}
    wrong = [
        key
        for key, value in model.state_dict().items()
        if not key.endswith(PLAN_KEY) and getattr(state.get(key), 'shape', None) != value.shape
    ]
    if wrong:
        raise DataError(
            f"checkpoint '{path}' does not fit the config: {len(wrong)} tensors are missing in it or of another "
            f"shape, first '{wrong[0]}'"
        )
    return checkpoint
