"""Exact costs: against hand calculation on tiny networks, against real runs, and against the known figures."""

import copy
import importlib.util
import json
import random
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import repl_mm
from repl_mm import config, cost
from repl_mm.arms import default_arms, read_arm
from repl_mm.classification import CifarResNet
from repl_mm.cost.counting import is_view

mmdet_models = pytest.importorskip('mmdet.models')
ROOT = Path(__file__).resolve().parent.parent

# The tiny network below on 2 images of 8x8, by hand; a multiply-add is 2 FLOPs.
CONV1 = 2 * (2 * 8 * 8) * 4 * 3 * 9  # 4 of 3 channels, 3x3, at 2 * 8 * 8 places
CONV2 = 2 * (2 * 4 * 4) * 6 * 2 * 9  # 6 of 2 channels (2 groups of 4), 3x3, at 2 * 4 * 4 places
MAP = 2 * 4 * 8 * 8 * 4  # bytes of a map of 4 channels


class Tiny(nn.Module):
    """Convolution, BN, ReLU, grouped convolution."""

    def __init__(self, inplace=True, norm_eval=True, frozen=False, reentrant=None):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)
        self.norm_eval = norm_eval
        self.frozen = frozen
        self.reentrant = reentrant

    def train(self, mode=True):
        super().train(mode)
        if self.norm_eval:
            self.norm.eval()
        for module in (self.conv1, self.norm):
            module.requires_grad_(not self.frozen)

    def stem(self, x):
        return self.relu(self.norm(self.conv1(x)))

    def forward(self, x):
        x = self.stem(x) if self.reentrant is None else checkpoint(self.stem, x, use_reentrant=self.reentrant)
        return (self.conv2(x),)


def tiny_cost(**kwargs):
    return cost.measure(Tiny(**kwargs), cost.ImageInput((8, 8), 2))


def test_hand_calculation():
    got = tiny_cost()
    assert got.params == got.total_params == 4 * 3 * 9 + 4 + 4 + 6 * 2 * 9
    assert got.optimizer_bytes == 4 * got.params
    assert got.forward_flops == CONV1 + CONV2
    # the image needs no gradient, so conv1's backward is one product, that of conv2 two
    assert got.flops == 2 * CONV1 + 3 * CONV2
    # conv1, norm, ReLU and conv2, and of each its backward; that of the loss is not the backbone's
    assert got.operations == 4 + 4
    # the normalization keeps its input; the ReLU's result is what conv2 keeps; the image is not counted
    assert got.activation_bytes == 2 * MAP


def test_training_norm_keeps_its_statistics():
    assert tiny_cost(norm_eval=False).activation_bytes == 2 * MAP + 2 * 4 * 4


def test_separate_relu_keeps_no_more():
    assert tiny_cost(inplace=False) == tiny_cost()


def test_frozen_stage():
    got = tiny_cost(frozen=True)
    assert (got.params, got.total_params) == (108, 224)
    assert got.flops == CONV1 + 2 * CONV2  # no gradient of conv2's input either
    assert got.activation_bytes == MAP


def test_non_reentrant_checkpoint():
    got = tiny_cost(reentrant=False)
    assert got.flops == 3 * CONV1 + 3 * CONV2
    assert got.activation_bytes == MAP


def test_reentrant_checkpoint_of_an_input_without_gradient_trains_nothing():
    got = tiny_cost(reentrant=True)  # torch's own restriction, which is why mm does not checkpoint such blocks
    assert got.flops == CONV1 + 2 * CONV2


def test_moments():
    assert cost.measure(Tiny(), cost.ImageInput((8, 8)), moments=2).optimizer_bytes == 2 * 4 * 224


