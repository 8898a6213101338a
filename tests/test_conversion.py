"""Conversion of stock weights: repl_mm/conversion.py and tools/convert.py."""

import copy
import importlib.util
import re
import shutil
from pathlib import Path

import _images
import cv2
import mmcv
import mmseg
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from small import BACKBONES, REPO, build, images
from test_classification import write_cifar
from test_tools import detector, run, run_well
from torch import nn

import repl_mm
from repl_mm import conversion
from repl_mm.classification import CifarResNet, ClsDataPreprocessor, ImageClassifier, classifier_head

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
FITTED = ['basic', 'bottleneck', 'adjacent', 'full', 'v1d', 'own', 'share', 'vit', 'beit', 'swin', 'mit', 'pvt']


def stock_and_converted(settings, replace, seed=0):
    """A stock backbone whose norms and biases carry signal, and a copy of it with RepL; in train mode."""
    torch.manual_seed(seed)
    stock = build(settings)
    stock.init_weights()
    with torch.no_grad():
        for parameter in stock.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    stock.train()
    backbone = copy.deepcopy(stock)
    repl_mm.apply_repl(backbone, **replace)
    return stock, backbone


@pytest.mark.parametrize(('name', 'words'), [*((name, {}) for name in FITTED), ('vit', dict(operator='half'))])
def test_computing_layers_come_nearer_to_the_stock_network_and_nothing_else_changes(name, words):
    settings, replace = BACKBONES[name]
    stock, backbone = stock_and_converted(settings, {**replace, **words})
    before = copy.deepcopy(backbone.state_dict())
    trained = {key: p.requires_grad for key, p in backbone.named_parameters()}
    modes = [module.training for module in backbone.modules()]
    errors = conversion.convert(backbone, stock, images(32), block_steps=20, steps=20, batch=8)

    layers = dict(repl_mm.computing_layers(backbone))
    assert [error.name for error in errors] == [*layers, 'outputs']
    assert errors[-1].after < errors[-1].before
    changed = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(key.startswith(tuple(f'{layer}.repl.' for layer in layers)) for key in changed)
    assert trained == {key: p.requires_grad for key, p in backbone.named_parameters()}
    assert modes == [module.training for module in backbone.modules()]
    assert all(p.grad is None for p in backbone.parameters())
    assert not backbone._forward_hooks and all(not module._forward_hooks for module in stock.modules())


def test_removed_blocks_leave_nothing_to_fit():
    stock, backbone = stock_and_converted(*BACKBONES['remove'])
    assert conversion.convert(backbone, stock, images(16)) == []


def test_a_block_that_a_computing_layer_can_express_is_found():
    """``relu(x + K x)``: a block whose first convolution passes on what is positive, and whose norms do nothing."""
    torch.manual_seed(0)
    stock = CifarResNet(20, base_channels=4)
    stock.init_weights()
    block = stock.layer2[1]
    for norm in (block.bn1, block.bn2):
        norm.eps = 0.0
    nn.init.dirac_(block.conv1.weight)
    nn.init.normal_(block.conv2.weight, std=0.2)
    backbone = copy.deepcopy(stock)
    repl_mm.apply_repl(backbone, slots=[(1, 1)], mode='own', operator='conv')
    errors = conversion.convert(backbone, stock, images(64, 32), block_steps=400, steps=0, batch=32, lr=0.08)
    assert [error.name for error in errors] == ['layer2.1', 'outputs']
    assert errors[0].after < 0.05 and errors[1].after < 0.1 and min(error.before for error in errors) > 0.9


def test_a_classifiers_answers_alone_are_learned():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 6, 5).double()
    p, q = (targets / 3).softmax(1), (logits / 3).softmax(1)
    torch.testing.assert_close(conversion.divergence(logits, targets, 3), 9 * (p * (p / q).log()).sum() / 6)

    stock, backbone = stock_and_converted(*BACKBONES['basic'])
    x, steps = images(32), dict(block_steps=0, steps=30, batch=8)

    def error(net):
        stock.eval(), net.eval()
        with torch.no_grad():
            return conversion.divergence(head(net(x)), head(stock(x)))

    def head(outputs):
        return outputs[-1].mean((2, 3)) * 3

    before, state = error(backbone), copy.deepcopy(backbone.state_dict())
    conversion.convert(backbone, stock, x, **steps, head=lambda outputs: 0 * head(outputs), answers=True)
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())  # nothing to learn
    conversion.convert(backbone, stock, x, **steps, head=head, answers=True)
    assert error(backbone) < before
    with pytest.raises(ValueError, match='answers=True is not valid without a head'):
        conversion.convert(backbone, stock, x, **steps, answers=True)


