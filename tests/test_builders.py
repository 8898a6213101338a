"""The registered builders: which package's class a type builds, pure-Python configs, settings of the stock twin."""

import copy
import importlib
import os
import pickle
import subprocess
import sys
import types

import pytest
import small
import tiny
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, Registry
from small import STOCK, build

import repl_mm
from repl_mm.backbones import RepLCifarResNet
from repl_mm.classification.cifar_resnet import CifarResNet
from repl_mm.families import FAMILIES, resnet

R18 = STOCK['r18']

# ---- the prefix of a package --------------------------------------------------------------------------------------


@pytest.fixture
def mmpretrain():
    """A throwaway registry of the scope 'mmpretrain', whose ResNet and SwinTransformer are its own."""
    installed = MODELS.children.pop('mmpretrain', None)
    registry = Registry('model', parent=MODELS, scope='mmpretrain', locations=['repl_mm'])

    @registry.register_module()
    class ResNet(CifarResNet):
        """mmpretrain's."""

    yield registry
    del MODELS.children['mmpretrain']
    if installed is not None:
        MODELS.children['mmpretrain'] = installed


def module_of(settings: dict, scope: str) -> str:
    """The package of the class that is built within a scope; it has computing layers."""
    with DefaultScope.overwrite_default_scope(scope):
        backbone = MODELS.build(dict(settings))
    assert repl_mm.plan_of(backbone).slots
    return type(backbone).__module__.split('.')[0]


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmengine', 'repl_mm'])
@pytest.mark.parametrize('package', ['mmdet', 'mmseg'])
def test_a_prefix_names_the_package_of_the_class(package, scope):
    """Stock and RepL: the prefix leads to the same class."""
    for settings in (R18, small.SWIN):
        wanted = type(MODELS.build(dict(settings, type=f'{package}.{settings["type"]}')))
        with DefaultScope.overwrite_default_scope(scope):
            backbone = MODELS.build(dict(settings, type=f'{package}.RepL{settings["type"]}'))
        assert type(backbone) is wanted or wanted in type(backbone).__mro__
        assert module_of(dict(settings, type=f'{package}.RepL{settings["type"]}'), scope) == package


@pytest.fixture
def no_scope(monkeypatch):
    """The Runner of an earlier test may have left its scope."""
    monkeypatch.setattr(DefaultScope, '_instance_dict', type(DefaultScope._instance_dict)())


@pytest.mark.parametrize('package', ['mmdet', 'mmseg'])
def test_a_prefix_in_the_registry_of_the_package_itself(package, no_scope):
    """``mmdet.registry.MODELS`` is what mmdet's own detectors build their backbones with."""
    importlib.import_module(f'{package}.registry')
    registry = MODELS.children[package]
    for prefix in ('', f'{package}.', 'repl_mm.'):
        with DefaultScope.overwrite_default_scope(package):
            assert type(registry.build(dict(R18, type=f'{prefix}RepLResNet'))).__module__.startswith(package)
        if prefix != 'repl_mm.':
            assert type(registry.build(dict(R18, type=f'{prefix}RepLResNet'))).__module__.startswith(package)


@pytest.mark.parametrize('first', ['import repl_mm', 'import mmdet.models, mmseg.models'])
def test_without_any_scope_and_in_either_order_of_import(first, tmp_path):
    code = (
        f'{first}\nimport repl_mm\nfrom mmengine.registry import MODELS\n'
        "for prefix in ('mmseg', 'mmdet', 'mmseg'):\n"
        "    backbone = MODELS.build(dict(type=f'{prefix}.RepLResNet', depth=18, base_channels=8))\n"
        '    print(type(backbone).__module__)\n'
    )
    env = dict(os.environ, PYTHONPATH=str(small.REPO), PYTHONWARNINGS='ignore')
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True)
    wanted = [f'{package}.models.backbones.resnet' for package in ('mmseg', 'mmdet', 'mmseg')]
    assert done.stdout.split()[-3:] == wanted, done.stderr


def test_a_detector_with_the_backbone_of_another_package():
    from mmdet.registry import MODELS as DETECTORS

    neck = dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=5)
    head = dict(type='RetinaHead', num_classes=2, in_channels=8, feat_channels=8, stacked_convs=1)
    for type_, package in (('mmseg.RepLResNetV1c', 'mmseg'), ('mmdet.RepLResNet', 'mmdet'), ('RepLResNet', 'mmdet')):
        backbone = dict(R18, type=type_, replace=dict(every=2))
        with DefaultScope.overwrite_default_scope('mmdet'):
            model = DETECTORS.build(dict(type='RetinaNet', backbone=backbone, neck=neck, bbox_head=head))
        assert type(model.backbone).__module__.split('.')[0] == package


