"""Exact training cost of a backbone, counted on fake tensors: no data, no weights, no GPU.

The figures are those of one optimizer step of the backbone alone, in train mode as its config trains it (frozen stages
and ``norm_eval`` included), in fp32:

- **FLOPs** of convolutions and matrix products, a multiply-add counted as 2. Element-wise operations, normalization
  and pooling are not counted.
- **Activation bytes**: what autograd holds for the backward pass at the end of the forward pass, every storage counted
  once; parameters, buffers and the input image excluded. What a custom autograd function keeps outside of
  ``save_for_backward`` is not seen.
- **Optimizer bytes**: fp32 state of the trainable parameters.
"""

import copy
import inspect
import io
import weakref
from dataclasses import asdict, dataclass

import torch
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval_for_single_model
from mmengine.registry import MODELS, DefaultScope
from rich.console import Console
from rich.table import Table
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry, shape_wrapper

from .non_reentrant import make_non_reentrant
from .computing_layers import recomputed
from .registry import MODELS as REPL_MODELS
from .surgery import computing_layers

aten = torch.ops.aten
_LABELS = {'fuse': 'RepL'}  # of a mode, in tables


# ---------------------------------------------------------------------------------------------------------------------
# One backbone
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cost:
    """Cost of one training step of a backbone.

    Attributes:
        params (int): Trainable parameters, shared ones counted once.
        total_params (int): The same with the frozen ones.
        flops (int): FLOPs of forward and backward, recomputation included.
        forward_flops (int): FLOPs of the forward pass.
        activation_bytes (int): Bytes saved for the backward pass.
        optimizer_bytes (int): Bytes of the optimizer's state.
        shape (tuple[int]): Height and width of the input image.
        batch (int): Images in the step.
    """

    params: int
    total_params: int
    flops: int
    forward_flops: int
    activation_bytes: int
    optimizer_bytes: int
    shape: tuple
    batch: int


def measure(backbone, shape=(800, 1344), batch=2, moments=1):
    """Count what one training step of a backbone costs.

    The backbone itself is neither run nor changed: a copy of it on fake tensors is put into train mode and run.

    Args:
        backbone (nn.Module): Takes an image (batch, 3, height, width), returns tensors.
        shape (tuple[int]): Height and width of the input, or channels, height and width. Defaults to (800, 1344).
        batch (int): Images in a step. Defaults to 2.
        moments (int): fp32 values that the optimizer keeps per trainable parameter: 1 for SGD with momentum, 2 for
            AdamW. Defaults to 1.

    Returns:
        Cost: The counts.

    Raises:
        ValueError: If ``shape`` or ``batch`` is no image size.
        RuntimeError: If the backbone cannot run on fake tensors: mmcv's compiled operators (DCN) cannot.
    """
    channels, height, width = _image(shape)
    if batch < 1:
        raise ValueError(f'batch={batch} is no number of images: give a whole number of at least 1')
    backbone, mode = _fake(backbone)
    params = list(backbone.parameters())
    trainable = sum(p.numel() for p in params if p.requires_grad)
    saved = weakref.WeakSet()  # handles that autograd still holds at the end of the forward pass

    def pack(tensor):
        handle = _Saved(tensor)
        saved.add(handle)
        return handle

    try:
        with mode, _FlopCounter() as counter:
            image = torch.empty(batch, channels, height, width)
            with saved_tensors_hooks(pack, lambda handle: handle.tensor):
                outputs = [out for out in tree_leaves(backbone(image)) if isinstance(out, torch.Tensor)]
            given = {_storage(tensor) for tensor in [image, *params, *backbone.buffers()]}
            kept = {_storage(handle.tensor): handle.tensor.untyped_storage().nbytes() for handle in saved}
            forward_flops = counter.total
            _backward(outputs)
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
        shape=(height, width),
        batch=batch,
    )


def synthesize(backbone):
    """Make the weights of every computing layer of a backbone as one training step does, and nothing else.

    That is forward, again for the recomputation in backward, and backward.
    """
    for _, layer in computing_layers(backbone):
        _backward([weight for weight in tree_leaves(recomputed(layer.synthesize)) if weight is not None])


