"""Replacement Learning (RepL) for MMDetection and MMSegmentation backbones."""

try:
    import mmengine as _mmengine  # noqa: F401
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(f"repl_mm needs torch and mmengine ({error}): pip install 'torch>=2.6' mmengine") from None

from . import optim  # noqa: F401  (registers the optimizer wrapper)
from .backbones import register_family
from .choosing import Choice, choose
from .compat import know_packages
from .computing_layers import BorrowError
from .hook import RepLHook
from .merging import MergeError, merge
from .plan import Plan, PlanError, Slot, make_plan
from .reading import allow_mmengine_checkpoints
from .surgery import apply_repl, computing_layers, fold, plan_of, repl_backbones, unfold

__version__ = '0.1.0'
__all__ = [
    'BorrowError',
    'Choice',
    'MergeError',
    'Plan',
    'PlanError',
    'RepLHook',
    'Slot',
    'apply_repl',
    'choose',
    'computing_layers',
    'fold',
    'make_plan',
    'merge',
    'plan_of',
    'register_family',
    'repl_backbones',
    'unfold',
]

allow_mmengine_checkpoints()
know_packages()
