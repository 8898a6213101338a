"""The language of arms: what each changes in a config, and what it builds."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, MODELS
from mmengine.runner import Runner
from torch import nn

import repl_mm
from repl_mm import arms
from repl_mm.arms import arm_config, build_backbones, default_arms, read_arm
from repl_mm.comparison import folder_name
from repl_mm.inputs import ImageInput
from repl_mm.non_reentrant import is_non_reentrant

ROOT = Path(__file__).resolve().parent.parent


def changed(text, cfg):
    return arm_config(read_arm(text), cfg)


def test_arms_differ_in_the_backbones_words_only():
    pytest.importorskip('mmdet')
    cfg = Config.fromfile(ROOT / 'configs' / 'retinanet_r34_repl_bccd.py')
    assert cfg.model.backbone.type == 'RepLResNet'
    words = {mode: dict(mode=mode) for mode in ('fuse', 'remove', 'patch', 'linear', 'share', 'own', 'random')}
    words.update(e2e=None, full=dict(mode='fuse', operator='full'), detach=dict(mode='fuse', detach=True))
    assert set(words) == set(arms.PLANS)
    for arm in arms.PLANS:
        other = changed(arm, cfg).to_dict()
        backbone = other['model']['backbone']
        assert backbone.pop('type') == ('ResNet' if arm == 'e2e' else 'RepLResNet')
        replace = backbone.pop('replace', None)
        assert replace == words[arm]
        same = cfg.to_dict()
        for key in ('type', 'replace'):
            del same['model']['backbone'][key]
        assert other == same
    assert cfg.model.backbone.replace == {}


def test_the_configured_plan_is_kept_in_every_arm():
    backbone = dict(type='repl_mm.RepLResNet', depth=18, replace=dict(slots=[(3, 1)], operator='conv'))
    cfg = Config(dict(model=dict(type='A', backbone=backbone)))
    assert changed('own', cfg).model.backbone.replace == dict(slots=[(3, 1)], operator='conv', mode='own')
    assert changed('full', cfg).model.backbone.replace['operator'] == 'full'
    assert changed('e2e', cfg).model.backbone == dict(type='ResNet', depth=18)


@pytest.mark.parametrize('arm', ['remove', 'own', 'operator=half', 'fuse'])
def test_words_of_an_arm_hold_in_every_slot(arm):
    """Slots may have words of their own; those that the arm gives to all are left out there."""
    own = dict(mode='linear', operator='full', ratio=0.25)
    backbone = dict(type='RepLResNet', depth=50, replace=dict(slots=[(1, 1, own), (2, 1)]))
    slots = changed(arm, Config(dict(model=dict(type='A', backbone=backbone)))).model.backbone.replace.slots
    words = read_arm(arm).replace
    left = {key: value for key, value in own.items() if key not in words}
    assert [tuple(slot) for slot in slots] == [(1, 1, left), (2, 1)] and len(left) == 2


def test_a_stock_config_has_arms_as_well():
    hook = dict(type='CheckpointHook')
    stock = dict(type='mmdet.ResNet', depth=18, init_cfg=dict(type='Pretrained', checkpoint='x'))
    cfg = Config(dict(model=dict(type='A', backbone=stock), custom_hooks=[hook]))
    assert changed('e2e', cfg).to_dict() == cfg.to_dict()
    repl = changed('own', cfg)
    assert repl.model.backbone == dict(stock, type='mmdet.RepLResNet', replace=dict(mode='own'))
    assert repl.custom_hooks == [hook, dict(type='repl_mm.RepLHook', shape=None)]
    assert cfg.custom_hooks == [hook] and cfg.model.backbone == stock


def test_all_backbones_of_a_model_change():
    one, two = dict(type='RepLResNet', depth=18), dict(type='RepLResNet', depth=34, replace=dict(every=3))
    cfg = Config(dict(model=dict(student=dict(backbone=[one, two]), teacher=dict(type='ResNet', depth=50))))
    model = changed('own:frozen_stages=1', cfg).model
    assert model.student.backbone == [
        dict(one, replace=dict(mode='own'), frozen_stages=1),
        dict(two, replace=dict(every=3, mode='own'), frozen_stages=1),
    ]
    assert model.teacher == dict(type='ResNet', depth=50)
    assert [node.type for node in changed('e2e', cfg).model.student.backbone] == ['ResNet', 'ResNet']


@pytest.mark.parametrize(
    'arm, replace, settings, folder',
    [
        ('e2e', None, {}, 'e2e'),
        ('e2e:depth=20', None, dict(depth=20), 'e2e+depth=20'),
        ('fuse:with_cp=True', dict(mode='fuse'), dict(with_cp=True), 'fuse+with_cp=True'),
        (
            'operator=mlp,ratio=0.25:drop_path_rate=0.1,norm_cfg={"type":"BN"}',
            dict(operator='mlp', ratio=0.25),
            dict(drop_path_rate=0.1, norm_cfg=dict(type='BN')),
            'operator=mlp,ratio=0.25+drop_path_rate=0.1,norm_cfg=++type+++BN++',
        ),
        (
            "slots=[(1,1),(2,1)],fusion={'type':'channel','rank':2}",
            dict(slots=[(1, 1), (2, 1)], fusion=dict(type='channel', rank=2)),
            {},
            'slots=++1,1+,+2,1++,fusion=++type+++channel+,+rank++2+',
        ),
    ],
)
def test_an_arm_has_words_of_the_plan_and_of_the_backbone(arm, replace, settings, folder):
    read = read_arm(arm)
    assert (read.name, read.replace, read.settings) == (arm, replace, settings)
    assert read.model_settings == {} and read.switches == ()
    assert folder_name(arm) == folder
    cfg = Config(dict(model=dict(backbone=dict(type='RepLResNet', depth=32, replace=dict(every=3)))))
    backbone = changed(arm, cfg).model.backbone
    if replace is None:
        assert backbone == dict(dict(type='ResNet', depth=32), **settings)
    else:
        assert backbone == dict(type='RepLResNet', depth=32, replace=dict(every=3, **replace)) | settings


def test_an_arm_may_have_words_of_the_model():
    cfg = Config(dict(model=dict(backbone=dict(type='RepLCifarResNet', depth=32), in_channels=64)))
    model = changed('e2e:base_channels=12,model.in_channels=48', cfg).model
    assert model == dict(backbone=dict(type='repl_mm.CifarResNet', depth=32, base_channels=12), in_channels=48)


@pytest.mark.parametrize(
    'text, settings, switches',
    [
        ('e2e:non_reentrant', {}, ['non_reentrant']),
        ('e2e:with_cp=True,non_reentrant', dict(with_cp=True), ['non_reentrant']),
        ('fuse:non_reentrant,with_cp=True', dict(with_cp=True), ['non_reentrant']),
        ('e2e:efficient_conv_bn_eval,non_reentrant', {}, ['efficient_conv_bn_eval', 'non_reentrant']),
        (
            'own:a=[1,2],efficient_conv_bn_eval,depth=34',
            dict(a=[1, 2], depth=34),
            ['efficient_conv_bn_eval'],
        ),
    ],
)
def test_an_arm_may_switch_something_on(text, settings, switches):
    arm = read_arm(text)
    assert arm.settings == settings and list(arm.switches) == switches


@pytest.mark.parametrize(
    'text, message',
    [
        ('own:depth', "'own:depth' is no arm: 'depth' is not KEY=VALUE; expected one of e2e, fuse"),
        ('own:', "'own:' is no arm"),
        ('own:depth,non_reentrant', "'depth' is not KEY=VALUE"),
        ('non_reentrant', "'non_reentrant' is no arm"),
        ('e2e:non_reentrant=True', 'non_reentrant is a switch and has no value'),
        ('RepL', "'RepL' is no arm"),
    ],
)
def test_wrong_arms_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        read_arm(text)


# ---- what is built ----

CIFAR = dict(type='repl_mm.CifarResNet', depth=20)


def test_default_arms_are_those_that_the_backbone_has_words_for():
    @MODELS.register_module(force=True)
    class ResNet(nn.Module):  # in the registry of this test only, whatever is installed
        def __init__(self, depth, with_cp=False, norm_cfg=dict(type='BN')):  # noqa: B006
            super().__init__()

    try:
        names = {
            text: [arm.name for arm in default_arms(Config(dict(model=dict(backbone=settings))))]
            for text, settings in dict(
                all=dict(type='ResNet', depth=18),
                norm=dict(type='RepLResNet', depth=18, norm_cfg=dict(type='GN', num_groups=8)),
                with_cp=dict(type='ResNet', depth=18, with_cp=True, norm_cfg=dict(type='SyncBN')),
                cifar=dict(CIFAR),
            ).items()
        }
    finally:
        del MODELS.module_dict['ResNet']
    first = ['e2e', 'fuse', 'remove']
    checkpoints = ['e2e:with_cp=True', 'e2e:with_cp=True,non_reentrant', 'fuse:with_cp=True']
    norms = ['e2e:efficient_conv_bn_eval', 'fuse:efficient_conv_bn_eval']
    assert names == dict(
        all=first + checkpoints + norms, norm=first + checkpoints, with_cp=first + norms, cifar=first + checkpoints
    )


def reentrant(net):
    """Names of the blocks that would checkpoint by themselves."""
    return [name for name, module in net.named_modules() if name and getattr(module, 'with_cp', False)]


def test_what_an_arm_builds():
    cfg = Config(dict(model=dict(type='ImageClassifier', backbone=CIFAR)))
    ((stock, _),), ((repl, _),) = (build_backbones(read_arm(name), cfg) for name in ('e2e', 'own'))
    assert repl_mm.plan_of(stock) is None and repl_mm.plan_of(repl).mode == 'own'
    ((plain, _),), ((switched, _),) = (
        build_backbones(read_arm(f'e2e:with_cp=True{words}'), cfg) for words in ('', ',non_reentrant')
    )
    assert reentrant(plain) and not reentrant(switched)
    switched.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(switched.train()(x), plain.train()(x))
    two = Config(dict(model=dict(type='A', backbone=[CIFAR, dict(CIFAR, depth=32)])))
    assert [repl_mm.plan_of(net).depths for net, _ in build_backbones(read_arm('fuse'), two)] == [(3, 3, 3), (5, 5, 5)]
    four = Config(dict(model=dict(type='A', backbone=dict(CIFAR, in_channels=4))))
    ((_, inputs),) = build_backbones(read_arm('fuse', ImageInput((16, 24), 3)), four)
    assert inputs.make().shape == (3, 4, 16, 24)


def test_a_switch_with_nothing_to_act_on_is_named():
    cfg = Config(dict(model=dict(type='A', backbone=CIFAR)))
    with pytest.raises(ValueError, match='non_reentrant does nothing: no block of this CifarResNet has with_cp=True'):
        build_backbones(read_arm('e2e:non_reentrant'), cfg)
    assert build_backbones(read_arm('fuse:non_reentrant,with_cp=True'), cfg)

    @MODELS.register_module(name='ArmsTestNet', force=True)
    class Net(nn.Sequential):
        pass

    cfg = Config(dict(model=dict(backbone=dict(type='ArmsTestNet', replace={}))))
    with pytest.raises(ValueError, match='efficient_conv_bn_eval does nothing: this Net has no batch norms'):
        build_backbones(read_arm('e2e:efficient_conv_bn_eval'), cfg)


SWITCHED = ('with_cp=True', 'with_cp=True,non_reentrant', 'efficient_conv_bn_eval')
SAW = {}


@HOOKS.register_module(name='ArmsTestHook', force=True)
class Looks(Hook):
    """Keeps what the first step saw."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        SAW['reentrant'] = reentrant(runner.model)
        SAW['checkpoints'] = [m for m in runner.model.modules() if is_non_reentrant(m)]
        SAW['efficient'] = [m for m in runner.model.modules() if 'forward' in vars(m)]  # mmengine's way