def synthesis_flops(backbone):
    """FLOPs of :func:`synthesize`, a part of :attr:`Cost.flops`; 0 without computing layers that synthesize."""
    backbone, mode = _fake(backbone)
    with mode, _FlopCounter() as counter:
        synthesize(backbone)
    return counter.total


def _fake(backbone):
    """Copy of a backbone on fake CPU tensors, in train mode, and the mode to run it under."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # tensors that are neither parameter nor buffer stay real
    with mode:
        fakes = {id(p): nn.Parameter(_like(p), requires_grad=p.requires_grad) for p in backbone.parameters()}
        fakes.update((id(buffer), _like(buffer)) for buffer in backbone.buffers())
    backbone = copy.deepcopy(backbone, fakes)
    backbone.train()  # freezes stages and sets norm_eval; that of mm's backbones returns None
    return backbone, mode


def _like(tensor):
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


def _image(shape):
    """Channels, height and width from what a user gave as shape."""
    if len(shape) not in (2, 3) or any(size < 1 for size in shape):
        raise ValueError(f'shape={tuple(shape)} is no image size: give height and width, for instance 800 1344')
    return (3, *shape)[-3:]


def _backward(outputs):
    """Backward pass from all outputs that need one, with gradients of any value."""
    outputs = [out for out in outputs if out.requires_grad]
    if outputs:
        torch.autograd.backward(outputs, [torch.empty_like(out) for out in outputs])


class _Saved:
    """Handle of a saved tensor; lives as long as autograd keeps it."""

    def __init__(self, tensor):
        self.tensor = tensor


def _storage(tensor):
    """Identity of a tensor's storage while the tensor lives."""
    return tensor.untyped_storage()._cdata


def _conv_backward_flops(grad, x, weight, _bias, _stride, _pad, _dilation, transposed, _out_pad, _groups, mask, **_):
    """FLOPs of a convolution's backward: each of the two gradients costs what the forward pass costs.

    torch 2.13's own formula forgets the groups when it counts the gradient of the weight.
    """
    return conv_flop_count(x, weight, grad, transposed) * (mask[0] + mask[1])


class _FlopCounter(TorchDispatchMode):
    """Sum of torch's FLOP formulas: ``FlopCounterMode`` without its account per module, half of its time."""

    formulas = {
        **flop_registry,
        aten.convolution_backward: shape_wrapper(_conv_backward_flops),
        # what scaled_dot_product_attention is on fake CPU tensors
        aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
        aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
            aten._scaled_dot_product_flash_attention_backward
        ],
    }

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = self.formulas.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


# ---------------------------------------------------------------------------------------------------------------------
# The arms that a config gives
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Arm:
    """One backbone in a comparison.

    Attributes:
        name (str): For instance 'E2E', 'RepL', 'remove', 'RepL with_cp'.
        cfg (dict): Config of the backbone.
        group (str): Arms of one group are compared with the group's 'E2E' and 'remove'.
        switch (str): What is switched on after building: 'efficient_conv_bn_eval' (mmengine's), 'non-reentrant' (the
            checkpoints of ``with_cp``, as RepL needs them), or nothing.
        optional (bool): Whether it is left out with a note, instead of an error, if it cannot be built or counted.
        synthesis (bool): Whether :func:`synthesis_flops` are counted as well, which takes a second run.
    """

    name: str
    cfg: dict
    group: str = 'as configured'
    switch: str = ''
    optional: bool = False
    synthesis: bool = False


@dataclass(frozen=True)
class Row:
    """Result for one arm: its ``cost``, or a ``note`` that says why there is none.

    ``model_params`` is the number of trainable parameters of the whole model with this backbone, or None;
    ``synthesis_flops`` the part of the train FLOPs that makes weights, or None.
    """

    name: str
    group: str
    cost: Cost = None
    note: str = ''
    model_params: int = None
    synthesis_flops: int = None


