"""Exact training cost of a backbone, counted on fake tensors: no data, no weights, no GPU; measured steps on request.

The figures are those of one optimizer step of the backbone alone, in train mode as its config trains it (frozen stages
and ``norm_eval`` included), in fp32:

- **FLOPs** of convolutions and matrix products, a multiply-add counted as 2. Element-wise operations, normalization
  and pooling are not counted.
- **Activation bytes**: what autograd holds for the backward pass at the end of the forward pass, every storage counted
  once; parameters, buffers and the input excluded. What a custom autograd function keeps outside of
  ``save_for_backward`` is not seen.
- **Operations** of PyTorch in forward and backward that are no views: on a GPU each launches a kernel or several. A
  custom operator would count as one: no computing layer has one.
- **Optimizer bytes**: fp32 state of the trainable parameters.
"""

from ..config import optimizer_moments
from ..inputs import ImageInput, WordInput, make_input
from .counting import Cost, measure, no_random_change, synthesis_flops, synthesize
from .reporting import plot, report, table, time_table
from .rows import Row, count, count_all, relative, share_kept
from .timing import time_arms

__all__ = [
    'Cost',
    'ImageInput',
    'Row',
    'WordInput',
    'count',
    'count_all',
    'make_input',
    'measure',
    'no_random_change',
    'optimizer_moments',
    'plot',
    'relative',
    'report',
    'share_kept',
    'synthesis_flops',
    'synthesize',
    'table',
    'time_arms',
    'time_table',
]
