"""Half the resolution, whole hidden units, and the controls beside them: against loops and plain modules."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import DefaultScope
from torch import nn

import repl_mm
from repl_mm import apply_repl, computing_layers
from repl_mm.classification import CifarResNet
from repl_mm.computing_layers.base import SMALL
from repl_mm.fusion import UnitsWeight
from repl_mm.plan import default_slots

mmdet_models = pytest.importorskip('mmdet.models')
R50 = dict(depth=50, base_channels=8)


def r50(**settings):
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return mmdet_models.ResNet(**{**R50, **settings})


def only(backbone):
    ((_, layer),) = computing_layers(backbone)
    return layer


# ---- weight space ---------------------------------------------------------------------------------------------------

# shape, neighbours, hidden dimension, groups -> for every hidden unit its neighbour and the unit there
UNITS = {
    'rows': ((4, 3, 1, 1), [(4, 3, 1, 1)] * 2, 0, 1, [(0, 0), (0, 1), (1, 2), (1, 3)]),
    'columns': ((3, 4, 3, 3), [(3, 4, 3, 3)] * 2, 1, 1, [(0, 0), (0, 1), (1, 2), (1, 3)]),
    'odd': ((5, 2, 1, 1), [(5, 2, 1, 1)] * 2, 0, 1, [(0, 0), (0, 1), (1, 2), (1, 3), (1, 4)]),
    'one neighbour': ((4, 3, 1, 1), [(4, 3, 1, 1)], 0, 1, [(0, 0), (0, 1), (0, 2), (0, 3)]),
    'wider neighbour': ((4, 3, 1, 1), [(8, 3, 1, 1), (4, 3, 1, 1)], 0, 1, [(0, 0), (0, 2), (1, 2), (1, 3)]),
}


@pytest.mark.parametrize('case', UNITS)
def test_units_are_taken_whole(case):
    torch.manual_seed(0)
    shape, neighbours, dim, groups, units = UNITS[case]
    weights = [torch.randn(n) for n in neighbours]
    made = UnitsWeight(shape, neighbours, dim, groups)(weights)
    assert made.shape == shape
    for h, (j, unit) in enumerate(units):
        assert torch.equal(made.select(dim, h), weights[j].select(dim, unit)), h


@pytest.mark.parametrize('count', [1, 2])
def test_grouped_units_read_their_like(count):
    """In dense neighbours' weights the columns of a group are those of its own units."""
    torch.manual_seed(0)
    weights = [torch.randn(4, 4, 3, 3) for _ in range(count)]
    made = UnitsWeight((4, 2, 3, 3), [(4, 4, 3, 3)] * count, groups=2)(weights)
    assert torch.equal(made[:2], weights[0][:2, :2]) and torch.equal(made[2:], weights[-1][2:, 2:])
    grouped = [torch.randn(4, 1, 3, 3) for _ in range(count)]  # groups of the neighbours stay
    made = UnitsWeight((4, 1, 3, 3), [(4, 1, 3, 3)] * count, groups=4)(grouped)
    assert torch.equal(made[:2], grouped[0][:2]) and torch.equal(made[2:], grouped[-1][2:])


def test_units_of_a_wider_dense_neighbour_read_their_like():
    weight = torch.randn(8, 8, 3, 3)
    made = UnitsWeight((4, 2, 3, 3), [(8, 8, 3, 3)], groups=2)([weight])
    assert torch.equal(made[:2], weight[[0, 2]][:, [0, 2]]) and torch.equal(made[2:], weight[[4, 6]][:, [4, 6]])


def blocks_of(matrices):
    return torch.block_diag(*matrices.detach())


