"""All families of backbones in their variants, one table of settings for all tests."""

import copy
import functools
import itertools
import os
import subprocess
import sys
from pathlib import Path

import mmcv
import pytest
import small
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from small import MANY_BLOCKS, STOCK, SWIN, TRANSFORMERS, V1C, blocks
from torch import nn

import repl_mm
from repl_mm import apply_repl, computing_layers, fold, plan_of
from repl_mm.classification import CifarResNet
from repl_mm.families import FAMILIES, find_family

REPO = Path(__file__).resolve().parents[1]
BASIC = ('r18', 'r34', 'gn r18', 'mmseg r18 v1c', 'cifar')
NO_FULL = ('dcn', 'resnext dcn', 'attention', 'context', 'svt')
NO_HALF = ('beit', 'mae', 'timm dinov3', 'svt')  # tests/test_half_tokens.py
THOROUGH = ('r18', 'r50', 'with_cp', 'dcn', 'resnext', 'res2net', 'resnest', 'mmseg multi_grid')  # all of REPLACE
THOROUGH += ('gpt2', 'llama', *TRANSFORMERS, *MANY_BLOCKS, 'convnext', 'poolformer', 'timm swin', 'timm dinov3')
QUICK = ('r101', 'r152', 'regnet 800mf')  # big: the default only

REPLACE = {
    'default': dict(),
    'every block': dict(every=1, fusion='mix'),
    'scalar': dict(fusion='scalar'),
    'narrow detach': dict(fusion='channel', ratio=0.25, detach=True),
    'conv channel': dict(operator='conv', fusion='channel'),
    'mixer': dict(operator='mixer'),
    'full mix': dict(operator='full', fusion=dict(type='mix', groups=2)),
    'half': dict(operator='half'),
    'half channel detach': dict(operator='half', fusion='channel', detach=True),
    'half share': dict(operator='half', mode='share'),
    'half own': dict(operator='half', mode='own'),
    'remove': dict(mode='remove'),
    'patch': dict(mode='patch'),
    'linear': dict(mode='linear'),
    'random': dict(mode='random'),
    'share': dict(mode='share'),
    'own': dict(mode='own'),
    'share full': dict(mode='share', operator='full'),
    'own full': dict(mode='own', operator='full'),
}


def chosen(name, case):
    """Whether to test an entry of REPLACE with a backbone: what exists, and a part of it for most backbones."""
    family = next(family for family in FAMILIES if STOCK[name]['type'] in family.BACKBONES)
    if hasattr(family, 'inner'):
        family = find_family(stock(name))
    if REPLACE[case].get('operator', family.OPERATORS[0]) not in family.OPERATORS:
        return False
    if (case == 'conv channel' and name not in BASIC) or ('full' in case and name in NO_FULL):
        return False
    if 'half' in case and name in NO_HALF:
        return False
    return (
        case == 'default' or name in THOROUGH or (case in ('conv channel', 'full mix', 'remove') and name not in QUICK)
    )


def build(settings, **kwargs):
    """A backbone from the registry in its scope, in train mode, random weights from one seed."""
    torch.manual_seed(0)
    backbone = revert_sync_batchnorm(small.build(settings, **kwargs))
    backbone.train()
    return backbone


def build_repl(name, replace):
    return build(STOCK[name], type='RepL' + STOCK[name]['type'], replace=replace)


@functools.cache
def stock(name):
    """The stock backbone; not to be changed."""
    return build(STOCK[name])


CASES = [pair for pair in itertools.product(STOCK, REPLACE) if chosen(*pair)]


@functools.cache
@torch.no_grad()
def stock_shapes(name):
    """Shapes of the stock backbone's outputs for :func:`images`."""
    return [out.shape for out in flat(copy.deepcopy(stock(name))(images()))]


def images(size=64):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def flat(outputs):
    """The tensors of an output in which each level may be a list (with the class token)."""
    return [out for level in outputs for out in (level if isinstance(level, list) else [level])]


def prefixes(backbone, slots):
    """How the keys of the blocks at these places begin."""
    names = {id(module): name for name, module in backbone.named_modules()}
    return tuple(f'{names[id(blocks(backbone)[slot])]}.' for slot in slots)


