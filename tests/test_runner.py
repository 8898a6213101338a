"""A detector with RepL in mmengine's Runner: what a user's config may switch on, and what a crash may not cost."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmdet.models import ResNet
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, DefaultScope
from mmengine.runner import Runner
from small import REPO, STILL, SWIN, build_backbone, detector_config, images, loss_of

import repl_mm
from repl_mm.checkpoint import PLAN_KEY, encode_plan
from repl_mm.optim import enable_amp
from repl_mm.reading import read_checkpoint

EMA = dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.1, gamma=1, update_buffers=True)


@HOOKS.register_module(force=True)
class Witness(Hook):
    """Keeps the state before training, and what was folded in the last validation."""

    priority = 'LOWEST'
    start: dict = {}
    folded: dict = {}

    def before_train(self, runner) -> None:
        self.start.clear()
        self.start.update({key: value.clone() for key, value in runner.model.state_dict().items()})

    def before_val_iter(self, runner, batch_idx, data_batch=None) -> None:
        for name, layer in repl_mm.computing_layers(runner.model):
            self.folded[name] = [[part.detach().clone() for part in pair] for pair in layer._folded]


def keep_predictions(cfg, path) -> None:
    """Make the network, however untrained, predict boxes, and the evaluators write them to ``path``.bbox.json."""
    cfg.model.test_cfg.update(score_thr=0.0, nms_pre=20, max_per_img=10)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.outfile_prefix = str(path)


def predictions(path) -> list[dict]:
    return json.loads(Path(f'{path}.bbox.json').read_text())


@pytest.fixture(scope='module')
def trained(mini_coco, tmp_path_factory) -> Runner:
    """A finished run with EMA, validation and checkpoints."""
    folder = tmp_path_factory.mktemp('trained')
    cfg = detector_config(mini_coco, folder)
    keep_predictions(cfg, folder / 'val')
    cfg.custom_hooks += [EMA, dict(type='Witness')]
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def test_a_run_trains_evaluates_and_saves(trained):
    folder = Path(trained.work_dir)
    scalars = [json.loads(line) for line in next(folder.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    assert [line['step'] for line in scalars if 'coco/bbox_mAP' in line] == [1, 2]
    assert (folder / 'last_checkpoint').read_text() == str(folder / 'epoch_2.pth')
    assert trained.message_hub.get_scalar('train/loss').current() > 0
    assert trained.iter == 6


def test_frozen_stages_and_norm_eval_keep_what_they_promise(trained):
    for name, value in trained.model.backbone.state_dict().items():
        changed = not torch.equal(value, Witness.start[f'backbone.{name}'])
        frozen = name.startswith(('conv1.', 'bn1.', 'layer1.'))
        statistic = name.endswith(('running_mean', 'running_var', 'num_batches_tracked')) or name == PLAN_KEY
        assert changed != (frozen or statistic), name


def test_the_average_keeps_the_plan_and_is_what_validation_folds(trained, mini_coco, tmp_path):
    checkpoint = read_checkpoint(Path(trained.work_dir) / 'epoch_2.pth')
    plan = encode_plan(repl_mm.plan_of(trained.model.backbone))
    for key, state in ((f'module.backbone.{PLAN_KEY}', 'ema_state_dict'), (f'backbone.{PLAN_KEY}', 'state_dict')):
        assert checkpoint[state][key].dtype == torch.float32
        torch.testing.assert_close(checkpoint[state][key], plan)

    name, layer = next(repl_mm.computing_layers(trained.model))
    live = layer.synthesize()
    assert all(layer._folded is None for _, layer in repl_mm.computing_layers(trained.model))
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(detector_config(mini_coco, tmp_path).model)
    model.load_state_dict(checkpoint['state_dict'])  # of the averaged model
    layers = dict(repl_mm.computing_layers(model))
    assert Witness.folded.keys() == layers.keys()
    for key, folded in Witness.folded.items():
        torch.testing.assert_close(folded, [list(pair) for pair in layers[key].synthesize()])
    assert not torch.equal(live[0][0], Witness.folded[name][0][0])


def test_testing_a_checkpoint_predicts_what_validation_predicted(trained, mini_coco, tmp_path):
    cfg = detector_config(mini_coco, tmp_path)
    keep_predictions(cfg, tmp_path / 'test')
    cfg.load_from = str(Path(trained.work_dir) / 'epoch_2.pth')
    Runner.from_cfg(cfg).test()
    found, wanted = predictions(tmp_path / 'test'), predictions(Path(trained.work_dir) / 'val')
    assert len(found) == len(wanted) == 40
    for box, other in zip(found, wanted, strict=True):
        assert box['image_id'] == other['image_id'] and box['category_id'] == other['category_id']
        assert box['bbox'] == pytest.approx(other['bbox'], abs=1e-2)
        assert box['score'] == pytest.approx(other['score'], abs=1e-4)


# ---- precision, accumulation, parameter groups --------------------------------------------------------------------


def test_amp_on_the_cpu(mini_coco, tmp_path):
    """mmengine's AmpOptimWrapper refuses the CPU; the tools' one works with any Runner."""
    cfg = detector_config(mini_coco, tmp_path)
    cfg.train_cfg.max_epochs = 1
    enable_amp(cfg)
    runner = Runner.from_cfg(cfg)
    seen = []
    layer = next(layer for _, layer in repl_mm.computing_layers(runner.model))
    layer.register_forward_hook(lambda module, inputs, output: seen.append((module.training, output.dtype)))
    runner.train()
    assert seen.count((True, torch.bfloat16)) == 3 and (False, torch.float32) in seen
    assert torch.isfinite(torch.tensor(runner.message_hub.get_scalar('train/loss').data[0])).all()
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in runner.model.parameters())


@pytest.mark.parametrize(
    'name, lr', [('basic', 0.5), ('full', 0.5), ('detach', 0.5), ('vit_full', 1e-3), ('mit', 1e-3)]
)
@pytest.mark.parametrize('with_cp', [False, True])
def test_accumulated_gradients_are_those_of_the_whole_batch(name, lr, with_cp):
    batch = images(4)
    states = []
    for counts in (1, 2):
        backbone = build_backbone(name, with_cp=with_cp)
        wrapper = OptimWrapper(torch.optim.SGD(backbone.parameters(), lr=lr), accumulative_counts=counts)
        wrapper.initialize_count_status(backbone, 0, 3 * counts)
        for part in [part for _ in range(3) for part in batch.chunk(counts)]:
            with wrapper.optim_context(backbone):
                loss = loss_of(backbone(part))
            wrapper.update_params(loss)
        states.append(dict(backbone.named_parameters()))
    torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-5)


def repl_names(model) -> set[str]:
    """Names of the computing layers' parameters, found through the modules and not through the names."""
    inside = {id(p) for _, layer in repl_mm.computing_layers(model) for p in layer.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in inside}