@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize(('shape', 'outputs'), [((4, 4, 3, 3), True), ((8, 4, 1, 1), False)])
@pytest.mark.parametrize('kind', ['scalar', 'channel', 'mix'])
def test_the_transformation_of_the_last_operator(kind, shape, outputs, groups):
    torch.manual_seed(0)
    weights = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    source = UnitsWeight(shape, [shape] * 2, 1, 1, kind, groups).double()
    plain = UnitsWeight(shape, [shape] * 2, 1)(weights)
    assert torch.equal(source(weights), plain)  # it starts as the identity
    (coefficient,) = source.coefficients
    nn.init.normal_(coefficient)
    if kind == 'scalar':
        wanted = torch.cat([plain[:, :2] * coefficient[0], plain[:, 2:] * coefficient[1]], 1)
    elif kind == 'channel':
        wanted = plain * coefficient.view(1, -1, 1, 1)
    elif outputs:
        wanted = torch.einsum('oc,cikl->oikl', blocks_of(coefficient), plain)
    else:
        wanted = torch.einsum('oikl,ih->ohkl', plain, blocks_of(coefficient))
    torch.testing.assert_close(source(weights), wanted)
    assert torch.autograd.gradcheck(lambda *w: source(list(w)), weights)
    source(weights).square().sum().backward()
    assert all(t.grad.any() for t in (coefficient, *weights))


