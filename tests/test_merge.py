"""Merged networks: plain modules that give what the computing layers gave, and that every tool understands.

What a tool does to the stock backbone it has to do to the merged one.
"""

import collections
import copy
import itertools

import pytest
import small
import test_families
import test_survive
import torch
from mmcv.cnn.utils import fuse_conv_bn
from small import BACKBONES, build_backbone, check_graph, gradients, images, loss_of
from torch import nn
from torch.fx.experimental.optimization import fuse as fuse_by_fx
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

from repl_mm import MergeError, PlanError, apply_repl, computing_layers, merge, plan_of
from repl_mm.classification import CifarResNet
from repl_mm.computing_layers import FullComputingLayer, ResidualComputingLayer

TABLE = pytest.mark.parametrize('name', BACKBONES)
FEW = pytest.mark.parametrize('name', ['basic', 'full', 'beit', 'swin', 'mit', *test_survive.WORDS])
EXACT = dict(rtol=1e-5, atol=1e-5)
MERGED = [pair for pair in test_families.CASES if pair[0] in (*test_families.THOROUGH, 'cifar', 'gn r18', 'vit norms')]


def stir(backbone):
    """Random norm statistics, and branches that count; in eval mode."""
    torch.manual_seed(7)
    with torch.no_grad():
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
        for _, layer in computing_layers(backbone):
            factor = 2 if isinstance(layer, FullComputingLayer) else 64  # attention of large weights is chaotic
            if isinstance(layer, ResidualComputingLayer) or layer.random:
                factor = 24  # the neighbours' rows are longer
            for key, parameter in layer.named_parameters():
                grows = 'coefficients' in key and '.reduce.' not in key
                parameter.add_(torch.randn_like(parameter) * 0.1).mul_(factor if grows else 1)
                if 'norms' in key and key.endswith('weight'):
                    parameter.uniform_(0.5, 2)
    backbone.eval()  # mm's gives nothing back
    return backbone


def share_added(backbone, x):
    """What the computing layers add, relative to their inputs."""
    found = []

    def hook(layer, args, out):
        found.append(((out - args[0]).norm() / args[0].norm()).item())

    handles = [layer.register_forward_hook(hook) for _, layer in computing_layers(backbone)]
    with torch.no_grad():
        backbone(x)
    for handle in handles:
        handle.remove()
    return found


def close(outputs, wanted):
    for output, other in zip(outputs, wanted, strict=True):
        assert (output - other).abs().max() <= 1e-5 * other.abs().max()


def calls_of_layers(backbone, x):
    """What every computing layer gets, and a copy of what it gives, by name; and what the backbone gives."""
    calls = {}

    def record(name):
        def hook(layer, args, kwargs, out):
            calls[name] = args, kwargs, out.clone()

        return hook

    handles = [layer.register_forward_hook(record(n), with_kwargs=True) for n, layer in computing_layers(backbone)]
    with torch.no_grad():
        outputs = backbone(x)
    for handle in handles:
        handle.remove()
    return calls, outputs