def test_a_package_that_is_imported_after_us(mmpretrain):
    """Its registry gets the types as soon as it is there."""
    settings = dict(type='mmpretrain.RepLResNet', depth=20)
    for scope in ('mmengine', 'mmdet', 'mmseg', 'mmpretrain'):
        with DefaultScope.overwrite_default_scope(scope):
            backbone = MODELS.build(dict(settings))
        assert type(backbone) is mmpretrain.get('ResNet')
    assert module_of(dict(R18, type='mmdet.RepLResNet'), 'mmpretrain') == 'mmdet'
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        assert type(MODELS.build(dict(settings, type='RepLResNet'))) is mmpretrain.get('ResNet')
        assert type(MODELS.build(dict(settings, type='repl_mm.RepLResNet'))) is mmpretrain.get('ResNet')


@pytest.mark.parametrize(
    ('type_', 'words'),
    [
        (
            'mmdet.RepLVisionTransformer',
            "mmdet has no backbone 'VisionTransformer'; type='mmseg.RepLVisionTransformer'",
        ),
        ('mmseg.RepLRegNet', "mmseg has no backbone 'RegNet'; type='mmdet.RepLRegNet' is there"),
        ('mmpretrain.RepLSwinTransformer', "mmpretrain has no backbone 'SwinTransformer'; type='mm"),
        ('mmdet.RepLCifarResNet', "mmdet has no backbone 'CifarResNet'; type='repl_mm.RepLCifarResNet' is there"),
    ],
)
def test_a_package_without_the_class_is_told_in_one_line(type_, words, mmpretrain):
    for scope in {'mmengine', 'mmdet', 'mmseg'} - {type_.split('.')[0]}:
        with DefaultScope.overwrite_default_scope(scope), pytest.raises(repl_mm.PlanError, match=words) as raised:
            MODELS.build(dict(type=type_))
        assert '\n' not in str(raised.value) and type_ in str(raised.value)


def test_the_plain_name_still_falls_back_to_another_package():
    for scope, package, settings in (('mmdet', 'mmseg', STOCK['vit']), ('mmseg', 'mmdet', STOCK['regnet 400mf'])):
        plain = {key: value for key, value in settings.items() if key != '_scope_'}
        assert module_of(dict(plain, type=f'RepL{plain["type"]}'), scope) == package
        assert module_of(dict(plain, type=f'repl_mm.RepL{plain["type"]}'), scope) == package


def test_refused_classes_are_refused_with_a_prefix_too():
    for type_ in ('RepLTridentResNet', 'mmdet.RepLTridentResNet', 'repl_mm.RepLTridentResNet'):
        with (
            DefaultScope.overwrite_default_scope('mmseg'),
            pytest.raises(repl_mm.PlanError, match='lists of branches'),
        ):
            MODELS.build(dict(type=type_))


def test_a_family_from_outside_has_the_types_of_all_packages(mmpretrain):
    import mmdet.registry  # noqa: F401

    @mmpretrain.register_module()
    class OtherNet(CifarResNet):
        """Of mmpretrain alone."""

    repl_mm.register_family(types.SimpleNamespace(**vars(resnet) | dict(BACKBONES=('OtherNet',), REFUSED={})))
    try:
        for scope in ('mmengine', 'mmdet', 'mmpretrain'):
            with DefaultScope.overwrite_default_scope(scope):
                assert type(MODELS.build(dict(type='mmpretrain.RepLOtherNet', depth=20))) is OtherNet
        Registry('model', parent=MODELS, scope='mmlate', locations=['repl_mm'])
        for scope in ('mmdet', 'mmlate'):
            words = f"{scope} has no backbone 'OtherNet'; type='mmpretrain.RepLOtherNet' is there"
            with DefaultScope.overwrite_default_scope('mmengine'), pytest.raises(repl_mm.PlanError, match=words):
                MODELS.build(dict(type=f'{scope}.RepLOtherNet', depth=20))
    finally:
        del FAMILIES[0]
        MODELS.children.pop('mmlate', None)
        for registry in (MODELS, *MODELS.children.values()):
            registry.module_dict.pop('RepLOtherNet', None)


# ---- pure-Python configs ------------------------------------------------------------------------------------------

PURE = """
from mmengine.config import read_base

with read_base():
    from .base import *

import tiny
from mmengine.optim import OptimWrapper
from torch.optim import SGD

from repl_mm import RepLHook
from repl_mm.backbones import RepLCifarResNet
{more}
model.update(type=tiny.Net, backbone=dict(type=RepLCifarResNet, depth=20, base_channels=4, replace=dict(every=1)))
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.1))
custom_hooks = [dict(type=RepLHook, shape=(16, 16))]
"""
BASE = """
from mmengine.dataset import DefaultSampler, default_collate
import tiny

model = dict()
train_dataloader = dict(
    dataset=dict(type=tiny.Noise),
    batch_size=4,
    sampler=dict(type=DefaultSampler),
    collate_fn=dict(type=default_collate),
)
train_cfg = dict(by_epoch=True, max_epochs=1)
default_scope = {scope!r}
"""


