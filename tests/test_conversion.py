from repl_mm.pictures import covering, read_image
"""Conversion of stock weights: repl_mm/conversion.py and tools/convert.py."""
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
import copy
from repl_mm.pictures import covering, read_image
import importlib.util
from repl_mm.pictures import covering, read_image
import re
from repl_mm.pictures import covering, read_image
import shutil
from repl_mm.pictures import covering, read_image
from pathlib import Path
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
import _trained
from repl_mm.pictures import covering, read_image
import cv2
from repl_mm.pictures import covering, read_image
import mmcv
from repl_mm.pictures import covering, read_image
import mmseg
from repl_mm.pictures import covering, read_image
import numpy as np
from repl_mm.pictures import covering, read_image
import pytest
from repl_mm.pictures import covering, read_image
import torch
from repl_mm.pictures import covering, read_image
from mmengine.config import Config
from repl_mm.pictures import covering, read_image
from mmengine.registry import MODELS, DefaultScope
from repl_mm.pictures import covering, read_image
from small import BACKBONES, REPO, build, images
from repl_mm.pictures import covering, read_image
from test_classification import write_cifar
from repl_mm.pictures import covering, read_image
from test_tools import detector, run, run_well
from repl_mm.pictures import covering, read_image
from torch import nn
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
import repl_mm
from repl_mm.pictures import covering, read_image
from repl_mm import conversion
from repl_mm.pictures import covering, read_image
from repl_mm.classification import CifarResNet, ClsDataPreprocessor, ImageClassifier, classifier_head
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
from repl_mm.pictures import covering, read_image
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
from repl_mm.pictures import covering, read_image
FITTED = ['basic', 'bottleneck', 'adjacent', 'full', 'v1d', 'own', 'share', 'vit', 'beit', 'swin', 'mit', 'pvt']
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
def stock_and_converted(settings, replace, seed=0):
from repl_mm.pictures import covering, read_image
    """A stock backbone whose norms and biases carry signal, and a copy of it with RepL; in train mode."""
from repl_mm.pictures import covering, read_image
    torch.manual_seed(seed)
from repl_mm.pictures import covering, read_image
    stock = build(settings)
from repl_mm.pictures import covering, read_image
    stock.init_weights()
from repl_mm.pictures import covering, read_image
    with torch.no_grad():
from repl_mm.pictures import covering, read_image
        for parameter in stock.parameters():
from repl_mm.pictures import covering, read_image
            if parameter.dim() == 1:
from repl_mm.pictures import covering, read_image
                parameter.add_(torch.randn_like(parameter) * 0.2)
from repl_mm.pictures import covering, read_image
    stock.train()
from repl_mm.pictures import covering, read_image
    backbone = copy.deepcopy(stock)
from repl_mm.pictures import covering, read_image
    repl_mm.apply_repl(backbone, **replace)
from repl_mm.pictures import covering, read_image
    return stock, backbone
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
@pytest.mark.parametrize('name', FITTED)
from repl_mm.pictures import covering, read_image
def test_computing_layers_come_nearer_to_the_stock_network_and_nothing_else_changes(name):
from repl_mm.pictures import covering, read_image
    stock, backbone = stock_and_converted(*BACKBONES[name])
from repl_mm.pictures import covering, read_image
    before = copy.deepcopy(backbone.state_dict())
from repl_mm.pictures import covering, read_image
    trained = {key: p.requires_grad for key, p in backbone.named_parameters()}
from repl_mm.pictures import covering, read_image
    modes = [module.training for module in backbone.modules()]
from repl_mm.pictures import covering, read_image
    errors = conversion.convert(backbone, stock, images(32), block_steps=20, steps=20, batch=8)
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
    layers = dict(repl_mm.computing_layers(backbone))
from repl_mm.pictures import covering, read_image
    assert [error.name for error in errors] == [*layers, 'outputs']
from repl_mm.pictures import covering, read_image
    assert errors[-1].after < errors[-1].before
from repl_mm.pictures import covering, read_image
    changed = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
from repl_mm.pictures import covering, read_image
    assert changed and all(key.startswith(tuple(f'{layer}.repl.' for layer in layers)) for key in changed)
from repl_mm.pictures import covering, read_image
    assert trained == {key: p.requires_grad for key, p in backbone.named_parameters()}
from repl_mm.pictures import covering, read_image
    assert modes == [module.training for module in backbone.modules()]
from repl_mm.pictures import covering, read_image
    assert all(p.grad is None for p in backbone.parameters())
from repl_mm.pictures import covering, read_image
    assert not backbone._forward_hooks and all(not module._forward_hooks for module in stock.modules())
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
def test_removed_blocks_leave_nothing_to_fit():
from repl_mm.pictures import covering, read_image
    stock, backbone = stock_and_converted(*BACKBONES['remove'])
from repl_mm.pictures import covering, read_image
    assert conversion.convert(backbone, stock, images(16)) == []
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
def test_a_block_that_a_computing_layer_can_express_is_found():
from repl_mm.pictures import covering, read_image
    """``relu(x + K x)``: a block whose first convolution passes on what is positive, and whose norms do nothing."""
