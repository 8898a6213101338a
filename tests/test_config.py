"""What configs say of their backbones, whichever way it is written."""

from pathlib import Path

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.logging import MessageHub
from mmengine.registry import MODELS
from torch import nn

from repl_mm import config, families
from repl_mm.classification import CifarResNet
from repl_mm.config import (
    ConfigError,
    find_backbones,
    repl_config,
    set_data_root,
    stock_config,
    type_name,
    with_backbones,
)

ROOT = Path(__file__).resolve().parent.parent
REPL, STOCK = dict(type='RepLResNet', depth=18), dict(type='ResNet', depth=18)


def of_package(package, name='ResNet'):
    """A class that lives in a package which need not be installed."""
    return type(name, (nn.Module,), {'__module__': f'{package}.models.backbones.resnet'})


def RepLResNet():  # as the builder in repl_mm.backbones
    pass


@pytest.mark.parametrize(
    'kind, name',
    [
        ('ResNet', 'ResNet'),
        ('mmdet.ResNet', 'ResNet'),
        ('repl_mm.backbones.RepLResNet', 'RepLResNet'),
        (CifarResNet, 'CifarResNet'),
        (RepLResNet, 'RepLResNet'),
        (None, ''),
    ],
)
def test_type_name(kind, name):
    assert type_name(kind) == type_name(dict(type=kind)) == type_name(ConfigDict(type=kind)) == name
    assert type_name({}) == ''


# ---- backbones ----


@pytest.mark.parametrize(
    'model, paths',
    [
        (dict(backbone=REPL, neck=dict(type='FPN')), [('backbone',)]),
        (dict(backbone=STOCK, neck=dict(type='FPN')), [('backbone',)]),
        (dict(detector=dict(type='SoftTeacher', backbone=REPL)), [('detector', 'backbone')]),
        (dict(backbone=STOCK, teacher=dict(net=REPL)), [('teacher', 'net')]),  # RepL ones go before stock ones
        (dict(backbone=[STOCK, STOCK]), [('backbone', 0), ('backbone', 1)]),
        (dict(backbone=(REPL, STOCK)), [('backbone', 0)]),
        (dict(a=REPL, b=[REPL]), [('a',), ('b', 0)]),
        (dict(backbone=dict(type='ICNet', backbone_cfg=dict(type='ResNetV1c'))), [('backbone', 'backbone_cfg')]),
        (dict(backbone=dict(type='X', image_encoder=dict(type='VisionTransformer'))), [('backbone', 'image_encoder')]),
        (dict(backbone=dict(type=of_package('mmdet'))), [('backbone',)]),
        (dict(backbone=dict(type='Unknown', replace=dict(every=2))), [('backbone',)]),
        (dict(backbone=STOCK, other=dict(type='RepLKNet')), [('backbone',)]),  # mmpretrain's, nothing of ours
    ],
)
def test_backbones_are_found_wherever_they_are(model, paths):
    for written in (model, ConfigDict(model)):
        found = find_backbones(written)
        assert list(found) == paths
        for path, node in found.items():
            inner = written
            for key in path:
                inner = inner[key]
            assert inner is node
        changed = with_backbones(written, lambda node: dict(node, seen=True))
        assert len(find_backbones(changed)) == len(found)
        assert all(node['seen'] for node in find_backbones(changed).values())
        assert not any('seen' in node for node in find_backbones(written).values())


def test_models_without_a_backbone_for_repl():
    with pytest.raises(ValueError, match='the model of the config has no backbone'):
        find_backbones(dict(neck=dict(type='FPN')))
    with pytest.raises(
        ValueError, match="does not support backbone type 'HourglassNet', 'X', only .*ResNet"
    ) as raised:
        find_backbones(dict(backbone=[dict(type='HourglassNet'), dict(type='mmpretrain.X')]))
    assert 'ImageClassifier' not in str(raised.value)
    with pytest.raises(ValueError, match="'NoSuchNet' is not registered in scope 'repl_mm'"):
        config.init_keys(dict(type='NoSuchNet'), 'repl_mm')


