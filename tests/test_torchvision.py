"""Backbones of packages that need torchvision.

Run by hand, ``make test STACK=torchvision ARGS=tests/test_torchvision.py``. In the other stacks these packages are not
installed, and this file is left out; tests/foreign.py stands in for them there.
"""

import copy
import re

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner
from small import LAYERS, MMPRETRAIN
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset

import repl_mm
from repl_mm import config, data_checks
from repl_mm.deployment import export, open_file, serve
from repl_mm.healing import healing_config
from repl_mm.reading import read_checkpoint
from repl_mm.stock_weights import load_backbone, read_stock

torchvision = pytest.importorskip('torchvision', reason='STACK=torchvision has it', exc_type=ImportError)
timm = pytest.importorskip('timm', reason='STACK=torchvision has it')
mmpretrain = pytest.importorskip('mmpretrain', reason='STACK=torchvision has it')
pytest.importorskip('mmpretrain.models')

BUILT = {
    'torchvision resnet18': lambda: torchvision.models.resnet18(),
    'torchvision resnext50': lambda: torchvision.models.resnext50_32x4d(),
    'timm resnet18': lambda: timm.create_model('resnet18', drop_path_rate=0.1),
    'timm resnet50': lambda: timm.create_model('resnet50'),
    'timm res2net50': lambda: timm.create_model('res2net50_26w_4s'),
    'timm resnest26d': lambda: timm.create_model('resnest26d'),
    'timm features of a resnet18': lambda: timm.create_model('resnet18', features_only=True),
    'timm convnext': lambda: timm.create_model('convnext_atto'),
    'timm convnext v2': lambda: timm.create_model('convnextv2_atto', output_stride=8),
    'timm features of a convnext': lambda: timm.create_model('convnext_femto', features_only=True),
    'timm deit': lambda: timm.create_model('deit_tiny_distilled_patch16_224', img_size=64),
    'timm dinov2 with registers': lambda: timm.create_model('vit_small_patch14_reg4_dinov2', img_size=56, depth=6),
    'timm dinov3': lambda: timm.create_model('vit_small_patch16_dinov3_qkvb', depth=6),
    'timm eva': lambda: timm.create_model('eva02_tiny_patch14_224', img_size=56, depth=6, swiglu_mlp=False),
    'timm swin': lambda: timm.create_model('swin_tiny_patch4_window7_224', img_size=64),
    'timm features of a swin': lambda: timm.create_model(
        'swin_tiny_patch4_window7_224', img_size=64, features_only=True
    ),
    'timm features of a vit': lambda: timm.create_model('vit_tiny_patch16_224', img_size=64, features_only=True),
}
SIZES = {'timm dinov2 with registers': 56, 'timm eva': 56}
# what a config says, and the package's own class
TYPES = {
    'ResNet': dict(depth=18),
    'ResNetV1d': dict(depth=50),
    'ResNeXt': dict(depth=50),
    'Res2Net': dict(depth=50),
    'ResNeSt': dict(depth=50),
    'RegNet': dict(arch='regnetx_400mf'),
    'VisionTransformer': dict(arch='deit-t', img_size=64),
    'SwinTransformer': dict(arch='tiny', img_size=64, pad_small_map=True),
    'ConvNeXt': dict(arch='atto'),
    'PoolFormer': dict(arch='s12'),
    'TIMMBackbone': dict(model_name='convnext_atto', features_only=True),
}


def step(net, size=64):
    """Run forward and backward on small images; every parameter of a computing layer gets a gradient."""
    torch.manual_seed(0)
    net.train()
    sum(out.float().square().mean() for out in tree_leaves(net(torch.randn(2, 3, size, size)))).backward()
    layers = list(repl_mm.computing_layers(net))
    assert len(layers) == len(repl_mm.plan_of(net).slots) > 0
    for name, layer in layers:
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters()), name