from repl_mm.pictures import covering, read_image
    torch.manual_seed(0)
from repl_mm.pictures import covering, read_image
    stock = CifarResNet(20, base_channels=4)
from repl_mm.pictures import covering, read_image
    stock.init_weights()
from repl_mm.pictures import covering, read_image
    block = stock.layer2[1]
from repl_mm.pictures import covering, read_image
    for norm in (block.bn1, block.bn2):
from repl_mm.pictures import covering, read_image
        norm.eps = 0.0
from repl_mm.pictures import covering, read_image
    nn.init.dirac_(block.conv1.weight)
from repl_mm.pictures import covering, read_image
    nn.init.normal_(block.conv2.weight, std=0.2)
from repl_mm.pictures import covering, read_image
    backbone = copy.deepcopy(stock)
from repl_mm.pictures import covering, read_image
    repl_mm.apply_repl(backbone, slots=[(1, 1)], mode='own', operator='conv')
from repl_mm.pictures import covering, read_image
    errors = conversion.convert(backbone, stock, images(64, 32), block_steps=400, steps=0, batch=32)
from repl_mm.pictures import covering, read_image
    assert [error.name for error in errors] == ['layer2.1', 'outputs']
from repl_mm.pictures import covering, read_image
    assert errors[0].after < 0.05 and errors[1].after < 0.1 and min(error.before for error in errors) > 0.9
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
def test_errors_are_relative_to_leaving_the_blocks_out():
from repl_mm.pictures import covering, read_image
    stock, backbone = stock_and_converted(BACKBONES['basic'][0], dict(slots=[(2, 1)], mode='own', operator='conv'))
from repl_mm.pictures import covering, read_image
    layer = backbone.layer3[1]
from repl_mm.pictures import covering, read_image
    with torch.no_grad():
from repl_mm.pictures import covering, read_image
        layer.repl['conv'].source.weight.zero_()  # relu(x + 0) is what leaving it out gives
from repl_mm.pictures import covering, read_image
    errors = conversion.convert(backbone, stock, images(16), block_steps=0, steps=0)
from repl_mm.pictures import covering, read_image
    assert [(error.name, error.before) for error in errors] == [
from repl_mm.pictures import covering, read_image
        ('layer3.1', pytest.approx(1)),
from repl_mm.pictures import covering, read_image
        ('outputs', pytest.approx(1)),
from repl_mm.pictures import covering, read_image
    ]
from repl_mm.pictures import covering, read_image
    assert conversion.table(errors).splitlines()[2].split() == [
from repl_mm.pictures import covering, read_image
        '|',
from repl_mm.pictures import covering, read_image
        'layer3.1',
from repl_mm.pictures import covering, read_image
        '|',
from repl_mm.pictures import covering, read_image
        '1',
from repl_mm.pictures import covering, read_image
        '|',
from repl_mm.pictures import covering, read_image
        '1.000',
from repl_mm.pictures import covering, read_image
        '|',
from repl_mm.pictures import covering, read_image
        '1.000',
from repl_mm.pictures import covering, read_image
        '|',
from repl_mm.pictures import covering, read_image
    ]
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
@pytest.mark.parametrize('name', ['basic', 'full', 'vit'])
from repl_mm.pictures import covering, read_image
@pytest.mark.parametrize('call', [2, 5])  # of 3 in the fit of the block, and 3 in the fit of all together
from repl_mm.pictures import covering, read_image
def test_an_interrupted_conversion_leaves_no_trace_but_fitted_weights(name, call):
from repl_mm.pictures import covering, read_image
    stock, backbone = stock_and_converted(*BACKBONES[name])
from repl_mm.pictures import covering, read_image
    # not the mode of all: mm's own frozen stages and norms, and what a user has frozen
from repl_mm.pictures import covering, read_image
    next(module for key, module in backbone.named_modules() if key.endswith(('bn1', 'ln1'))).eval()
from repl_mm.pictures import covering, read_image
    for parameter in list(backbone.parameters())[::3]:
from repl_mm.pictures import covering, read_image
        parameter.requires_grad_(False)
from repl_mm.pictures import covering, read_image
    nets = (backbone, stock)
from repl_mm.pictures import covering, read_image
    modes = [module.training for net in nets for module in net.modules()]
from repl_mm.pictures import covering, read_image
    trained = [parameter.requires_grad for net in nets for parameter in net.parameters()]
from repl_mm.pictures import covering, read_image
    before = copy.deepcopy(backbone.state_dict())
from repl_mm.pictures import covering, read_image
    assert len(set(modes)) == len(set(trained)) == 2
from repl_mm.pictures import covering, read_image
    calls = []
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
    def interrupt(module, args):
from repl_mm.pictures import covering, read_image
        calls.extend(args[:1] if torch.is_grad_enabled() else ())
from repl_mm.pictures import covering, read_image
        if len(calls) == call:
from repl_mm.pictures import covering, read_image
            raise KeyboardInterrupt
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
    layer = next(layer for _, layer in repl_mm.computing_layers(backbone))
from repl_mm.pictures import covering, read_image
    with layer.register_forward_pre_hook(interrupt):
from repl_mm.pictures import covering, read_image
        for _ in range(2):  # the second time no display of progress is in the way
