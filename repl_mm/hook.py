"""The hook: reports, verifies, calibrates, logs, keeps the plan with the checkpoints, folds for evaluation."""

import copy
import functools
import itertools
import json
import os.path as osp

import torch
from mmengine.dist import is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import MODELS
from torch import nn

from .arms import fitted
from .calibration import calibrate, uncalibrated
from .checkpoint import PLAN_KEY, decode_plan, plan_record, refuse_difference
from .computing_layers import dotted, is_sharded
from .fusion import FusedWeight, Synthesis, UnitsWeight
from .inputs import make_input
from .plan import PlanError
from .registry import HOOKS, register
from .surgery import computing_layers, repl_backbones

PLAN_FILE = 'repl_plan.json'


class RepLHook(Hook):
    """Care for the RepL backbones of a Runner's model; does nothing for a model without any.

    * At the start: prints the plan and what it saves, writes the plan to ``work_dir/repl_plan.json``, checks that an
      optimizer which trains the kept blocks on both sides of a computing layer holds its parameters too, calibrates
      the layers' batch norms where ``norm_eval`` would leave them without statistics.
    * In the first step: checks that where kept blocks receive gradients, every parameter of the computing layers that
      the optimizer holds receives one.
    * Every ``interval`` steps: logs the fusion coefficients.
    * With checkpoints: writes the plan into ``meta['repl_plan']``, and refuses to load or resume from another plan.
    * For validation and test: synthesizes the weights once instead of at every forward.

    Args:
        shape (tuple[int] | None): Height and width at which the report counts costs, batch size 2, or the number of
            words; None: no costs. Defaults to (800, 1344), what mmdet's schedules train on.
        interval (int): Steps between two logs of the coefficients. Defaults to 50.
        calibration_batches (int): Training batches to calibrate on, where needed. Defaults to 16.

    Raises:
        ValueError: A setting is not valid.
        PlanError: A checkpoint was made with another plan.
        RuntimeError: A parameter of a computing layer is not in the optimizer, or received no gradient.
    """

    # after EMAHook, which swaps the parameters that are to be folded
    priority = 'LOW'

    def __init__(self, shape=(800, 1344), interval: int = 50, calibration_batches: int = 16):
        if shape is not None and (len(shape) not in (1, 2) or min(shape) < 1):
            raise ValueError(
                f'RepLHook.shape={shape!r} is not valid: expected (height, width), (words,) for a '
                'language model, or None for no costs'
            )
        for key, value in (('interval', interval), ('calibration_batches', calibration_batches)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f'RepLHook.{key}={value!r} is not valid: expected an integer of at least 1')
        self.shape = shape
        self.interval = interval
        self.calibration_batches = calibration_batches
        self._held: set[int] = set()  # ids of the parameters in the optimizer
        self._folded: list[nn.Module] = []  # computing layers that were folded for the evaluation
        self._first_step: list[Arrivals] | None = None  # from the start to the end of the first step

    # ---- start ----------------------------------------------------------------------------------------------------

    def before_train(self, runner) -> None:
        model = unwrapped(runner.model)
        backbones = repl_backbones(model)
        if not backbones:
            runner.logger.info('RepLHook: the model has no RepL backbone, nothing to do')
            return
        for name, backbone in backbones:
            runner.logger.info(f'{name or "model"}: {backbone.repl}')
        self._report(runner, backbones)
        self._write_plan(runner, backbones)
        self._refuse_reentrant(runner, backbones)
        self._held = {id(p) for o in _optimizers(runner) for group in o.param_groups for p in group['params']}
        for name, backbone in backbones:
            self._verify_optimizer(runner, name, backbone)
        if runner.iter == 0:
            self._calibrate(runner, model, backbones)
        self._first_step = []

    @master_only
    def _report(self, runner, backbones) -> None:
        if self.shape is None:
            return
        for name, backbone in backbones:
            try:
                text = costs(backbone, self.shape, _optimizer_of(backbone, _optimizers(runner)))
            except Exception as error:  # never a reason not to train
                text = f'no costs: {error}'
            size = 'x'.join(map(str, self.shape))
            where = 'one training step of 2 ' + (
                f'images of {size}' if len(self.shape) > 1 else f'texts of {size} words'
            )
            runner.logger.info(f'{name or "model"}, {where}:\n{text}')

    @master_only
    def _write_plan(self, runner, backbones) -> None:
        path = osp.join(runner.work_dir, PLAN_FILE)
        with open(path, 'w') as file:
            json.dump({name: plan_record(backbone.repl) for name, backbone in backbones}, file, indent=2)

    def _refuse_reentrant(self, runner, backbones) -> None:
        """mmengine's ``activation_checkpointing`` is reentrant: DDP dies on the borrowed weights inside it."""
        modules = (runner.cfg or {}).get('activation_checkpointing') or []
        modules = [modules] if isinstance(modules, str) else modules
        for name, backbone in backbones:
            inside = [m for m in modules if m == name or m.startswith(f'{name}.') or name.startswith(f'{m}.')]
            plan = backbone.repl
            lends = not plan.merged and any(plan.at(slot).mode in ('fuse', 'share') for slot in plan.slots)
            if inside and is_model_wrapper(runner.model) and lends:
                raise RuntimeError(
                    f'activation_checkpointing={inside!r} cannot be combined with RepL in distributed training (its '
                    'checkpoint is reentrant): use with_cp=True of the backbone instead'
                )

    def _verify_optimizer(self, runner, name: str, backbone: nn.Module) -> None:
        """Refuse an optimizer that trains the blocks around a computing layer without it; it may leave out all three.

        Parts of a backbone are left out on purpose: all but the last stage, say, or all of it.
        """
        left_out = []
        for place, layer in computing_layers(backbone):
            waiting = [dotted(name, place, key) for key, p in layer.named_parameters() if not self._holds(p)]
            left_out += waiting
            if waiting and all(any(id(p) in self._held for p in block.parameters()) for block in layer.between):
                raise RuntimeError(
                    f'{len(waiting)} parameters of a computing layer are not in the optimizer, first {waiting[0]!r}, '
                    'but parameters of the kept blocks beside it are: RepL must be applied before the optimizer is '
                    'built, by the type of the backbone in the config'
                )
        if left_out:
            runner.logger.info(
                f'{name or "model"}: the optimizer leaves out {len(left_out)} parameters of computing layers, first '
                f'{left_out[0]!r}, and the kept blocks there'
            )

    def _holds(self, parameter: nn.Parameter) -> bool:
        """Whether a parameter is in the optimizer, or frozen."""
        return id(parameter) in self._held or not parameter.requires_grad

    def _calibrate(self, runner, model, backbones) -> None:
        model.train()
        for name, backbone in backbones:
            if not uncalibrated(backbone):
                continue
            batches = itertools.islice(runner.train_dataloader, self.calibration_batches)
            images = itertools.chain.from_iterable(_images(model, batch, name) for batch in batches)
            done = calibrate(backbone, images)
            runner.logger.info(f'{name}: statistics of {done} norms of computing layers calibrated')

    # ---- steps ----------------------------------------------------------------------------------------------------

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self._first_step == []:
            backbones = repl_backbones(unwrapped(runner.model))
            self._first_step = [Arrivals(name, backbone, self._held) for name, backbone in backbones]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        arrivals, self._first_step = self._first_step, None
        for arrival in arrivals or ():
            arrival.close()
            if arrival.waiting and arrival.kept_blocks:
                raise RuntimeError(
                    f'{len(arrival.waiting)} parameters of computing layers received no gradient in the first step, '
                    f'first {arrival.waiting[0]!r}: they would never be trained'
                )
            if arrival.waiting:
                runner.logger.info(f'{arrival.name or "model"}: no block received a gradient in the first step')
        if self.every_n_train_iters(runner, self.interval) and is_main_process():
            summary = coefficient_summary(unwrapped(runner.model))
            if summary:
                runner.visualizer.add_scalars(summary, step=runner.iter + 1)

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        plans = {name: plan_record(backbone.repl) for name, backbone in repl_backbones(unwrapped(runner.model))}
        if plans:
            checkpoint['meta'][PLAN_KEY] = plans

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        saved = (checkpoint.get('meta') or {}).get(PLAN_KEY) or {}
        state = checkpoint.get('state_dict', {})
        for name, backbone in repl_backbones(unwrapped(runner.model)):
            key = dotted(name, PLAN_KEY)
            if name in saved:
                refuse_difference(saved[name], backbone.repl, 'the checkpoint')
            elif key in state:
                refuse_difference(decode_plan(state[key]), backbone.repl, 'the checkpoint')
            elif runner._resume:
                raise PlanError(
                    f'cannot resume: the checkpoint holds no RepL plan for {name!r}, so its optimizer state belongs '
                    'to another model; use load_from to start from its weights'
                )

    # ---- evaluation -----------------------------------------------------------------------------------------------

    def before_val_epoch(self, runner) -> None:
        model = unwrapped(runner.model)
        if not is_sharded(model):  # sharded weights are whole within the forward pass only
            self._folded = [layer for _, layer in computing_layers(model) if not layer.folded]
        for layer in self._folded:
            layer.fold()

    def after_val_epoch(self, runner, metrics=None) -> None:
        for layer in self._folded:
            layer.unfold()
        self._folded = []

    before_test_epoch = before_val_epoch
    after_test_epoch = after_val_epoch