def find_backbone(model):
    """Find the backbone that RepL works on, anywhere in a model's config.

    That is the only dict with a key ``replace`` or a ``type`` that starts with ``RepL``; without any, the only
    ``backbone``.

    Args:
        model (dict): ``cfg.model``.

    Returns:
        tuple[tuple, dict]: Its path, for instance ``('detector', 'backbone')``, and the dict itself.

    Raises:
        ValueError: If there is no such dict, or more than one.
    """
    nodes = dict(_dicts(model))
    found = {path: node for path, node in nodes.items() if 'replace' in node or _bare(node).startswith('RepL')}
    found = found or {path: node for path, node in nodes.items() if path[-1:] == ('backbone',) and 'type' in node}
    if len(found) != 1:
        names = ', '.join('.'.join(map(str, ('model', *path))) for path in found) or 'none'
        raise ValueError(f'the config must have one backbone of type RepL*, or one backbone at all; found: {names}')
    return next(iter(found.items()))


def stock(backbone):
    """Config of the stock backbone: the same keys without ``replace``, the type without ``RepL``, no weights."""
    cfg = {key: value for key, value in backbone.items() if key not in ('replace', 'init_cfg', 'pretrained')}
    if _bare(cfg).startswith('RepL'):
        cfg['type'] = stock_type(cfg)
    return cfg


def stock_type(backbone):
    """Name of the stock type of a RepL backbone's config; with our scope where no other scope has that type."""
    name = _bare(backbone).removeprefix('RepL')
    REPL_MODELS.import_from_location()
    return f'repl_mm.{name}' if name in REPL_MODELS.module_dict else name


def repl(backbone, **replace_keys):
    """Config of the RepL backbone, ``replace`` changed by keywords; the default plan where it had none; no weights."""
    cfg = stock(backbone)
    cfg['type'] = f'repl_mm.RepL{_bare(cfg)}'
    cfg['replace'] = {**(backbone.get('replace') or {}), **replace_keys}
    return cfg


def arms_of(backbone, scope=None, modes=None, operators=(), frozen_stages=(-1, 1)):
    """The backbones to compare, from the config of one.

    Args:
        backbone (dict): Config of a RepL backbone, or of a stock one, which then gets the default plan.
        scope (str): The config's ``default_scope``. Defaults to None, mmengine's own.
        modes (list[str]): Modes beside E2E. Defaults to the configured one and ``'remove'``.
        operators (list[str]): Operators to compare with the configured one, under the configured mode.
        frozen_stages (list[int]): Further settings of ``frozen_stages`` to compare under, if the backbone has it.

    Returns:
        list[Arm]: E2E, the modes, the operators; E2E and the first mode with ``with_cp`` and, if its ``norm_cfg`` is
        batch norm, with ``efficient_conv_bn_eval``; E2E and the modes for every further ``frozen_stages``.

    Raises:
        ValueError: RepL does not support the backbone, or the scope has none of this type.
    """
    mode = (backbone.get('replace') or {}).get('mode', 'fuse')
    modes = list(dict.fromkeys(modes or [mode, 'remove']))
    keys = _init_keys(stock(backbone), scope)
    if REPL_MODELS.get(repl(backbone)['type']) is None:
        names = ', '.join(sorted(name.removeprefix('RepL') for name in REPL_MODELS.module_dict))
        raise ValueError(f'RepL does not support backbone type {stock(backbone)["type"]!r}, only {names}')
    plain = {**backbone, 'with_cp': False} if backbone.get('with_cp') else dict(backbone)
    first = _LABELS.get(modes[0], modes[0])
    pair = {'E2E': stock(plain), first: repl(plain, mode=modes[0])}

    def base(cfg, **kwargs):
        return [
            Arm('E2E', stock(cfg), **kwargs),
            *(Arm(_LABELS.get(mode, mode), repl(cfg, mode=mode), **kwargs) for mode in modes),
        ]

    arms = base(plain, synthesis=True)
    for name in operators:
        cfg = repl(plain, mode=modes[0], operator=name)
        arms.append(Arm(f'{first} {name}', cfg, optional=True, synthesis=True))
    if 'with_cp' in keys:
        arms += [Arm(f'{name} with_cp', {**cfg, 'with_cp': True}, optional=True) for name, cfg in pair.items()]
        # mm's reentrant checkpoint leaves out the first block behind frozen stages: not an advantage of RepL's own
        cfg = {**pair['E2E'], 'with_cp': True}
        arms.insert(-1, Arm('E2E with_cp non-reentrant', cfg, switch='non-reentrant', optional=True))
    switch = 'efficient_conv_bn_eval'
    if 'BN' in (plain.get('norm_cfg') or keys.get('norm_cfg') or {}).get('type', ''):
        arms += [Arm(f'{name} {switch}', cfg, switch=switch, optional=True) for name, cfg in pair.items()]
    if 'frozen_stages' in keys:
        configured = plain.get('frozen_stages', keys['frozen_stages'])
        for stages in dict.fromkeys(frozen_stages):
            if stages != configured:
                arms += base({**plain, 'frozen_stages': stages}, group=f'frozen_stages={stages}', optional=True)
    return arms