def places(backbone):
    return [(slot.stage, slot.index) for slot in plan_of(backbone).slots]


@pytest.mark.parametrize(('name', 'case'), CASES)
def test_network(name, case):
    before, after = stock(name), build_repl(name, REPLACE[case])
    replaced = prefixes(before, places(after))
    assert replaced

    # the same object in all but the replaced blocks
    assert isinstance(after, type(before)) and type(after).__name__ == type(before).__name__
    for key, value in vars(before).items():
        if not key.startswith('_') and not isinstance(value, nn.Module):
            assert str(getattr(after, key)) == str(value), key
    kept = {key: value for key, value in before.state_dict().items() if not key.startswith(replaced)}
    state = after.state_dict()
    assert [key for key in state if key != 'repl_plan' and '.repl.' not in key] == list(kept)
    assert all(torch.equal(state[key], value) for key, value in kept.items())

    # parameters: what the stock backbone has, without the replaced blocks, and those of the computing layers
    stock_count = sum(p.numel() for key, p in before.named_parameters() if not key.startswith(replaced))
    own = {key: p for key, p in after.named_parameters() if '.repl.' in key}
    assert sum(p.numel() for p in after.parameters()) == stock_count + sum(p.numel() for p in own.values())
    assert all(key.startswith(replaced) for key in own)
    if case not in ('share full', 'half share'):  # norms of their own only, which transformers share as well
        assert bool(own) == (REPLACE[case].get('mode') != 'remove')
    assert all(p.dim() >= 1 and p.requires_grad for p in own.values())

    # outputs and gradients
    outputs = flat(after(images()))
    assert [out.shape for out in outputs] == stock_shapes(name)
    sum(out.mean() for out in outputs).backward()
    for key, parameter in after.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    trained = {key for key, p in before.named_parameters() if p.requires_grad and not key.startswith(replaced)}
    assert {key for key, p in after.named_parameters() if p.requires_grad and key not in own} == trained

    # synthesized once or at every forward; there, few positions are multiplied in another order
    after.eval()
    with torch.no_grad():
        unfolded = flat(after(images()))
        fold(after)
        for one, other in zip(flat(after(images())), unfolded, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


class Through(nn.Module):
    """The identity, with whatever arguments a block of the family takes."""

    def forward(self, x, *args):
        return x


@pytest.mark.parametrize('replace', [dict(every=1), dict(slots=[(0, 2), (1, 1), (2, 4), (2, 5), (3, 1)])])
@pytest.mark.parametrize('name', ['r34', 'r50', 'caffe', 'resnext', 'res2net', 'resnest', 'mmseg multi_grid'])
def test_remove_equals_stock_with_identities(name, replace):
    remove_and_compare(name, replace)


@pytest.mark.parametrize('name', ['hrnet', 'yolox', 'mobilenet v2', 'mobilenet v3', 'mscan'])
def test_remove_equals_stock_with_identities_in_other_chains(name):
    remove_and_compare(name, dict())
    remove_and_compare(name, dict(slots=[(1, 1), (2, 2)]))


@pytest.mark.parametrize('name', ['vit', 'mae', 'swin', 'mmseg swin', 'mit', 'pvt', 'pcpvt', 'svt'])
def test_remove_equals_stock_with_identities_in_transformers(name):
    """Position embeddings in the list of layers (PVT) and behind its first (Twins) stay."""
    one_stage = name in ('vit', 'mae')
    remove_and_compare(name, dict(every=1))
    remove_and_compare(name, dict(slots=[(0, 1), (0, 5)] if one_stage else [(0, 1), (1, 0), (2, 0), (2, 1)]))


def remove_and_compare(name, replace):
    after = build_repl(name, dict(replace, mode='remove'))
    before = copy.deepcopy(stock(name))
    stages = find_family(before).stages(before)
    for stage, index in places(after):
        stages[stage][index] = Through()
    outputs = []
    for backbone in (after, before):
        torch.manual_seed(0)  # of stochastic depth
        outputs.append(backbone(images()))
    assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))


