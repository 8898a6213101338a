"""Checkpoints: the plan travels with the weights, and stock weights load."""

import json
from contextlib import suppress

import torch
from mmengine.logging import print_log
from torch import nn

from .computing_layers import BorrowError, ComputingLayer, DecoderComputingLayer, is_sharded
from .plan import PLAIN, Plan, PlanError, differences

PLAN_KEY = 'repl_plan'
# Of the weights in a file: another number wherever the parameters of an operator change. Files without it are of 1.
# It has more digits than the last: plans of different length cannot be averaged, weights of other meaning must not be.
FORMAT = 10
# In files of 1 the weights of these operators are normalized in every step, which they are not any more.
CHANGED = ('separable', 'conv', 'full')
# In files of 1 and 2 the light operators of language models have coefficients of so many times their parameters.
QUICK = 30.0


def plan_record(plan: Plan) -> dict:
    """What files say of a plan: the plan, and the ``format`` of the weights beside it."""
    return dict(format=FORMAT, **plan.to_dict())


def encode_plan(plan: Plan) -> torch.Tensor:
    """The record of a plan as a 1-d float32 tensor, the bytes of its JSON.

    A tensor, because that is what every way of saving weights keeps, safetensors included; floating point, because
    files are averaged: means of equal numbers, in whatever order and precision, are these numbers up to rounding.
    """
    return torch.tensor(list(json.dumps(plan_record(plan)).encode()), dtype=torch.float32)


def decode_plan(tensor: torch.Tensor) -> dict:
    """The inverse of :func:`encode_plan`, as a dict; ``format`` is 1 where none is named.

    Raises:
        PlanError: The tensor does not hold a plan.
    """
    try:
        return dict(dict(format=1), **json.loads(bytes(tensor.double().round().int().cpu().tolist()).decode()))
    except (ValueError, TypeError) as error:
        raise PlanError(f'the checkpoint entry {PLAN_KEY!r} does not hold a RepL plan: {error}') from None


def attach_plan(backbone: nn.Module, plan: Plan) -> None:
    """Give a backbone its plan: as attribute ``repl``, in its state dict, and as guard of what is loaded into it.

    The plan is no buffer: nothing that averages, casts, moves or empties buffers reaches it. Under the name that it
    has in the state dict there is a plain tensor, for code that looks a state dict's names up in the module.
    """
    backbone.repl = plan
    setattr(backbone, PLAN_KEY, encode_plan(plan))
    backbone.register_state_dict_post_hook(write_plan)
    backbone.register_load_state_dict_pre_hook(check_and_convert)
    backbone.register_load_state_dict_post_hook(begin_again)


def write_plan(backbone, state_dict, prefix, _) -> None:
    """Hook of ``state_dict()``: put the plan in, as a tensor of its own every time."""
    state_dict[prefix + PLAN_KEY] = encode_plan(backbone.repl)


def refuse_difference(have: dict, plan: Plan, where: str) -> None:
    """Raise a PlanError in one of two cases: a checkpoint's format is unknown here, or its plan is another one.

    The message lists the differences between the checkpoint's plan and the model's.
    """
    number = have.get('format', 1)
    words = [have, *({**have, **own} for own in (have.get('each') or {}).values())]
    changed = any(each.get('mode') not in PLAIN and each.get('operator') in CHANGED for each in words)
    if number not in (1, 2, FORMAT) or (number == 1 and changed and not have.get('merged')):
        raise PlanError(
            f'{where} has weights of format {number!r}, which were not loaded: expected {FORMAT}; it was written by '
            'another version of repl_mm, whose tools/merge.py makes a file of it that any version reads'
        )
    lines = differences(have, plan.to_dict())
    if lines:
        raise PlanError(
            f'{where} was made with another RepL plan; its weights were not loaded:\n  ' + '\n  '.join(lines)
        )


def begin_again(backbone, *_) -> None:
    """Post-hook of loading: computing layers take the scale of their neighbours' new weights into account.

    After stock weights their coefficients follow it; loaded with their neighbours, they belong together already.
    """
    begin(backbone, rescale=vars(backbone).pop('_loads_stock', False))


def begin(backbone: nn.Module, rescale: bool = True) -> None:
    """Let the computing layers of a backbone take the scale of their neighbours' weights into account.

    Args:
        backbone (nn.Module): A backbone whose weights are whole; of a sharded one nothing is changed.
        rescale (bool): See :meth:`ComputingLayer.begin`. Defaults to True.
    """
    if is_sharded(backbone):
        return
    for module in backbone.modules():
        if isinstance(module, ComputingLayer):
            with suppress(BorrowError):  # the next synthesis says it
                module.begin(rescale)


def slow_down(backbone: nn.Module, state_dict: dict, prefix: str) -> None:
    """Bring the coefficients of language models, of a file of an earlier format, to what they are now."""
    layers = [name for name, module in backbone.named_modules() if isinstance(module, DecoderComputingLayer)]
    places = tuple(f'{prefix}{name}.repl.' for name in layers)
    for key in [key for key in state_dict if key.startswith(places) and '.coefficients.' in key]:
        state_dict[key] = state_dict[key] * QUICK


def check_and_convert(backbone, state_dict, prefix, *_) -> None:
    """Pre-hook of loading: refuse weights of another plan, and convert stock weights.

    Stock weights (no plan inside) lose what belongs to the replaced blocks, and the computing layers keep what they
    have; one log line says how many tensors were loaded, dropped and left at their initialization.

    Raises:
        PlanError: The weights were made with another plan, in another format, or for blocks of another width.
    """
    plan = backbone.repl
    vars(backbone).pop('_loads_stock', None)
    saved = state_dict.pop(prefix + PLAN_KEY, None)
    own = {prefix + key: value for key, value in backbone.state_dict().items() if key != PLAN_KEY}
    places = tuple(
        f'{prefix}{name}.' for name, module in backbone.named_modules() if isinstance(module, ComputingLayer)
    )
    state_dict_keys = [key for key in state_dict if key.startswith(prefix)]
    loaded = [key for key in state_dict_keys if key in own and state_dict[key].shape == own[key].shape]
    if saved is not None:
        record = decode_plan(saved)
        refuse_difference(record, plan, 'the checkpoint')
        if record['format'] < FORMAT:
            slow_down(backbone, state_dict, prefix)
        for key in state_dict_keys:
            if key.startswith(places) and key in own and state_dict[key].shape != own[key].shape:
                raise PlanError(
                    'the checkpoint was made with the same plan for wider or narrower blocks; it was not loaded: '
                    f'{key!r} is {tuple(state_dict[key].shape)} there, {tuple(own[key].shape)} in the model'
                )
        print_log(
            f'RepL: weights of the same plan for {type(backbone).__name__}: {len(loaded)} of {len(own)} tensors '
            'loaded',
            logger='current',
        )
        return
    if not loaded:
        return  # not weights of this backbone at all: let the loader say so
    dropped = [key for key in state_dict_keys if key.startswith(places) and key not in own]
    for key in dropped:
        del state_dict[key]
    missing = [key for key in own if key.startswith(places) and key not in state_dict]
    for key in missing:
        state_dict[key] = own[key]
    # weights that lost their plan on the way have those of the computing layers
    vars(backbone)['_loads_stock'] = not any(key.startswith(places) for key in loaded)
    print_log(
        f'RepL: stock weights for {type(backbone).__name__}: {len(loaded)} tensors loaded, {len(dropped)} dropped '
        f'({len(places)} replaced blocks), {len(missing)} missing (computing layers start from their initialization)',
        logger='current',
    )