from repl_mm.pictures import covering, read_image
            calls.clear()
from repl_mm.pictures import covering, read_image
            with pytest.raises(KeyboardInterrupt):
from repl_mm.pictures import covering, read_image
                conversion.convert(backbone, stock, images(16), block_steps=3, steps=3, batch=4)
from repl_mm.pictures import covering, read_image
    assert modes == [module.training for net in nets for module in net.modules()]
from repl_mm.pictures import covering, read_image
    assert trained == [parameter.requires_grad for net in nets for parameter in net.parameters()]
from repl_mm.pictures import covering, read_image
    assert all(parameter.grad is None for net in nets for parameter in net.parameters())
from repl_mm.pictures import covering, read_image
    assert not any(module._forward_hooks for net in nets for module in net.modules())
from repl_mm.pictures import covering, read_image
    assert all(module.momentum is not None for module in backbone.modules() if isinstance(module, nn.BatchNorm2d))
from repl_mm.pictures import covering, read_image
    after = backbone.state_dict()
from repl_mm.pictures import covering, read_image
    assert all(torch.equal(after[key], value) for key, value in before.items() if '.repl.' not in key)
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
@pytest.mark.parametrize('at', ['_record', '_errors'])
from repl_mm.pictures import covering, read_image
def test_hooks_are_removed_where_a_network_fails(at):
from repl_mm.pictures import covering, read_image
    stock, backbone = stock_and_converted(*BACKBONES['basic'])
from repl_mm.pictures import covering, read_image
    calls = []
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
    def fail(module, args):
from repl_mm.pictures import covering, read_image
        calls.append(args)
from repl_mm.pictures import covering, read_image
        if at == '_record' or len(calls) > 1:  # the second time the layers are left out
from repl_mm.pictures import covering, read_image
            raise RuntimeError('out of memory')
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
    target = stock.conv1 if at == '_record' else backbone.conv1
from repl_mm.pictures import covering, read_image
    handle = target.register_forward_pre_hook(fail)
from repl_mm.pictures import covering, read_image
    with pytest.raises(RuntimeError, match='out of memory'):
from repl_mm.pictures import covering, read_image
        conversion.convert(backbone, stock, images(16), block_steps=1, steps=1)
from repl_mm.pictures import covering, read_image
    handle.remove()
from repl_mm.pictures import covering, read_image
    assert not any(module._forward_hooks for net in (stock, backbone) for module in net.modules())
from repl_mm.pictures import covering, read_image
    assert all(parameter.requires_grad for parameter in backbone.layer4.parameters())
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
def test_modes_of_submodules_are_kept():
from repl_mm.pictures import covering, read_image
    """``train()`` of the whole backbone would set a norm, which a user has put into eval mode, to train mode."""
from repl_mm.pictures import covering, read_image
    stock, backbone = stock_and_converted(dict(BACKBONES['basic'][0], norm_eval=False), BACKBONES['basic'][1])
from repl_mm.pictures import covering, read_image
    backbone.layer3[0].bn2.eval()
from repl_mm.pictures import covering, read_image
    stock.eval()
from repl_mm.pictures import covering, read_image
    conversion.convert(backbone, stock, images(16), block_steps=1, steps=1)
from repl_mm.pictures import covering, read_image
    assert backbone.training and backbone.layer3[0].bn1.training and not backbone.layer3[0].bn2.training
from repl_mm.pictures import covering, read_image
    assert not any(module.training for module in stock.modules())
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
def test_too_few_images_are_refused_before_anything_is_changed():
from repl_mm.pictures import covering, read_image
    stock, backbone = stock_and_converted(*BACKBONES['full'])
from repl_mm.pictures import covering, read_image
    before = copy.deepcopy(backbone.state_dict())
from repl_mm.pictures import covering, read_image
    with pytest.raises(ValueError, match='images: 7 are too few, expected at least 8') as error:
from repl_mm.pictures import covering, read_image
        conversion.convert(backbone, stock, images(7), block_steps=1, steps=1)
from repl_mm.pictures import covering, read_image
    assert '\n' not in str(error.value)
from repl_mm.pictures import covering, read_image
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
from repl_mm.pictures import covering, read_image
    errors = conversion.convert(backbone, stock, images(8), block_steps=1, steps=1)
from repl_mm.pictures import covering, read_image
    assert all(np.isfinite([error.before, error.after]).all() for error in errors)
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
def test_a_folded_backbone_is_fitted_as_it_is():
from repl_mm.pictures import covering, read_image
    stock, backbone = stock_and_converted(*BACKBONES['basic'])
from repl_mm.pictures import covering, read_image
    backbone.eval()
from repl_mm.pictures import covering, read_image
    other = copy.deepcopy(backbone)
from repl_mm.pictures import covering, read_image
    repl_mm.fold(backbone)
from repl_mm.pictures import covering, read_image
    results = []
from repl_mm.pictures import covering, read_image
    for net in (other, backbone):
from repl_mm.pictures import covering, read_image
        torch.manual_seed(0)
from repl_mm.pictures import covering, read_image
        results.append(conversion.convert(net, stock, images(16), block_steps=3, steps=3))