@pytest.mark.parametrize('name', BUILT)
def test_what_others_built(name):
    stock, net = BUILT[name](), BUILT[name]()
    repl_mm.apply_repl(net)
    report = net.load_state_dict(stock.state_dict())  # the strict way: what is replaced is dropped
    assert not report.missing_keys and not report.unexpected_keys
    for key, value in net.state_dict().items():
        assert '.repl.' in key or key == 'repl_plan' or torch.equal(value, stock.state_dict()[key]), key
    step(net, SIZES.get(name, 64))


@pytest.mark.parametrize('name', BUILT)
def test_without_the_blocks_it_is_the_stock_network_without_them(name):
    """Control: the stock network, whose blocks give what they are given."""
    stock = BUILT[name]()
    net = copy.deepcopy(stock)
    plan = repl_mm.apply_repl(net, mode='remove')
    names = {id(module): key for key, module in net.named_modules()}
    for _, layer in repl_mm.computing_layers(net):
        stock.get_submodule(names[id(layer)]).forward = lambda x, **others: x
    x = torch.randn(1, 3, SIZES.get(name, 64), SIZES.get(name, 64))
    stock.eval(), net.eval()
    with torch.no_grad():
        for one, other in zip(tree_leaves(net(x)), tree_leaves(stock(x)), strict=True):
            torch.testing.assert_close(one, other)
    assert plan.slots


@pytest.mark.parametrize('name', TYPES)
@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain'])
def test_the_types_of_mmpretrain(scope, name):
    with DefaultScope.overwrite_default_scope(scope):
        net = MODELS.build(dict(TYPES[name], type=f'mmpretrain.RepL{name}'))
    stock = getattr(mmpretrain.models.backbones, name)
    assert isinstance(net, stock) and net.repl_stock['type'] is stock
    step(net)


@pytest.mark.parametrize(
    'build',
    [
        lambda: timm.create_model(
            'vit_tiny_patch16_224', img_size=64, block_fn=timm.models.vision_transformer.ResPostBlock
        ),
        lambda: timm.create_model('vit_small_patch16_dinov3', swiglu_mlp=True, depth=6),
        lambda: timm.create_model('vit_tiny_patch16_224', mlp_layer=timm.layers.SwiGLUPacked),
        lambda: timm.create_model('convnext_atto', norm_layer='rmsnorm'),
        lambda: timm.create_model('efficientnet_b0'),
        lambda: timm.create_model('swinv2_tiny_window8_256', features_only=True),
        lambda: torchvision.models.vit_b_16(image_size=64),
        lambda: torchvision.models.swin_t(),
        lambda: torchvision.models.regnet_y_400mf(),
        lambda: mmpretrain.models.backbones.PCPVT('small'),
    ],
)
def test_what_is_built_otherwise_is_refused(build):
    net = build()
    with pytest.raises(repl_mm.PlanError, match=f'RepL serves {type(net).__name__}, but .* is built otherwise'):
        repl_mm.apply_repl(net)
    assert repl_mm.plan_of(net) is None


def test_a_name_that_only_mmpretrain_has_is_no_type_of_ours():
    """RepLKNet is a network of its own."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        MODELS.build(dict(type='mmpretrain.RepLKNet', arch='31B'))
    assert config.all_backbones(dict(other=dict(type='RepLKNet'))) == {}


def test_a_config_of_mmpretrain_trains_by_one_word(tmp_path):
    """mmpretrain's own config of a ResNet-50, through its Runner, classifier and metric, on noise."""
    cfg = config.read_config('mmpretrain::resnet/resnet50_8xb32_in1k.py')
    cfg.model.backbone.type = 'RepLResNet'
    for phase in ('train', 'val'):
        loader = dict(num_workers=0, persistent_workers=False, batch_size=4, dataset=dict(type='Noise'))
        cfg[f'{phase}_dataloader'] = dict(cfg[f'{phase}_dataloader'], **loader)
    cfg.update(test_dataloader=None, test_cfg=None, test_evaluator=None, work_dir=str(tmp_path))
    cfg.train_cfg.max_epochs = 1
    cfg.custom_hooks = [dict(type='repl_mm.RepLHook', shape=(64, 64))]
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert type(runner.model.backbone) is mmpretrain.models.backbones.ResNet
    assert 'repl_plan' in read_checkpoint(tmp_path / 'epoch_1.pth')['meta']
    assert 0 <= runner.message_hub.get_scalar('val/accuracy/top1').current() <= 100


