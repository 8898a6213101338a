"""The hook in a real Runner: a small RetinaNet on a few generated pictures."""

import importlib.util
import json
import logging
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

import repl_mm
from repl_mm.calibration import calibrate, uncalibrated
from repl_mm.hook import RepLHook, coefficient_summary

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    spec = importlib.util.spec_from_file_location('mini_dataset', ROOT / 'tools' / 'demo' / 'mini_dataset.py')
    mini = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mini)
    folder = tmp_path_factory.mktemp('hook') / 'mini'
    mini.write_coco(folder, num_train=8, num_val=4, size=(96, 96), seed=0)
    return f'{folder}/'


def settings(data_root, work_dir, replace=None, **backbone):
    """The mini config, narrower, for two epochs of two steps."""
    cfg = Config.fromfile(ROOT / 'configs' / 'retinanet_r50_repl_mini.py')
    cfg.model.backbone.update(base_channels=8, replace=replace or {}, **backbone)
    cfg.model.neck.in_channels = [32, 64, 128, 256]
    for loader, ann in ((cfg.train_dataloader, 'train'), (cfg.val_dataloader, 'val'), (cfg.test_dataloader, 'val')):
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
        loader.dataset.data_root = data_root
        loader.dataset.ann_file = f'annotations/instances_{ann}.json'
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = f'{data_root}annotations/instances_val.json'
    cfg.train_cfg.update(max_epochs=2, val_interval=1)
    cfg.param_scheduler = []
    cfg.custom_hooks = [dict(type='RepLHook', shape=(96, 96), interval=1)]
    cfg.work_dir = str(work_dir)
    cfg.visualizer.name = str(work_dir)  # visualizers of one name are one object, with one folder
    cfg.randomness = dict(seed=0)
    return cfg


@HOOKS.register_module(force=True)
class WatchFold(Hook):
    """Records whether the computing layers are folded in each validation step."""

    priority = 'LOWEST'
    seen: list = []

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self.seen += [layer._folded is not None for _, layer in repl_mm.computing_layers(runner.model)]


def test_a_run_reports_verifies_logs_folds_and_saves_the_plan(data_root, tmp_path, caplog):
    cfg = settings(data_root, tmp_path)
    cfg.custom_hooks.append(dict(type='WatchFold'))
    WatchFold.seen.clear()
    runner = Runner.from_cfg(cfg)
    runner.train()
    log = next(Path(runner.log_dir).glob('*.log')).read_text()

    plan = repl_mm.plan_of(runner.model.backbone)
    assert str(plan).splitlines()[0] in log
    for word in ('trainable parameters', 'train FLOPs', 'activation bytes', 'gap', 'remain'):
        assert word in log
    assert json.loads((tmp_path / 'repl_plan.json').read_text()) == {'backbone': plan.to_dict()}
    checkpoint = torch.load(tmp_path / 'epoch_2.pth', weights_only=True)
    assert checkpoint['meta']['repl_plan'] == {'backbone': plan.to_dict()}

    assert WatchFold.seen and all(WatchFold.seen)
    assert not any(layer._folded for _, layer in repl_mm.computing_layers(runner.model))

    scalars = (Path(runner.log_dir) / 'vis_data' / 'scalars.json').read_text()
    assert 'repl/backbone.layer3.1/reduce/preceding' in scalars
    assert 'repl/backbone.layer3.1/reduce/gain' in scalars