@pytest.mark.parametrize('groups', [1, 2, 4])
def test_grouped_convolution_backward(groups):
    """Forward, gradient of the input and of the weight cost the same, whatever the groups."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 8, 3, padding=1, groups=groups))
    got = cost.measure(net, cost.ImageInput((8, 8), 1))
    first, second = 2 * 64 * 8 * 3, 2 * 64 * 8 * (8 // groups) * 9
    assert got.forward_flops == first + second
    assert got.flops == 2 * first + 3 * second


def test_transposed_convolution():
    net = nn.ConvTranspose2d(3, 5, 2, stride=2)
    assert cost.measure(net, cost.ImageInput((8, 8), 1)).flops == 2 * (2 * 64 * 3 * 5 * 4)


def test_attention_is_counted():
    class Attention(nn.Module):
        def forward(self, x):
            x = x.flatten(2)  # three heads of 8 tokens with 8 numbers
            return F.scaled_dot_product_attention(*[x.view(1, 3, 8, 8)] * 3)

    assert cost.measure(Attention(), cost.ImageInput((8, 8), 1)).flops == 2 * (2 * 3 * 8 * 8 * 8)


def test_shared_parameters_count_once():
    layer = nn.Conv2d(3, 3, 1)
    assert cost.measure(nn.Sequential(layer, layer), cost.ImageInput((4, 4))).params == 12


def test_backbone_is_left_alone():
    net = Tiny(norm_eval=False)
    net.eval()
    before = copy.deepcopy(net.state_dict())
    cost.measure(net, cost.ImageInput((8, 8)))
    assert not net.training and all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize('replace', [None, {}, dict(operator='full'), dict(mode='own')], ids=str)
def test_equals_a_real_run(replace):
    """The same FLOPs as torch counts in a real step without groups, the same bytes as autograd really holds."""
    net = mmdet_models.ResNet(depth=50, base_channels=8, norm_eval=True, frozen_stages=1)
    if replace is not None:
        repl_mm.apply_repl(net, every=2, **replace)
    got = cost.measure(net, cost.ImageInput((64, 96), 1))
    net.train()
    image = torch.rand(1, 3, 64, 96)
    given = {t.untyped_storage().data_ptr() for t in [image, *net.parameters(), *net.buffers()]}
    alive = []

    def pack(tensor):
        alive.append(tensor)
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = net(image)
        sum(x.sum() for x in out).backward()
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
    assert got.activation_bytes == sum(size for pointer, size in held.items() if pointer not in given)
    if replace in (None, dict(operator='full')):  # the others have grouped convolutions, which torch counts wrongly
        assert got.flops == counter.get_total_flops()


# --- the design's figures --------------------------------------------------------------------------------------------
def resnet(depth, **kwargs):
    return mmdet_models.ResNet(depth=depth, frozen_stages=1, norm_eval=True, style='pytorch', **kwargs)


def removed(net):
    """Every second interior block of the stages that train, taken out by hand."""
    for stage in (net.layer2, net.layer3, net.layer4):
        for index in range(1, len(stage) - 1, 2):
            stage[index] = nn.Identity()
    return net


def ratios(got, base):
    return [round(getattr(got, k) / getattr(base, k), 2) for k in ('params', 'flops', 'activation_bytes')]


@pytest.fixture(scope='module', params=[50, 101])
def reference(request):
    depth = request.param
    return depth, cost.measure(resnet(depth)), cost.measure(removed(resnet(depth)))


@pytest.mark.filterwarnings('ignore:.*use_reentrant')
def test_known_figures(reference):
    depth, e2e, limit = reference
    assert ratios(limit, e2e) == {50: [0.70, 0.75, 0.77], 101: [0.60, 0.61, 0.63]}[depth]
    with_cp = cost.measure(resnet(depth, with_cp=True))
    assert ratios(with_cp, e2e) == {50: [1.00, 1.28, 0.48], 101: [1.00, 1.31, 0.41]}[depth]


def test_default_keeps_most_of_the_saving(reference):
    depth, e2e, limit = reference
    net = resnet(depth)
    repl_mm.apply_repl(net)
    got = cost.measure(net)
    assert cost.share_kept(got, e2e, limit, 'flops') >= 0.6
    assert cost.share_kept(got, e2e, limit, 'activation_bytes') >= 0.6
    assert 0 < cost.synthesis_flops(net) < 0.02 * got.flops


@pytest.mark.parametrize(
    ('shape', 'batch', 'flops', 'activations', 'params'),
    [((800, 1344), 2, 0.71, 0.66, 0.93), ((320, 544), 2, 0.65, 0.5, 0.93), ((320, 544), 1, 0.6, 0.3, 0.93)],
)
def test_what_is_kept_of_the_saving_at_every_size(shape, batch, flops, activations, params):
    e2e, got, limit = (resnet(50) for _ in range(3))
    repl_mm.apply_repl(got)
    repl_mm.apply_repl(limit, mode='remove')
    e2e, got, limit = (cost.measure(net, cost.ImageInput(shape, batch)) for net in (e2e, got, limit))
    wanted = dict(flops=flops, activation_bytes=activations, params=params)
    for key, least in wanted.items():
        assert cost.share_kept(got, e2e, limit, key) >= least, key


@pytest.mark.parametrize(
    ('side', 'batch', 'flops', 'activations'),
    [(64, 1, 0.97, 1.07), (128, 1, 0.94, 1.12), (224, 1, 0.9, 1.11), (64, 4, 0.94, 1.13), (320, 1, 0.9, 0.98)],
)
def test_small_inputs_compute_less_and_keep_little_more_than_without_replacement(side, batch, flops, activations):
    """Weights that meet few positions are not made; those that are made are kept, which costs.md says."""
    e2e, got = (resnet(50) for _ in range(2))
    repl_mm.apply_repl(got)
    e2e, got = (cost.measure(net, cost.ImageInput((side, side), batch)) for net in (e2e, got))
    assert got.flops < flops * e2e.flops and got.activation_bytes < activations * e2e.activation_bytes


@pytest.mark.parametrize(
    ('name', 'depth', 'settings'),
    [('ResNeXt', 101, dict(groups=32, base_width=4)), ('RegNet', None, dict(arch='regnetx_3.2gf'))],
)
def test_grouped_blocks_keep_most_of_the_saving(name, depth, settings):
    """Of a ResNeXt, the layers are as wide as those of the ResNet of the same cost."""
    settings = dict(settings, type=name, **({} if depth is None else dict(depth=depth)))
    plans = [None, dict(mode='remove'), dict()]
    nets = [
        small.build(settings if plan is None else dict(settings, type=f'RepL{name}', replace=plan)) for plan in plans
    ]
    e2e, limit, got = map(cost.measure, nets)
    assert cost.share_kept(got, e2e, limit, 'flops') >= 0.69
    assert cost.share_kept(got, e2e, limit, 'activation_bytes') >= 0.7
    if name == 'ResNeXt':
        twin = small.build(dict(type='RepLResNet', depth=101, replace=dict()))
        widths = [
            [layer.repl['reduce'].source.shape[0] for _, layer in repl_mm.computing_layers(net)]
            for net in (nets[2], twin)
        ]
        assert widths[0] == widths[1]


def test_mode_remove_is_the_limit(reference):
    depth, _, limit = reference
    net = resnet(depth)
    repl_mm.apply_repl(net, mode='remove')
    assert cost.measure(net) == limit
    assert cost.synthesis_flops(net) == 0


# --- operations ------------------------------------------------------------------------------------------------------
def cheap(name):
    """A backbone, what is replaced in it, and how many times the operations of E2E a step may have."""
    half = dict(operator='half') if name.endswith('half') else {}
    if name.startswith('resnet50 small'):
        return lambda: resnet(50), half, cost.ImageInput((64, 64), 1), 1.4
    if name.startswith('resnet50 two small'):  # more layers do without their weights than with one
        return lambda: resnet(50), half, cost.ImageInput((64, 64), 2), 1.4
    if name.startswith('resnet50'):
        return lambda: resnet(50), half, cost.ImageInput((800, 1344), 2), 1.4
    if name.startswith('resnet32 small'):  # nothing is recomputed
        return lambda: CifarResNet(32), half, cost.ImageInput((32, 32), 4), 1.5
    if name.startswith('resnet32'):
        return lambda: CifarResNet(32), half, cost.ImageInput((32, 32), 128), 1.6
    vit = pytest.importorskip('mmseg.models').VisionTransformer
    settings = dict(img_size=(64, 64), embed_dims=192, num_layers=12, num_heads=3)
    return lambda: vit(**settings), {}, cost.ImageInput((64, 64), 2), 1.2


@pytest.mark.parametrize(
    'name',
    ['resnet50', 'resnet50 half', 'resnet50 small', 'resnet50 small half', 'resnet50 two small']
    + ['resnet32', 'resnet32 small', 'resnet32 half', 'vit'],
)
def test_operations_of_a_step(name):
    """Every one is a launch on a GPU."""
    make, replace, inputs, limit = cheap(name)
    stock, repl, removed = (make() for _ in range(3))
    repl_mm.apply_repl(repl, **replace)
    repl_mm.apply_repl(removed, mode='remove')
    e2e, ours, least = (cost.measure(net, inputs).operations for net in (stock, repl, removed))
    assert least < ours <= limit * e2e


def stepping(name):
    """A backbone with RepL and the size of a picture for a real step."""
    if name in ('vit', 'mixer'):
        vit = pytest.importorskip('mmseg.models').VisionTransformer
        net = vit(img_size=(32, 32), patch_size=8, embed_dims=32, num_layers=6, num_heads=2)
    else:
        net = CifarResNet(20)
    repl_mm.apply_repl(net, **({} if name == 'vit' else dict(operator=name)))
    return net


@pytest.mark.parametrize('name', ['separable', 'conv', 'half', 'full', 'vit', 'mixer'])
def test_what_counts_as_a_view(name, capsys):
    """Counted by hand in a real step, the list of what was left out is printed; no operator could hide others."""
    left_out, counted = set(), []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
            # a view shares the memory of an input and wrote nothing there
            if is_view(func):
                left_out.add(str(func))
                memory = {t.untyped_storage().data_ptr() for t in tensors}
                new = [t for t in made if t.untyped_storage().data_ptr() not in memory]
                assert not new or 'empty' in str(func), func
            else:
                counted.append(func)
            return out

    net = stepping(name)
    x = torch.rand(2, 3, 32, 32)
    with Count():
        (out,) = net(x)
    grad = torch.ones_like(out)
    with Count():
        out.backward(grad)
    with capsys.disabled():
        print(f'\nviews in a step with {name}:', *sorted(left_out))
    assert {func.namespace for func in counted} == {'aten'}  # a custom operator would count as one, whatever is inside
    assert len(counted) == cost.measure(net, cost.ImageInput((32, 32), 2)).operations
    assert {name.split('.')[1] for name in left_out} <= {
        *('view', '_unsafe_view', 't', 'transpose', 'permute', 'expand', 'slice', 'select', 'unsqueeze', 'squeeze'),
        *('detach', 'alias', 'empty', 'empty_like', 'new_empty_strided', 'narrow', 'split', 'as_strided', 'unbind'),
    }


# --- arms ------------------------------------------------------------------------------------------------------------
def model_with(**backbone):
    return Config(dict(default_scope='mmdet', model=dict(type='RetinaNet', backbone=backbone)))


def counted(cfg, arms, **kwargs):
    return [cost.count(arm, cfg, **kwargs) for arm in arms]


def test_arms_are_counted_beside_each_other():
    cfg = model_with(type='RepLResNet', depth=18, replace=dict(every=2), frozen_stages=0, init_cfg=dict(type='X'))
    arms = default_arms(cfg, cost.ImageInput((32, 32), 1)) + [read_arm('full', cost.ImageInput((32, 32), 1))]
    assert [arm.name for arm in arms] == [
        'e2e',
        'fuse',
        'remove',
        'e2e:with_cp=True',
        'e2e:with_cp=True,non_reentrant',
        'fuse:with_cp=True',
        'e2e:efficient_conv_bn_eval',
        'fuse:efficient_conv_bn_eval',
        'full',
    ]
    rows = counted(cfg, arms, rest=1000)
    assert [row.name for row in rows] == [arm.name for arm in arms]
    assert rows[0].model_params == 1000 + rows[0].cost.params
    result = {row['name']: row for row in cost.relative(rows)}
    assert result['remove']['kept'] == dict(flops=1, activation_bytes=1)
    assert result['fuse']['relative']['params'] == rows[1].cost.params / rows[0].cost.params
    assert result['e2e:with_cp=True']['relative']['params'] == 1
    text = cost.table(rows)
    assert all(name in text for name in result) and 'relative to e2e' in text


@pytest.mark.parametrize('name', ['e2e', 'fuse'])
def test_efficient_conv_bn_eval(name):
    """mm's fused evaluation-mode convolution and BN keeps no input of the BN, in the kept blocks of RepL as well."""
    cfg = model_with(type='RepLResNet', depth=50, norm_eval=True, frozen_stages=1)
    plain, efficient = counted(cfg, map(read_arm, [name, f'{name}:efficient_conv_bn_eval']))
    assert efficient.cost.activation_bytes < 0.7 * plain.cost.activation_bytes
    assert (efficient.cost.params, efficient.cost.flops) == (plain.cost.params, plain.cost.flops)