@pytest.mark.parametrize(
    'repl, stock, again',
    [
        ('RepLResNet', 'ResNet', 'repl_mm.RepLResNet'),
        ('repl_mm.RepLResNet', 'ResNet', 'repl_mm.RepLResNet'),
        ('repl_mm.backbones.RepLResNet', 'ResNet', 'repl_mm.RepLResNet'),
        (RepLResNet, 'ResNet', 'repl_mm.RepLResNet'),
        ('mmdet.RepLResNet', 'mmdet.ResNet', 'mmdet.RepLResNet'),
        ('mmpretrain.RepLResNet', 'mmpretrain.ResNet', 'mmpretrain.RepLResNet'),
        ('RepLCifarResNet', 'repl_mm.CifarResNet', 'repl_mm.RepLCifarResNet'),
        ('repl_mm.RepLCifarResNet', 'repl_mm.CifarResNet', 'repl_mm.RepLCifarResNet'),
    ],
)
def test_stock_and_repl_types(repl, stock, again):
    backbone = dict(type=repl, depth=18, replace=dict(every=2), init_cfg=dict(type='Pretrained'), pretrained='x')
    assert stock_config(backbone) == dict(type=stock, depth=18)
    assert stock_config(stock_config(backbone)) == dict(type=stock, depth=18)
    assert repl_config(backbone) == dict(type=again, depth=18, replace=dict(every=2))
    assert repl_config(backbone, mode='own') == dict(type=again, depth=18, replace=dict(every=2, mode='own'))
    assert repl_config(stock_config(backbone)) == dict(type=again, depth=18, replace={})
    assert len(backbone) == 5  # left as it was


@pytest.mark.parametrize('package, repl', [('mmdet', 'mmdet.RepLResNet'), ('mmseg', 'mmseg.RepLResNet')])
def test_classes_of_pure_python_configs(package, repl):
    cls = of_package(package)
    assert stock_config(dict(type=cls, depth=18)) == dict(type=cls, depth=18)
    assert repl_config(dict(type=cls, depth=18)) == dict(type=repl, depth=18, replace={})
    name = f'{package}.models.backbones.resnet.ResNet'  # the same as text
    assert repl_config(dict(type=name)) == dict(type=repl, replace={})


def test_a_class_that_no_registry_has_is_no_type():
    """mmdet's ResNet in its place would be another network."""
    cls = of_package('own')
    assert stock_config(dict(type=cls, depth=18)) == dict(type=cls, depth=18)
    for type_ in (cls, 'own.models.backbones.resnet.ResNet'):
        with pytest.raises(ValueError, match=r'no RepL type for the class own\.models.*\.ResNet: expected'):
            repl_config(dict(type=type_, depth=18))


def test_only_backbones_have_a_key_replace():
    sampler = dict(type='PseudoSampler', replace=False)
    model = dict(backbone=dict(type='ResNet', depth=18), neck=dict(type='FPN', replace=True), train_cfg=sampler)
    assert list(find_backbones(model)) == [('backbone',)]
    with pytest.raises(ValueError, match='the config has no model'):
        find_backbones(None)


def test_a_pure_python_config(tmp_path):
    path = tmp_path / 'pure.py'
    path.write_text(
        'from mmengine.config import read_base\n'
        'from repl_mm.classification import CifarResNet, ImageClassifier\n'
        'backbone = dict(type=CifarResNet, depth=20)\n'
        'model = dict(type=ImageClassifier, backbone=backbone, num_classes=3, in_channels=64)\n'
    )
    cfg = Config.fromfile(path)
    ((place, node),) = find_backbones(cfg.model).items()
    assert place == ('backbone',) and node['type'] is CifarResNet
    assert config.init_keys(node)['depth'] is not None
    assert repl_config(node)['type'] == 'repl_mm.RepLCifarResNet'
    assert config.params_outside(cfg.model, 'repl_mm') == 64 * 3 + 3


# ---- whole models ----


class Twins(nn.Module):
    """Several backbones and a head, as detectors with a teacher, or networks of two branches, have them."""

    def __init__(self, nets, backbone=None):
        super().__init__()
        self.nets = nn.ModuleList(MODELS.build(net) for net in nets)
        self.inner = None if backbone is None else MODELS.build(backbone)
        self.head = nn.Linear(3, 4)


@pytest.fixture
def twins():
    MODELS.register_module(name='ConfigTwins', module=Twins, force=True)
    yield
    MODELS.module_dict.pop('ConfigTwins')


def test_parameters_outside_of_all_backbones(twins):
    small = dict(type='repl_mm.CifarResNet', depth=20)
    for settings in (small, repl_config(small), repl_config(small, mode='remove')):
        model = dict(type='ConfigTwins', nets=[settings, settings], backbone=settings)
        if settings is small:  # stock backbones are found by their key only
            model = dict(type='ConfigTwins', nets=[], backbone=settings)
        assert config.params_outside(model) == 3 * 4 + 4


