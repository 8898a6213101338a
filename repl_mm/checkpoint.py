"""Checkpoints: the plan travels with the weights, stock weights load, and torch's weights-only loading stays on."""

import json
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from torch import nn

from .computing_layers import ComputingLayer
from .plan import Plan, PlanError, differences

PLAN_KEY = 'repl_plan'


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
    numbers = [type(np.dtype(kind)) for kind in ('float64', 'float32', 'int64')]
    methods = [*METHODS, (_method, 'builtins.getattr')]
    torch.serialization.add_safe_globals([np.ndarray, np.dtype, *numbers, *functions, *methods])


def encode_plan(plan: Plan) -> torch.Tensor:
    """A plan as a 1-d uint8 tensor (its JSON), which any checkpoint code carries along."""
    return torch.tensor(list(json.dumps(plan.to_dict()).encode()), dtype=torch.uint8)


def decode_plan(tensor: torch.Tensor) -> dict:
    """The inverse of :func:`encode_plan`, as a dict.

    Raises:
        PlanError: The tensor does not hold a plan.
    """
    try:
        return json.loads(bytes(tensor.cpu().tolist()).decode())
    except (ValueError, TypeError) as error:
        raise PlanError(f'the checkpoint entry {PLAN_KEY!r} does not hold a RepL plan: {error}') from None


def attach_plan(backbone: nn.Module, plan: Plan) -> None:
    """Give a backbone its plan: as attribute ``repl``, in its state dict, and as guard of what is loaded into it."""
    backbone.repl = plan
    backbone.register_buffer(PLAN_KEY, encode_plan(plan))
    backbone.register_load_state_dict_pre_hook(check_and_convert)


def refuse_difference(have: dict, plan: Plan, where: str) -> None:
    """Raise a PlanError that lists the differences between a checkpoint's plan and the model's, if there are any."""
    lines = differences(have, plan.to_dict())
    if lines:
        raise PlanError(f'{where} was made with another RepL plan; nothing was loaded:\n  ' + '\n  '.join(lines))


def check_and_convert(backbone, state_dict, prefix, *_) -> None:
    """Pre-hook of loading: refuse weights of another plan, and convert stock weights.

    Stock weights (no plan inside) lose what belongs to the replaced blocks, and the computing layers keep what they
    have; one log line says how many tensors were loaded, dropped and left at their initialization.

    Raises:
        PlanError: The weights were made with another plan.
    """
    plan = backbone.repl
    own = {prefix + key: value for key, value in backbone.state_dict().items()}
    saved = state_dict.get(prefix + PLAN_KEY)
    state_dict_keys = [key for key in state_dict if key.startswith(prefix)]
    loaded = [key for key in state_dict_keys if key in own and state_dict[key].shape == own[key].shape]
    if saved is not None:
        refuse_difference(decode_plan(saved), plan, 'the checkpoint')
        state_dict[prefix + PLAN_KEY] = own[prefix + PLAN_KEY]
        print_log(
            f'RepL: weights of the same plan for {type(backbone).__name__}: {len({*loaded} - {prefix + PLAN_KEY})} of '
            f'{len(own) - 1} tensors loaded',
            logger='current',
        )
        return
    if not loaded:
        return  # not weights of this backbone at all: let the loader say so
    places = tuple(
        f'{prefix}{name}.' for name, module in backbone.named_modules() if isinstance(module, ComputingLayer)
    )
    dropped = [key for key in state_dict_keys if key.startswith(places) and key not in own]
    for key in dropped:
        del state_dict[key]
    missing = [key for key in own if key.startswith(places) and key not in state_dict]
    for key in [*missing, prefix + PLAN_KEY]:
        state_dict[key] = own[key]
    print_log(
        f'RepL: stock weights for {type(backbone).__name__}: {len(loaded)} tensors loaded, {len(dropped)} dropped '
        f'({len(places)} replaced blocks), {len(missing)} missing (computing layers start from their initialization)',
        logger='current',
    )