def test_several_backbones_cost_their_sum():
    one = dict(type='RepLResNet', depth=18, base_channels=8)
    two = dict(one, depth=34, replace=dict(every=3))
    small, large = (
        cost.count(read_arm('fuse', cost.ImageInput((32, 32))), model_with(**settings)).cost for settings in (one, two)
    )
    cfg = Config(dict(default_scope='mmdet', model=dict(type='A', backbone=[one, two])))
    both = cost.count(read_arm('fuse', cost.ImageInput((32, 32))), cfg).cost
    assert both == small + large and both.params == small.params + large.params and both.inputs == small.inputs


def test_an_arm_that_is_not_possible():
    cfg = model_with(type='RepLResNet', depth=18)
    arm = read_arm('fuse:no_such=1', cost.ImageInput((32, 32)))
    with pytest.raises(ValueError, match="arm 'fuse:no_such=1': .*no_such"):
        cost.count(arm, cfg)
    row = cost.count(arm, cfg, optional=True)
    assert row.cost is None and 'no_such' in row.note and '\n' not in row.note
    assert 'see note' in cost.table([cost.count(read_arm('e2e', arm.inputs), cfg), row])


def random_states():
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


def test_counting_draws_no_random_numbers():
    cfg = model_with(type='RepLResNet', depth=18, base_channels=8)
    before = random_states()
    rows = counted(cfg, [read_arm(name, cost.ImageInput((32, 32))) for name in ('e2e', 'full')])
    cost.table(rows)
    assert random_states() == before
    with cost.no_random_change():
        torch.rand(1), np.random.rand(1), random.random()
        assert all(now != old for now, old in zip(random_states(), before, strict=True))
    assert random_states() == before