@DATASETS.register_module(name='ArmsTestSquares', force=True)
class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return dict(inputs=torch.rand(3, 16, 16), labels=index)


@pytest.mark.parametrize('words', SWITCHED)
def test_switches_act_in_a_training_run(words, tmp_path):
    loader = dict(
        batch_size=2, num_workers=0, dataset=dict(type='ArmsTestSquares'), sampler=dict(type='DefaultSampler')
    )
    cfg = Config(
        dict(
            default_scope='repl_mm',
            model=dict(type='ImageClassifier', backbone=CIFAR, num_classes=3, in_channels=64),
            train_dataloader=dict(loader, collate_fn=dict(type='default_collate')),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            train_cfg=dict(by_epoch=False, max_iters=1),
            custom_hooks=[dict(type='ArmsTestHook')],
            work_dir=str(tmp_path),
            experiment_name=f'switches_{SWITCHED.index(words)}',
        )
    )
    run = arm_config(read_arm(f'e2e:{words}'), cfg)
    Runner.from_cfg(run).train()
    assert bool(SAW['reentrant']) == (words == 'with_cp=True')
    assert bool(SAW['checkpoints']) == ('non_reentrant' in words)
    assert bool(SAW['efficient']) == ('efficient' in words)
    assert run.get('efficient_conv_bn_eval') == (['backbone'] if 'efficient' in words else None)
