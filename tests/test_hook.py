"""The hook in a real Runner: a small RetinaNet on a few generated pictures, and models of other forms."""

import json
import logging
import random
from pathlib import Path

import mini_dataset
import numpy as np
import pytest
import tiny
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from small import detector_config

import repl_mm
from repl_mm.calibration import calibrate, uncalibrated
from repl_mm.checkpoint import plan_record
from repl_mm.cost import no_random_change
from repl_mm.hook import RepLHook, coefficient_summary
from repl_mm.reading import read_checkpoint

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hook') / 'mini'
    mini_dataset.write_coco(folder, num_train=8, num_val=4, size=(96, 96), seed=0)
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
    assert json.loads((tmp_path / 'repl_plan.json').read_text()) == {'backbone': plan_record(plan)}
    checkpoint = torch.load(tmp_path / 'epoch_2.pth', weights_only=True)
    assert checkpoint['meta']['repl_plan'] == {'backbone': plan_record(plan)}

    assert WatchFold.seen and all(WatchFold.seen)
    assert not any(layer._folded for _, layer in repl_mm.computing_layers(runner.model))

    scalars = (Path(runner.log_dir) / 'vis_data' / 'scalars.json').read_text()
    assert 'repl/backbone.layer3.1/reduce/preceding' in scalars
    assert 'repl/backbone.layer3.1/reduce/length' in scalars


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
    # 16 hidden units of length sqrt(2)
    assert summary['repl/layer3.2/reduce/length'] == pytest.approx(2**0.5 * 16**0.5)
    assert 'repl/layer3.2/spatial/preceding' not in summary  # taps of its own
    # 128 output channels of root mean square length 0.1, before and behind the mixing of orthonormal rows
    assert summary['repl/layer3.2/expand/length'] == pytest.approx(0.1 * 128**0.5)


def test_the_coefficients_of_whole_units_start_as_the_identity():
    from mmdet.models import ResNet

    backbone = ResNet(depth=50, base_channels=8)
    repl_mm.apply_repl(backbone, slots=[(2, 2)], operator='half')
    found = {key: value for key, value in coefficient_summary(backbone).items() if 'layer3.2' in key}
    assert found == {'repl/layer3.2/expand/length': pytest.approx(32**0.5)}  # of 32 hidden units


# ---- models of any form -------------------------------------------------------------------------------------------

REPORTED = 'activation bytes'  # a line of the table of costs


def seeded(*args, **kwargs):
    """A tiny model of random weights from one seed."""
    torch.manual_seed(0)
    return tiny.Net(*args, **kwargs)


@pytest.mark.parametrize('hook', [dict(shape=None), dict(shape=(16, 16))], ids=['no costs', 'costs'])
def test_a_training_is_bit_equal_with_and_without_report(hook, tmp_path):
    states = []
    for name, settings in (('without', None), ('with', hook)):
        runner = tiny.build_runner(seeded(tiny.BACKBONE), tmp_path / name, settings)
        runner.train()
        states.append(runner.model.state_dict())
    assert (REPORTED in tiny.log_of(runner)) == (hook['shape'] is not None)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_random_generators_are_as_before():
    def draw():
        return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()

    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    wanted = [draw(), draw()]
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    found = [draw()]
    with pytest.raises(KeyError), no_random_change():
        assert draw() == wanted[1]
        raise KeyError
    assert [*found, draw()] == wanted


def test_several_backbones_and_no_config_of_the_model(tmp_path):
    other = dict(tiny.BACKBONE, shortcut='B', replace=dict(mode='remove'))
    model = seeded([tiny.BACKBONE, other])
    runner = tiny.build_runner(model, tmp_path, dict(shape=(16, 16)))
    assert not runner.cfg.get('model')
    start = {key: value.clone() for key, value in model.state_dict().items()}
    runner.train()
    log = tiny.log_of(runner)
    for name in ('backbone.0', 'backbone.1'):
        assert f'{name}, one training step of 2 images of 16x16:\n| Cost of the backbone' in log
    assert log.count(REPORTED) == 2 and 'no costs' not in log
    assert json.loads((tmp_path / 'repl_plan.json').read_text()).keys() == {'backbone.0', 'backbone.1'}
    layers = [key for key in start if '.repl.' in key]
    assert layers and all(not torch.equal(start[key], model.state_dict()[key]) for key in layers)


def test_a_backbone_that_was_changed_by_hand_reports_its_own_cost(tmp_path):
    settings = {key: value for key, value in tiny.BACKBONE.items() if key != 'replace'}
    backbone = MODELS.build(dict(settings, type='repl_mm.CifarResNet'))
    repl_mm.apply_repl(backbone)
    assert getattr(backbone, 'repl_stock', None) is None
    runner = tiny.build_runner(seeded(backbone), tmp_path, dict(shape=(16, 16)))
    runner.train()
    count = sum(p.numel() for p in backbone.parameters())
    assert f'{count:,} trainable parameters' in tiny.log_of(runner)