def blocks_that_matter(backbone, stage, index):
    """The blocks whose parameters get gradient through the computing layer alone, as (stage, index)."""
    layer = blocks(backbone)[stage, index]
    inputs = []
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args))
    backbone(images())
    handle.remove()
    x, *shape = inputs[0]
    backbone.zero_grad()
    layer(x.detach(), *shape).square().sum().backward()
    kept = {place: block for place, block in blocks(backbone).items() if place not in places(backbone)}
    grads = {place: [p.grad for p in block.parameters() if p.grad is not None] for place, block in kept.items()}
    return sorted(place for place, found in grads.items() if any(grad.any() for grad in found))


RUNS = [
    (dict(slots=[(1, 1)]), {(1, 1): [(1, 0), (1, 2)]}),
    (dict(slots=[(1, 3)]), {(1, 3): [(1, 2), (2, 0)]}),  # a stage's end
    (dict(slots=[(3, 2)]), {(3, 2): [(3, 1)]}),  # the backbone's end
    (dict(slots=[(2, 1), (2, 2), (2, 3)]), {(2, i): [(2, 0), (2, 4)] for i in (1, 2, 3)}),  # a run
    (dict(slots=[(1, 3), (1, 2), (3, 1), (3, 2)]), {(1, 2): [(1, 1), (2, 0)], (3, 1): [(3, 0)], (3, 2): [(3, 0)]}),
    (dict(slots=[(2, 2)], mode='share'), {(2, 2): [(2, 1)]}),
    (dict(slots=[(2, 2)], mode='own'), {(2, 2): []}),
    (dict(slots=[(2, 2)], detach=True), {(2, 2): []}),
]


@pytest.mark.parametrize('operator', ['separable', 'full'])
@pytest.mark.parametrize(('replace', 'expected'), RUNS)
@pytest.mark.parametrize('name', ['r50', 'resnest'])
def test_neighbours_are_the_nearest_kept_blocks(name, replace, expected, operator):
    backbone = build_repl(name, dict(replace, operator=operator))
    for slot, neighbours in expected.items():
        assert blocks_that_matter(backbone, *slot) == neighbours


TOKEN_RUNS = [
    ('vit', dict(slots=[(0, 2)]), {(0, 2): [(0, 1), (0, 3)]}),
    (
        'vit',
        dict(slots=[(0, 2), (0, 3), (0, 5)]),
        {(0, 2): [(0, 1), (0, 4)], (0, 3): [(0, 1), (0, 4)], (0, 5): [(0, 4)]},
    ),
    ('vit', dict(slots=[(0, 2)], mode='share'), {(0, 2): [(0, 1)]}),
    ('vit', dict(slots=[(0, 2)], mode='own'), {(0, 2): []}),
    ('vit', dict(slots=[(0, 2)], detach=True), {(0, 2): []}),
    ('beit', dict(every=3), {(0, 1): [(0, 0), (0, 2)], (0, 4): [(0, 3), (0, 5)]}),
    ('swin', dict(), {(0, 1): [(0, 0), (1, 0)], (2, 1): [(2, 0), (2, 2)], (3, 1): [(3, 0)]}),
    ('swin', dict(slots=[(1, 0), (1, 1)]), {(1, 0): [(0, 1), (2, 0)], (1, 1): [(0, 1), (2, 0)]}),  # a whole stage
    ('mit', dict(slots=[(1, 0), (1, 1)]), {(1, 0): [(0, 1), (1, 2)], (1, 1): [(0, 1), (1, 2)]}),
    ('pvt', dict(slots=[(0, 1), (1, 0)]), {(0, 1): [(0, 0), (1, 1)], (1, 0): [(0, 0), (1, 1)]}),
]


@pytest.mark.parametrize('operator', ['mlp', 'mixer', 'full'])
@pytest.mark.parametrize(('name', 'replace', 'expected'), TOKEN_RUNS)
def test_neighbours_of_layers_are_the_nearest_kept_layers(name, replace, expected, operator):
    backbone = build_repl(name, dict(replace, operator=operator))
    for slot, neighbours in expected.items():
        assert blocks_that_matter(backbone, *slot) == neighbours


@pytest.mark.parametrize('operator', ['separable', 'conv', 'full'])
def test_resnet18_learns_across_the_borders(operator):
    backbone = build_repl('r18', dict(operator=operator))
    for stage in range(4):
        following = [(stage + 1, 0)] if stage < 3 else []
        assert blocks_that_matter(backbone, stage, 1) == [(stage, 0), *following]


