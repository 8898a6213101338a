"""Half the resolution in transformers: against the stock layer between a pooling and an upsampling by hand."""

import copy
from functools import partial

import pytest
import small
import torch
from small import MMPRETRAIN, SWIN, TRANSFORMERS, images
from torch import nn

from repl_mm import PlanError, apply_repl, computing_layers, cost, fold, merge

VIT, MSCAN = TRANSFORMERS['vit'], small.MSCAN
STILL_SWIN = dict(SWIN, **small.STILL)

# name: (stock backbone, slot, height and width of the picture, tokens in front of the grid)
TABLE = {
    'vit': (VIT, (0, 2), (64, 96), 1),
    'vit, odd': (dict(VIT, with_cls_token=False), (0, 2), (80, 48), 0),
    'swin': (STILL_SWIN, (2, 2), (128, 64), 0),
    'swin, shifted': (dict(STILL_SWIN, _scope_='mmseg'), (1, 1), (128, 160), 0),
    'swin, shifted, odd, smaller than a window': (STILL_SWIN, (2, 1), (48, 112), 0),
    'mit': (dict(TRANSFORMERS['mit'], **small.STILL), (1, 1), (96, 72), 0),
    'pvt': (dict(TRANSFORMERS['pvt'], **small.STILL), (1, 1), (64, 96), 0),
    'svt': (dict(TRANSFORMERS['svt'], **small.STILL), (1, 1), (96, 64), 0),
    'mscan': (MSCAN, (1, 1), (72, 96), 0),
}
if small.WITH_MMPRETRAIN:
    TABLE |= {
        'mmpretrain vit': (MMPRETRAIN['mmpretrain vit'], (0, 2), (64, 64), 1),
        'timm vit': (MMPRETRAIN['timm vit'], (0, 2), (64, 64), 1),
        'timm dinov2': (dict(MMPRETRAIN['timm dinov2'], drop_path_rate=0.0), (0, 2), (64, 64), 1),
        'mmpretrain swin, smaller than a window': (
            dict(MMPRETRAIN['mmpretrain swin'], **small.STILL),
            (2, 1),
            (64, 64),
            0,
        ),
        'timm swin, shifted': (MMPRETRAIN['timm swin'], (0, 1), (64, 64), 0),
    }
CASES = pytest.mark.parametrize(('stock', 'slot', 'size', 'prefix'), TABLE.values(), ids=TABLE)


def backbones(stock, slot, **replace):
    """A stock backbone with random norms and biases, and a copy with one computing layer; both in eval mode."""
    torch.manual_seed(0)
    backbone = small.build(stock)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    other = copy.deepcopy(backbone)
    apply_repl(other, slots=[slot], operator='half', **replace)
    backbone.eval()
    other.eval()
    return backbone, other


def only(backbone):
    ((_, layer),) = computing_layers(backbone)
    return layer


def call(backbone, x):
    """What the only computing layer is called with, and what it gives."""
    calls = []
    handle = only(backbone).register_forward_hook(lambda _, args, out: calls.append((args, out)))
    backbone(x)
    handle.remove()
    return calls[0]