class Arrivals:
    """Which parameters of a backbone receive gradients, from now on until :meth:`close`.

    Args:
        name (str): Dotted name of the backbone.
        backbone (nn.Module): A backbone with RepL.
        held (set[int]): Ids of the parameters that the optimizer holds; no other is looked at.

    Attributes:
        kept_blocks (bool): Whether any parameter outside of the computing layers has received one.
    """

    def __init__(self, name: str, backbone: nn.Module, held: set[int]):
        self.name = name
        self.kept_blocks = False
        layers = {id(p): dotted(name, key) for key, p in _parameters(backbone).items()}
        trained = [p for p in backbone.parameters() if p.requires_grad and id(p) in held]
        self._waiting = {id(p): layers[id(p)] for p in trained if id(p) in layers}
        self._handles = [p.register_hook(functools.partial(self._receive, id(p))) for p in trained]
        self._layers = layers.keys()

    def _receive(self, key: int, grad: torch.Tensor) -> None:
        self._waiting.pop(key, None)
        self.kept_blocks |= key not in self._layers

    @property
    def waiting(self) -> list[str]:
        """Names of the computing layers' parameters that have received none."""
        return list(self._waiting.values())

    def close(self) -> None:
        """Look no longer."""
        for handle in self._handles:
            handle.remove()


