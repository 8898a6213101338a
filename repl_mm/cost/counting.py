"""What is measured: one training step of a backbone on fake tensors."""

import copy
import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry, shape_wrapper

from ..computing_layers import recomputed
from ..inputs import ImageInput, WordInput
from ..surgery import computing_layers

aten = torch.ops.aten
# aten's schemas call these no views; they write nothing all the same
NO_WORK = (
    'aten::_unsafe_view',
    'aten::empty',
    'aten::empty_like',
    'aten::empty_strided',
    'aten::new_empty',
    'aten::new_empty_strided',
    'aten::lift_fresh',
)


@dataclass(frozen=True)
class Cost:
    """Cost of one training step of a backbone, or of several that take the same input: costs may be added.

    Attributes:
        params (int): Trainable parameters, shared ones counted once.
        total_params (int): The same with the frozen ones.
        flops (int): FLOPs of forward and backward, recomputation included.
        forward_flops (int): FLOPs of the forward pass.
        activation_bytes (int): Bytes saved for the backward pass.
        optimizer_bytes (int): Bytes of the optimizer's state.
        operations (int): aten operations of forward and backward that are no views, see :func:`is_view`: on a GPU each
            is a kernel to launch, or several.
        inputs (ImageInput | WordInput): What the step was made on.
    """

    params: int
    total_params: int
    flops: int
    forward_flops: int
    activation_bytes: int
    optimizer_bytes: int
    operations: int
    inputs: ImageInput | WordInput

    def __add__(self, other: 'Cost') -> 'Cost':
        counts = {key: value + getattr(other, key) for key, value in vars(self).items() if key != 'inputs'}
        return Cost(**counts, inputs=self.inputs)


def measure(backbone: nn.Module, inputs: ImageInput | WordInput | None = None, moments: int = 1) -> Cost:
    """Count what one training step of a backbone costs.

    The backbone itself is neither run nor changed: a copy of it on fake tensors is put into train mode and run. No
    random number is drawn.

    Args:
        backbone (nn.Module): Takes the input, returns tensors, nested in any way.
        inputs (ImageInput | WordInput | None): What the step is made on. Defaults to None, 2 images of 800x1344.
        moments (int): fp32 values that the optimizer keeps per trainable parameter: 1 for SGD with momentum, 2 for
            AdamW. Defaults to 1.

    Returns:
        Cost: The counts.

    Raises:
        RuntimeError: If the backbone cannot run on fake tensors: mmcv's compiled operators (DCN) cannot. Or it takes
            words, and the input is images.
    """
    inputs = inputs or ImageInput()
    if hasattr(backbone, 'get_input_embeddings') and not isinstance(inputs, WordInput):
        raise RuntimeError(f'{type(backbone).__name__} takes words, not images ({inputs}): expected a number of words')
    backbone, mode = on_fake_tensors(backbone)
    params = list(backbone.parameters())
    trainable = sum(p.numel() for p in params if p.requires_grad)
    saved = weakref.WeakSet()  # handles that autograd still holds at the end of the forward pass

    def pack(tensor: Tensor) -> _Saved:
        handle = _Saved(tensor)
        saved.add(handle)
        return handle

    try:
        with no_random_change(), mode:
            x = inputs.make()
        with no_random_change(), mode, _FlopCounter() as counter:
            with saved_tensors_hooks(pack, lambda handle: handle.tensor):
                outputs = backbone(x)
            given = {_storage(tensor) for tensor in [x, *params, *backbone.buffers()]}
            kept = {_storage(handle.tensor): handle.tensor.untyped_storage().nbytes() for handle in saved}
            forward_flops = counter.total
            gradients = backward(outputs)  # given by what stands behind the backbone
            flops = counter.total
    except RuntimeError as error:
        raise RuntimeError(
            f"{type(backbone).__name__} cannot be counted on fake tensors, for instance because of one of mmcv's own "
            f'operators (DCN): {str(error).splitlines()[0]}'
        ) from error
    return Cost(
        params=trainable,
        total_params=sum(p.numel() for p in params),
        flops=flops,
        forward_flops=forward_flops,
        activation_bytes=sum(size for storage, size in kept.items() if storage not in given),
        optimizer_bytes=4 * moments * trainable,
        operations=counter.operations - gradients,
        inputs=inputs,
    )