@pytest.mark.parametrize('name', ['d8', 'mmseg v1c', 'mmseg multi_grid'])
def test_dilation_of_the_replaced_block_is_kept(name):
    """The computing layer sees as far as one 3x3 convolution with the replaced block's dilation."""
    slots = [(2, 1), (2, 3), (3, 1), (3, 2)]
    backbone = build_repl(name, dict(slots=slots, operator='separable'))
    for stage, index in slots:
        block = getattr(stock(name), f'layer{stage + 1}')[index]
        layer = getattr(backbone, f'layer{stage + 1}')[index]
        x = torch.rand(1, block.conv1.in_channels, 33, 33, requires_grad=True)
        (layer(x)[0, :, 16, 16] - x[0, :, 16, 16]).sum().backward()
        rows = x.grad[0].abs().sum((0, 2)).nonzero().flatten() - 16
        assert rows.tolist() == [-block.conv2.dilation[0], 0, block.conv2.dilation[0]]


def test_dilations_of_the_table_differ():
    """The test above would be empty if the table's multi_grid came to nothing."""
    assert [block.conv2.dilation[0] for block in stock('mmseg multi_grid').layer4] == [1, 2, 4]
    assert [block.conv2.dilation[0] for block in stock('mmseg v1c').layer4] == [2, 4, 4]


@pytest.mark.parametrize('replace', [dict(), dict(operator='full', mode='own'), dict(mode='remove')])
@pytest.mark.parametrize('name', ['r50', 'mmseg v1c', 'vit', 'swin', 'pvt'])
def test_plain_call_equals_the_registered_builder(name, replace):
    built = build_repl(name, replace)
    backbone = build(STOCK[name])
    names = [prefix[:-1] for prefix in prefixes(backbone, places(built))]
    with torch.random.fork_rng():
        plan = apply_repl(backbone, **replace)
    assert plan == plan_of(built) == plan_of(backbone)
    assert list(built.state_dict()) == list(backbone.state_dict())
    assert [name for name, _ in computing_layers(backbone)] == names
    assert repl_mm.repl_backbones(nn.ModuleDict(dict(backbone=backbone))) == [('backbone', backbone)]


def test_prefixed_type_and_scopes():
    """One name, the class of the scope that asks for it."""
    for scope in ('mmdet', 'mmseg'):
        for prefix in ('', 'repl_mm.'):
            backbone = build(STOCK['r50'], type=f'{prefix}RepLResNet', _scope_=scope)
            assert type(backbone).__module__ == f'{scope}.models.backbones.resnet'
            backbone = build(SWIN, type=f'{prefix}RepLSwinTransformer', _scope_=scope)
            assert type(backbone).__module__ == f'{scope}.models.backbones.swin'
    assert type(build(V1C, type='RepLResNetV1c')).__module__.startswith('mmseg')  # mmdet has none


def test_subclass_of_a_served_backbone():
    from mmdet.models import ResNet

    class MyResNet(ResNet):
        """A user's own backbone."""

    backbone = MyResNet(18, base_channels=8)
    assert apply_repl(backbone).backbone == 'MyResNet' and type(backbone) is MyResNet


LIGHT = [('r50', 'separable')]
LIGHT += [
    (name, 'mlp') for name in ('vit', 'beit', 'mae', 'swin', 'mmseg swin', 'mit', 'pvt', 'pvtv2', 'pcpvt', 'svt')
]


@pytest.mark.parametrize(('name', 'operator'), [*LIGHT, ('vit', 'mixer'), ('mae', 'mixer'), ('mit', 'mixer')])
def test_initialization_from_scratch_leaves_the_computing_layers_alone(name, operator):
    """mm's ``init_weights`` goes by the type of a layer; the start of a computing layer is its own.

    Coefficients follow the scale of their neighbours' weights.
    """
    backbone = build_repl(name, dict(operator=operator))
    names = {key for key, _ in backbone.named_parameters() if '.repl.' in key and '.coefficients.' not in key}
    assert names
    before = {key: backbone.get_parameter(key).clone() for key in names}
    backbone.init_weights()
    assert all(torch.equal(backbone.get_parameter(key), value) for key, value in before.items())
    assert all(out.isfinite().all() for out in backbone(images()))