def test_a_backbone_that_cannot_be_counted_trains(tmp_path):
    backbone = MODELS.build(tiny.BACKBONE)
    backbone.repl_stock['depth'] = 'deep'
    runner = tiny.build_runner(seeded(backbone), tmp_path, dict(shape=(16, 16)))
    runner.train()
    assert "no costs: CifarResNet.depth='deep' is not valid" in tiny.log_of(runner)


def test_the_state_of_the_optimizer_is_counted_for_the_one_that_trains(tmp_path):
    lines = {}
    for name, moments in (('SGD', 0), ('AdamW', 2)):
        model = seeded(tiny.BACKBONE)
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-3)
        runner = tiny.build_runner(model, tmp_path / name, dict(shape=(1600, 1600)), optimizer)
        runner.train()
        lines[moments] = next(line for line in tiny.log_of(runner).splitlines() if 'optimizer bytes' in line).split(
            '|'
        )
    assert lines[0][2].strip() == '0.0 MiB'
    stock = MODELS.build(MODELS.build(tiny.BACKBONE).repl_stock)
    assert lines[2][2].strip() == f'{8 * sum(p.numel() for p in stock.parameters()) / 2**20:.1f} MiB'


def test_a_backbone_inside_a_backbone(tmp_path):
    """ICNet runs the stages of its backbone itself, and its config calls it ``backbone_cfg``."""
    norm = dict(type='BN', requires_grad=True)
    inner = dict(type='RepLResNetV1c', depth=18, base_channels=8, norm_cfg=norm, replace=dict())
    inner.update(dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), contract_dilation=True)
    outer = dict(type='mmseg.ICNet', backbone_cfg=inner, layer_channels=(16, 64), light_branch_middle_channels=4)
    outer.update(psp_out_channels=8, out_channels=(8, 8, 16), norm_cfg=norm, _scope_='mmseg')
    model = seeded(outer)
    runner = tiny.build_runner(model, tmp_path, dict(shape=(64, 64)))
    start = {key: p.clone() for key, p in model.named_parameters() if '.repl.' in key}
    runner.train()
    log = tiny.log_of(runner)
    assert 'backbone.backbone, one training step of 2 images of 64x64:\n| Cost of the backbone' in log
    assert REPORTED in log
    assert start and all(not torch.equal(p, start[key]) for key, p in model.named_parameters() if key in start)


@pytest.fixture
def teacher_and_student(mini_coco, tmp_path):
    """Config: A student RetinaNet, its averaged teacher, and pictures with and without boxes; two steps."""
    import mmdet

    cfg = detector_config(mini_coco, tmp_path)
    data = Config.fromfile(Path(mmdet.__file__).parent / '.mim/configs/_base_/datasets/semi_coco_detection.py')
    sources = [data.labeled_dataset, data.unlabeled_dataset]
    for source in sources:
        source.update(data_root=f'{mini_coco}/', ann_file='annotations/instances_train.json')
        source.update(data_prefix=dict(img='train/'), metainfo=cfg.metainfo, backend_args=None)
        branches = [source.pipeline[-1].get(name, []) for name in ('unsup_teacher', 'unsup_student')]
        for step in (step for branch in (source.pipeline, *branches) for step in branch):
            if step.type == 'RandomResize':
                step.scale = [(64, 64), (64, 64)]
    detector = cfg.model
    cfg.model = dict(
        type='SemiBaseDetector',
        detector=detector,
        data_preprocessor=dict(
            type='MultiBranchDataPreprocessor', data_preprocessor=detector.pop('data_preprocessor')
        ),
        semi_train_cfg=dict(freeze_teacher=True, sup_weight=1.0, unsup_weight=1.0, cls_pseudo_thr=0.0),
        semi_test_cfg=dict(predict_on='teacher'),
    )
    cfg.train_dataloader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='GroupMultiSourceSampler', batch_size=2, source_ratio=[1, 1]),
        dataset=dict(type='ConcatDataset', datasets=sources),
    )
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
    cfg.val_cfg = dict(type='TeacherStudentValLoop')
    cfg.log_processor = dict(by_epoch=False)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2)
    cfg.custom_hooks = [dict(type='MeanTeacherHook'), dict(type='RepLHook', shape=(64, 64))]
    return cfg


