"""A hook for the tests of resuming: ends its process as the kernel does when memory runs out."""

import os
import signal

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class KillHook(Hook):
    """Kills the process with SIGKILL before a training step.

    Args:
        step (int): The step, counted from 0.
    """

    def __init__(self, step: int):
        self.step = step

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