# ---- activation space -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [(8, 8), (7, 9), (1, 1)])
@pytest.mark.parametrize('make', [lambda: CifarResNet(32, base_channels=8), r50], ids=['basic', 'bottleneck'])
def test_equals_plain_modules(make, size):
    """Strided convolution, norm, ReLU, ...; nearest upsampling; shortcut; ReLU; and odd sizes."""
    backbone = make()
    bottleneck = hasattr(backbone.layer2[1], 'conv3')
    before = copy.deepcopy(backbone.layer2)
    apply_repl(backbone, slots=[(1, 1)], operator='half')
    layer = only(backbone)
    for norm in layer.repl['norms']:
        nn.init.uniform_(norm.weight)
        nn.init.normal_(norm.bias)
    channels, hidden = before[1].conv1.in_channels, before[1].conv1.out_channels
    half = hidden // 2
    first, last = before[0], before[2]
    coefficient = layer.repl['expand'].source.coefficients[0]
    assert torch.equal(blocks_of(coefficient), torch.eye(channels if not bottleneck else hidden))
    nn.init.normal_(coefficient)
    mixing = blocks_of(coefficient)
    reduce = first.conv1.weight
    if reduce.shape[1] != channels:  # the stage's first block reads fewer channels: each is read twice
        reduce = reduce.repeat_interleave(channels // reduce.shape[1], 1)
    reduce = torch.cat([reduce[:half], last.conv1.weight[half:]])
    names = ['conv3'] if bottleneck else ['conv2']
    expand = torch.cat([getattr(first, names[0]).weight[:, :half], getattr(last, names[0]).weight[:, half:]], 1)

    x = torch.randn(2, channels, *size).relu()
    norms = copy.deepcopy(layer.repl['norms'])
    for norm in norms:
        norm.eval()
    layer.eval()
    kernel = reduce.shape[-1]
    out = F.relu(norms[0](F.conv2d(x, reduce, stride=2, padding=kernel // 2)))
    if bottleneck:
        parts = [first.conv2.weight[:half, :half], last.conv2.weight[half:, half:]]
        out = torch.cat([F.conv2d(h, w, padding=1) for h, w in zip(out.chunk(2, 1), parts, strict=True)], 1)
        out = F.relu(norms[1](out))
        out = torch.einsum('ih,nhyx->niyx', mixing, out)
    out = F.conv2d(out, expand, padding=expand.shape[-1] // 2)
    out = norms[-1](out if bottleneck else torch.einsum('oc,ncyx->noyx', mixing, out))
    up = out.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, : size[0], : size[1]]
    wanted = F.relu(x + up)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-4)
    many = x.repeat(100 if size == (8, 8) else 1, 1, 1, 1)  # where the mixing is applied to the weight
    few, lots = (len(maps) * math.ceil(size[0] / 2) * math.ceil(size[1] / 2) for maps in (x, many))
    assert layer.mixed_apart(few) == ['expand'] and bool(layer.mixed_apart(lots)) == (size != (8, 8))
    torch.testing.assert_close(layer(many)[-2:], wanted, rtol=1e-4, atol=1e-4)
    layer.fold()
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-4)


def test_dilation_is_halved_with_the_resolution():
    backbone = r50(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
    apply_repl(backbone, slots=[(2, 1), (3, 1)], operator='half')
    found = [layer.settings[1]['dilation'] for _, layer in computing_layers(backbone)]
    assert found == [(1, 1), (2, 2)]


# backbone, its last norm in a block, what initialization from scratch sets it to
STARTS = {
    'bottlenecks': (r50, 'bn3', 0),
    'basic blocks': (lambda: r50(depth=18), 'bn2', 0),
    'group norm': (lambda: r50(norm_cfg=dict(type='GN', num_groups=2)), 'gn3', 0),
    'started whole': (lambda: r50(zero_init_residual=False), 'bn3', 1),
    'CIFAR': (lambda: CifarResNet(20, base_channels=8), 'bn2', 1),
}


@pytest.mark.parametrize('mode', ['fuse', 'own'])
@pytest.mark.parametrize('case', STARTS)
def test_the_last_norm_starts_as_those_of_the_blocks(case, mode):
    """From scratch; with stock weights at a tenth; and what was saved is loaded as it is."""
    make, name, start = STARTS[case]
    backbone, stock = make(), make()
    apply_repl(backbone, slots=[(1, 1)], operator='half', mode=mode)
    last = only(backbone).repl['norms'][-1]
    assert torch.equal(last.weight, torch.full_like(last.weight, 0.1))
    nn.init.constant_(getattr(stock.layer2[0], name).weight, 0.5)
    nn.init.constant_(getattr(stock.layer2[-1], name).weight, 0.5)
    backbone.load_state_dict(stock.state_dict())
    assert torch.equal(last.weight, torch.full_like(last.weight, 0.1))
    backbone.init_weights()
    for norm in (last, getattr(backbone.layer2[0], name)):
        assert torch.equal(norm.weight, torch.full_like(norm.weight, start))
    nn.init.constant_(last.weight, 0.7)
    backbone.load_state_dict(backbone.state_dict())
    assert torch.equal(last.weight, torch.full_like(last.weight, 0.7))


def test_the_last_norm_starts_at_nothing_in_a_network_that_was_initialized_before():
    """Networks of timm and torchvision are initialized when they are built; on the meta device nothing is known."""
    backbone = r50()
    backbone.init_weights()
    apply_repl(backbone, slots=[(1, 1)], operator='half')
    assert not only(backbone).repl['norms'][-1].weight.any()
    stock = r50().state_dict()
    with torch.device('meta'):
        backbone = r50()
        apply_repl(backbone, slots=[(1, 1)], operator='half')
        backbone.load_state_dict(stock)


def test_norms_are_of_the_replaced_blocks_kind():
    backbone = r50(norm_cfg=dict(type='GN', num_groups=2))
    apply_repl(backbone, slots=[(1, 1)], operator='half', mode='own')
    assert {type(norm) for norm in only(backbone).repl['norms']} == {nn.GroupNorm}


def test_with_cp_gives_the_same_gradients():
    grads = []
    for with_cp in (False, True):
        backbone = r50(with_cp=with_cp, norm_eval=True)
        torch.manual_seed(1)
        apply_repl(backbone, operator='half')
        backbone.train()
        backbone(torch.ones(1, 3, 64, 64))[-1].square().mean().backward()
        grads.append([p.grad for p in backbone.parameters()])
    assert len(grads[0]) == len(grads[1])
    for one, other in zip(*grads, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


def graph_breaks(backbone, size, batch=2):
    torch._dynamo.reset()
    backbone.train()
    return torch._dynamo.explain(backbone)(torch.rand(batch, 3, size, size)).graph_break_count


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    'replace', [dict(), dict(operator='half', fusion='scalar'), dict(operator='half'), dict(mode='linear')], ids=str
)
def test_a_compiled_resnet_has_one_graph(replace):
    backbone = CifarResNet(20, base_channels=8)
    apply_repl(backbone, **replace)
    assert graph_breaks(backbone, 32) == graph_breaks(CifarResNet(20, base_channels=8), 32) == 0
    large = 2 * SMALL // (8 * 32 * 32)  # images beside which hidden activations are computed twice
    assert graph_breaks(backbone, 32, large) == 0


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('operator', ['mixer', 'mlp'])
def test_a_compiled_transformer_has_no_more_graphs(operator):
    vit = pytest.importorskip('mmseg.models').VisionTransformer
    stock, backbone = (vit(img_size=32, patch_size=8, embed_dims=16, num_layers=4, num_heads=2) for _ in range(2))
    apply_repl(backbone, operator=operator)
    assert graph_breaks(backbone, 32) <= graph_breaks(stock, 32)


# ---- controls -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('mode', ['patch', 'linear'])
@pytest.mark.parametrize('tokens', [False, True])
def test_a_patch_starts_as_the_identity_and_borrows_nothing(mode, tokens):
    if tokens:
        models = pytest.importorskip('mmseg.models')
        backbone = models.VisionTransformer(img_size=32, patch_size=8, embed_dims=16, num_layers=4, num_heads=2)
    else:
        backbone = CifarResNet(20, base_channels=16)
    apply_repl(backbone, slots=[(0, 1)], mode=mode)
    layer = only(backbone)
    assert layer.neighbours == ()
    x = torch.randn(2, 5, 16) if tokens else torch.randn(2, 16, 5, 5).relu()
    torch.testing.assert_close(layer(x), x)
    assert sum(p.numel() for p in layer.parameters()) == 32 + (256 if mode == 'linear' else 0)
    gain, bias = layer.repl['patch']['gain'], layer.repl['patch']['bias']
    nn.init.normal_(gain)
    nn.init.normal_(bias)
    weight = torch.diag(1 + gain.detach())
    if mode == 'linear':
        nn.init.normal_(layer.repl['patch']['map'])
        weight = weight + layer.repl['patch']['map'].detach()
    wanted = (x if tokens else x.permute(0, 2, 3, 1)) @ weight.T + bias
    wanted = wanted if tokens else wanted.permute(0, 3, 1, 2).relu()
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-4)


def test_a_patch_keeps_the_precision_of_its_input():
    backbone = CifarResNet(20)
    apply_repl(backbone, slots=[(0, 1)], mode='patch')
    with torch.autocast('cpu', torch.bfloat16):
        assert only(backbone)(torch.rand(1, 16, 4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(('norm_cfg', 'expected'), [(dict(type='IN'), 'affine')])
def test_norms_that_half_cannot_use_are_told(norm_cfg, expected):
    with pytest.raises(repl_mm.PlanError, match=f"replace.operator='half' .*{expected}"):
        apply_repl(r50(norm_cfg=norm_cfg), operator='half')


@pytest.mark.parametrize('operator', ['separable', 'half', 'full'])
def test_random_weights_stand_in_the_neighbours_place(operator):
    """The same in every network, in no state dict, without gradient to neighbours; what they make has a like size."""
    fused, one, other = (r50(norm_eval=True) for _ in range(3))
    apply_repl(fused, slots=[(1, 1), (1, 3)], operator=operator)
    for net in (one, other):
        apply_repl(net, slots=[(1, 1), (1, 3)], operator=operator, mode='random')
    assert one.state_dict().keys() == fused.state_dict().keys()
    layers = [layer for _, layer in computing_layers(one)]
    again = [layer for _, layer in computing_layers(other)]
    for layer, same in zip(layers, again, strict=True):
        for name in layer.names:
            for found, repeated, lent in zip(
                *(x.borrow(name) for x in (layer, same)), lent_to(layer, name), strict=True
            ):
                assert torch.equal(found, repeated) and found.shape == lent.shape and not torch.equal(found, lent)
    if operator != 'half':  # norms follow its weights
        for (_, layer), random in zip(computing_layers(fused), layers, strict=True):
            for made in zip(layer.synthesize(), random.synthesize(), strict=True):
                size = [weight.square().mean().sqrt().item() for weight, _ in made]
                assert size[0] == pytest.approx(size[1], rel=0.2)
    names = layers[0].names
    assert not torch.equal(layers[0].borrow(names[0])[1], layers[1].borrow(names[0])[1])  # each slot has its own
    for net, reaches in ((one, False), (fused, True)):
        layer = next(layer for _, layer in computing_layers(net))
        layer(torch.rand(1, 64, 8, 8)).square().sum().backward()
        assert any(p.grad is not None for p in net.layer2[0].parameters()) == reaches


@pytest.mark.parametrize('operator', ['separable', 'half'])
def test_random_weights_of_a_network_from_the_meta_device(operator):
    wanted = CifarResNet(20)
    apply_repl(wanted, slots=[(1, 1)], operator=operator, mode='random')
    with torch.device('meta'):
        backbone = CifarResNet(20)
        apply_repl(backbone, slots=[(1, 1)], operator=operator, mode='random')
    backbone.to_empty(device='cpu')
    for name, buffer in backbone.named_buffers():
        if 'noise' in name:
            nn.init.constant_(buffer, float('nan'))
    backbone.init_weights()
    for name in only(wanted).names:
        for one, other in zip(only(wanted).borrow(name), only(backbone).borrow(name), strict=True):
            assert torch.equal(one, other)


def test_random_gains_of_norms_are_ones():
    vit = pytest.importorskip('mmseg.models').VisionTransformer
    backbone = vit(img_size=32, patch_size=8, embed_dims=16, num_layers=4, num_heads=2)
    apply_repl(backbone, slots=[(0, 1)], operator='full', mode='random')
    gains = [name for name in only(backbone).names if name.startswith('ln') and name.endswith('weight')]
    assert gains
    for name, (weight, _) in zip(only(backbone).names, only(backbone).synthesize(), strict=True):
        if name in gains:
            torch.testing.assert_close(weight, torch.ones(16))


def lent_to(layer, name):
    return [weight for watch in layer.neighbours for weight in layer.neighbour_weights(watch.block, name)]


def test_modes_without_an_operator_are_told_so():
    backbone = CifarResNet(20)
    plan = str(apply_repl(backbone, mode='patch'))
    assert "mode='patch'" in plan and 'operator' not in plan
    assert len(repl_mm.plan_of(backbone).slots) == 3 * len(default_slots(3, 2))


@pytest.mark.parametrize('mode', ['fuse', 'own'])
def test_one_position_is_normalized_by_what_was_learned(mode):
    """A 2x2 map of one picture, which the block still learns from, is a single position at half the resolution."""
    net = r50(norm_eval=False)
    net.train()
    picture = torch.rand(1, 3, 64, 64)
    net(picture)
    apply_repl(net, slots=[(3, 1)], operator='half', mode=mode)
    norms = only(net).repl['norms']
    net.train()
    net(torch.rand(2, 3, 64, 64))
    before = {key: value.clone() for key, value in norms.state_dict().items()}
    assert before['0.running_mean'].abs().sum() > 0 and all(norm.training for norm in norms)
    out = net(picture)[-1]
    out.sum().backward()
    for key, value in norms.state_dict().items():
        assert torch.equal(value, before[key]), key
    norms.eval()
    torch.testing.assert_close(net(picture)[-1], out)