@DATASETS.register_module()
class Noise(Dataset):
    """Eight pictures of noise, in mmpretrain's form."""

    metainfo = dict(classes=tuple(map(str, range(1000))))

    def __len__(self):
        return 8

    def __getitem__(self, index):
        image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
        return dict(inputs=image, data_samples=mmpretrain.structures.DataSample().set_gt_label(index))


def test_what_mmpretrain_downloads_itself_is_not_missing():
    cfg = Config.fromfile(config.config_file('mmpretrain::resnet/resnet18_8xb16_cifar10.py'))
    data_checks.check_data(cfg, 'train', 'val')  # no error: its CIFAR10 fetches its files
    cfg.train_dataloader.dataset.download = False
    with pytest.raises(data_checks.DataError, match='dataset not found'):
        data_checks.check_data(cfg, 'train')


@pytest.mark.parametrize(
    ('package', 'name'),
    [
        ('mmdet', 'convnext_atto'),
        ('mmdet', 'resnet26'),
        ('mmseg', 'convnext_atto'),
        ('mmseg', 'swin_tiny_patch4_window7_224'),
    ],
)
def test_a_timm_backbone_of_a_config(package, name):
    """mmdet has no TIMMBackbone of its own and takes mmpretrain's; mmseg's would fetch weights by default."""
    prefix = 'mmpretrain.' if package == 'mmdet' else ''
    settings = dict(type=f'{prefix}RepLTIMMBackbone', model_name=name, features_only=True, pretrained=False)
    net = config.build(settings, package)
    assert len(repl_mm.plan_of(net).slots) == len(list(repl_mm.computing_layers(net))) > 0
    assert all(key.startswith('timm_model.') or key == 'repl_plan' for key in net.state_dict())
    assert net.repl_stock['pretrained'] is False
    twin = config.build(net.repl_stock, package)
    assert type(twin) is type(net) and repl_mm.plan_of(twin) is None
    net.init_weights()
    report = net.load_state_dict(twin.state_dict())
    assert not report.missing_keys and not report.unexpected_keys
    stock = config.stock_config(dict(settings, replace=dict(every=2)))
    assert stock == dict(type=f'{prefix}TIMMBackbone', model_name=name, features_only=True, pretrained=False)


NETWORKS = [name for name, settings in MMPRETRAIN.items() if settings['type'] == 'TIMMBackbone']


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('package', ['mmdet', 'mmseg', 'mmpretrain'])
def test_weights_in_timms_own_files(package, name, tmp_path):
    """As the tools read them, and by the words of timm that a config can hold. Control: the stock network."""
    file = str(tmp_path / 'timm.pth')
    settings = dict(MMPRETRAIN[name], type='mmpretrain.TIMMBackbone' if package == 'mmdet' else 'TIMMBackbone')
    settings = dict(dict(features_only=False), **{k: v for k, v in settings.items() if k != '_scope_'})
    ours = ('type', 'in_channels', 'features_only')
    state = timm.create_model(**{k: v for k, v in settings.items() if k not in ours}).state_dict()
    state = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in state.items()}
    torch.save(state, file)

    stock, unused = load_backbone(settings, package, read_stock(file, 'backbone.')[0])
    assert not unused
    for key, value in stock.state_dict().items():
        key = key.removeprefix('timm_model.').removeprefix('model.')
        name = re.sub(r'^(\w+?)_(\d+)\.', r'\1.\2.', key)  # the children of a FeatureListNet
        assert torch.equal(value, state[name if name in state else key]), key

    words = dict(pretrained=True, pretrained_cfg_overlay=dict(file=file))
    twin, net = (config.build(dict(kind, **words), package) for kind in (settings, config.repl_config(settings)))
    for key, value in net.state_dict().items():
        assert torch.equal(twin.state_dict()[key], stock.state_dict()[key]) if key in twin.state_dict() else True
        assert '.repl.' in key or key == 'repl_plan' or torch.equal(value, twin.state_dict()[key]), key
    del state[next(key for key in state if key.endswith('.weight'))]
    with pytest.raises(ValueError, match='has no values for 1 of|was not read by timm: ') as error:
        load_backbone(settings, package, state)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('scale', [None, 0.5])