def synthesize(backbone: nn.Module) -> None:
    """Make the weights of every computing layer of a backbone, and nothing else.

    That is forward, again for a recomputation in backward, and backward: the most that a training step does.
    """
    for _, layer in computing_layers(backbone):
        backward(recomputed(layer.synthesize))


def synthesis_flops(backbone: nn.Module) -> int:
    """Return the FLOPs of :func:`synthesize`; 0 where nothing is synthesized.

    They are a part of :attr:`Cost.flops`, except in layers that meet so few positions that they do without.
    """
    backbone, mode = on_fake_tensors(backbone)
    with no_random_change(), mode, _FlopCounter() as counter:
        synthesize(backbone)
    return counter.total


def backward(outputs: Any) -> int:
    """Run the backward pass from all tensors in an output that need one, with gradients of ones; return how many."""
    found = [out for out in tree_leaves(outputs) if isinstance(out, Tensor) and out.requires_grad]
    if found:
        torch.autograd.backward(found, [torch.ones_like(out) for out in found])
    return len(found)


@contextmanager
def no_random_change() -> Iterator[None]:
    """Keep the states of all global generators of random numbers: torch on CPU and CUDA, numpy, Python."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def on_fake_tensors(backbone: nn.Module) -> tuple[nn.Module, FakeTensorMode]:
    """Copy of a backbone on fake CPU tensors, in train mode, and the mode to run it under."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # tensors that are neither parameter nor buffer stay real
    with mode:
        fakes = {id(p): nn.Parameter(_like(p), requires_grad=p.requires_grad) for p in backbone.parameters()}
        fakes.update((id(buffer), _like(buffer)) for buffer in backbone.buffers())
    backbone = copy.deepcopy(backbone, fakes)
    backbone.train()  # freezes stages and sets norm_eval; that of mm's backbones returns None
    return backbone, mode


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


class _Saved:
    """Handle of a saved tensor; lives as long as autograd keeps it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _storage(tensor: Tensor) -> int:
    """Identity of a tensor's storage while the tensor lives."""
    return tensor.untyped_storage()._cdata


def _conv_backward_flops(
    grad: tuple,
    x: tuple,
    weight: tuple,
    _bias: Any,
    _stride: Any,
    _pad: Any,
    _dilation: Any,
    transposed: bool,
    _out_pad: Any,
    _groups: int,
    mask: list[bool],
    **_: Any,
) -> int:
    """FLOPs of a convolution's backward: each of the two gradients costs what the forward pass costs.

    torch 2.13's own formula forgets the groups when it counts the gradient of the weight.
    """
    return conv_flop_count(x, weight, grad, transposed) * (mask[0] + mask[1])


def is_view(operation: torch._ops.OpOverload) -> bool:
    """Whether an aten operation computes nothing: its result is another view of an input's memory, or new memory."""
    return operation.is_view or operation.namespace == 'prim' or operation._schema.name in NO_WORK


class _FlopCounter(TorchDispatchMode):
    """Sum of torch's FLOP formulas: ``FlopCounterMode`` without its account per module, half of its time.

    Counts operations as well. A custom operator would count as one, whatever is inside: no computing layer has one.
    """

    formulas = {
        **flop_registry,
        aten.convolution_backward: shape_wrapper(_conv_backward_flops),
        # what scaled_dot_product_attention is on fake CPU tensors
        aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
        aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
            aten._scaled_dot_product_flash_attention_backward
        ],
    }

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.operations = 0

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.operations += not is_view(func)
        formula = self.formulas.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out