def build(cfg, scope=None):
    """Build a module from its config within a config's ``default_scope``."""
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(copy.deepcopy(dict(cfg)))


def build_arm(arm, scope=None):
    """Build the backbone of an arm."""
    backbone = build(arm.cfg, scope)
    if arm.switch == 'efficient_conv_bn_eval':
        turn_on_efficient_conv_bn_eval_for_single_model(backbone)
    elif arm.switch == 'non-reentrant':
        for block in list(backbone.modules())[1:]:  # the first one is the backbone itself, which has with_cp as well
            make_non_reentrant(block)
    return backbone


def count(arm, scope=None, shape=(800, 1344), batch=2, moments=1, rest=None):
    """Build and measure an arm.

    Args:
        arm (Arm): One of :func:`arms_of`.
        scope (str): The config's ``default_scope``.
        shape (tuple[int]): As in :func:`measure`.
        batch (int): As in :func:`measure`.
        moments (int): As in :func:`measure`.
        rest (int): Trainable parameters of the model outside of the backbone, see :func:`params_outside`. Defaults to
            None, not known.

    Returns:
        Row: The costs, or for an optional arm the reason why there are none.
    """
    try:
        backbone = build_arm(arm, scope)
        cost = measure(backbone, shape, batch, moments)
    except (RuntimeError, TypeError, ValueError) as error:
        if not arm.optional:
            raise
        return Row(arm.name, arm.group, note=str(error).strip().splitlines()[0])
    whole = None if rest is None else rest + cost.params
    synthesis = synthesis_flops(backbone) if arm.synthesis else None
    return Row(arm.name, arm.group, cost, model_params=whole, synthesis_flops=synthesis)


def params_outside(model, path, scope=None):
    """Trainable parameters of a model outside of its backbone: neck, heads.

    Args:
        model (dict): ``cfg.model``.
        path (tuple): Path of the backbone, from :func:`find_backbone`.
        scope (str): The config's ``default_scope``.

    Returns:
        int: Their number.
    """
    model = copy.deepcopy(model)
    node = model
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = stock(node[path[-1]])
    built = build(model, scope)
    built.train()
    backbone = built.get_submodule('.'.join(map(str, path)))
    inside = {id(p) for p in backbone.parameters()}
    return sum(p.numel() for p in built.parameters() if p.requires_grad and id(p) not in inside)


def optimizer_moments(cfg):
    """fp32 values per trainable parameter in the state of a config's optimizer, and the optimizer's name.

    Returns:
        tuple[int, str]: 1 and 'SGD with momentum', mm's default, if the config names none.
    """
    optimizer = cfg.get('optim_wrapper', {}).get('optimizer', {})
    name = optimizer.get('type', 'SGD')
    name = name if isinstance(name, str) else name.__name__
    if name != 'SGD':
        return (2 if 'Adam' in name else 1), name
    if optimizer and not optimizer.get('momentum'):
        return 0, 'SGD without momentum'
    return 1, 'SGD with momentum'


def _bare(cfg):
    """Type of a config without its scope; '' if it names none."""
    kind = cfg.get('type', '')
    kind = kind if isinstance(kind, str) else kind.__name__
    return kind.rpartition('.')[2]