FULL_WIDTH = {
    'yolox-nano': dict(type='CSPDarknet', widen_factor=0.25, deepen_factor=0.33, use_depthwise=True),
    'rtmdet-s': dict(type='CSPNeXt', widen_factor=0.5, deepen_factor=0.33),
    'mobilenet v2': dict(type='MobileNetV2'),
    'mmseg mobilenet v2': dict(type='MobileNetV2', _scope_='mmseg'),
    'mobilenet v3': dict(type='MobileNetV3', arch='large', _scope_='mmseg'),
    'efficientnet': dict(type='EfficientNet', arch='b3'),
    'ddrnet': dict(type='DDRNet', _scope_='mmseg'),
}


@pytest.mark.parametrize('operator', ['separable', 'half'])
@pytest.mark.parametrize('name', FULL_WIDTH)
def test_a_light_layer_has_fewer_parameters_than_the_block(name, operator):
    """Mixing hidden channels costs their square: too much in blocks that are wide inside, unless in many groups."""
    settings = FULL_WIDTH[name]
    before, after = build(settings), build(settings, type=f'RepL{settings["type"]}', replace=dict(operator=operator))
    for place in places(after):
        have, limit = (sum(p.numel() for p in blocks(net)[place].parameters()) for net in (after, before))
        assert have < 0.75 * limit, place


CHAIN_RUNS = [
    # layer1; 1, 2, 3 are the branches of the first resolution in stage2 and both modules of stage3
    ('hrnet', dict(slots=[(1, 3), (2, 0)]), {(1, 3): [(1, 2), (2, 1)], (2, 0): [(1, 2), (2, 1)]}),
    ('hrnet', dict(slots=[(0, 2), (4, 1)]), {(0, 2): [(0, 1)], (4, 1): [(4, 0)]}),  # the ends of branches
    ('rtmdet', dict(), {(0, 1): [(0, 0), (1, 0)], (1, 1): [(1, 0), (1, 2)]}),
    ('rtmdet of one block', dict(), {(1, 0): [(0, 0), (2, 0)]}),
    ('mobilenet v3', dict(slots=[(2, 2)]), {(2, 2): [(2, 1), (3, 0)]}),
    ('ddrnet', dict(), {(2, 1): [(2, 0), (3, 0)], (3, 1): [(3, 0)], (5, 1): [(5, 0), (6, 0)]}),
]


@pytest.mark.parametrize('operator', ['separable', 'full'])
@pytest.mark.parametrize(('name', 'replace', 'expected'), CHAIN_RUNS)
def test_neighbours_are_of_one_branch(name, replace, expected, operator):
    backbone = build_repl(name, dict(replace, operator=operator))
    for slot, neighbours in expected.items():
        assert blocks_that_matter(backbone, *slot) == neighbours


KERNELS = {'rtmdet': {(5, 5)}, 'mobilenet v3': {(3, 3), (5, 5)}}


@pytest.mark.parametrize(
    ('name', 'activations', 'last'),
    [
        ('hrnet', {'ReLU'}, 'ReLU'),
        ('yolox', {'Swish'}, 'Identity'),
        ('rtmdet', {'SiLU'}, 'Identity'),
        ('darknet', {'LeakyReLU'}, 'Identity'),
        ('mobilenet v2', {'ReLU6'}, 'Identity'),
        ('mobilenet v3', {'ReLU', 'Hardswish'}, 'Identity'),
        ('ddrnet', {'ReLU'}, 'Identity'),  # the last of a chain of two
    ],
)
def test_the_activations_are_those_of_the_replaced_blocks(name, activations, last):
    layers = [layer for _, layer in computing_layers(build_repl(name, dict()))]
    assert {type(layer.activation).__name__ for layer in layers} == activations
    assert {type(layer.last).__name__ for layer in layers} == {last}
    kernels = {tuple(layer.synthesize()[1][0].shape[2:]) for layer in layers}
    assert kernels == KERNELS.get(name, {(3, 3)})


# ---- near the network without the blocks ----


