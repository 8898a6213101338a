"""Healing: a whole network with computing layers learns what its stock network puts out, from images without labels.

A healed model is the model itself: an object of its own class, with the same tensors under the same names, whose loss
is another one. So an ordinary Runner trains it, with mixed precision, averages, DDP and resumption, and what it saves
is a checkpoint of the model. The stock network, its teacher, is in no checkpoint, no count and no optimizer.
"""

import copy
import itertools
from contextlib import nullcontext
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from .config import build, find_backbones, stock_config, type_name, with_backbones, without_weights
from .conversion import distance, divergence, tensors
from .cost.counting import on_fake_tensors
from .data_checks import DataError
from .heads import MORE, backbone_name, trained_model
from .merging import example_images
from .pictures import plain_preprocessor
from .registry import MODELS
from .stock_weights import load_backbone, read_stock
from .subclass import Specialized, specialize

WHAT = ('outputs', 'neck', 'backbone')  # what is learned beside the backbone's outputs: the first that is possible


class Teacher:
    """A frozen model that a student carries along: no submodule of it, and one and the same in every copy.

    Args:
        model (nn.Module): The model.
        what (str): One of :data:`WHAT`.
        path (str): Dotted name of its backbone.
    """

    def __init__(self, model: nn.Module, what: str, path: str):
        model.eval()
        self.model = revert_sync_batchnorm(model).requires_grad_(False)
        self.what = what
        self.path = path

    def __deepcopy__(self, memo):
        return self

    @torch.no_grad()
    def answer(self, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What :func:`run` gives for images."""
        return run(self.model, self.path, inputs, self.what)


def run(model: nn.Module, path: str, inputs: Tensor, what: str) -> tuple[list[Tensor], list[Tensor]]:
    """Run a model on images alone.

    Args:
        model (nn.Module): The model.
        path (str): Dotted name of its backbone.
        inputs (Tensor): Normalized images (N, 3, H, W).
        what (str): 'outputs' (mm's ``mode='tensor'``), 'neck' (``extract_feat``) or 'backbone'.

    Returns:
        tuple[list[Tensor], list[Tensor]]: The outputs of the backbone, and what comes of them; none for 'backbone'.
    """
    features, outputs = [], ()
    backbone = model.get_submodule(path)
    with backbone.register_forward_hook(lambda module, args, output: features.append(output)):
        if what == 'outputs':
            outputs = model(inputs, mode='tensor')
        elif what == 'neck':
            outputs = model.extract_feat(inputs)
        else:
            backbone(inputs)
    return tensors(features[0]), tensors(outputs)


class Healing(Specialized):
    """What a healed model does otherwise than one of its class: its loss, and that it has a teacher."""

    def forward(self, inputs, *args, mode: str = 'tensor', **kwargs):
        """As the class has it; with ``mode='loss'`` the distance to what the teacher puts out, of images alone.

        Returns:
            dict: For ``mode='loss'``: ``loss_features``, mean squared distance of the backbone's outputs in units of
            their variance, and, where heads count, ``loss_outputs``: the same of maps, of logits the Kullback-Leibler
            divergence of answers softened by ``temperature``, times its square.
        """
        if mode != 'loss':
            return super().forward(inputs, *args, mode=mode, **kwargs)
        targets, answers = self.teacher.answer(inputs)
        features, outputs = run(self, self.teacher.path, inputs, self.teacher.what)
        losses = dict(loss_features=distance(features, targets))
        if answers:
            each = [self.distance(a, b) for a, b in zip(outputs, answers, strict=True)]
            losses['loss_outputs'] = sum(each) / len(each)
        return losses

    def distance(self, output: Tensor, target: Tensor) -> Tensor:
        """Of an output to the teacher's: logits (N, classes), or maps."""
        if output.dim() > 2:
            return distance([output], [target])
        return divergence(output, target, self.temperature)

    def train(self, mode: bool = True):
        super().train(mode)
        for module in self.modules():
            # what is dropped at random is no answer to learn from
            if (
                isinstance(module, nn.modules.dropout._DropoutNd | nn.MultiheadAttention)
                or type(module).__name__ == 'DropPath'
                or (self.norm_eval and isinstance(module, nn.modules.batchnorm._BatchNorm))
            ):
                module.training = False
        return self

    def _apply(self, fn, *args, **kwargs):
        self.teacher.model._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)


@MODELS.register_module()
def HealedModel(student, teacher, temperature=4.0, norm_eval=True, **settings):
    """Build a model that learns what its stock network puts out, from images without labels.

    Args:
        student (str | type): Type of the model.
        teacher (str): Weights of the stock network: a file, or a name that mmengine knows. Where they are those of
            the whole model, its outputs count beside those of the backbone (a classifier's logits, the maps of a dense
            head; for two stages or queries the neck's maps); else those of the backbone alone.
        temperature (float): Logits are divided by it. Defaults to 4.
        norm_eval (bool): Whether batch norms keep their statistics. Defaults to True.
        **settings: Of the model, with a RepL backbone or a stock one.

    Returns:
        nn.Module: An object of the model's class, see :class:`Healing`.

    Raises:
        DataError: The weights cannot be had, or are not the backbone's.
        ValueError: A setting is not valid.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or temperature <= 0:
        raise ValueError(f'HealedModel.temperature={temperature!r} is not valid: expected a number above 0')
    if not isinstance(norm_eval, bool):
        raise ValueError(f'HealedModel.norm_eval={norm_eval!r} is not valid: expected True or False')
    if not isinstance(teacher, str):
        raise ValueError(f"HealedModel.teacher={teacher!r} is not valid: expected the stock network's weights, a file")
    settings = dict(settings, type=student)
    found = find_backbones(settings)
    if len(found) > 1:
        names = ', '.join('.'.join(map(str, path)) for path in found)
        raise ValueError(f'HealedModel.student={type_name(settings)!r} has several backbones ({names}): expected one')
    (path,) = found
    current = DefaultScope.get_current_instance()
    cfg = Config(dict(model=settings, default_scope=None if current is None else current.scope_name))
    name = backbone_name(cfg, path)
    stock, whole = load_teacher(cfg, path, name, teacher)
    model = build(settings, cfg.default_scope)
    what, idle = learnable(stock, name, WHAT if whole else ('backbone',))
    for key, parameter in model.named_parameters():
        if key in idle:  # nothing would be learned there, and DDP would wait for it
            parameter.requires_grad_(False)
    model.teacher = Teacher(stock, what, name)
    model.temperature = temperature
    model.norm_eval = norm_eval
    specialize(model, Healing)
    print_log(f'HealedModel: what is learned beside the outputs of the backbone: {what}', logger='current')
    return model


def load_teacher(cfg: Config, path: tuple, name: str, weights: str) -> tuple[nn.Module, bool]:
    """Build the stock model of a config with trained weights.

    Args:
        cfg (Config): The config.
        path (tuple): Of the backbone in the config's model.
        name (str): Dotted name of the backbone in the model.
        weights (str): File, or a name that mmengine knows.

    Returns:
        tuple[nn.Module, bool]: The model, and whether the weights were those of all of it, not of its backbone alone.

    Raises:
        DataError: The weights cannot be had, or are not the backbone's.
    """
    settings = find_backbones(cfg.model)[path]
    try:
        state, rest = read_stock(weights, f'{name}.')
        backbone, _ = load_backbone(stock_config(settings), cfg.get('default_scope'), state)
    except ValueError as error:
        raise DataError(f"HealedModel.teacher='{weights}' {' '.join(str(error).split())}") from error
    model, whole = trained_model(cfg, name, rest)
    model.get_submodule(name).load_state_dict(backbone.state_dict())  # its own, which some models have changed: ICNet
    return model, whole


def learnable(stock: nn.Module, path: str, kinds=WHAT) -> tuple[str, set[str]]:
    """What a model gives for images alone, in training as in use.

    Args:
        stock (nn.Module): The model.
        path (str): Dotted name of its backbone.
        kinds (Sequence[str]): Of :data:`WHAT`, which are tried in this order. Defaults to all.

    Returns:
        tuple[str, set[str]]: The first kind that it gives, and the names of the parameters that have no part in it.
    """
    found = None
    for kind, fake in itertools.product(kinds, (True, False)):  # mmcv's own operators do not run on fake tensors
        net = revert_sync_batchnorm(copy.deepcopy(stock))
        net, mode = on_fake_tensors(net) if fake else (net, nullcontext())
        x = example_images(net.get_submodule(path), batch=2)
        try:
            with mode:
                x = torch.zeros(x.shape)
                net.eval()
                expected = run(net, path, x, kind)
                net.train()
                found = run(net, path, x, kind)
        except (*MORE, RuntimeError):
            continue  # its heads ask for more: proposals, queries
        if [[x.shape for x in part] for part in found] == [[x.shape for x in part] for part in expected]:
            break
    else:
        raise ValueError(f'HealedModel: this {type(stock).__name__} does not run on images of {tuple(x.shape)}')
    parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
    with mode:
        total = sum(tensor.sum() for part in found for tensor in part)
        grads = torch.autograd.grad(total, parameters.values(), allow_unused=True)
    return kind, {name for name, grad in zip(parameters, grads, strict=True) if grad is None}


def healing_config(
    cfg: Config,
    teacher: str,
    start: str | None,
    steps: int,
    folder: str | None = None,
    shape: tuple[int, int] = (224, 224),
    batch: int | None = None,
    lr: float = 3e-4,
) -> Config:
    """Return the config of a healing: that of a Runner's training.

    Args:
        cfg (Config): The config of the model, with a RepL backbone.
        teacher (str): Weights of the stock network, as of :func:`HealedModel`.
        start (str | None): Checkpoint to start from, as tools/convert.py writes it.
        steps (int): Steps of the training.
        folder (str | None): Folder with pictures. Defaults to None: the config's own training data, its labels unread.
        shape (tuple[int]): Height and width of a folder's pictures. Defaults to (224, 224).
        batch (int | None): Images in a step. Defaults to None, the config's.
        lr (float): Learning rate of AdamW; 0.3 of it for computing layers. Defaults to 3e-4.
    """
    cfg = copy.deepcopy(cfg)
    if start is not None:  # all weights come from there, and none has to be fetched
        cfg.model = with_backbones(cfg.model, without_weights)
        for word in ('init_cfg', 'pretrained'):
            cfg.model.pop(word, None)
    model = dict(cfg.model, type='repl_mm.HealedModel', student=cfg.model.type, teacher=str(teacher))
    loader = cfg.get('train_dataloader') or {}
    batch = batch or loader.get('batch_size') or 16
    if folder is None:
        loader = dict(loader, batch_size=batch)
    else:
        size = (cfg.model.get('data_preprocessor') or {}).get('size')
        if isinstance(size, int):  # of a classifier that resizes its images
            shape = (size, size)
        model['data_preprocessor'] = plain_preprocessor(cfg)
        loader = dict(
            batch_size=batch,
            num_workers=loader.get('num_workers', 0),
            persistent_workers=loader.get('persistent_workers', False),
            sampler=dict(type='InfiniteSampler', shuffle=True),
            collate_fn=dict(type='default_collate'),
            dataset=dict(type='repl_mm.PictureFolder', folder=str(folder), shape=tuple(shape)),
        )
    for phase in ('val', 'test'):
        cfg.update({f'{phase}_{part}': None for part in ('dataloader', 'cfg', 'evaluator')})
    cfg.model = model
    cfg.train_dataloader = loader
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=steps, val_interval=steps + 1)
    cfg.optim_wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=lr, weight_decay=5e-4),
        clip_grad=dict(max_norm=35),
        paramwise_cfg=dict(norm_decay_mult=0, custom_keys={'.repl.': dict(lr_mult=0.3)}),
    )
    warm = min(50, steps // 8)
    cfg.param_scheduler = [
        *([dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=warm)] if warm else []),
        dict(type='CosineAnnealingLR', by_epoch=False, begin=warm, T_max=max(1, steps - warm), eta_min=0),
    ]
    cfg.default_hooks = dict(
        timer=dict(type='IterTimerHook'),
        logger=dict(type='LoggerHook', interval=max(1, min(50, steps // 10))),
        param_scheduler=dict(type='ParamSchedulerHook'),
        checkpoint=dict(
            type='CheckpointHook', by_epoch=False, interval=max(1, min(500, steps // 4)), max_keep_ckpts=2
        ),
        sampler_seed=dict(type='DistSamplerSeedHook'),
    )
    cfg.custom_hooks = [dict(type='RepLHook', shape=None)]
    cfg.log_processor = dict(by_epoch=False)
    cfg.load_from = start
    return cfg


def last_checkpoint(work_dir: str | Path) -> str | None:
    """Return the file of a Runner's latest checkpoint, or None."""
    mark = Path(work_dir) / 'last_checkpoint'
    file = mark.read_text().strip() if mark.is_file() else ''
    return file if file and Path(file).is_file() else None