@pytest.mark.parametrize('replace', [dict(), dict(operator='full')], ids=['default', 'full'])
def test_teacher_and_student(replace, teacher_and_student):
    """Both have a RepL backbone; the teacher's is trained by averaging alone."""
    cfg = teacher_and_student
    cfg.model.detector.backbone.replace = replace
    runner = Runner.from_cfg(cfg)
    runner.train()
    log = tiny.log_of(runner)
    for name in ('student.backbone', 'teacher.backbone'):
        assert f'{name}, one training step of 2 images of 64x64:\n| Cost of the backbone' in log
        assert (f'{name}: statistics of' in log) == bool(replace)
    assert log.count(REPORTED) == 2 and 'no costs' not in log
    checkpoint = read_checkpoint(Path(runner.work_dir) / 'iter_2.pth')
    assert checkpoint['meta']['repl_plan'].keys() == {'student.backbone', 'teacher.backbone'}


# ---- what the optimizer holds -------------------------------------------------------------------------------------


@pytest.mark.parametrize('type_', ['repl_mm.RepLCifarResNet', 'repl_mm.CifarResNet'])
@pytest.mark.parametrize('trained', [('head',), ('head', 'backbone.layer3'), ('head', 'backbone.conv1')])
def test_an_optimizer_may_hold_a_part(trained, type_, tmp_path):
    """The head only, the last stage, the stem: no computing layer between two trained blocks is left out."""
    settings = dict(tiny.BACKBONE, type=type_)
    if 'RepL' not in type_:
        del settings['replace']  # the control: the stock backbone
    model = seeded(settings)
    optimizer = torch.optim.SGD([p for key, p in model.named_parameters() if key.startswith(trained)], lr=0.1)
    runner = tiny.build_runner(model, tmp_path, dict(shape=(16, 16)), optimizer)
    start = {key: p.clone() for key, p in model.named_parameters()}
    runner.train()
    changed = [key for key, p in model.named_parameters() if not torch.equal(p, start[key])]
    assert changed and all(key.startswith(trained) for key in changed)
    line = 'the optimizer leaves out'
    assert tiny.log_of(runner).count(line) == ('RepL' in type_)


def test_kept_blocks_without_computing_layers_are_refused(tmp_path):
    """As if RepL had been applied after the optimizer was built."""
    model = seeded(tiny.BACKBONE)
    inside = {id(p) for _, layer in repl_mm.computing_layers(model) for p in layer.parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if id(p) not in inside], lr=0.1)
    runner = tiny.build_runner(model, tmp_path, dict(shape=None), optimizer)
    with pytest.raises(
        RuntimeError, match=r'optimizer, first .backbone\.layer1\.1\.repl\..* kept blocks beside it are'
    ):
        runner.train()


def test_of_two_backbones_one_may_be_left_out(tmp_path):
    model = seeded([tiny.BACKBONE, tiny.BACKBONE])
    optimizer = torch.optim.SGD([*model.backbone[1].parameters(), *model.head.parameters()], lr=0.1)
    runner = tiny.build_runner(model, tmp_path, dict(shape=None), optimizer)
    runner.train()
    assert 'backbone.0: the optimizer leaves out' in tiny.log_of(runner)
    assert 'backbone.1: the optimizer' not in tiny.log_of(runner)


@pytest.mark.parametrize('type_', ['repl_mm.RepLCifarResNet', 'repl_mm.CifarResNet'])
def test_a_backbone_may_run_without_gradients_at_first(type_, tmp_path):
    """As a warm-up of the head does; from the second epoch on it is trained."""

    class WarmUp(tiny.Net):
        def forward(self, inputs, labels, mode='loss'):
            self.calls = getattr(self, 'calls', 0) + 1
            with torch.set_grad_enabled(self.calls > 2):
                features = torch.nn.functional.adaptive_avg_pool2d(self.backbone(inputs)[-1], 1).flatten(1)
            return dict(loss=torch.nn.functional.cross_entropy(self.head(features), labels))

    settings = dict(tiny.BACKBONE, type=type_)
    if 'RepL' not in type_:
        del settings['replace']  # the control: the stock backbone
    model = WarmUp(settings)
    runner = tiny.build_runner(model, tmp_path, dict(shape=None))
    start = {key: p.clone() for key, p in model.named_parameters()}
    runner.train()
    assert all(not torch.equal(p, start[key]) for key, p in model.named_parameters())
    assert tiny.log_of(runner).count('backbone: no block received a gradient in the first step') == ('RepL' in type_)


def test_frozen_parameters_need_not_be_in_the_optimizer(tmp_path):
    model = seeded(tiny.BACKBONE)
    model.backbone.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    tiny.build_runner(model, tmp_path, dict(shape=(16, 16)), optimizer).train()


@pytest.mark.parametrize(
    'wrong, words',
    [
        (dict(shape=(3, 800, 800)), 'RepLHook.shape'),
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