def test_nested_outputs_are_counted_and_timed():
    """mm's classification transformers put out tuples in a tuple."""

    @MODELS.register_module(force=True)
    class NestedCifarResNet(CifarResNet):
        def forward(self, x):
            return tuple((out, [out.mean()]) for out in super().forward(x))

    backbone = dict(type='NestedCifarResNet', depth=20)
    cfg = Config(dict(model=dict(type='A', backbone=dict(backbone, replace={}, type='RepLCifarResNet'))))
    plain = cost.count(read_arm('e2e', cost.ImageInput((16, 16))), cfg).cost
    nested = MODELS.build(backbone)
    assert cost.measure(nested, plain.inputs).params == plain.params
    assert cost.measure(nested, plain.inputs).forward_flops == plain.forward_flops
    cfg.model.backbone = dict(backbone, replace={})  # `replace` says that it is to be looked at
    (timed,) = cost.time_arms([read_arm('e2e', plain.inputs)], cfg, 1, torch.device('cpu'))
    assert timed['ratios'] == [1] and timed['seconds'][0] > 0


def test_whole_model_and_optimizer():
    cfg = get_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    outside = config.params_outside(cfg.model, 'mmdet')
    # FPN: three 1x1 to 256, three 3x3 laterals, two 3x3 extra levels; head: 2 x 4 convolutions, 9 anchors x 80 and x 4
    fpn = (512 + 1024 + 2048 + 3) * 256 + 3 * (9 * 256 * 256 + 256) + (9 * 2048 * 256 + 256) + (9 * 256 * 256 + 256)
    head = 8 * (9 * 256 * 256 + 256) + (9 * 256 + 1) * 9 * (80 + 4)
    assert outside == fpn + head
    assert cost.optimizer_moments(cfg) == (1, 'SGD with momentum')
    adam = Config(dict(optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-4))))
    assert cost.optimizer_moments(adam) == (2, 'AdamW')
    plain = Config(dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-4))))
    assert cost.optimizer_moments(plain) == (0, 'SGD without momentum')


