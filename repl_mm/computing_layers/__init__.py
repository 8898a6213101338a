"""Activation space: the computing layers that stand in the slots.

A computing layer gets its weights from :mod:`repl_mm.fusion` and applies them to ``x``, the output of the preceding
block. Its neighbours are not its children (:mod:`.borrowing`): so their parameters appear once in
``parameters()`` and in checkpoints. All parameters of a computing layer have ``.repl.`` in their name, for
``paramwise_cfg.custom_keys``.
"""

from .base import ComputingLayer, recomputed
from .borrowing import BorrowError, dotted, is_sharded, tensor_of
from .causal import DecoderComputingLayer
from .full import FullComputingLayer
from .half import HalfComputingLayer
from .half_tokens import HalfTokensComputingLayer
from .map_mlp import MapMLPComputingLayer
from .merged import MergedLayer, TokenGrid
from .patch import PatchComputingLayer
from .residual import ResidualComputingLayer
from .transformer import TransformerComputingLayer

__all__ = [
    'BorrowError',
    'ComputingLayer',
    'DecoderComputingLayer',
    'FullComputingLayer',
    'HalfComputingLayer',
    'HalfTokensComputingLayer',
    'MapMLPComputingLayer',
    'MergedLayer',
    'PatchComputingLayer',
    'ResidualComputingLayer',
    'TokenGrid',
    'TransformerComputingLayer',
    'dotted',
    'is_sharded',
    'recomputed',
    'tensor_of',
]