@pytest.mark.parametrize(('name', 'case'), MERGED, ids=map(' / '.join, MERGED))
def test_a_merged_backbone_gives_the_same_and_is_built_by_one_word(name, case):
    """Every layer to 1e-5 of what its branch adds, however little that is."""
    replace = test_families.REPLACE[case]
    backbone = stir(test_families.build_repl(name, replace))
    x = images()
    calls, before = calls_of_layers(backbone, x)
    with torch.no_grad():
        assert merge(backbone) is backbone
        close(backbone(x), before)
        for key, layer in computing_layers(backbone):
            args, kwargs, out = calls[key]
            assert (layer(*args, **kwargs) - out).norm() <= 1e-5 * (out - args[0]).norm()
    layers = [layer for _, layer in computing_layers(backbone)]
    assert len(layers) == len(plan_of(backbone).slots) and all(layer.merged for layer in layers)
    assert not any(layer.neighbours or layer.names for layer in layers)
    again = test_families.build_repl(name, dict(replace, merged=True))
    assert plan_of(again) == plan_of(backbone)
    assert again.state_dict().keys() == backbone.state_dict().keys()
    again.load_state_dict(backbone.state_dict())
    again.eval()
    with torch.no_grad():
        torch.testing.assert_close(again(x), backbone(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ('name', 'operator'),
    [('r50', 'separable'), ('r50', 'half'), ('r50', 'full'), ('r18', 'conv')]
    + list(itertools.product(('vit', 'swin', 'mit'), ('mixer', 'mlp', 'half', 'full'))),
)
def test_the_branches_that_are_compared_count(name, operator):
    """A fresh branch adds a tenth of its input: an error in it could hide."""
    backbone = stir(test_families.build_repl(name, dict(operator=operator)))
    assert min(share_added(backbone, images())) > 0.3


# ---- checked and atomic ---------------------------------------------------------------------------------------------


def spoil(layer, error):
    """Make a layer give a wrong merged form, or raise."""
    make = layer.make_plain

    def wrong():
        if isinstance(error, BaseException):
            raise error
        plain = make()
        for parameter in plain.parameters():
            parameter.data.add_(0.1)
        return plain

    layer.make_plain = wrong


@pytest.mark.parametrize(
    'error', [None, KeyboardInterrupt(), RuntimeError('no memory')], ids=['wrong', 'stop', 'error']
)
def test_a_merge_that_fails_leaves_the_model_as_it_was(error):
    backbone = build_backbone('bottleneck')
    stir(backbone).layer3[1].train()
    state, modes = copy.deepcopy(backbone.state_dict()), [m.training for m in backbone.modules()]
    spoil([layer for _, layer in computing_layers(backbone)][-1], error)
    with pytest.raises(type(error) if error else MergeError, match=None if error else "merged, the layer 'layer4.1'"):
        merge(backbone)
    assert not plan_of(backbone).merged and not any(layer.merged for _, layer in computing_layers(backbone))
    assert [m.training for m in backbone.modules()] == modes
    torch.testing.assert_close(backbone.state_dict(), state, rtol=0, atol=0)


def test_an_interrupt_between_two_layers_puts_the_first_one_back(monkeypatch):
    backbone = stir(build_backbone('bottleneck'))
    before = dict(computing_layers(backbone))
    place, calls = backbone.set_submodule, itertools.count()

    def interrupted(name, module):
        if next(calls) == 1:
            raise KeyboardInterrupt
        place(name, module)

    monkeypatch.setattr(backbone, 'set_submodule', interrupted)
    with pytest.raises(KeyboardInterrupt):
        merge(backbone)
    assert dict(computing_layers(backbone)) == before and not plan_of(backbone).merged


def test_what_cannot_be_merged_says_so():
    with pytest.raises(MergeError, match='nothing to merge in this CifarResNet'):
        merge(CifarResNet(20))
    backbone = build_backbone('basic')
    with pytest.raises(MergeError, match=r'does not take the example \(1, 5, 8, 8\)'):
        merge(backbone, torch.randn(1, 5, 8, 8))
    merge(backbone)
    with pytest.raises(MergeError, match='nothing to merge'):
        merge(backbone)


def test_a_precision_other_than_float32_is_merged():
    for dtype in (torch.float64, torch.bfloat16):
        backbone = stir(build_backbone('bottleneck')).to(dtype)
        merge(backbone)
        assert {p.dtype for p in backbone.parameters()} == {dtype}


def test_frozen_layers_stay_frozen():
    backbone = build_backbone('bottleneck')
    backbone.requires_grad_(False)
    merge(backbone)
    assert not any(p.requires_grad for p in backbone.parameters())


# ---- plan and weights -----------------------------------------------------------------------------------------------


def test_each_kind_of_weights_is_refused_by_the_other_kind_of_model():
    plain, merged = build_backbone('bottleneck'), merge(build_backbone('bottleneck'))
    assert 'merged=True' in str(plan_of(merged))
    with pytest.raises(
        PlanError, match=r'was merged, the model is not: build it with replace=dict\(\.\.\., merged=True'
    ):
        plain.load_state_dict(merged.state_dict())
    with pytest.raises(PlanError, match=r'the checkpoint is not: merge it with tools/merge.py or repl_mm.merge\(\)'):
        merged.load_state_dict(plain.state_dict())


def test_weights_of_free_and_of_borrowed_origin_fit_if_merged_and_alike():
    """Which transformation made them does not matter any more; which slots they are for does."""
    merged = merge(build_backbone('bottleneck', replace=dict(fusion='channel')))
    merge(build_backbone('bottleneck', replace=dict(fusion='scalar'))).load_state_dict(merged.state_dict())
    with pytest.raises(PlanError, match='slots only in'):
        merge(build_backbone('bottleneck', replace=dict(slots=[(3, 1)]))).load_state_dict(merged.state_dict())


@pytest.mark.parametrize('value', ['yes', 1, None])
def test_the_word_is_checked(value):
    with pytest.raises(PlanError, match=f'replace.merged={value!r} is not valid: expected True or False'):
        apply_repl(CifarResNet(20), merged=value)


def test_stock_weights_load_into_a_merged_model():
    stock = small.build(BACKBONES['bottleneck'][0])
    backbone = merge(build_backbone('bottleneck'))
    own = copy.deepcopy(dict(computing_layers(backbone))['layer3.1'].state_dict())
    backbone.load_state_dict(stock.state_dict())
    torch.testing.assert_close(backbone.layer1.state_dict(), stock.layer1.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(backbone.layer3[1].state_dict(), own, rtol=0, atol=0)


@TABLE
def test_it_trains_on_with_free_weights(name):
    backbone = merge(stir(build_backbone(name)))
    backbone.train()
    x = images()
    found = gradients(backbone, x)
    assert found.keys() >= {key for key, p in backbone.named_parameters() if '.repl.' in key and p.requires_grad}
    before = loss_of(backbone(x)).item()
    with torch.no_grad():  # a step that a linear loss would need to lose a hundredth
        step = 0.01 * before / sum(gradient.square().sum() for gradient in found.values())
        for key, parameter in backbone.named_parameters():
            if key in found:
                parameter -= step * found[key]
    assert loss_of(backbone(x)).item() < before


# ---- operations -----------------------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Counts operations by name, views apart."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not func.is_view and name not in ('_unsafe_view', 'empty'):  # empty: batch norm's own, filled by nothing
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def operations(function, *args, **kwargs):
    with torch.no_grad(), Operations() as found:
        function(*args, **kwargs)
    return found.counts


RESIDUAL = dict(add=1, relu_=1)
CONVS = dict(convolution=3, native_batch_norm=3, relu_=3, add=1, upsample_nearest2d=1)
LINEAR = dict(native_layer_norm=1, addmm=2, gelu=1, add=1)
MERGED_OPERATIONS = {
    'separable': (BACKBONES['bottleneck'][0], dict(operator='separable'), dict(convolution=3, relu_=3, add=1)),
    'conv': (BACKBONES['basic'][0], dict(operator='conv'), dict(convolution=1, **RESIDUAL)),
    'half': (BACKBONES['bottleneck'][0], dict(operator='half'), CONVS),
    'full': (
        BACKBONES['bottleneck'][0],
        dict(operator='full'),
        dict(convolution=3, native_batch_norm=3, relu_=3, add_=1),
    ),
    'patch': (BACKBONES['bottleneck'][0], dict(mode='patch'), dict(convolution=1, relu_=1)),
    'linear': (BACKBONES['bottleneck'][0], dict(mode='linear'), dict(convolution=1, relu_=1)),
    'remove': (BACKBONES['bottleneck'][0], dict(mode='remove'), {}),
    'mlp': (small.VIT, dict(operator='mlp'), LINEAR),
    'mixer': (small.VIT, dict(operator='mixer'), LINEAR | dict(addmm=3, mm=1, mean=1, add=2)),
    'tokens, patch': (small.VIT, dict(mode='patch'), dict(addcmul=1)),
    'tokens, linear': (small.VIT, dict(mode='linear'), dict(addmm=1)),
    'tokens with a map': (small.TRANSFORMERS['mit'], {}, dict(convolution=1, **LINEAR)),
    'csp': (small.YOLOX, {}, dict(convolution=3, sigmoid=2, mul=2, add=1)),
}


@pytest.mark.parametrize('case', MERGED_OPERATIONS)
def test_a_merged_layer_runs_the_operations_of_its_modules_and_no_other(case):
    stock, replace, wanted = MERGED_OPERATIONS[case]
    backbone = small.build(stock, type=f'RepL{stock["type"]}', replace=replace)
    backbone.eval()
    calls, _ = calls_of_layers(backbone, images())
    name, layer = next(computing_layers(merge(backbone)))
    args, kwargs, _ = calls[name]
    assert operations(layer, *args, **kwargs) == wanted


# ---- tools: the merged network beside the stock one -----------------------------------------------------------------


def pair(name):
    """The stock backbone of a row, and the merged one, both in eval mode."""
    torch.manual_seed(0)
    name, replace = ('bottleneck', dict(operator='half')) if name == 'half' else (name, None)
    stock = small.build(BACKBONES[name][0])
    return stir(stock), merge(stir(build_backbone(name, replace=replace)))


BOTH = pytest.mark.parametrize('which', [0, 1], ids=['stock', 'merged'])


@BOTH
@pytest.mark.parametrize('name', ['basic', 'bottleneck', 'full', 'half', 'resnext'])
@pytest.mark.parametrize('fuse', [fuse_conv_bn, fuse_by_fx], ids=['mmcv', 'torch.fx'])
def test_norms_are_fused_into_convolutions(which, name, fuse):
    backbone, x = pair(name)[which], images()
    with torch.no_grad():
        before = backbone(x)
        fused = fuse(backbone)
        for output, wanted in zip(fused(x), before, strict=True):
            assert (output - wanted).abs().max() < 1e-4 * wanted.abs().max()
    left = [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not left


@BOTH
@FEW
def test_weights_are_pruned(which, name):
    backbone, x = pair(name)[which], images()
    modules = [m for m in backbone.modules() if isinstance(m, nn.Conv2d | nn.Linear) or type(m).__name__ == 'Conv1D']
    for module in modules:
        prune.l1_unstructured(module, 'weight', 0.3)
    with torch.no_grad():
        masked = backbone(x)
        for module in modules:
            prune.remove(module, 'weight')
        torch.testing.assert_close(backbone(x), masked, rtol=0, atol=0)
    assert min((m.weight == 0).float().mean() for m in modules if m.weight.numel() > 100) > 0.25


@BOTH
@pytest.mark.parametrize('name', ['basic', 'bottleneck'])
@pytest.mark.parametrize('operator', ['separable', 'half', 'full'])
def test_channels_are_pruned_by_torch_pruning(which, name, operator):
    pruning = pytest.importorskip('torch_pruning')
    backbone = small.build(BACKBONES[name][0], frozen_stages=-1)
    if which:
        apply_repl(backbone, operator=operator, merged=True)
    stir(backbone).requires_grad_(True)
    x = images()
    before = [output.shape[1] for output in backbone(x)]
    importance = pruning.importance.MagnitudeImportance(p=2)
    pruner = pruning.pruner.BasePruner(backbone, x, importance, pruning_ratio=0.5, root_module_types=[nn.Conv2d])
    pruner.step()
    after = [output.shape[1] for output in backbone(x)]
    assert after == [channels // 2 for channels in before]
    if which:
        layer = next(layer for _, layer in computing_layers(backbone))
        assert all(conv.weight.shape[0] < 256 for conv in layer.modules() if isinstance(conv, nn.Conv2d))
    backbone.train()
    loss_of(backbone(x)).backward()


@BOTH
@pytest.mark.parametrize('name', ['basic', 'full', 'half'])
def test_fx_traces_every_convolution(which, name):
    backbone, x = pair(name)[which], images()
    graph = torch.fx.symbolic_trace(backbone)
    targets = {node.target for node in graph.graph.nodes if node.op == 'call_module'}
    assert {key for key, module in backbone.named_modules() if isinstance(module, nn.Conv2d)} <= targets
    with torch.no_grad():
        torch.testing.assert_close(graph(x), backbone(x), rtol=0, atol=0)


@pytest.mark.parametrize('operator', ['mlp', 'mixer'])
def test_fx_traces_a_merged_layer_of_a_transformer(operator):
    """mm's transformers themselves have branches on the size of the image, which fx cannot trace."""
    backbone = merge(build_backbone('vit', replace=dict(operator=operator)))
    backbone.eval()
    layer, tokens = next(layer for _, layer in computing_layers(backbone)), torch.randn(2, 17, 16)
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(tokens), layer(tokens), rtol=0, atol=0)


@BOTH
@FEW
@pytest.mark.parametrize('how', ['trace', 'export'])
def test_it_is_traced_and_exported(which, name, how, tmp_path):
    check_graph(pair(name)[which], how, tmp_path, **EXACT)


@pytest.mark.parametrize('operator', ['separable', 'half'])
def test_a_convolutional_network_is_exported_for_every_size(operator):
    backbone = stir(small.build(BACKBONES['bottleneck'][0], type='RepLResNet', replace=dict(operator=operator)))
    merge(backbone)
    height, width = (torch.export.Dim(name, min=65, max=512) for name in 'hw')
    program = torch.export.export(backbone, (images(size=96),), dynamic_shapes=[{2: height, 3: width}])
    x = images(size=101)[..., :75]
    with torch.no_grad():
        torch.testing.assert_close(tuple(program.module()(x)), backbone(x), **EXACT)


@BOTH
@TABLE
def test_it_is_copied_averaged_and_saved_as_safetensors(which, name, tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    backbone, x = pair(name)[which], images()
    twin = copy.deepcopy(backbone)
    safetensors.save_file({k: v.contiguous() for k, v in backbone.state_dict().items()}, tmp_path / 'file')
    loaded = safetensors.load_file(tmp_path / 'file')
    average = {k: (v + loaded[k]) / 2 if v.is_floating_point() else v for k, v in backbone.state_dict().items()}
    with torch.no_grad():
        before = backbone(x)
        for parameter in backbone.parameters():
            parameter.zero_()
        torch.testing.assert_close(twin(x), before, rtol=0, atol=0)  # nothing is shared
        backbone.load_state_dict(average)
        torch.testing.assert_close(backbone(x), before, **EXACT)
