"""Replacement Learning (RepL) for MMDetection and MMSegmentation backbones."""

from .backbones import register_family
from .checkpoint import allow_mmengine_checkpoints
from .hook import RepLHook
from .plan import Plan, PlanError, Slot, make_plan
from .surgery import apply_repl, computing_layers, fold, plan_of, repl_backbones, unfold

__version__ = '0.1.0'
__all__ = [
    'Plan',
    'PlanError',
    'RepLHook',
    'Slot',
    'apply_repl',
    'computing_layers',
    'fold',
    'make_plan',
    'plan_of',
    'register_family',
    'repl_backbones',
    'unfold',
]

allow_mmengine_checkpoints()