from repl_mm.pictures import covering, read_image
    assert results[0] == results[1]
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
class ResNet(CifarResNet):
from repl_mm.pictures import covering, read_image
    """ResNet-32 with its linear layer, named as in the public weights."""
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
    def __init__(self):
from repl_mm.pictures import covering, read_image
        super().__init__(depth=32)
from repl_mm.pictures import covering, read_image
        self.linear = nn.Linear(64, 10)
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
    def forward(self, x):
from repl_mm.pictures import covering, read_image
        return self.linear(super().forward(x)[0].mean((2, 3)))
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
@torch.no_grad()
from repl_mm.pictures import covering, read_image
def accuracy(net, images, labels):
from repl_mm.pictures import covering, read_image
    hits = [int((net(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True)]
from repl_mm.pictures import covering, read_image
    return sum(hits) / len(labels)
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
def cifar_tiles(folder, split, num):
from repl_mm.pictures import covering, read_image
    """The first images of each class, normalized, and their labels."""
from repl_mm.pictures import covering, read_image
    images, labels = [], []
from repl_mm.pictures import covering, read_image
    for file in sorted((folder / 'cifar10').glob(f'{split}_*.webp')):
from repl_mm.pictures import covering, read_image
        mosaic = cv2.imread(str(file))[..., ::-1]
from repl_mm.pictures import covering, read_image
        tiles = mosaic.reshape(mosaic.shape[0] // 32, 32, 50, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
from repl_mm.pictures import covering, read_image
        images.append((torch.tensor(tiles[:num]).float() / 255 - MEAN) / STD)
from repl_mm.pictures import covering, read_image
        labels += [int(file.stem.split('_')[1])] * num
from repl_mm.pictures import covering, read_image
    return torch.cat(images), torch.tensor(labels)
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
# ---- tools/convert.py ----
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
def timm_names(state):
from repl_mm.pictures import covering, read_image
    """The tensors of mmseg's VisionTransformer by timm's names."""
from repl_mm.pictures import covering, read_image
    names = {
from repl_mm.pictures import covering, read_image
        'patch_embed.projection': 'patch_embed.proj',
from repl_mm.pictures import covering, read_image
        'layers.': 'blocks.',
from repl_mm.pictures import covering, read_image
        '.ln1.': '.norm1.',
from repl_mm.pictures import covering, read_image
        '.ln2.': '.norm2.',
from repl_mm.pictures import covering, read_image
    }
from repl_mm.pictures import covering, read_image
    names |= {'attn.attn.in_proj_': 'attn.qkv.', 'attn.attn.out_proj': 'attn.proj'}
from repl_mm.pictures import covering, read_image
    names |= {'ffn.layers.0.0': 'mlp.fc1', 'ffn.layers.1': 'mlp.fc2'}
from repl_mm.pictures import covering, read_image
    found = {}
from repl_mm.pictures import covering, read_image
    for key, value in state.items():
from repl_mm.pictures import covering, read_image
        key = f'norm{key[3:]}' if key.startswith('ln1.') else key
from repl_mm.pictures import covering, read_image
        for ours, timm in names.items():
from repl_mm.pictures import covering, read_image
            key = key.replace(ours, timm)
from repl_mm.pictures import covering, read_image
        found[key] = value
from repl_mm.pictures import covering, read_image
    return found
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
CLASSIFIER = """
from repl_mm.pictures import covering, read_image
_base_ = '{root}/configs/classification/{base}.py'
from repl_mm.pictures import covering, read_image
model = dict(backbone=dict({backbone}), in_channels={channels})
from repl_mm.pictures import covering, read_image
custom_hooks = []
from repl_mm.pictures import covering, read_image
"""
from repl_mm.pictures import covering, read_image
CONFIGS = dict(
from repl_mm.pictures import covering, read_image
    resnet=dict(base='resnet32_repl_cifar10', backbone='depth=20, base_channels=4', channels=16),
from repl_mm.pictures import covering, read_image
    vit=dict(base='vit-s_repl_cifar10', backbone='embed_dims=16, num_heads=2, num_layers=6', channels=16),
from repl_mm.pictures import covering, read_image
)
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
@pytest.fixture
from repl_mm.pictures import covering, read_image
def pictures(tmp_path):
from repl_mm.pictures import covering, read_image
    """A folder with 20 pictures, in folders and of different sizes."""
from repl_mm.pictures import covering, read_image
    for i in range(20):
from repl_mm.pictures import covering, read_image
        file = tmp_path / 'pictures' / f'folder {i % 2}' / f'{i}.png'
from repl_mm.pictures import covering, read_image
        file.parent.mkdir(parents=True, exist_ok=True)
from repl_mm.pictures import covering, read_image
        mmcv.imwrite(np.random.default_rng(i).integers(0, 255, (30 + i, 60 - i, 3), np.uint8), str(file))
from repl_mm.pictures import covering, read_image
    return tmp_path / 'pictures'
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
def write_config(tmp_path, name):
from repl_mm.pictures import covering, read_image
    file = tmp_path / f'{name}.py'
from repl_mm.pictures import covering, read_image
    file.write_text(CLASSIFIER.format(root=REPO, **CONFIGS[name]))
from repl_mm.pictures import covering, read_image
    return file
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
def build_model(config, stock=False):
from repl_mm.pictures import covering, read_image
    """The model of a config, with RepL or without; of one seed, initialized."""
from repl_mm.pictures import covering, read_image
    cfg = Config.fromfile(config)
from repl_mm.pictures import covering, read_image
    if stock:
from repl_mm.pictures import covering, read_image
        cfg.model.backbone.type = cfg.model.backbone.type.removeprefix('RepL')
from repl_mm.pictures import covering, read_image
        cfg.model.backbone.pop('replace', None)
from repl_mm.pictures import covering, read_image
        cfg.model.backbone.init_cfg = None
from repl_mm.pictures import covering, read_image
    torch.manual_seed(0)
from repl_mm.pictures import covering, read_image
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
from repl_mm.pictures import covering, read_image
        model = MODELS.build(cfg.model)
from repl_mm.pictures import covering, read_image
    model.init_weights()
from repl_mm.pictures import covering, read_image
    return model
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
NAMES = {
from repl_mm.pictures import covering, read_image
    'mm model': lambda model: dict(state_dict=model.state_dict()),
from repl_mm.pictures import covering, read_image
    'data parallel, head called linear': lambda model: dict(
from repl_mm.pictures import covering, read_image
        state_dict={f'module.{k}': v for k, v in model.backbone.state_dict().items()}
from repl_mm.pictures import covering, read_image
        | {f'module.linear.{k}': v for k, v in model.head.state_dict().items()}
from repl_mm.pictures import covering, read_image
    ),
from repl_mm.pictures import covering, read_image
    'timm': lambda model: dict(
from repl_mm.pictures import covering, read_image
        model=timm_names(model.backbone.state_dict()) | {f'head.{k}': v for k, v in model.head.state_dict().items()}
from repl_mm.pictures import covering, read_image
    ),
from repl_mm.pictures import covering, read_image
}
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
@pytest.mark.parametrize(
from repl_mm.pictures import covering, read_image
    ('config', 'names'), [('resnet', 'mm model'), ('resnet', 'data parallel, head called linear'), ('vit', 'timm')]
from repl_mm.pictures import covering, read_image
)
from repl_mm.pictures import covering, read_image
def test_a_classifier_is_converted_fitted_and_loads(config, names, pictures, tmp_path):
from repl_mm.pictures import covering, read_image
    config = write_config(tmp_path, config)
from repl_mm.pictures import covering, read_image
    stock = build_model(config, stock=True)
from repl_mm.pictures import covering, read_image
    torch.save(NAMES[names](stock), tmp_path / 'stock.pth')
from repl_mm.pictures import covering, read_image
    options = ['--fit', pictures, '--shape', 32, 32, '--steps', 3, '--block-steps', 3, '--batch', 4]
from repl_mm.pictures import covering, read_image
    log = run_well('convert.py', 'stock.pth', config, 'new/out.pth', *options, cwd=tmp_path)
from repl_mm.pictures import covering, read_image
    assert 'RepL plan of' in log and re.search(r'\| outputs +\| +1 \|', log) and 'on 2 held-out images' in log
from repl_mm.pictures import covering, read_image
    assert 'no place' not in log
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
    model = build_model(config)
from repl_mm.pictures import covering, read_image
    start = model.state_dict()
from repl_mm.pictures import covering, read_image
    state = torch.load(tmp_path / 'new' / 'out.pth', weights_only=True)['state_dict']
from repl_mm.pictures import covering, read_image
    assert set(state) == set(start)
from repl_mm.pictures import covering, read_image
    kept = {key for key in stock.state_dict() if key in state}
from repl_mm.pictures import covering, read_image
    assert 'head.weight' in kept and len(kept) > 20
from repl_mm.pictures import covering, read_image
    assert all(torch.equal(state[key], stock.state_dict()[key]) for key in kept)
from repl_mm.pictures import covering, read_image
    assert any('.repl.' in key and not torch.equal(state[key], start[key]) for key in state)  # fitted
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
def test_the_datasets_own_images_and_a_stock_config(tmp_path):
from repl_mm.pictures import covering, read_image
    """CIFAR-10 is no folder of pictures; with a stock config the tool gives mm's names only."""
from repl_mm.pictures import covering, read_image
    write_cifar(tmp_path / 'data')
from repl_mm.pictures import covering, read_image
    config = write_config(tmp_path, 'resnet')
from repl_mm.pictures import covering, read_image
    stock = build_model(config, stock=True)
from repl_mm.pictures import covering, read_image
    torch.save(stock.backbone.state_dict(), tmp_path / 'stock.pth')
from repl_mm.pictures import covering, read_image
    options = ['--fit', 'data', '--num', 24, '--steps', 2, '--block-steps', 2]
from repl_mm.pictures import covering, read_image
    assert 'on 3 held-out images' in run_well('convert.py', 'stock.pth', config, 'out.pth', *options, cwd=tmp_path)
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
    plain = tmp_path / 'plain.py'
from repl_mm.pictures import covering, read_image
    plain.write_text(config.read_text().replace('_repl_', '_'))
from repl_mm.pictures import covering, read_image
    run_well('convert.py', 'stock.pth', plain, 'plain.pth', cwd=tmp_path)
from repl_mm.pictures import covering, read_image
    state = torch.load(tmp_path / 'plain.pth', weights_only=True)['state_dict']
from repl_mm.pictures import covering, read_image
    assert set(state) == {f'backbone.{key}' for key in stock.backbone.state_dict()}
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
@pytest.mark.parametrize('name', ['resnet32_repl_cifar10', 'resnet32_repl_cifar10_converted'])
from repl_mm.pictures import covering, read_image
def test_logits_count_in_the_fit_whether_or_not_there_is_a_teacher(name):
from repl_mm.pictures import covering, read_image
    cfg = Config.fromfile(REPO / 'configs' / 'classification' / f'{name}.py')
from repl_mm.pictures import covering, read_image
    torch.manual_seed(0)
from repl_mm.pictures import covering, read_image
    weight, bias, features = torch.randn(10, 64), torch.randn(10), torch.randn(2, 64, 8, 8)
from repl_mm.pictures import covering, read_image
    head = classifier_head(cfg, {'head.weight': weight, 'head.bias': bias})
from repl_mm.pictures import covering, read_image
    torch.testing.assert_close(head((features,)), features.mean((2, 3)) @ weight.T + bias)
from repl_mm.pictures import covering, read_image
    assert classifier_head(cfg, {'head.weight': weight[:5], 'head.bias': bias[:5]}) is None
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
@pytest.mark.parametrize('kind', ['repl_mm.ImageClassifier', ImageClassifier])
from repl_mm.pictures import covering, read_image
def test_a_classifier_is_known_by_its_class(kind):
from repl_mm.pictures import covering, read_image
    cfg = Config.fromfile(REPO / 'configs' / 'classification' / 'resnet32_repl_cifar10.py')
from repl_mm.pictures import covering, read_image
    weights = {'head.weight': torch.zeros(10, 64), 'head.bias': torch.arange(10.0)}
from repl_mm.pictures import covering, read_image
    cfg.model.type = kind
from repl_mm.pictures import covering, read_image
    assert torch.equal(classifier_head(cfg, weights)((torch.randn(1, 64, 8, 8),)), weights['head.bias'][None])
from repl_mm.pictures import covering, read_image
    cfg.model.type = 'mmengine.BaseModel'
from repl_mm.pictures import covering, read_image
    assert classifier_head(cfg, weights) is None
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
def preprocessors():
from repl_mm.pictures import covering, read_image
    """Ways to say in a config how pictures are normalized, and whether they become RGB."""
from repl_mm.pictures import covering, read_image
    mean, std = [10, 20, 30], [1, 2, 4]
from repl_mm.pictures import covering, read_image
    yield 'repl_mm', dict(type='ClsDataPreprocessor', mean=mean, std=std), True
from repl_mm.pictures import covering, read_image
    yield 'repl_mm', dict(type='repl_mm.ClsDataPreprocessor', mean=mean, std=std), True
from repl_mm.pictures import covering, read_image
    yield None, dict(type='repl_mm.ClsDataPreprocessor', mean=mean, std=std), True
from repl_mm.pictures import covering, read_image
    yield None, dict(type=ClsDataPreprocessor, mean=mean, std=std), True
from repl_mm.pictures import covering, read_image
    for scope, kind in (('mmdet', 'DetDataPreprocessor'), ('mmdet', 'mmseg.SegDataPreprocessor')):
from repl_mm.pictures import covering, read_image
        yield scope, dict(type=kind, mean=mean, std=std, bgr_to_rgb=True), True
from repl_mm.pictures import covering, read_image
        yield scope, dict(type=kind, mean=mean, std=std), False
from repl_mm.pictures import covering, read_image
    inner = dict(type='DetDataPreprocessor', mean=mean, std=std, bgr_to_rgb=True)
from repl_mm.pictures import covering, read_image
    yield 'mmdet', dict(type='MultiBranchDataPreprocessor', data_preprocessor=inner), True
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
@pytest.mark.parametrize(('scope', 'settings', 'rgb'), list(preprocessors()))
from repl_mm.pictures import covering, read_image
def test_pictures_are_normalized_as_the_model_does_it(scope, settings, rgb):
from repl_mm.pictures import covering, read_image
    pictures = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
from repl_mm.pictures import covering, read_image
    cfg = Config(dict(default_scope=scope, model=dict(data_preprocessor=settings)))
from repl_mm.pictures import covering, read_image
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([10, 20, 30], [1, 2, 4]))
from repl_mm.pictures import covering, read_image
    expected = ((pictures.flip(1) if rgb else pictures) - mean) / std
from repl_mm.pictures import covering, read_image
    with DefaultScope.overwrite_default_scope(scope):
from repl_mm.pictures import covering, read_image
        torch.testing.assert_close(_trained.normalize(cfg, pictures), expected)
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
def test_pictures_get_the_size_that_the_preprocessor_gives_them():
from repl_mm.pictures import covering, read_image
    settings = dict(type='repl_mm.ClsDataPreprocessor', mean=[0, 0, 0], std=[1, 1, 1], size=8)
from repl_mm.pictures import covering, read_image
    cfg = Config(dict(model=dict(data_preprocessor=settings)))
from repl_mm.pictures import covering, read_image
    assert _trained.normalize(cfg, torch.zeros(2, 3, 4, 4, dtype=torch.uint8)).shape == (2, 3, 8, 8)
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
def test_a_picture_covers_the_shape_and_is_cropped(tmp_path):
from repl_mm.pictures import covering, read_image
    for height, width in ((30, 41), (41, 30), (32, 48), (7, 3)):
from repl_mm.pictures import covering, read_image
        mmcv.imwrite(np.full((height, width, 3), (1, 2, 3), np.uint8), str(tmp_path / 'x.png'))
from repl_mm.pictures import covering, read_image
        image = covering(read_image(tmp_path / 'x.png'), (32, 48))
from repl_mm.pictures import covering, read_image
        assert image.shape == (3, 32, 48) and image.dtype == torch.uint8
from repl_mm.pictures import covering, read_image
        assert image[:, 5, 5].tolist() == [1, 2, 3]
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
def test_a_whole_detector_is_converted_and_tested(mini_coco, tmp_path):
from repl_mm.pictures import covering, read_image
    """The neck and the head are taken over, and tools/test.py reads the result."""
from repl_mm.pictures import covering, read_image
    config = detector(tmp_path)
from repl_mm.pictures import covering, read_image
    stock = build_model(config, stock=True)
from repl_mm.pictures import covering, read_image
    torch.save(dict(state_dict=stock.state_dict()), tmp_path / 'stock.pth')
from repl_mm.pictures import covering, read_image
    options = ['--shape', 64, 64, '--num', 16, '--steps', 2, '--block-steps', 2]
from repl_mm.pictures import covering, read_image
    many = tmp_path / 'many'
from repl_mm.pictures import covering, read_image
    for i in range(2):
from repl_mm.pictures import covering, read_image
        shutil.copytree(mini_coco, many / str(i))
from repl_mm.pictures import covering, read_image
    run_well('convert.py', 'stock.pth', config, 'out.pth', '--fit', many, *options, cwd=tmp_path)
from repl_mm.pictures import covering, read_image
    state = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']
from repl_mm.pictures import covering, read_image
    rest = [key for key in stock.state_dict() if not key.startswith('backbone.')]
from repl_mm.pictures import covering, read_image
    assert rest and all(torch.equal(state[key], stock.state_dict()[key]) for key in rest)
from repl_mm.pictures import covering, read_image
    log = run_well('test.py', config, 'out.pth', '--data-root', mini_coco, cwd=tmp_path)
from repl_mm.pictures import covering, read_image
    assert 'RepL: weights of the same plan' in log
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
@pytest.mark.parametrize(
from repl_mm.pictures import covering, read_image
    ('stock', 'options', 'message'),
from repl_mm.pictures import covering, read_image
    [
from repl_mm.pictures import covering, read_image
        ('nowhere.pth', [], "checkpoint 'nowhere.pth' not found"),
from repl_mm.pictures import covering, read_image
        ('partial.pth', [], r"'partial.pth' has no values for \d+ of \d+ tensors of the stock CifarResNet \(layer3.0"),
from repl_mm.pictures import covering, read_image
        ('stock.pth', ['--fit', 'nowhere'], "--fit 'nowhere': no such folder"),
from repl_mm.pictures import covering, read_image
        ('stock.pth', ['--fit', 'pictures', '--num', 5], "'pictures': 5 images, expected at least 16"),
from repl_mm.pictures import covering, read_image
        ('stock.pth', ['--fit', 'broken'], "'broken/x.png' is cut off or no picture"),
from repl_mm.pictures import covering, read_image
        ('stock.pth', ['--cfg-options', 'model.backbone.replace.every=0'], 'replace.every=0 is not valid'),
from repl_mm.pictures import covering, read_image
        ('stock.pth', ['--cfg-options', 'model.backbone.replace=3'], 'replace=3 is not valid: expected a dict'),
from repl_mm.pictures import covering, read_image
        (
from repl_mm.pictures import covering, read_image
            'stock.pth',
from repl_mm.pictures import covering, read_image
            ['--cfg-options', 'model.backbone=3'],
from repl_mm.pictures import covering, read_image
            'the model of the config has no backbone: expected a dict with a type',
from repl_mm.pictures import covering, read_image
        ),
from repl_mm.pictures import covering, read_image
        ('broken/x.png', [], "'broken/x.png' is no checkpoint, or holds more than weights"),
from repl_mm.pictures import covering, read_image
        ('list.pth', [], "'list.pth' holds list: expected tensors by name"),
from repl_mm.pictures import covering, read_image
        ('torchvision://resnet50', [], "'torchvision://resnet50' cannot be had: .*torchvision"),
from repl_mm.pictures import covering, read_image
    ],
from repl_mm.pictures import covering, read_image
)
from repl_mm.pictures import covering, read_image
def test_what_is_wrong_is_said_in_one_line(stock, options, message, pictures, tmp_path):
from repl_mm.pictures import covering, read_image
    config = write_config(tmp_path, 'resnet')
from repl_mm.pictures import covering, read_image
    state = build_model(config, stock=True).backbone.state_dict()
from repl_mm.pictures import covering, read_image
    torch.save(state, tmp_path / 'stock.pth')
from repl_mm.pictures import covering, read_image
    torch.save([], tmp_path / 'list.pth')
from repl_mm.pictures import covering, read_image
    torch.save({key: value for key, value in state.items() if 'layer3' not in key}, tmp_path / 'partial.pth')
from repl_mm.pictures import covering, read_image
    (tmp_path / 'broken').mkdir()
from repl_mm.pictures import covering, read_image
    (tmp_path / 'broken' / 'x.png').write_text('no picture')
from repl_mm.pictures import covering, read_image
    done = run('convert.py', stock, config, 'out.pth', *options, cwd=tmp_path)
from repl_mm.pictures import covering, read_image
    assert done.returncode == 1 and 'Traceback' not in done.stderr
from repl_mm.pictures import covering, read_image
    assert re.search(message, done.stderr.strip().splitlines()[-1])
from repl_mm.pictures import covering, read_image
    assert not (tmp_path / 'out.pth').exists()
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
@pytest.mark.parametrize('words', [['--batch', 0], ['--steps', -1], ['--num', 0], ['--lr', -0.1]])
from repl_mm.pictures import covering, read_image
def test_a_number_out_of_range_is_named(words, tmp_path):
from repl_mm.pictures import covering, read_image
    done = run('convert.py', 'stock.pth', 'config.py', 'out.pth', *words, cwd=tmp_path)
from repl_mm.pictures import covering, read_image
    assert done.returncode == 2 and f'{words[0]} {words[1]}: must be at least' in done.stderr
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
@pytest.mark.real_data
from repl_mm.pictures import covering, read_image
@pytest.mark.slow
from repl_mm.pictures import covering, read_image
def test_real_weights_keep_their_accuracy(shared_data):
from repl_mm.pictures import covering, read_image
    """ResNet-32 on CIFAR-10 (92.6 %), 6 of 15 blocks replaced: about 21 % without them."""
from repl_mm.pictures import covering, read_image
    state = torch.load(shared_data / 'weights' / 'cifar10_resnet32-d509ac18.th', map_location='cpu')['state_dict']
from repl_mm.pictures import covering, read_image
    stock = ResNet()
from repl_mm.pictures import covering, read_image
    stock.load_state_dict({key.removeprefix('module.'): value for key, value in state.items()})
from repl_mm.pictures import covering, read_image
    net = copy.deepcopy(stock)
from repl_mm.pictures import covering, read_image
    repl_mm.apply_repl(net, operator='conv', fusion=dict(type='mix', groups=1))
from repl_mm.pictures import covering, read_image
    fitted, tested = (cifar_tiles(shared_data, split, 40) for split in ('train', 'test'))
from repl_mm.pictures import covering, read_image
    torch.manual_seed(0)
from repl_mm.pictures import covering, read_image
    conversion.convert(net, stock, fitted[0][torch.randperm(400)], block_steps=100, steps=60)
from repl_mm.pictures import covering, read_image
    assert accuracy(stock.eval(), *tested) > 0.88
from repl_mm.pictures import covering, read_image
    assert accuracy(net.eval(), *tested) > 0.78
from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image

from repl_mm.pictures import covering, read_image
@pytest.mark.real_data
from repl_mm.pictures import covering, read_image
def test_real_timm_weights_give_what_mmsegs_converter_gives(shared_data, tmp_path):
from repl_mm.pictures import covering, read_image
    weights = shared_data / 'weights' / 'deit_tiny_patch16_224_from_mat.pth'
from repl_mm.pictures import covering, read_image
    path = Path(mmseg.__file__).parent / '.mim' / 'tools' / 'model_converters' / 'vit2mmseg.py'
from repl_mm.pictures import covering, read_image
    spec = importlib.util.spec_from_file_location('vit2mmseg', path)
from repl_mm.pictures import covering, read_image
    converter = importlib.util.module_from_spec(spec)
from repl_mm.pictures import covering, read_image
    spec.loader.exec_module(converter)
from repl_mm.pictures import covering, read_image
    expected = converter.convert_vit(torch.load(weights, map_location='cpu')['model'])
from repl_mm.pictures import covering, read_image
    out = run_well('convert.py', weights, REPO / 'configs' / 'segvit_t_repl_camvid.py', 'out.pth', cwd=tmp_path)
from repl_mm.pictures import covering, read_image
    assert '4 of 12 blocks replaced' in out and 'no place' not in out
from repl_mm.pictures import covering, read_image
    state = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']
from repl_mm.pictures import covering, read_image
    kept = [key for key in expected if f'backbone.{key}' in state]
from repl_mm.pictures import covering, read_image
    dropped = {key for key in expected if re.match(r'layers\.(1|4|7|10)\.', key)}
from repl_mm.pictures import covering, read_image
    assert len(dropped) == 4 * 12 and set(expected) - set(kept) == dropped
from repl_mm.pictures import covering, read_image
    assert all(torch.equal(state[f'backbone.{key}'], expected[key]) for key in kept)