def test_errors_are_relative_to_leaving_the_blocks_out():
    stock, backbone = stock_and_converted(BACKBONES['basic'][0], dict(slots=[(2, 1)], mode='own', operator='conv'))
    layer = backbone.layer3[1]
    with torch.no_grad():
        layer.repl['conv'].source.weight.zero_()  # relu(x + 0) is what leaving it out gives
    errors = conversion.convert(backbone, stock, images(16), block_steps=0, steps=0)
    assert [(error.name, error.before) for error in errors] == [
        ('layer3.1', pytest.approx(1)),
        ('outputs', pytest.approx(1)),
    ]
    assert conversion.table(errors).splitlines()[2].split() == [
        '|',
        'layer3.1',
        '|',
        '1',
        '|',
        '1.000',
        '|',
        '1.000',
        '|',
    ]


@pytest.mark.parametrize('name', ['basic', 'full', 'vit'])
@pytest.mark.parametrize('call', [2, 5])  # of 3 in the fit of the block, and 3 in the fit of all together
def test_an_interrupted_conversion_leaves_no_trace_but_fitted_weights(name, call):
    stock, backbone = stock_and_converted(*BACKBONES[name])
    # not the mode of all: mm's own frozen stages and norms, and what a user has frozen
    next(module for key, module in backbone.named_modules() if key.endswith(('bn1', 'ln1'))).eval()
    for parameter in list(backbone.parameters())[::3]:
        parameter.requires_grad_(False)
    nets = (backbone, stock)
    modes = [module.training for net in nets for module in net.modules()]
    trained = [parameter.requires_grad for net in nets for parameter in net.parameters()]
    before = copy.deepcopy(backbone.state_dict())
    assert len(set(modes)) == len(set(trained)) == 2
    calls = []

    def interrupt(module, args):
        calls.extend(args[:1] if torch.is_grad_enabled() else ())
        if len(calls) == call:
            raise KeyboardInterrupt

    layer = next(layer for _, layer in repl_mm.computing_layers(backbone))
    with layer.register_forward_pre_hook(interrupt):
        for _ in range(2):  # the second time no display of progress is in the way
            calls.clear()
            with pytest.raises(KeyboardInterrupt):
                conversion.convert(backbone, stock, images(16), block_steps=3, steps=3, batch=4)
    assert modes == [module.training for net in nets for module in net.modules()]
    assert trained == [parameter.requires_grad for net in nets for parameter in net.parameters()]
    assert all(parameter.grad is None for net in nets for parameter in net.parameters())
    assert not any(module._forward_hooks for net in nets for module in net.modules())
    assert all(module.momentum is not None for module in backbone.modules() if isinstance(module, nn.BatchNorm2d))
    after = backbone.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items() if '.repl.' not in key)


@pytest.mark.parametrize('at', ['_record', '_errors'])
def test_hooks_are_removed_where_a_network_fails(at):
    stock, backbone = stock_and_converted(*BACKBONES['basic'])
    calls = []

    def fail(module, args):
        calls.append(args)
        if at == '_record' or len(calls) > 1:  # the second time the layers are left out
            raise RuntimeError('out of memory')

    target = stock.conv1 if at == '_record' else backbone.conv1
    handle = target.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match='out of memory'):
        conversion.convert(backbone, stock, images(16), block_steps=1, steps=1)
    handle.remove()
    assert not any(module._forward_hooks for net in (stock, backbone) for module in net.modules())
    assert all(parameter.requires_grad for parameter in backbone.layer4.parameters())


def test_modes_of_submodules_are_kept():
    """``train()`` of the whole backbone would set a norm, which a user has put into eval mode, to train mode."""
    stock, backbone = stock_and_converted(dict(BACKBONES['basic'][0], norm_eval=False), BACKBONES['basic'][1])
    backbone.layer3[0].bn2.eval()
    stock.eval()
    conversion.convert(backbone, stock, images(16), block_steps=1, steps=1)
    assert backbone.training and backbone.layer3[0].bn1.training and not backbone.layer3[0].bn2.training
    assert not any(module.training for module in stock.modules())