def test_report():
    before = cost.Cost(2_000_000, 2_500_000, 4 * 10**9, 10**9, 3 * 2**20, 8 * 10**6, 40, cost.ImageInput())
    after = cost.Cost(1_500_000, 2_000_000, 3 * 10**9, 10**9, 2**20, 6 * 10**6, 50, cost.ImageInput())
    title, *lines = [line.replace('|', ' ').split() for line in cost.report(before, after).splitlines()]
    assert title == ['Cost', 'of', 'the', 'backbone,', '800x1344,', 'batch', '2', 'before', 'after', 'gap', 'remain']
    assert ['trainable', 'parameters', '2.00', 'M', '1.50', 'M', '-500.00', 'k', '75.0%'] in lines
    assert ['train', 'FLOPs', '4.00', 'G', '3.00', 'G', '-1.00', 'G', '75.0%'] in lines
    assert ['operations', '40', '50', '10', '125.0%'] in lines
    assert ['activation', 'bytes', '3.0', 'MiB', '1.0', 'MiB', '-2.0', 'MiB', '33.3%'] in lines


def test_errors():
    with pytest.raises(ValueError, match=r'shape=\(0, 8\) is no image size'):
        cost.measure(Tiny(), cost.ImageInput((0, 8)))
    with pytest.raises(ValueError, match='batch=0 is no number of images'):
        cost.measure(Tiny(), cost.ImageInput((8, 8), 0))
    dcn = dict(type='DCN', deform_groups=1, fallback_on_stride=False)
    with pytest.raises(RuntimeError, match='ResNet cannot be counted on fake tensors'):
        cost.measure(
            mmdet_models.ResNet(depth=50, dcn=dcn, stage_with_dcn=(False, True, True, True)), cost.ImageInput((64, 64))
        )