def pretrained_like(name):
    """A stock network as training leaves it: residual branches that count, norm statistics of its own activations."""
    torch.manual_seed(0)
    backbone = build(STOCK[name], norm_eval=False)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.7)
            nn.init.normal_(module.bias, std=0.1)
            module.momentum = None
    backbone.train()
    with torch.no_grad():
        for _ in range(3):
            backbone(images())
    backbone.eval()  # mm's eval() returns nothing
    return backbone


def relative_difference(one, other):
    """Largest relative L2 difference among the outputs of two networks."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(one, other, strict=True))


@torch.no_grad()
def start(backbone, batch, **replace):
    """How far a converted network starts from the network without the blocks.

    Returns:
        tuple[float, float, float]: Relative difference of the converted network's outputs, the same of the original
        network's, and the largest relative change that one computing layer makes to its input.
    """
    removed, converted = copy.deepcopy(backbone), copy.deepcopy(backbone)
    torch.manual_seed(10)  # of taps that are not those of the network
    apply_repl(removed, **dict(replace, mode='remove'))
    apply_repl(converted, **replace)
    converted.eval()
    steps = []
    for _, layer in computing_layers(converted):
        layer.register_forward_hook(lambda _, args, out: steps.append(relative_difference([out], args[:1])))
    wanted = removed(batch)
    return relative_difference(converted(batch), wanted), relative_difference(backbone(batch), wanted), max(steps)


@pytest.mark.parametrize('replace', [dict(), dict(operator='full')], ids=['default', 'full'])
@pytest.mark.parametrize('name', ['r18', 'r34', 'r50', 'r101', 'caffe', 'v1d', 'resnext', 'res2net', 'resnest', 'gn'])
def test_converted_network_starts_near_the_network_without_the_blocks(name, replace):
    """A random network multiplies small changes, so the bounds are wide: 0.6 of what removing the blocks changes."""
    near, far, step = start(pretrained_like(name), images(), **replace)
    assert near < 0.6 * far
    assert step < 0.25


@pytest.mark.parametrize(
    ('name', 'operator'),
    [(n, operator) for n in TRANSFORMERS for operator in ('mlp', 'mixer', 'full') if (n, operator) != ('svt', 'full')],
)
def test_converted_transformer_starts_near_the_network_without_the_layers(name, operator):
    backbone = copy.deepcopy(stock(name))  # with the large weights that torch's layers start from
    backbone.eval()
    near, far, step = start(backbone, images(), operator=operator)
    assert near < 0.2 * far
    assert step < 0.1


@pytest.mark.real_data
@pytest.mark.parametrize('fusion', ['scalar', 'channel', 'mix'])
def test_real_network_starts_near_the_network_without_the_blocks(shared_data, fusion):
    """ImageNet ResNet-18, stem to layer3, on photographs: removing changes its outputs by 95 %, converting by 10 %."""
    from mmdet.models import ResNet

    backbone = ResNet(18, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2))
    weights = shared_data / 'weights' / 'resnet18_imagenet1k_v1_PARTIAL_stem_to_layer3_bnfolded.pth'
    backbone.load_state_dict(torch.load(weights, weights_only=True))
    backbone.eval()
    photos = [
        mmcv.imread(p, channel_order='rgb') for p in sorted((shared_data / 'imagenet_sample/images').glob('*/*'))[:3]
    ]
    batch = torch.stack([torch.from_numpy(photo[:192, :192].copy()).permute(2, 0, 1).float() for photo in photos])
    batch = (batch - torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)) / 57.6
    near, far, step = start(backbone, batch, fusion=fusion)
    assert far > 0.9
    assert near < 0.15
    assert step < 0.12


@pytest.mark.parametrize(('name', 'operator'), LIGHT)
def test_with_a_last_weight_of_zero_a_computing_layer_is_the_identity(name, operator):
    backbone, removed = build_repl(name, dict(operator=operator)), build_repl(name, dict(mode='remove'))
    backbone.eval()  # mm's eval() returns nothing
    removed.eval()
    for _, layer in computing_layers(backbone):
        for parameter in list(layer.repl.values())[-1].parameters():
            nn.init.zeros_(parameter)
    assert all(torch.equal(one, other) for one, other in zip(backbone(images()), removed(images()), strict=True))


# ---- in a process of its own ----

MISSING = dict(mmdet='RegNet', mmseg='ResNetV1c')  # what only one package has
BUILD = """
import sys
for absent in {absent}:
    sys.modules[absent] = None  # as if it were not installed
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
cfg = Config.fromfile('config.py')
for settings in cfg.backbones:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        backbone = MODELS.build(settings)
    print(type(backbone).__module__, len(sys.modules['repl_mm'].plan_of(backbone).slots))
