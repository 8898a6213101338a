"""Automatic mixed precision: on a CPU too, where mmengine's own wrapper refuses to work."""

from contextlib import contextmanager

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from torch import nn

from .config import type_name
from .registry import OPTIM_WRAPPERS, register


class CPUAmpOptimWrapper(OptimWrapper):
    """Automatic mixed precision in bfloat16 on the CPU, where mmengine's AmpOptimWrapper refuses to work.

    bfloat16 has the exponent range of float32, so the loss is not scaled. Arguments are those of OptimWrapper.
    """

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Run the forward pass of ``model`` in bfloat16."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


register(OPTIM_WRAPPERS, 'CPUAmpOptimWrapper', CPUAmpOptimWrapper)  # saved configs hold the plain name


def enable_amp(cfg) -> None:
    """Switch a config's optimizer wrapper to automatic mixed precision.

    Args:
        cfg (Config): The config; its ``optim_wrapper`` is changed.

    Raises:
        ValueError: The wrapper is of another type than those that can be switched.
    """
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if type_name(kind) not in ('OptimWrapper', 'AmpOptimWrapper', 'CPUAmpOptimWrapper'):
        raise ValueError(
            "automatic mixed precision works with optim_wrapper.type='OptimWrapper' or 'AmpOptimWrapper', "
            f'not with {kind!r}'
        )
    if get_device() == 'cpu':
        cfg.optim_wrapper.type = 'CPUAmpOptimWrapper'
        for key in ('loss_scale', 'dtype'):
            cfg.optim_wrapper.pop(key, None)
    else:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