def test_too_few_images_are_refused_before_anything_is_changed():
    stock, backbone = stock_and_converted(*BACKBONES['full'])
    before = copy.deepcopy(backbone.state_dict())
    with pytest.raises(ValueError, match='images: 7 are too few, expected at least 8') as error:
        conversion.convert(backbone, stock, images(7), block_steps=1, steps=1)
    assert '\n' not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    errors = conversion.convert(backbone, stock, images(8), block_steps=1, steps=1)
    assert all(np.isfinite([error.before, error.after]).all() for error in errors)


def test_a_folded_backbone_is_fitted_as_it_is():
    stock, backbone = stock_and_converted(*BACKBONES['basic'])
    backbone.eval()
    other = copy.deepcopy(backbone)
    repl_mm.fold(backbone)
    results = []
    for net in (other, backbone):
        torch.manual_seed(0)
        results.append(conversion.convert(net, stock, images(16), block_steps=3, steps=3))
    assert results[0] == results[1]


class ResNet(CifarResNet):
    """ResNet-32 with its linear layer, named as in the public weights."""

    def __init__(self):
        super().__init__(depth=32)
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        return self.linear(super().forward(x)[0].mean((2, 3)))


@torch.no_grad()
def accuracy(net, images, labels):
    hits = [int((net(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True)]
    return sum(hits) / len(labels)


def cifar_tiles(folder, split, num):
    """The first images of each class, normalized, and their labels."""
    images, labels = [], []
    for file in sorted((folder / 'cifar10').glob(f'{split}_*.webp')):
        mosaic = cv2.imread(str(file))[..., ::-1]
        tiles = mosaic.reshape(mosaic.shape[0] // 32, 32, 50, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
        images.append((torch.tensor(tiles[:num]).float() / 255 - MEAN) / STD)
        labels += [int(file.stem.split('_')[1])] * num
    return torch.cat(images), torch.tensor(labels)


# ---- tools/convert.py ----


def timm_names(state):
    """The tensors of mmseg's VisionTransformer by timm's names."""
    names = {
        'patch_embed.projection': 'patch_embed.proj',
        'layers.': 'blocks.',
        '.ln1.': '.norm1.',
        '.ln2.': '.norm2.',
    }
    names |= {'attn.attn.in_proj_': 'attn.qkv.', 'attn.attn.out_proj': 'attn.proj'}
    names |= {'ffn.layers.0.0': 'mlp.fc1', 'ffn.layers.1': 'mlp.fc2'}
    found = {}
    for key, value in state.items():
        key = f'norm{key[3:]}' if key.startswith('ln1.') else key
        for ours, timm in names.items():
            key = key.replace(ours, timm)
        found[key] = value
    return found


CLASSIFIER = """
_base_ = '{root}/configs/classification/{base}.py'
model = dict(backbone=dict({backbone}), in_channels={channels})
custom_hooks = []
"""
CONFIGS = dict(
    resnet=dict(base='resnet32_repl_cifar10', backbone='depth=20, base_channels=4', channels=16),
    vit=dict(base='vit-s_repl_cifar10', backbone='embed_dims=16, num_heads=2, num_layers=6', channels=16),
)


@pytest.fixture
def pictures(tmp_path):
    """A folder with 20 pictures, in folders and of different sizes."""
    for i in range(20):
        file = tmp_path / 'pictures' / f'folder {i % 2}' / f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        mmcv.imwrite(np.random.default_rng(i).integers(0, 255, (30 + i, 60 - i, 3), np.uint8), str(file))
    return tmp_path / 'pictures'


def write_config(tmp_path, name):
    file = tmp_path / f'{name}.py'
    file.write_text(CLASSIFIER.format(root=REPO, **CONFIGS[name]))
    return file


def build_model(config, stock=False):
    """The model of a config, with RepL or without; of one seed, initialized."""
    cfg = Config.fromfile(config)
    if stock:
        cfg.model.backbone.type = cfg.model.backbone.type.removeprefix('RepL')
        cfg.model.backbone.pop('replace', None)
        cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    model.init_weights()
    return model


NAMES = {
    'mm model': lambda model: dict(state_dict=model.state_dict()),
    'data parallel, head called linear': lambda model: dict(
        state_dict={f'module.{k}': v for k, v in model.backbone.state_dict().items()}
        | {f'module.linear.{k}': v for k, v in model.head.state_dict().items()}
    ),
    'timm': lambda model: dict(
        model=timm_names(model.backbone.state_dict()) | {f'head.{k}': v for k, v in model.head.state_dict().items()}
    ),
}


@pytest.mark.parametrize(
    ('config', 'names'), [('resnet', 'mm model'), ('resnet', 'data parallel, head called linear'), ('vit', 'timm')]
)
def test_a_classifier_is_converted_fitted_and_loads(config, names, pictures, tmp_path):
    config = write_config(tmp_path, config)
    stock = build_model(config, stock=True)
    torch.save(NAMES[names](stock), tmp_path / 'stock.pth')
    options = ['--fit', pictures, '--shape', 32, 32, '--steps', 3, '--block-steps', 3, '--batch', 4]
    log = run_well('convert.py', 'stock.pth', config, 'new/out.pth', *options, cwd=tmp_path)
    assert 'RepL plan of' in log and re.search(r'\| outputs +\| +1 \|', log) and 'on 2 held-out images' in log
    assert 'no place' not in log

    model = build_model(config)
    start = model.state_dict()
    state = torch.load(tmp_path / 'new' / 'out.pth', weights_only=True)['state_dict']
    assert set(state) == set(start)
    kept = {key for key in stock.state_dict() if key in state}
    assert 'head.weight' in kept and len(kept) > 20
    assert all(torch.equal(state[key], stock.state_dict()[key]) for key in kept)
    assert any('.repl.' in key and not torch.equal(state[key], start[key]) for key in state)  # fitted


def test_the_datasets_own_images_and_a_stock_config(tmp_path):
    """CIFAR-10 is no folder of pictures; with a stock config the tool gives mm's names only."""
    write_cifar(tmp_path / 'data')
    config = write_config(tmp_path, 'resnet')
    stock = build_model(config, stock=True)
    torch.save(stock.backbone.state_dict(), tmp_path / 'stock.pth')
    options = ['--fit', 'data', '--num', 24, '--steps', 2, '--block-steps', 2]
    assert 'on 3 held-out images' in run_well('convert.py', 'stock.pth', config, 'out.pth', *options, cwd=tmp_path)
    done = run('convert.py', 'stock.pth', config, 'out.pth', *options, '--answers', cwd=tmp_path)
    assert "--answers: 'stock.pth' has no head" in done.stderr.strip().splitlines()[-1] and done.returncode == 1
    torch.save(stock.state_dict(), tmp_path / 'whole.pth')
    run_well('convert.py', 'whole.pth', config, 'out.pth', *options, '--answers', cwd=tmp_path)

    plain = tmp_path / 'plain.py'
    plain.write_text(config.read_text().replace('_repl_', '_'))
    run_well('convert.py', 'stock.pth', plain, 'plain.pth', cwd=tmp_path)
    state = torch.load(tmp_path / 'plain.pth', weights_only=True)['state_dict']
    assert set(state) == {f'backbone.{key}' for key in stock.backbone.state_dict()}


@pytest.mark.parametrize('name', ['resnet32_repl_cifar10', 'resnet32_repl_cifar10_converted'])
def test_logits_count_in_the_fit_whether_or_not_there_is_a_teacher(name):
    cfg = Config.fromfile(REPO / 'configs' / 'classification' / f'{name}.py')
    torch.manual_seed(0)
    weight, bias, features = torch.randn(10, 64), torch.randn(10), torch.randn(2, 64, 8, 8)
    head = classifier_head(cfg, {'head.weight': weight, 'head.bias': bias})
    torch.testing.assert_close(head((features,)), features.mean((2, 3)) @ weight.T + bias)
    assert classifier_head(cfg, {'head.weight': weight[:5], 'head.bias': bias[:5]}) is None


@pytest.mark.parametrize('kind', ['repl_mm.ImageClassifier', ImageClassifier])
def test_a_classifier_is_known_by_its_class(kind):
    cfg = Config.fromfile(REPO / 'configs' / 'classification' / 'resnet32_repl_cifar10.py')
    weights = {'head.weight': torch.zeros(10, 64), 'head.bias': torch.arange(10.0)}
    cfg.model.type = kind
    assert torch.equal(classifier_head(cfg, weights)((torch.randn(1, 64, 8, 8),)), weights['head.bias'][None])
    cfg.model.type = 'mmengine.BaseModel'
    assert classifier_head(cfg, weights) is None


def preprocessors():
    """Ways to say in a config how pictures are normalized, and whether they become RGB."""
    mean, std = [10, 20, 30], [1, 2, 4]
    yield 'repl_mm', dict(type='ClsDataPreprocessor', mean=mean, std=std), True
    yield 'repl_mm', dict(type='repl_mm.ClsDataPreprocessor', mean=mean, std=std), True
    yield None, dict(type='repl_mm.ClsDataPreprocessor', mean=mean, std=std), True
    yield None, dict(type=ClsDataPreprocessor, mean=mean, std=std), True
    for scope, kind in (('mmdet', 'DetDataPreprocessor'), ('mmdet', 'mmseg.SegDataPreprocessor')):
        yield scope, dict(type=kind, mean=mean, std=std, bgr_to_rgb=True), True
        yield scope, dict(type=kind, mean=mean, std=std), False
    inner = dict(type='DetDataPreprocessor', mean=mean, std=std, bgr_to_rgb=True)
    yield 'mmdet', dict(type='MultiBranchDataPreprocessor', data_preprocessor=inner), True


@pytest.mark.parametrize(('scope', 'settings', 'rgb'), list(preprocessors()))
def test_pictures_are_normalized_as_the_model_does_it(scope, settings, rgb):
    pictures = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    cfg = Config(dict(default_scope=scope, model=dict(data_preprocessor=settings)))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([10, 20, 30], [1, 2, 4]))
    expected = ((pictures.flip(1) if rgb else pictures) - mean) / std
    with DefaultScope.overwrite_default_scope(scope):
        torch.testing.assert_close(_images.normalize(cfg, pictures), expected)


def test_pictures_get_the_size_that_the_preprocessor_gives_them():
    settings = dict(type='repl_mm.ClsDataPreprocessor', mean=[0, 0, 0], std=[1, 1, 1], size=8)
    cfg = Config(dict(model=dict(data_preprocessor=settings)))
    assert _images.normalize(cfg, torch.zeros(2, 3, 4, 4, dtype=torch.uint8)).shape == (2, 3, 8, 8)


def test_a_picture_covers_the_shape_and_is_cropped(tmp_path):
    from repl_mm import pictures

    for height, width in ((30, 41), (41, 30), (32, 48), (7, 3)):
        mmcv.imwrite(np.full((height, width, 3), (1, 2, 3), np.uint8), str(tmp_path / 'x.png'))
        image = pictures.covering(pictures.read_image(tmp_path / 'x.png'), (32, 48))
        assert image.shape == (3, 32, 48) and image.dtype == torch.uint8
        assert image[:, 5, 5].tolist() == [1, 2, 3]


def test_a_whole_detector_is_converted_and_tested(mini_coco, tmp_path):
    """The neck and the head are taken over, and tools/test.py reads the result."""
    config = detector(tmp_path)
    stock = build_model(config, stock=True)
    torch.save(dict(state_dict=stock.state_dict()), tmp_path / 'stock.pth')
    options = ['--shape', 64, 64, '--num', 16, '--steps', 2, '--block-steps', 2]
    many = tmp_path / 'many'
    for i in range(2):
        shutil.copytree(mini_coco, many / str(i))
    run_well('convert.py', 'stock.pth', config, 'out.pth', '--fit', many, *options, cwd=tmp_path)
    state = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']
    rest = [key for key in stock.state_dict() if not key.startswith('backbone.')]
    assert rest and all(torch.equal(state[key], stock.state_dict()[key]) for key in rest)
    log = run_well('test.py', config, 'out.pth', '--data-root', mini_coco, cwd=tmp_path)
    assert 'RepL: weights of the same plan' in log


@pytest.mark.parametrize(
    ('stock', 'options', 'message'),
    [
        ('nowhere.pth', [], "checkpoint 'nowhere.pth' not found"),
        ('partial.pth', [], r"'partial.pth' has no values for \d+ of \d+ tensors of the stock CifarResNet \(layer3.0"),
        ('stock.pth', ['--fit', 'nowhere'], "--fit 'nowhere': no such folder"),
        ('stock.pth', ['--fit', 'few'], "'few': 5 images, expected at least 16"),
        ('stock.pth', ['--fit', 'broken'], "'broken/x.png' is cut off or no picture"),
        ('stock.pth', ['--cfg-options', 'model.backbone.replace.every=0'], 'replace.every=0 is not valid'),
        ('stock.pth', ['--cfg-options', 'model.backbone.replace=3'], 'replace=3 is not valid: expected a dict'),
        (
            'stock.pth',
            ['--cfg-options', 'model.backbone=3'],
            'the model of the config has no backbone: expected a dict with a type',
        ),
        ('broken/x.png', [], "'broken/x.png' is no checkpoint, or holds more than weights"),
        ('list.pth', [], "'list.pth' holds list: expected tensors by name"),
        # without torchvision its names say nothing, with it there is no network
        ('torchvision://resnet50', [], "'torchvision://resnet50' cannot be had: .*(No module named|urlopen)"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(stock, options, message, pictures, tmp_path):
    config = write_config(tmp_path, 'resnet')
    state = build_model(config, stock=True).backbone.state_dict()
    torch.save(state, tmp_path / 'stock.pth')
    torch.save([], tmp_path / 'list.pth')
    torch.save({key: value for key, value in state.items() if 'layer3' not in key}, tmp_path / 'partial.pth')
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken' / 'x.png').write_text('no picture')
    (tmp_path / 'few').mkdir()
    for file in sorted(pictures.rglob('*.png'))[:5]:
        file.rename(tmp_path / 'few' / file.name)
    done = run('convert.py', stock, config, 'out.pth', *options, cwd=tmp_path)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert re.search(message, done.stderr.strip().splitlines()[-1])
    assert not (tmp_path / 'out.pth').exists()


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--batch', 0], '--batch 0: must be at least 1'),
        (['--steps', -1], '--steps -1: must be at least 0'),
        (['--num', 0], '--num 0: must be at least 16'),
        (['--lr', -0.1], 'argument --lr: -0.1 is not valid: expected a number above 0'),
        (['--lr', 'nan'], 'argument --lr: nan is not valid: expected a number above 0'),
    ],
)
def test_a_number_out_of_range_is_named(words, message, tmp_path):
    done = run('convert.py', 'stock.pth', 'config.py', 'out.pth', *words, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr


@pytest.mark.real_data
@pytest.mark.slow
def test_real_weights_keep_their_accuracy(shared_data):
    """ResNet-32 on CIFAR-10 (92.6 %), 6 of 15 blocks replaced: about 21 % without them."""
    state = torch.load(shared_data / 'weights' / 'cifar10_resnet32-d509ac18.th', map_location='cpu')['state_dict']
    stock = ResNet()
    stock.load_state_dict({key.removeprefix('module.'): value for key, value in state.items()})
    net = copy.deepcopy(stock)
    repl_mm.apply_repl(net, operator='conv', fusion=dict(type='mix', groups=1))
    fitted, tested = (cifar_tiles(shared_data, split, 40) for split in ('train', 'test'))
    torch.manual_seed(0)
    conversion.convert(net, stock, fitted[0][torch.randperm(400)], block_steps=100, steps=60)
    assert accuracy(stock.eval(), *tested) > 0.88
    assert accuracy(net.eval(), *tested) > 0.78


@pytest.mark.real_data
def test_real_timm_weights_give_what_mmsegs_converter_gives(shared_data, tmp_path):
    weights = shared_data / 'weights' / 'deit_tiny_patch16_224_from_mat.pth'
    path = Path(mmseg.__file__).parent / '.mim' / 'tools' / 'model_converters' / 'vit2mmseg.py'
    spec = importlib.util.spec_from_file_location('vit2mmseg', path)
    converter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(converter)
    expected = converter.convert_vit(torch.load(weights, map_location='cpu')['model'])
    out = run_well('convert.py', weights, REPO / 'configs' / 'segvit_t_repl_camvid.py', 'out.pth', cwd=tmp_path)
    assert '4 of 12 blocks replaced' in out and 'no place' not in out
    state = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']
    kept = [key for key in expected if f'backbone.{key}' in state]
    dropped = {key for key in expected if re.match(r'layers\.(1|4|7|10)\.', key)}
    assert len(dropped) == 4 * 12 and set(expected) - set(kept) == dropped
    assert all(torch.equal(state[f'backbone.{key}'], expected[key]) for key in kept)