"""


def python(code, folder):
    """Run code in a new interpreter in a folder; returns its output and the last line of its errors."""
    env = dict(os.environ, PYTHONPATH=str(REPO), PYTHONWARNINGS='ignore')
    done = subprocess.run([sys.executable, '-c', code], cwd=folder, env=env, capture_output=True, text=True)
    return done.stdout, done.stderr.strip().rpartition('\n')[2]


@pytest.mark.parametrize(
    ('scope', 'absent', 'imports', 'kind'),
    [('mmdet', 'mmseg', '', 'repl_mm.RepLResNet'), ('mmseg', 'mmdet', 'repl_mm', 'RepLResNet')],
    ids=['prefixed', 'custom_imports'],
)
def test_one_package_from_another_directory(scope, absent, imports, kind, tmp_path):
    """Both forms of the type, each with another package missing, and a type that needs the missing one."""
    backbone = dict(depth=18, base_channels=8, replace=dict(stages=(1, 2)))
    backbones = [dict(backbone, type=kind), dict(backbone, type=f'repl_mm.RepL{MISSING[absent]}')]
    text = f'default_scope = {scope!r}\nbackbones = {backbones!r}\n'
    if imports:
        text += f'custom_imports = dict(imports=[{imports!r}])\n'
    (tmp_path / 'config.py').write_text(text)
    out, error = python(BUILD.format(absent=[absent, 'mmpretrain']), tmp_path)
    assert out.split() == [f'{scope}.models.backbones.resnet', '2']
    assert error == (
        f"repl_mm.plan.PlanError: type='RepL{MISSING[absent]}' needs a stock backbone '{MISSING[absent]}', which none "
        'of mmdet, mmseg, mmpretrain has here: install one of them, or use a backbone that the installed one has'
    )


def test_import_loads_neither_package(tmp_path):
    code = (
        "import repl_mm, sys; print({'mmdet', 'mmseg', 'mmpretrain', 'mmcv'} & {m.split('.')[0] for m in sys.modules})"
    )
    assert python(code, tmp_path) == ('set()\n', '')


@pytest.mark.parametrize('zero_init_residual', [True, False])
def test_full_operators_start_as_the_stock_block_does(zero_init_residual):
    settings = dict(type='ResNet', depth=50, base_channels=8, zero_init_residual=zero_init_residual)
    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone = MODELS.build(settings)
    apply_repl(backbone, operator='full')
    backbone.init_weights()
    starts = {float(backbone.layer3[i].bn3.weight.mean()) for i in (2, 4)}
    starts |= {float(backbone.layer3[i].repl['block'].bn3.weight.mean()) for i in (1, 3)}
    assert starts == {0.0 if zero_init_residual else 1.0}


def test_the_core_serves_residual_networks_outside_of_mm():
    """Stages ``layer1`` .., blocks with ``conv1``, ``conv2``: all that the family needs."""

    class ResNet(CifarResNet):
        def __init__(self):
            super().__init__(depth=32)
            self.linear = torch.nn.Linear(64, 10)

        def forward(self, x):
            return self.linear(super().forward(x)[0].mean((2, 3)))

    for replace in (dict(), dict(operator='conv'), dict(operator='full'), dict(mode='remove')):
        net = ResNet()
        plan = apply_repl(net, slots=[(stage, index) for stage in range(3) for index in (1, 3)], **replace)
        assert plan.depths == (5, 5, 5)
        assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_scope_that_is_not_installed_is_named():
    with pytest.raises(repl_mm.PlanError, match=r"built in scope 'mmsegg'.*expected one of mmdet, mmseg"):
        MODELS.build(dict(type='RepLResNet', _scope_='mmsegg', depth=18))