def coefficient_summary(model: nn.Module) -> dict[str, float]:
    """How the computing layers use their neighbours, for the log.

    Returns:
        dict[str, float]: Per computing layer, ``repl/<layer>/<role>/preceding``: the preceding block's share of the
        fusion coefficients' length (0.5: both neighbours alike), ``.../length``: the length of all of them, and
        ``.../gain``: mean absolute gain, where there is one. Of whole hidden units the length alone.
    """
    summary = {}
    for layer_name, layer in computing_layers(model):
        for name, module in layer.named_modules():
            if not isinstance(module, Synthesis):
                continue
            key = f'repl/{layer_name}/' + name.removeprefix('repl.').removesuffix('.synthesis')
            if module.gain is not None:
                summary[f'{key}/gain'] = module.gain.detach().abs().mean().item()
            if isinstance(module.source, FusedWeight):
                lengths = [share.norm().item() for share in module.source.shares()]
                preceding = lengths[: -(-len(lengths) // len(layer.neighbours))]  # all, if only one has this operator
                summary[f'{key}/preceding'] = sum(preceding) / max(sum(lengths), 1e-12)
                summary[f'{key}/length'] = sum(length**2 for length in lengths) ** 0.5
            elif isinstance(module.source, UnitsWeight):
                for coefficient in module.source.coefficients:
                    summary[f'{key}/length'] = coefficient.detach().norm().item()
    return summary


def costs(backbone: nn.Module, shape: tuple[int, int], optimizer: torch.optim.Optimizer) -> str:
    """What one training step of a backbone costs, beside its stock twin if it was built by its type.

    Args:
        backbone (nn.Module): A backbone with RepL. It is not changed.
        shape (tuple[int]): Height and width of the images, or the number of words.
        optimizer (torch.optim.Optimizer): The optimizer of the training.

    Returns:
        str: For the log.
    """
    from . import cost

    settings = dict(optimizer.defaults, type=type(optimizer).__name__)
    moments = cost.optimizer_moments(dict(optim_wrapper=dict(optimizer=settings)))[0]
    stock = getattr(backbone, 'repl_stock', None)
    inputs = fitted(make_input(shape), stock) if stock else make_input(shape)
    after = cost.measure(backbone, inputs, moments)
    if stock is None:
        return (
            f'{after.params:,} trainable parameters, {after.flops:,} train FLOPs, {after.activation_bytes:,} '
            'activation bytes, not compared: apply_repl() does not know how the stock backbone was built'
        )
    with cost.no_random_change():
        twin = MODELS.build(copy.deepcopy(stock))
    if not any(p.requires_grad for p in backbone.parameters()):  # frozen from outside, as a teacher is
        twin.requires_grad_(False)
    return cost.report(cost.measure(twin, inputs, moments), after)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of a wrapper for distributed training, or the model itself."""
    return model.module if is_model_wrapper(model) else model


def _optimizers(runner) -> list[torch.optim.Optimizer]:
    wrappers = getattr(runner.optim_wrapper, 'optim_wrappers', None) or {'': runner.optim_wrapper}
    return [wrapper.optimizer for wrapper in wrappers.values()]


def _optimizer_of(backbone: nn.Module, optimizers: list[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """The optimizer that holds parameters of a backbone; the first one if none does."""
    inside = {id(p) for p in backbone.parameters()}
    held = (o for o in optimizers if any(id(p) in inside for group in o.param_groups for p in group['params']))
    return next(held, optimizers[0])


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters of a model's computing layers by name."""
    layers = computing_layers(model)
    return {dotted(name, key): p for name, layer in layers for key, p in layer.named_parameters()}


def _images(model: nn.Module, batch, name: str) -> list[torch.Tensor]:
    """The images of a training batch, by branch where a semi-supervised model has several."""
    inputs = model.data_preprocessor(batch, True)['inputs']
    images = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
    if not all(isinstance(image, torch.Tensor) for image in images):
        raise PlanError(
            f"replace.operator: the layers of {name!r} have batch norms to calibrate, but the model's inputs are "
            f'{type(inputs).__name__}, not images: choose an operator without norms or norm_eval=False'
        )
    return images


register(HOOKS, 'RepLHook', RepLHook)