def test_timms_weights_of_a_vit_in_mmpretrains(scale):
    """With layer scale, as DINOv2 has it, and without: both networks give the same."""
    net = timm.create_model(
        'vit_tiny_patch16_224', img_size=64, embed_dim=16, depth=6, num_heads=2, num_classes=0, init_values=scale
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    settings = dict(type='VisionTransformer', arch=LAYERS, img_size=64, layer_scale_init_value=scale or 0.0)
    stock, unused = load_backbone(settings, 'mmpretrain', net.state_dict())
    assert not unused
    stock.eval(), net.eval()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(stock(x)[0], net(x), rtol=1e-4, atol=1e-5)


def rates(backbone, constructor, **paramwise):
    """The learning rates of a model's parameters by name."""
    scope = constructor.partition('.')[0]
    if scope == 'mmpretrain':
        model = config.build(dict(type='ImageClassifier', backbone=backbone, head=None), scope)
    else:
        model = torch.nn.Module()
        model.backbone = config.build(backbone, scope)
    wrapper = dict(
        constructor=constructor, paramwise_cfg=paramwise, optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05)
    )
    with DefaultScope.overwrite_default_scope(scope):
        groups = build_optim_wrapper(model, dict(type='OptimWrapper', **wrapper)).optimizer.param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group['lr'] for group in groups for p in group['params']}


@pytest.mark.parametrize('operator', ['mlp', 'full'])
@pytest.mark.parametrize(
    ('constructor', 'paramwise', 'name'),
    [
        ('mmdet.LearningRateDecayOptimizerConstructor', dict(decay_type='layer_wise'), 'convnext'),
        ('mmdet.LearningRateDecayOptimizerConstructor', dict(decay_type='stage_wise'), 'convnext'),
        ('mmseg.LearningRateDecayOptimizerConstructor', dict(decay_type='layer_wise'), 'convnext'),
        ('mmseg.LearningRateDecayOptimizerConstructor', dict(decay_type='stage_wise'), 'convnext'),
        ('mmpretrain.LearningRateDecayOptimWrapperConstructor', {}, 'convnext'),
        ('mmpretrain.LearningRateDecayOptimWrapperConstructor', {}, 'mmpretrain vit'),
        ('mmpretrain.LearningRateDecayOptimWrapperConstructor', {}, 'mmpretrain swin'),
    ],
)
def test_layer_decay_gives_computing_layers_the_rate_of_their_place(constructor, paramwise, name, operator):
    """Control: the rates of the stock model, those of the replaced block among them."""
    settings = {key: value for key, value in MMPRETRAIN[name].items() if key != '_scope_'}
    settings['type'] = f'mmpretrain.{settings["type"]}'
    paramwise = dict(paramwise, layer_decay_rate=0.5)
    if not constructor.startswith('mmpretrain'):
        paramwise = dict(decay_rate=0.5, num_layers=6, **{k: v for k, v in paramwise.items() if k == 'decay_type'})
    stock = rates(settings, constructor, **paramwise)
    settings = config.repl_config(settings, operator=operator)
    found = rates(settings, constructor, **paramwise)
    new = {key: rate for key, rate in found.items() if '.repl.' in key}
    assert new and len(set(stock.values())) > 3
    for key, rate in found.items():
        block = key.partition('.repl.')[0] + '.'
        wanted = {stock[key]} if key not in new else {r for other, r in stock.items() if other.startswith(block)}
        assert wanted == {rate}, key