# --- the tool --------------------------------------------------------------------------------------------------------
@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    spec = importlib.util.spec_from_file_location('tools_cost', ROOT / 'tools' / 'cost.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # in this process, which ran autograd before: it cannot be forked
    return lambda *args: module.main([*map(str, args), '--jobs', '1'])


R18 = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'


def test_tool(tool, tmp_path, capsys):
    out, picture = tmp_path / 'cost.json', tmp_path / 'cost.png'
    tool(
        *[R18, '--shape', 96, 48, '--batch', 2, '--arms', 'e2e', 'fuse', 'remove', 'own'],
        *['--json', out, '--plot', picture, '--time', 2],
        *['--cfg-options', 'model.backbone.norm_eval=False'],
    )
    text = capsys.readouterr().out
    assert 'kept FLOPs' in text and re.findall(r'Steps on \w+, (\d+x\d+)', text) == ['96x48', '64x48']
    assert picture.read_bytes().startswith(b'\x89PNG')
    result = json.loads(out.read_text())
    assert [row['name'] for row in result['rows'][:4]] == ['e2e', 'fuse', 'remove', 'own']
    assert result['rows'][0]['relative']['flops'] == 1
    assert result['rows'][1]['model_params'] > result['rows'][1]['params']
    assert [row['name'] for row in result['time_small']] == [row['name'] for row in result['rows'][:4]]
    timed = {row['name']: row for row in result['time']}
    assert len(timed['fuse']['ratios']) == 2 and timed['e2e']['ratios'] == [1, 1]
    assert 0 < timed['fuse']['synthesis_share'] < 1 and timed['remove']['synthesis_share'] == 0


@pytest.mark.parametrize(
    'args, message',
    [
        (['no/such.py'], 'no/such.py'),
        (
            ['mmdet::cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py'],
            "does not support backbone type 'HourglassNet'",
        ),
        ([R18, '--arms', 'fuse:no_such=1', '--shape', 64, 64], "arm 'fuse:no_such=1': "),
        ([R18, '--arms', 'E2E'], "'E2E' is no arm"),
        ([R18, '--shape', 0, 64], 'shape=(0, 64) is no image size'),
        ([R18, '--cfg-options', 'model.backbone.replace.every=0'], 'replace.every=0'),
    ],
)
def test_tool_ends_in_one_line(tool, args, message):
    with pytest.raises(SystemExit) as stopped:
        tool(*args)
    assert message in str(stopped.value) and '\n' not in str(stopped.value)


@pytest.mark.parametrize(
    ('preprocessor', 'shape'),
    [(None, (800, 1344)), (dict(), (800, 1344)), (dict(size=16), (16, 16)), (dict(size=(64, 96)), (64, 96))],
    ids=str,
)
def test_a_config_says_its_size(preprocessor, shape):
    cfg = model_with(type='ResNet', depth=50)
    if preprocessor is not None:
        cfg.model.data_preprocessor = preprocessor
    assert config.example_input(cfg, batch=3) == cost.ImageInput(shape, 3)
    assert config.example_input(cfg, (8, 9), 1) == cost.ImageInput((8, 9), 1)


@pytest.mark.slow
def test_tool_takes_seconds():
    """Under 20 s for a ResNet-101 on a free machine; CPU time and a wide limit, so that a busy one does not fail."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, 'tools/cost.py', 'mmdet::retinanet/retinanet_r101_fpn_1x_coco.py']
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime - before.ru_utime < 60