def _dicts(node, path=()):
    """All dicts in a config with their paths."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from _dicts(value, (*path, key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _dicts(value, (*path, index))


def _init_keys(cfg, scope):
    """Keyword arguments with their defaults that a config's class and its base classes take."""
    scope = cfg.get('_scope_', scope)
    with DefaultScope.overwrite_default_scope(scope), MODELS.switch_scope_and_registry(None) as registry:
        kind = cfg['type'] if isinstance(cfg['type'], type) else registry.get(cfg['type'])
    if kind is None:
        raise ValueError(f'backbone type {cfg["type"]!r} is not registered in scope {scope!r}')
    keys = {}
    for base in reversed(kind.__mro__):
        if '__init__' in vars(base) and base is not object:
            keys.update((key, value.default) for key, value in inspect.signature(base.__init__).parameters.items())
    return keys


# ---------------------------------------------------------------------------------------------------------------------
# Text, JSON, picture
# ---------------------------------------------------------------------------------------------------------------------
def share_kept(cost, e2e, removed, key):
    """Share of the possible saving that is kept: (E2E - this) / (E2E - removed).

    Args:
        cost (Cost): This arm.
        e2e (Cost): The stock backbone.
        removed (Cost): The same slots with nothing in them.
        key (str): Which count, for instance 'flops' or 'activation_bytes'.

    Returns:
        float: 1 is the limit; None if removing saves nothing.
    """
    possible = getattr(e2e, key) - getattr(removed, key)
    return (getattr(e2e, key) - getattr(cost, key)) / possible if possible else None


def report(before, after):
    """Text that sets two costs side by side, with the gap and what remains.

    Args:
        before (Cost): The stock backbone.
        after (Cost): The backbone with RepL.

    Returns:
        str: A table.
    """
    lines = [
        ('trainable parameters', 'params', _count),
        ('all parameters', 'total_params', _count),
        ('train FLOPs', 'flops', _count),
        ('activation bytes', 'activation_bytes', _bytes),
        ('optimizer bytes', 'optimizer_bytes', _bytes),
    ]
    grid = Table(title=f'Cost of the backbone, {_title(after)}', box=None, title_justify='left')
    grid.add_column('')
    for name in ('before', 'after', 'gap', 'remain'):
        grid.add_column(name, justify='right')
    for label, key, text in lines:
        old, new = getattr(before, key), getattr(after, key)
        remain = f'{new / old:.1%}' if old else '-'
        grid.add_row(label, text(old), text(new), text(new - old), remain)
    return _render(grid)


def table(rows, title='', optimizer='SGD with momentum'):
    """Text with absolute counts, counts relative to E2E, and the shares of the possible saving kept.

    Args:
        rows (list[Row]): From :func:`count`.
        title (str): What is compared, for instance the config's name.
        optimizer (str): The optimizer that the state is counted for.

    Returns:
        str: The table, its caption and the notes.
    """
    rows = list(rows)
    measured = [row for row in rows if row.cost]
    whole = any(row.model_params is not None for row in measured)
    grid = Table(title=title or None, title_justify='left')
    for name in ('backbone', 'trainable params', 'train FLOPs', 'activations', 'optimizer', 'kept FLOPs', 'kept act.'):
        grid.add_column(name, justify='left' if name == 'backbone' else 'right')
    if whole:
        grid.add_column('whole model params', justify='right')
    for group in dict.fromkeys(row.group for row in rows):
        grid.add_section()
        grid.add_row(f'[bold]{group}[/bold]')
        for row in relative(rows, group):
            if 'note' in row:
                grid.add_row(row['name'], 'see note')
                continue
            cells = [
                f'{text(row[key])}  {_ratio(row["relative"].get(key))}'
                for key, text in [
                    ('params', _count),
                    ('flops', _count),
                    ('activation_bytes', _bytes),
                    ('optimizer_bytes', _bytes),
                ]
            ]
            cells += [_percent(row['kept'].get(key)) for key in ('flops', 'activation_bytes')]
            if whole:
                cells.append(f'{_count(row["model_params"])}  {_ratio(row["relative"].get("model_params"))}')
            grid.add_row(row['name'], *cells)
    caption = (
        f'The backbone alone, {_title(measured[0].cost)}; second number: relative to E2E. FLOPs: forward + backward, '
        f'multiply-add = 2. Activations: bytes saved for backward. Optimizer state: {optimizer}. '
        'Kept: share of the saving that removing the same blocks gives.'
    )
    synthesis = [f'{row.name} {row.synthesis_flops / row.cost.flops:.2%}' for row in measured if row.synthesis_flops]
    if synthesis:
        caption += f' Synthesis of weights in the train FLOPs: {", ".join(synthesis)}.'
    notes = [f'{row.name}, {row.group}: {row.note}' for row in rows if row.note]
    return '\n'.join([_render(grid), caption, *notes])