def test_a_timm_network_that_nothing_serves_is_refused_in_one_line():
    with pytest.raises(repl_mm.PlanError, match='does not know the backbone PoolingVisionTransformer') as raised:
        config.build(dict(type='mmpretrain.RepLTIMMBackbone', model_name='pit_ti_224'), 'mmdet')
    assert '\n' not in str(raised.value)


def test_a_detector_on_mmpretrains_backbone():
    """mmdet's Faster R-CNN with mmpretrain's ResNet in it: the prefix is all that is needed."""
    cfg = config.read_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    backbone = dict(type='mmpretrain.RepLResNet', depth=50, out_indices=(0, 1, 2, 3), frozen_stages=1, replace={})
    cfg.model.update(backbone=backbone)
    detector = config.build(cfg.model, 'mmdet')
    assert type(detector.backbone) is mmpretrain.models.backbones.ResNet
    outputs = detector.extract_feat(torch.randn(1, 3, 64, 64))
    sum(out.mean() for out in outputs).backward()
    assert len(repl_mm.plan_of(detector.backbone).slots) == 4


@pytest.mark.parametrize('end2end', [False, True])
def test_a_classifier_of_mmpretrain_leaves_as_a_file(end2end, tmp_path):
    """Up to its logits, with which its own head predicts, or up to the probabilities."""
    cfg = dict(
        type='ImageClassifier',
        data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True, num_classes=7),
        backbone=dict(type='RepLResNet', depth=18, replace=dict()),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=7, in_channels=512, topk=(1,)),
    )
    model, other = (config.build(ConfigDict(cfg), 'mmpretrain') for _ in range(2))
    for net in (model, other):
        net.eval()
    record = export(model, tmp_path / 'net.onnx', (64, 64), end2end=end2end)
    assert record['kind'] == 'classifier' and record['preprocessing']['bgr_to_rgb'] is True
    images = torch.randn(2, 3, 64, 64)
    wanted = torch.stack([sample.pred_score for sample in model(images, mode='predict')])
    if end2end:
        (found,) = open_file(tmp_path / 'net.onnx').run(images)
    else:
        serve(other, open_file(tmp_path / 'net.onnx'))
        found = torch.stack([sample.pred_score for sample in other(images, mode='predict')])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_classifier_of_mmpretrain_is_healed_from_pictures(tmp_path):
    """Its preprocessor, which stands beside the model, normalizes them too."""
    cfg = config.read_config('mmpretrain::resnet/resnet18_8xb32_in1k.py')
    torch.save(dict(state_dict=config.build(cfg.model, 'mmpretrain').state_dict()), tmp_path / 'stock.pth')
    cfg.model.backbone = dict(cfg.model.backbone, type='RepLResNet', replace=dict())
    for i in range(4):
        cv2.imwrite(str(tmp_path / f'{i}.png'), np.full((32, 32, 3), 60 * i, np.uint8))
    healing = healing_config(cfg, str(tmp_path / 'stock.pth'), None, steps=1, folder=str(tmp_path), shape=(32, 32))
    student = config.build(healing.model, 'mmpretrain')
    pictures = torch.full((2, 3, 32, 32), 60, dtype=torch.uint8)
    inputs = student.data_preprocessor(dict(inputs=pictures))['inputs']
    wanted = (60 - torch.tensor(cfg.data_preprocessor.mean)) / torch.tensor(cfg.data_preprocessor.std)
    torch.testing.assert_close(inputs[0, :, 0, 0], wanted)
    assert set(student(inputs, mode='loss')) == {'loss_features', 'loss_outputs'}