@pytest.mark.parametrize('replace', [dict(), dict(operator='full'), dict(fusion='channel'), dict(mode='own')])
def test_custom_keys_reach_exactly_the_computing_layers(replace, mini_coco, tmp_path):
    cfg = detector_config(mini_coco, tmp_path, replace=replace)
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys={'.repl.': dict(lr_mult=0.1, decay_mult=0.0)})
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
        groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    lr, decay = cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.optimizer.weight_decay
    names = {id(p): name for name, p in model.named_parameters()}
    settings = {names[id(group['params'][0])]: (group['lr'], group['weight_decay']) for group in groups}
    special = {name for name in settings if settings[name] == (pytest.approx(0.1 * lr), 0.0)}
    assert special == repl_names(model) and special
    assert {settings[name] for name in settings.keys() - special} == {(lr, decay)}


@pytest.mark.parametrize('name, roles', [('basic', 'reduce spatial expand'), ('vit', 'fc1 fc2 value proj')])
def test_longer_custom_keys_win_beside_one_for_the_backbone(name, roles):
    """docs/settings.md: mmengine lets the longest key win, and 'backbone' is longer than '.repl.'."""
    model = torch.nn.ModuleDict(dict(backbone=build_backbone(name, replace=dict())))
    keys = {'backbone': dict(lr_mult=0.5), **{f'.repl.{role}.': dict(lr_mult=4.0) for role in roles.split()}}
    cfg = dict(optimizer=dict(type='SGD', lr=1.0), paramwise_cfg=dict(custom_keys=keys))
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    quick = {id(p) for group in groups for p in group['params'] if group['lr'] == 4.0}
    assert {name for name, p in model.named_parameters() if id(p) in quick} == repl_names(model)