def test_resuming_a_stock_checkpoint_and_another_plan_are_refused(data_root, tmp_path):
    cfg = settings(data_root, tmp_path / 'stock')
    cfg.model.backbone.type = 'ResNet'
    cfg.model.backbone.pop('replace')
    cfg.train_cfg.update(max_epochs=1, val_interval=9)
    Runner.from_cfg(cfg).train()  # the hook in a model without RepL does nothing

    cfg = settings(data_root, tmp_path / 'repl')
    cfg.update(load_from=str(tmp_path / 'stock' / 'epoch_1.pth'), resume=True)
    with pytest.raises(repl_mm.PlanError, match='holds no RepL plan'):
        Runner.from_cfg(cfg).train()

    cfg = settings(data_root, tmp_path / 'repl')
    cfg.update(load_from=str(tmp_path / 'stock' / 'epoch_1.pth'))
    cfg.train_cfg.update(max_epochs=1, val_interval=9)
    Runner.from_cfg(cfg).train()  # as a start, stock weights are welcome

    cfg = settings(data_root, tmp_path / 'other', replace=dict(slots=[(2, 2), (3, 1)]))
    cfg.update(load_from=str(tmp_path / 'repl' / 'epoch_1.pth'), resume=True)
    with pytest.raises(repl_mm.PlanError, match=r'slots only in the checkpoint: .*\(2, 1\)'):
        Runner.from_cfg(cfg).train()


def test_a_parameter_outside_the_optimizer_is_found(data_root, tmp_path):
    cfg = settings(data_root, tmp_path)
    runner = Runner.from_cfg(cfg)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.model.backbone.layer3[1].late = torch.nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match=r'backbone\.layer3\.1\.late'):
        runner.train()


def test_a_parameter_without_gradient_is_found(data_root, tmp_path):
    runner = Runner.from_cfg(settings(data_root, tmp_path))
    runner.model.backbone.layer3[1].idle = torch.nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match=r'backbone\.layer3\.1\.idle.*never be trained'):
        runner.train()


@pytest.mark.parametrize('norm_eval', [True, False])
def test_norms_of_full_operators_are_calibrated_only_where_they_would_not_learn(data_root, tmp_path, norm_eval):
    cfg = settings(data_root, tmp_path, replace=dict(operator='full'), norm_eval=norm_eval)
    cfg.train_cfg.update(max_epochs=1, val_interval=9)
    runner = Runner.from_cfg(cfg)
    runner.train()
    norm = runner.model.backbone.layer3[1].repl['block'].bn1
    assert (norm.running_mean != 0).all()
    log = next(Path(runner.log_dir).glob('*.log')).read_text()
    assert ('statistics of 15 norms of computing layers calibrated' in log) == norm_eval  # 5 slots of 3 norms


def test_calibration_makes_outputs_standard_on_the_images_it_saw():
    from mmdet.models import ResNet

    backbone = ResNet(depth=50, base_channels=8, norm_eval=True)
    repl_mm.apply_repl(backbone, operator='full', slots=[(1, 1)])
    backbone.train()
    images = torch.randn(4, 3, 64, 64)
    norm = backbone.layer2[1].repl['block'].bn1
    seen = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    assert calibrate(backbone, [images]) == 3
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, seen[0].transpose(0, 1).flatten(1).var(1))
    assert not norm.training and norm.momentum == 0.1
    assert uncalibrated(backbone) == [] and calibrate(backbone, None) == 0


def test_coefficients_start_with_half_a_share_for_each_neighbour():
    from mmdet.models import ResNet

    backbone = ResNet(depth=50, base_channels=8)
    repl_mm.apply_repl(backbone, slots=[(2, 2), (3, 2)])
    summary = coefficient_summary(backbone)
    assert summary['repl/layer3.2/reduce/preceding'] == pytest.approx(0.5)
    assert summary['repl/layer4.2/reduce/preceding'] == pytest.approx(1)  # nothing succeeds
    assert summary['repl/layer3.2/reduce/gain'] == pytest.approx(2**0.5)
    # 128 output channels of root mean square length 0.1, before and behind the mixing of orthonormal rows
    assert summary['repl/layer3.2/expand/length'] == pytest.approx(0.1 * 128**0.5)


@pytest.mark.parametrize(
    'wrong, words',
    [
        (dict(shape=(800,)), 'RepLHook.shape'),
        (dict(interval=0), 'RepLHook.interval=0'),
        (dict(calibration_batches='8'), "RepLHook.calibration_batches='8'"),
    ],
)
def test_wrong_settings(wrong, words):
    with pytest.raises(ValueError, match=words):
        RepLHook(**wrong)


@pytest.fixture(autouse=True)
def quiet():
    yield
    logging.shutdown()