def relative(rows, group=None):
    """Rows as plain dicts with the counts relative to the group's E2E and the shares kept: what ``--json`` writes."""
    for row in rows:
        if group is not None and row.group != group:
            continue
        if row.cost is None:
            yield dict(name=row.name, group=row.group, note=row.note)
            continue
        peers = {peer.name: peer for peer in rows if peer.group == row.group and peer.cost}
        counts = dict(asdict(row.cost), model_params=row.model_params, synthesis_flops=row.synthesis_flops)
        out = dict(name=row.name, group=row.group, **counts, relative={}, kept={})
        e2e, removed = peers.get('E2E'), peers.get('remove')
        if e2e:
            base = dict(asdict(e2e.cost), model_params=e2e.model_params)
            keys = [key for key in base if isinstance(base[key], int) and base[key] and key != 'batch']
            out['relative'] = {key: counts[key] / base[key] for key in keys}
        if e2e and removed and row.name != 'E2E':
            out['kept'] = {
                key: share_kept(row.cost, e2e.cost, removed.cost, key) for key in ('flops', 'activation_bytes')
            }
        yield out


def plot(rows, path):
    """Draw parameters, train FLOPs and activation bytes relative to E2E, one group of bars for every arm.

    Args:
        rows (list[Row]): From :func:`count`; the first group is drawn.
        path (str): The picture to write.
    """
    from matplotlib.figure import Figure

    bars = [row for row in relative(rows, rows[0].group) if 'note' not in row]
    counts = {'trainable parameters': 'params', 'train FLOPs': 'flops', 'activation bytes': 'activation_bytes'}
    figure = Figure(figsize=(1.5 + 1.3 * len(bars), 4), layout='constrained')
    axes = figure.subplots()
    for offset, (label, key) in enumerate(counts.items()):
        heights = [bar['relative'].get(key, 0) for bar in bars]
        drawn = axes.bar([index + 0.27 * (offset - 1) for index in range(len(bars))], heights, 0.27, label=label)
        axes.bar_label(drawn, fmt='%.2f', fontsize=7)
    axes.axhline(1, color='gray', linewidth=0.8, linestyle='--')
    axes.set_xticks(range(len(bars)), [bar['name'].replace(' ', '\n', 1) for bar in bars])
    axes.set_ylabel('relative to E2E')
    axes.set_title(f'Training cost of the backbone, {_title(rows[0].cost)}', fontsize=10)
    axes.legend(fontsize=8, ncols=3, loc='upper center', bbox_to_anchor=(0.5, -0.15))
    figure.savefig(path, dpi=150)


def _render(grid):
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(grid)
    return '\n'.join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())


def _title(cost):
    return f'{cost.shape[0]}x{cost.shape[1]}, batch {cost.batch}'


def _count(number):
    if number is None:
        return '-'
    for unit, size in (('T', 10**12), ('G', 10**9), ('M', 10**6), ('k', 10**3)):
        if abs(number) >= size:
            return f'{number / size:.2f} {unit}'
    return str(number)


def _bytes(number):
    return f'{number / 2**20:.1f} MiB'


def _ratio(number):
    return '' if number is None else f'{number:.2f}'


def _percent(number):
    return '' if number is None else f'{number:.0%}'