# ---- files ----


@pytest.mark.parametrize('kind', ['HourglassNet', 'RepLHourglassNet', 'DetectoRS'])
def test_the_answer_to_an_unserved_name_lists_backbones_that_are_served(kind):
    with pytest.raises(ConfigError, match=f"'{kind}'") as raised:
        config.find_backbones(dict(backbone=dict(type=kind)))
    names = str(raised.value).partition(', only ')[2].split(', ')
    assert {'ResNet', 'SwinTransformer', 'VisionTransformer'} <= set(names)
    # no hook, no refused backbone
    for name in names:
        assert any(name in family.BACKBONES and name not in family.REFUSED for family in families.FAMILIES), name


def test_a_config_of_ours_is_found_by_name_and_those_of_packages_without_a_folder_are_suggested():
    assert config.config_file('repl_mm::retinanet_r50_repl_coco.py') == str(
        ROOT / 'configs' / 'retinanet_r50_repl_coco.py'
    )
    assert config.config_file('some/file.py') == 'some/file.py'
    with pytest.raises(ConfigError, match='expected one as mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py or '):
        config.config_file('mmseg::fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py')
    with pytest.raises(ConfigError, match='numpy carries no configs'):
        config.config_file('numpy::a/b.py')


@pytest.mark.parametrize(
    'name',
    ['mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'],
)
def test_mmengine_knows_every_package_by_its_name_in_configs(name):
    """OneDL's distributions have other names."""
    assert get_config(name).model.backbone.depth == 50


def test_errors_of_reading_are_values():
    with pytest.raises(ValueError, match=r"config 'no/such\.py'"):
        config.read_config('no/such.py')
    with pytest.raises(ValueError, match="config 'nopackage::a.py': nopackage is not installed"):
        config.read_config('nopackage::a.py')
    assert config.read_config(str(ROOT / 'configs' / 'classification' / 'resnet32_repl_cifar10.py')).model.backbone
    with pytest.raises(ValueError, match='--data-root: the config has no data_root'):
        set_data_root(Config(dict(lr=1)), 'x')


def moved(root, dataset, evaluator=None, folder='/my'):
    cfg = Config(dict(data_root=root, train_dataloader=dict(dataset=dataset), val_evaluator=evaluator))
    set_data_root(cfg, folder)
    assert cfg.data_root == f'{folder}/'
    return cfg.train_dataloader.dataset.to_dict(), cfg.val_evaluator and cfg.val_evaluator.to_dict()


@pytest.mark.parametrize('root', ['data/cifar10', 'data/cifar10/', './data/cifar10'])
def test_data_root_moves_what_is_below_it(root):
    dataset = dict(
        datasets=[
            dict(type='data/cifar10/x', data_root='data/cifar10/', ann_file='data/cifar10/a.json'),
            dict(data_root='data/cifar10', ann_file='a.json', data_prefix=dict(img='data/cifar10/img/')),
            dict(data_root='data/cifar100', ann_file='data/cifar100/a.json', backend_args=dict(path='data/cifar10/')),
            dict(data_root='other/data/cifar10'),
        ]
    )
    got, evaluator = moved(root, dataset, dict(type='CocoMetric', ann_file='data/cifar10/v.json', metric='bbox'))
    assert got['datasets'] == [
        dict(type='data/cifar10/x', data_root='/my/', ann_file='/my/a.json'),
        dict(data_root='/my/', ann_file='a.json', data_prefix=dict(img='/my/img/')),
        dict(data_root='data/cifar100', ann_file='data/cifar100/a.json', backend_args=dict(path='data/cifar10/')),
        dict(data_root='other/data/cifar10'),
    ]
    assert evaluator == dict(type='CocoMetric', ann_file='/my/v.json', metric='bbox')