@pytest.mark.parametrize('scope', [None, 'mmdet', 'repl_mm'])
def test_a_pure_python_config_trains_and_survives_dumping(scope, tmp_path):
    from mmengine.runner import Runner

    (tmp_path / 'base.py').write_text(BASE.format(scope=scope))
    (tmp_path / 'config.py').write_text(PURE.format(more=''))
    cfg = Config.fromfile(tmp_path / 'config.py')
    cfg.dump(tmp_path / 'dumped.py')
    for name, config in (('lazy', cfg), ('dumped', Config.fromfile(tmp_path / 'dumped.py'))):
        config.work_dir = str(tmp_path / name)
        config.experiment_name = f'{scope}-{name}'
        runner = Runner.from_cfg(config)
        runner.train()
        assert type(runner.model.backbone) is CifarResNet and repl_mm.plan_of(runner.model.backbone).depths == (
            3,
            3,
            3,
        )
        log = tiny.log_of(runner)
        assert 'activation bytes' in log and 'no costs' not in log
        assert runner.iter == 2


def test_builders_can_be_imported_by_name():
    from repl_mm import backbones

    for family in FAMILIES:
        for name in (*family.BACKBONES, *family.REFUSED):
            builder = getattr(backbones, f'RepL{name}')
            assert (builder.__module__, builder.__name__) == ('repl_mm.backbones', f'RepL{name}')
    with pytest.raises(ImportError):
        from repl_mm.backbones import RepLNothing  # noqa: F401
    with pytest.raises(AttributeError):
        backbones.Nothing  # noqa: B018


# ---- the stock twin -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', STOCK)
def test_a_backbone_keeps_the_settings_of_its_stock_twin(name):
    settings = STOCK[name]
    backbone = build(settings, type=f'RepL{settings["type"]}', replace=dict(mode='remove'))
    twin, stock = MODELS.build(copy.deepcopy(backbone.repl_stock)), build(settings)
    assert type(twin) is type(stock) and repl_mm.plan_of(twin) is None
    assert str(twin) == str(stock)
    assert {key: value.shape for key, value in twin.state_dict().items()} == {
        key: value.shape for key, value in stock.state_dict().items()
    }
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in stock.parameters()]
    MODELS.build(copy.deepcopy(backbone.repl_stock))  # mm's code changes what it is given: a copy each time


def test_the_settings_hold_no_weights_and_survive_copies():
    weights = dict(init_cfg=dict(type='Pretrained', checkpoint='nowhere.pth'))
    backbone = build(R18, type='RepLResNet', **weights)
    assert backbone.repl_stock == dict(type=type(backbone), depth=18, base_channels=8, _scope_='mmdet')
    for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert other.repl_stock == backbone.repl_stock
    assert not [key for key in backbone.state_dict() if 'stock' in key]
    backbone = build(STOCK['vit'], type='RepLVisionTransformer', pretrained='nowhere.pth')
    assert 'pretrained' not in backbone.repl_stock


def test_the_settings_are_those_before_mm_changes_them():
    """mmseg's and mmdet's classes take dicts apart that they are given."""
    plugins = STOCK['attention']['plugins']
    before = copy.deepcopy(plugins)
    backbone = build(STOCK['attention'], type='RepLResNet')
    assert backbone.repl_stock['plugins'] == before
    for _ in range(2):
        assert hasattr(MODELS.build(copy.deepcopy(backbone.repl_stock)).layer2[0], 'gen_attention_block')


def test_positional_arguments_get_their_names():
    with DefaultScope.overwrite_default_scope('repl_mm'):
        stock = RepLCifarResNet(20, 'B', replace=dict(mode='own')).repl_stock
    assert stock == dict(type=CifarResNet, depth=20, shortcut='B', _scope_='repl_mm')

    class Deeper(CifarResNet):
        """Passes what it gets."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    with DefaultScope.overwrite_default_scope('repl_mm'):
        found = repl_mm.backbones._stock_settings(Deeper, (20, 'B'), dict(base_channels=4))
    assert found == dict(type=Deeper, depth=20, shortcut='B', base_channels=4, _scope_='repl_mm')
    assert repl_mm.backbones._stock_settings(CifarResNet, tuple(range(20)), {}) is None


def test_a_backbone_changed_by_hand_has_no_twin():
    backbone = CifarResNet(20)
    repl_mm.apply_repl(backbone)
    assert getattr(backbone, 'repl_stock', None) is None


def test_two_builds_of_one_config_are_alike():
    """Nothing is taken out of what a user gave."""
    settings = dict(R18, type='mmdet.RepLResNet', replace=dict(slots=[(2, 1)]), norm_cfg=dict(type='BN'))
    before = copy.deepcopy(settings)
    one, other = (MODELS.build(settings) for _ in range(2))
    assert settings == before and one.repl == other.repl and one.repl_stock == other.repl_stock
    assert torch.is_tensor(next(iter(one.state_dict().values())))