def by_hand(block, x, size, prefix, shape):
    """``x`` and what a stock layer adds to the means of 2x2 tokens, token by token."""
    height, width = size
    cells = {}
    for row in range(height):
        for column in range(width):
            cells.setdefault((row // 2, column // 2), []).append(prefix + row * width + column)
    means = torch.stack([x[:, places].mean(1) for places in cells.values()], 1)
    small_x = torch.cat([x[:, :prefix], means], 1)
    half = ((height + 1) // 2, (width + 1) // 2)
    channels_last = not shape and hasattr(block, 'shift_size')  # timm's Swin
    if channels_last:
        added = block(small_x.unflatten(1, half)).flatten(1, 2) - small_x
    else:
        added = block(small_x, *((half,) if len(shape) == 1 else half if shape else ())) - small_x
    out = x.clone()
    out[:, :prefix] += added[:, :prefix]
    for number, places in enumerate(cells.values()):
        out[:, places] += added[:, prefix + number, None]
    return out


@CASES
@torch.no_grad()
def test_equals_the_stock_layer_between_pooling_and_upsampling(stock, slot, size, prefix):
    backbone, other = backbones(stock, slot, mode='own')
    (x, *shape), out = call(other, torch.randn(2, 3, *size))
    block = only(other).repl['block']
    own = small.blocks(backbone)[slot]
    own.load_state_dict({**block.state_dict(), **own_weights(only(other))})
    own.eval()
    if hasattr(own.attn, 'pad_small_map'):
        own.attn.pad_small_map = True
    if hasattr(own, 'dynamic_mask'):
        own.dynamic_mask = True  # timm makes masks of the size that comes, then
    if x.dim() == 4:
        grid, tokens = x.shape[1:3], x.flatten(1, 2)
    else:
        strides = size[0] // 16, size[1] // 16
        grid, tokens = (shape[0] if len(shape) == 1 else tuple(shape)) or strides, x
    wanted = by_hand(own, tokens, grid, prefix, shape)
    assert (wanted - tokens).norm() > 1e-3 * tokens.norm()
    torch.testing.assert_close(out, wanted.view_as(out), rtol=1e-4, atol=1e-5)


def own_weights(layer):
    return {name: weight for name, (weight, _) in zip(layer.names, layer.synthesize(), strict=True)}


@torch.no_grad()
def test_the_class_token_attends_to_all_and_is_not_pooled():
    """What a patch token says reaches the class token; its own addition reaches no patch token by upsampling."""
    _, other = backbones(VIT, (0, 2), mode='own')
    (x,), out = call(other, images())
    changed = x.clone()
    changed[:, 5, :8] += 1
    assert not torch.allclose(only(other)(changed)[:, 0], out[:, 0])
    pooled = x[:, 1:].unflatten(1, (4, 4)).unflatten(2, (2, 2)).unflatten(1, (2, 2)).mean((2, 4)).flatten(1, 2)
    run = partial(only(other).run, only(other).synthesize)
    added = run(torch.cat([x[:, :1], pooled], 1))[:, 0] - x[:, 0]
    torch.testing.assert_close(out[:, 0], x[:, 0] + added)


@pytest.mark.parametrize('name', ['vit', 'swin', 'mit'])
def test_neighbours_learn_through_the_layer(name):
    stock, slot, size, _ = TABLE[name]
    _, other = backbones(stock, slot)
    (x, *shape), _ = call(other, torch.randn(1, 3, *size))
    other.zero_grad()
    only(other)(x.detach(), *shape).square().sum().backward()
    for watch in only(other).neighbours:
        assert all(parameter.grad is not None for parameter in watch.block.parameters())
        assert all(parameter.grad.any() for parameter in watch.block.ffn.parameters())


@CASES
@torch.no_grad()
def test_folded_copied_and_merged_it_gives_the_same(stock, slot, size, prefix):
    _, other = backbones(stock, slot, **(dict(mode='own') if 'SVT' in str(stock) else {}))
    x = torch.randn(2, 3, *size)
    wanted = other(x)
    for change in (fold, copy.deepcopy, partial(merge, example=x)):
        other = change(other) or other
        torch.testing.assert_close(other(x), wanted, rtol=1e-4, atol=1e-4)
    assert only(other).merged


@torch.no_grad()
def test_pictures_of_all_shapes_one_after_another():
    """A copy has a grid of its own: another picture in the one does not change the other."""
    _, one = backbones(VIT, (0, 2))
    other = copy.deepcopy(one)
    wide, high = torch.randn(1, 3, 64, 128), torch.randn(1, 3, 128, 64)
    wanted = one(wide), other(high)
    assert torch.equal(one(wide)[-1], wanted[0][-1]) and torch.equal(one(high)[-1], wanted[1][-1])
    args, out = call(one, wide)
    other(high)
    assert torch.equal(only(one)(*args), out)


def test_with_cp_gives_the_same_gradients():
    found = []
    for with_cp in (False, True):
        backbone = small.build(VIT, with_cp=with_cp)
        torch.manual_seed(1)
        for parameter in backbone.parameters():
            nn.init.normal_(parameter, std=0.1)
        apply_repl(backbone, slots=[(0, 2)], operator='half')
        backbone.train()
        found.append(small.gradients(backbone, images()))
    torch.testing.assert_close(*found)


@torch.no_grad()
def test_half_precision():
    _, other = backbones(VIT, (0, 2))
    x, wanted = images(), other(images())[-1]
    with torch.autocast('cpu', torch.bfloat16):
        out = other(x)[-1]
    assert (out.float() - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', ['vit', 'swin'])
def test_a_compiled_transformer_has_no_more_graphs(name):
    stock, slot, size, _ = TABLE[name]
    found = []
    for backbone in backbones(stock, slot):
        torch._dynamo.reset()
        backbone.train()
        found.append(torch._dynamo.explain(backbone)(torch.rand(1, 3, *size)).graph_break_count)
    assert found[1] <= found[0]


REFUSED = {
    'beit': (TRANSFORMERS['beit'], 'BEiTTransformerEncoderLayer', 'relative positions of one grid'),
    'mae': (TRANSFORMERS['mae'], 'MAETransformerEncoderLayer', 'relative positions of one grid'),
}
if small.WITH_MMPRETRAIN:
    REFUSED['dinov3'] = (MMPRETRAIN['timm dinov3'], 'EvaBlock', 'rotates by positions of one grid')


@pytest.mark.parametrize(('stock', 'block', 'reason'), REFUSED.values(), ids=REFUSED)
def test_layers_of_one_grid_are_refused(stock, block, reason):
    backbone = small.build(stock)
    before = str(backbone)
    with pytest.raises(
        PlanError, match=f"replace.operator='half' cannot run a {block} .*{reason}; expected 'mlp', 'mixer' or 'full'"
    ):
        apply_repl(backbone, operator='half')
    assert str(backbone) == before


@torch.no_grad()
def test_tokens_that_are_not_the_grids_are_refused():
    _, other = backbones(VIT, (0, 2))
    (x,), _ = call(other, images())
    with pytest.raises(ValueError, match=r"replace.operator='half' got 16 tokens, .*a grid of 4x4 and 1 .*'mlp'"):
        only(other)(x[:, 1:])
    with pytest.raises(ValueError, match=r"replace.operator='half' cannot halve 'attn_mask'.*'mlp'"):
        only(other)(x, attn_mask=torch.ones(17, 17))


@pytest.mark.parametrize(
    ('stock', 'slot'),
    [(dict(VIT, img_size=128, embed_dims=32), (0, 2)), (dict(SWIN, embed_dims=16), (0, 1))],
    ids=['vit', 'swin'],
)
def test_about_a_quarter_of_the_layers_flops(stock, slot):
    """What stands in the slot costs a quarter of the layer; ``mode='own'`` synthesizes nothing."""
    whole, half, none = (small.build(stock) for _ in range(3))
    apply_repl(half, slots=[slot], operator='half', mode='own')
    apply_repl(none, slots=[slot], mode='remove')
    whole, half, none = (cost.measure(net, cost.ImageInput((128, 128))) for net in (whole, half, none))
    share = (half.flops - none.flops) / (whole.flops - none.flops)
    assert 0.15 < share < 0.3
    assert half.activation_bytes - none.activation_bytes < 0.4 * (whole.activation_bytes - none.activation_bytes)