@pytest.mark.parametrize('root', ['', './'])
def test_an_empty_data_root_moves_relative_paths_only(root):
    dataset = dict(
        type='Concat',
        datasets=[
            dict(type='D', _scope_='mmdet', data_root='', ann_file='a.json', data_prefix=dict(img='i/')),
            dict(type='D', data_root='data/other', ann_file='a.json'),
            dict(type='D', ann_file='a.json', data_prefix=dict(img='i/', seg=['s', '/abs', 's3://b']), split='train'),
            dict(type='D', data_root='/abs', backend_args=dict(backend='local'), pipeline=[dict(type='Load')]),
        ],
    )
    got, evaluator = moved(root, dataset, dict(type='CocoMetric', ann_file='v.json', metric='bbox'))
    assert got == dict(
        type='Concat',
        datasets=[
            dict(type='D', _scope_='mmdet', data_root='/my/', ann_file='a.json', data_prefix=dict(img='i/')),
            dict(type='D', data_root='data/other', ann_file='a.json'),
            dict(
                type='D',
                ann_file='/my/a.json',
                data_prefix=dict(img='/my/i/', seg=['/my/s', '/abs', 's3://b']),
                split='train',
            ),
            dict(type='D', data_root='/abs', backend_args=dict(backend='local'), pipeline=[dict(type='Load')]),
        ],
    )
    assert evaluator == dict(type='CocoMetric', ann_file='/my/v.json', metric='bbox')


@pytest.mark.parametrize(
    ('backbone', 'message'),
    [
        (dict(type='HourglassNet', replace={}), "RepL does not support backbone type 'HourglassNet', only .*ResNet"),
        (dict(type='ResNet', replace='fuse'), "replace='fuse' is not valid: expected a dict"),
        (dict(type='ResNet', replace=dict(evry=2)), 'replace.evry=2: unknown key'),
    ],
)
def test_a_backbone_that_repl_cannot_replace(backbone, message):
    with pytest.raises(ValueError, match=message):
        repl_config(next(iter(find_backbones(dict(backbone=backbone)).values())))


EVALUATORS = {  # what mmengine takes, and what is wrong with it
    'metric': (dict(type='CocoMetric'), None),
    'metrics': ([dict(type='CocoMetric'), dict(type='CocoPanopticMetric')], None),
    'evaluator': (
        dict(type='MultiDatasetsEvaluator', metrics=[dict(type='CocoMetric')], dataset_prefixes=['a']),
        None,
    ),
    'no type': (dict(metrics=[dict(type='CocoMetric')]), None),
    'unknown metric': (dict(type='CocoMetrik'), "val_evaluator: type='CocoMetrik'.*CocoMetric"),
    'unknown in an evaluator': (dict(metrics=[dict(type='CocoMetrik')]), "val_evaluator: type='CocoMetrik'"),
    'unknown evaluator': (dict(type='Evaluater', metrics=[]), "val_evaluator: type='Evaluater'.*Evaluator"),
}


@pytest.mark.parametrize('case', EVALUATORS)
def test_evaluators_are_told_from_metrics(case):
    pytest.importorskip('mmdet.evaluation')
    evaluator, message = EVALUATORS[case]
    cfg = Config(dict(default_scope='mmdet', val_evaluator=evaluator))
    if message is None:
        config.check_types(cfg)
    else:
        with pytest.raises(config.ConfigError, match=message):
            config.check_types(cfg)


def test_a_preprocessor_beside_the_model_is_put_into_it(tmp_path):
    """mmpretrain's configs have it there; the model's own goes before it."""
    (tmp_path / 'beside.py').write_text("data_preprocessor = dict(mean=[1.0])\nmodel = dict(type='A')\n")
    own = "_base_ = 'beside.py'\nmodel = dict(data_preprocessor=dict(std=[2.0]))\n"
    (tmp_path / 'own.py').write_text(own)
    assert config.read_config(str(tmp_path / 'beside.py')).model == dict(type='A', data_preprocessor=dict(mean=[1.0]))
    assert config.read_config(str(tmp_path / 'own.py')).model.data_preprocessor == dict(std=[2.0])


def test_the_size_of_yolox_images_is_known_before_a_training(mini_coco):
    """Its resizing of batches asks for the step, which no Runner has set yet."""
    cfg = Config.fromfile(ROOT / 'configs' / 'yolox_tiny_repl_coco.py')
    cfg.train_dataloader.batch_size = 2
    cfg.train_dataloader.dataset.dataset.update(
        data_root=f'{mini_coco}/', ann_file='annotations/instances_train.json', data_prefix=dict(img='train/')
    )
    cfg.train_dataloader.dataset.dataset.metainfo = dict(classes=('circle', 'square', 'triangle', 'star'))
    MessageHub.get_instance('of no training')  # the current one from here on
    assert config.input_size(cfg) == (2, 640, 640)