def test_no_parameter_is_a_scalar():
    """0-d parameters would get weight decay that is meant for matrices, and FSDP refuses them."""
    for fusion in ('scalar', 'channel', 'mix'):
        for name, operator in (('basic', None), ('vit', 'mixer'), ('swin', 'full')):
            backbone = build_backbone(name, replace=dict(fusion=fusion, operator=operator))
            assert all(p.dim() > 0 for p in backbone.parameters())


def test_layer_decay_sees_a_stock_backbone(mini_coco, tmp_path):
    """mmdet's constructor dispatches on the class of the backbone; it has no ResNet, with RepL or without."""
    constructor = 'mmdet.LearningRateDecayOptimizerConstructor'
    for type_ in ('RepLResNet', 'ResNet'):
        cfg = detector_config(mini_coco, tmp_path, type=type_)
        if type_ == 'ResNet':
            cfg.model.backbone.pop('replace')
        wrapper = dict(
            type='OptimWrapper',
            constructor=constructor,
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
            paramwise_cfg=dict(decay_rate=0.7, decay_type='layer_wise', num_layers=6),
        )
        with DefaultScope.overwrite_default_scope('mmdet'), pytest.raises(NotImplementedError):
            build_optim_wrapper(MODELS.build(cfg.model), wrapper)


def smaller(node, old=(640, 1280, 416), new=64):
    """A part of a config with small images."""
    if isinstance(node, dict):
        return {key: smaller(value, old, new) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(smaller(item, old, new) for item in node)
    return new * (2 if node == 1280 else 1) if type(node) is int and node in old else node


@pytest.mark.parametrize('name', ['rtmdet_tiny', 'yolox_tiny'])
def test_the_hooks_of_rtmdet_and_yolox_work_with_repl(name, mini_coco, tmp_path):
    """Their averaged models and the switch of augmentation, through the shipped configs, on small pictures."""
    cfg = smaller(Config.fromfile(REPO / 'configs' / f'{name}_repl_coco.py').to_dict())
    cfg = Config(cfg)
    rtmdet = name == 'rtmdet_tiny'
    cfg.model.backbone.update(init_cfg=None, widen_factor=0.125, deepen_factor=0.67)
    cfg.model.neck.update(in_channels=[32, 64, 128], out_channels=32)
    cfg.model.bbox_head.update(in_channels=32, feat_channels=32, num_classes=4)
    cfg.model.test_cfg.score_thr = 0.0  # however untrained, it predicts boxes
    if not rtmdet:
        cfg.model.data_preprocessor.batch_augments = None  # it would make the pictures larger
    root = f'{mini_coco}/'
    for split, loader in (('train', cfg.train_dataloader), ('val', cfg.val_dataloader), ('val', cfg.test_dataloader)):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        dataset = loader.dataset if split == 'val' or rtmdet else loader.dataset.dataset
        dataset.update(
            data_root=root, ann_file=f'annotations/instances_{split}.json', data_prefix=dict(img=f'{split}/')
        )
        dataset.metainfo = dict(classes=('circle', 'square', 'triangle', 'star'))
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = f'{root}annotations/instances_val.json'
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=3)
    cfg.default_hooks.checkpoint.interval = 1
    ema, switch = (0, 1) if rtmdet else (2, 0)
    cfg.custom_hooks[ema].update(momentum=0.1, gamma=1)
    cfg.custom_hooks[switch].update(dict(switch_epoch=1) if rtmdet else dict(num_last_epochs=2))
    # a seed with which the untrained RTMDet gives boxes a size above 0
    cfg.update(work_dir=str(tmp_path), randomness=dict(seed=2))
    cfg.visualizer.name = str(tmp_path)
    runner = Runner.from_cfg(cfg)
    runner.train()

    log = next(Path(runner.log_dir).glob('*.log')).read_text()
    assert ('Switch pipeline now!' if rtmdet else 'No mosaic and mixup aug now!') in log
    hook = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook')
    averaged = hook.ema_model.module
    layers = dict(repl_mm.computing_layers(averaged))
    assert layers and layers.keys() == dict(repl_mm.computing_layers(runner.model)).keys()
    inside = {id(module) for module in averaged.modules()}
    assert all(id(watch.block) in inside for layer in layers.values() for watch in layer.neighbours)
    saved = read_checkpoint(tmp_path / 'epoch_3.pth')
    trained, mean = saved['ema_state_dict'], saved['state_dict']  # the hook swaps them
    new = [key for key in mean if '.repl.' in key]
    assert new and all(f'module.{key}' in trained for key in new)
    assert any(not torch.equal(mean[key], trained[f'module.{key}']) for key in new)
    assert runner.message_hub.get_scalar('val/coco/bbox_mAP').current() >= -1

    cfg.update(resume=True, load_from=str(tmp_path / 'epoch_2.pth'))
    again = Runner.from_cfg(cfg)
    again.train()  # the switch comes before the first epoch then
    assert again.epoch == 3


# ---- killed and resumed -------------------------------------------------------------------------------------------


def by_epoch(cfg) -> str:
    """A checkpoint every epoch: what came after the last one is trained again."""
    return 'epoch_2.pth'


def by_iteration(cfg) -> str:
    """A checkpoint every 2 steps of a Swin transformer: the dataloader is wound forward to it.

    Without stochastic depth: mmengine's checkpoints do not keep the state of random generators.
    """
    cfg.model.backbone = dict(SWIN, **STILL, type='RepLSwinTransformer', replace=dict(operator='full'))
    cfg.model.neck.in_channels = [8, 16, 32, 64]
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=6, val_interval=6)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    cfg.train_dataloader.batch_sampler = None
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2)
    cfg.log_processor = dict(by_epoch=False)
    return 'iter_6.pth'


@pytest.mark.parametrize('how', [by_epoch, by_iteration])
def test_a_killed_run_resumes_as_if_nothing_had_happened(how, mini_coco, tmp_path):
    """Shuffling goes on as well: the samplers' order depends on the seed and the epoch, or on the step."""

    def settings(name):
        cfg = detector_config(mini_coco, tmp_path / name)
        cfg.custom_hooks.append(EMA)
        return cfg, how(cfg)

    cfg, last = settings('whole')
    Runner.from_cfg(cfg).train()

    cfg, _ = settings('killed')
    cfg.custom_imports.imports.append('kill_hook')
    cfg.custom_hooks.append(dict(type='KillHook', step=5))
    cfg.dump(tmp_path / 'config.py')
    done = subprocess.run(
        [sys.executable, str(REPO / 'tools' / 'train.py'), str(tmp_path / 'config.py')],
        env={**os.environ, 'PYTHONPATH': f'{REPO}{os.pathsep}{REPO / "tests"}'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stdout[-2000:] + done.stderr[-2000:]
    assert not (tmp_path / 'killed' / last).exists()

    cfg, _ = settings('killed')
    cfg.resume = True
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 6

    whole, resumed = (read_checkpoint(tmp_path / name / last) for name in ('whole', 'killed'))
    for part in ('state_dict', 'ema_state_dict', 'optimizer'):
        torch.testing.assert_close(resumed[part], whole[part], rtol=1e-5, atol=1e-7)
    assert resumed['param_schedulers'] == whole['param_schedulers']
    assert resumed['meta']['repl_plan'] == whole['meta']['repl_plan']


# ---- stock weights ------------------------------------------------------------------------------------------------


def test_stock_weights_under_norm_eval_train_without_divergence(mini_coco, tmp_path):
    torch.manual_seed(0)
    stock = ResNet(depth=18, base_channels=16, norm_eval=False, zero_init_residual=False)
    stock.init_weights()
    stock.train()
    with torch.no_grad():  # statistics that fit the weights, as a pretrained network has
        for seed in range(30):
            stock(images(8, seed=seed))
    torch.save(stock.state_dict(), tmp_path / 'stock.pth')

    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'stock.pth'))
    cfg = detector_config(mini_coco, tmp_path, base_channels=16, replace=dict(), init_cfg=init_cfg)
    cfg.model.neck.in_channels = [16, 32, 64, 128]
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
        model.init_weights()
        wrapper = build_optim_wrapper(
            model, dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9), clip_grad=dict(max_norm=35))
        )
        batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
        model.train()
        losses = [model.train_step(batch, wrapper)['loss'].item() for _ in range(20)]
    assert repl_mm.plan_of(model.backbone) is not None
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert max(losses) < 1.5 * losses[0] and losses[-1] < 0.8 * losses[0], losses
