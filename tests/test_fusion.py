"""Weight space against brute-force loops in numpy: alignment, the learnable transformations, their start."""

import itertools

import numpy as np
import pytest
import torch

from repl_mm.computing_layers import ComputingLayer
from repl_mm.fusion import (
    FusedWeight,
    OwnWeight,
    SharedWeight,
    Synthesis,
    align_channels,
    align_kernel,
    build_source,
    row_lengths,
    spread,
)

# shape of the weight to be made, shapes of the neighbours' weights, hidden dimension, groups
SHAPES = {
    'equal': ((4, 3, 3, 3), [(4, 3, 3, 3), (4, 3, 3, 3)], 0, 2),
    'wider neighbours': ((4, 8, 1, 1), [(8, 12, 1, 1), (12, 8, 1, 1)], 0, 4),
    'narrower neighbours': ((6, 4, 3, 3), [(3, 4, 3, 3), (3, 2, 3, 3)], 0, 3),
    'depthwise from dense': ((4, 1, 3, 3), [(8, 8, 3, 3), (4, 4, 3, 3)], 0, 2),
    'pointwise from 3x3': ((2, 5, 1, 1), [(4, 5, 3, 3), (4, 5, 3, 3)], 0, 2),
    '3x3 from pointwise': ((4, 4, 3, 3), [(4, 4, 1, 1), (4, 4, 5, 5)], 0, 1),
    'hidden input channels': ((8, 2, 1, 1), [(8, 4, 1, 1), (16, 4, 1, 1)], 1, 2),
    'one neighbour': ((4, 8, 1, 1), [(8, 8, 1, 1)], 0, 2),
    'groups without common divisor': ((4, 2, 1, 1), [(6, 2, 1, 1), (6, 2, 1, 1)], 0, 4),
    'matrices': ((4, 6), [(8, 6), (12, 3)], 0, 4),
    'matrices with hidden input channels': ((5, 4), [(5, 8), (10, 8)], 1, 2),
    'vectors': ((4,), [(4,), (8,)], 0, 2),
}
TRANSFORMS = ('scalar', 'channel', 'mix')


def aligned(weight, shape, dim):
    """``weight`` as (hidden, outer, kh, kw) with the outer channels and the kernel of ``shape``, by loops."""
    weight = weight.detach().numpy()
    if dim == 1:
        weight = weight.transpose(1, 0, 2, 3)
    hidden, outer = weight.shape[:2]
    wanted = shape[1 - dim]
    out = np.zeros((hidden, wanted, *shape[2:]))
    for h, o, y, x in itertools.product(*map(range, out.shape)):
        sources = range(outer) if wanted == 1 < outer else [o * outer // wanted]
        for source in sources:
            kernel = weight[h, source]
            if shape[2:] == (1, 1):
                value = kernel.sum()
            else:  # centre on centre, zero outside
                y_in, x_in = y + (kernel.shape[0] - shape[2]) // 2, x + (kernel.shape[1] - shape[3]) // 2
                inside = 0 <= y_in < kernel.shape[0] and 0 <= x_in < kernel.shape[1]
                value = kernel[y_in, x_in] if inside else 0
            out[h, o, y, x] += value
    return out


def expected(source, weights):
    """``sum_j T_j(W_j)``, by loops over hidden units."""
    shape = (*source.shape, 1, 1, 1)[:4]  # a matrix is a 1x1 convolution, a vector one of one input channel
    hidden, outer = shape[source.dim], shape[1 - source.dim]
    total = np.zeros((hidden, outer, *shape[2:]))
    for j, weight in enumerate(weights):
        unit = aligned(weight.reshape((*weight.shape, 1, 1, 1)[:4]), shape, source.dim)
        coefficient = source.rate * source.coefficients[j].detach().numpy()
        for h in range(hidden):
            near = unit[h * len(unit) // hidden]
            if source.type == 'scalar':
                total[h] += coefficient[0] * near
            elif source.type == 'mix':
                rows, columns = hidden // source.groups, len(unit) // source.groups
                group = h // rows
                for c in range(columns):
                    total[h] += coefficient[group, h % rows, c] * unit[group * columns + c]
            else:
                total[h] += coefficient[h] * near
    return (total.transpose(1, 0, 2, 3) if source.dim == 1 else total).reshape(source.shape)


@pytest.mark.parametrize('settings', [dict(), dict(normalize=False, rate=30.0)])
@pytest.mark.parametrize('kind', TRANSFORMS)
@pytest.mark.parametrize('case', SHAPES)
def test_transformation_equals_loops(case, kind, settings):
    torch.manual_seed(0)
    shape, neighbours, dim, groups = SHAPES[case]
    source = FusedWeight(shape, neighbours, dim, type=kind, groups=groups, **settings).double()
    weights = [torch.randn(n, dtype=torch.float64) for n in neighbours]
    np.testing.assert_allclose(source(weights).detach(), expected(source, weights), atol=1e-12)
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    made = source(weights)
    assert made.shape == shape
    np.testing.assert_allclose(made.detach(), expected(source, weights), atol=1e-12)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('case', [case for case in SHAPES if SHAPES[case][0][2:] == (1, 1)])
def test_neighbours_and_mixing_one_after_the_other_are_the_same_convolution(case, bias):
    torch.manual_seed(0)
    shape, neighbours, dim, groups = SHAPES[case]
    source = FusedWeight(shape, neighbours, dim, groups=groups).double()
    weights = [torch.randn(n, dtype=torch.float64, requires_grad=True) for n in neighbours]
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    bias = torch.randn(shape[0], dtype=torch.float64, requires_grad=True) if bias else None
    x = torch.randn(2, shape[1], 2, 3, dtype=torch.float64)
    for memory in (torch.contiguous_format, torch.channels_last):
        x = x.contiguous(memory_format=memory)
        got = source.mix_positions(x, source.select(weights), bias)
        wanted = np.einsum('oc,nchw->nohw', expected(source, weights)[..., 0, 0], x.numpy())
        wanted += 0 if bias is None else bias.detach().numpy()[:, None, None]
        np.testing.assert_allclose(got.detach(), wanted, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x, *w: source.mix_positions(x, source.select(w), bias), (x, *weights))


def test_it_is_done_so_where_it_takes_fewer_products():
    """By hand: 4 * 64 * 16 * 2 to make the weight and 4 * 64 a position; or 2 * 16 * 64 + 2 * 16 * 4 a position."""
    shape, neighbours = (4, 64, 1, 1), [(16, 64, 1, 1)] * 2
    source = FusedWeight(shape, neighbours, groups=1)
    made = lambda n: 4 * 64 * 16 * 2 + 4 * 64 * n  # noqa: E731
    apart = lambda n: (2 * 16 * 64 + 2 * 16 * 4) * n  # noqa: E731
    assert [n <= source.few for n in range(1, 9)] == [apart(n) < made(n) for n in range(1, 9)]
    assert source.few == 4
    for other in (
        FusedWeight(shape, neighbours, type='channel'),
        FusedWeight((4, 64, 3, 3), [(16, 64, 3, 3)]),
        FusedWeight((4, 64), [(16, 64)]),
        OwnWeight(shape, neighbours),
        SharedWeight(shape, neighbours),
    ):
        assert other.few == 0


@pytest.mark.parametrize('kind', TRANSFORMS)
def test_gradient_reaches_both_neighbours_and_all_parameters(kind):
    torch.manual_seed(0)
    shape = (4, 2, 1, 1)
    source = FusedWeight(shape, [shape, shape], type=kind, groups=2).double()
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    weights = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    source(weights).square().sum().backward()
    for tensor in [*weights, *source.parameters()]:
        assert tensor.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda *w: source(list(w)), weights)


@pytest.mark.parametrize('detach', [False, True])
def test_detach(detach):
    blocks = tuple(torch.nn.Conv2d(4, 4, 1) for _ in range(2))
    synthesis = Synthesis(FusedWeight((4, 4, 1, 1), [(4, 4, 1, 1)] * 2))
    layer = ComputingLayer(dict(any=synthesis), blocks, lambda block, role: [block.weight], detach)
    layer.synthesize()[0][0].sum().backward()
    assert [block.weight.grad is None for block in blocks] == [detach, detach]


@pytest.mark.parametrize('normalize', [True, False])
@pytest.mark.parametrize('kind', ['channel', 'mix'])
def test_start_takes_every_hidden_unit_from_one_neighbour_in_turn(kind, normalize):
    torch.manual_seed(0)
    shape = (4, 5, 1, 1)
    weights = [torch.randn(shape), torch.randn(shape)]
    source = FusedWeight(shape, [shape, shape], 0, 0.3, kind, groups=2, normalize=normalize, rate=30.0)
    source.begin(weights)
    made = source(weights).flatten(1)
    for h in range(4):
        unit = weights[h % 2].flatten(1)[h]
        torch.testing.assert_close(made[h], 0.3 * (unit / unit.norm() if normalize else unit))


def test_scalar_starts_at_the_scaled_sum_or_mean():
    torch.manual_seed(0)
    shape = (3, 2, 1, 1)
    weights = [torch.randn(shape), torch.randn(shape)]
    unit = [w / w.flatten(1).norm(dim=1).square().mean().sqrt() for w in weights]
    source = FusedWeight(shape, [shape, shape], type='scalar')
    source.begin(weights)
    torch.testing.assert_close(source(weights), (unit[0] + unit[1]) / 2**0.5)
    made = FusedWeight(shape, [shape, shape], start=0.3, type='scalar', normalize=False, rate=30.0)(weights)
    torch.testing.assert_close(made, 0.3 * (weights[0] + weights[1]) / 2)


@pytest.mark.parametrize('kind', [*TRANSFORMS, 'own'])
@pytest.mark.parametrize('dim', [0, 1])
def test_start_is_the_length_of_the_output_channels(kind, dim):
    """Root mean square over the output channels, for unrelated neighbours; exact up to chance."""
    torch.manual_seed(0)
    shape, neighbours = (256, 64, 1, 1), [(256, 64, 1, 1), (512, 64, 1, 1)]
    mode = 'own' if kind == 'own' else 'fuse'
    source = build_source(mode, shape, neighbours, dim, 0.1, dict(type=kind))
    weights = [3 * torch.randn(n) for n in neighbours]
    source.begin(weights)
    length = source(weights).flatten(1).norm(dim=1)
    assert length.square().mean().sqrt().item() == pytest.approx(0.1, rel=0.05)


def test_groups_are_lowered_to_a_common_divisor():
    assert FusedWeight((8, 1, 1, 1), [(12, 1, 1, 1), (8, 1, 1, 1)], groups=8).groups == 4
    assert FusedWeight((8, 1, 1, 1), [(9, 1, 1, 1)], groups=4).groups == 1


def test_parameters_are_at_least_one_dimensional():
    for kind in TRANSFORMS:
        source = FusedWeight((4, 4, 3, 3), [(4, 4, 3, 3)] * 2, type=kind)
        assert min(p.dim() for p in Synthesis(source, gain=1.0).parameters()) >= 1


def test_unknown_transformation():
    with pytest.raises(ValueError, match="unknown transformation 'sum'; valid are scalar, channel, mix"):
        FusedWeight((4, 4, 1, 1), [(4, 4, 1, 1)], type='sum')


def test_spread():
    assert spread(4, 4).tolist() == [0, 1, 2, 3]
    assert spread(2, 6).tolist() == [0, 3]
    assert spread(6, 2).tolist() == [0, 0, 0, 1, 1, 1]
    assert spread(4, 6).tolist() == [0, 1, 3, 4]


def test_alignment_keeps_the_response_to_a_constant_input():
    torch.manual_seed(0)
    weight = torch.randn(4, 6, 3, 3)
    for kernel in [(1, 1), (5, 5)]:
        torch.testing.assert_close(align_kernel(weight, kernel).sum((2, 3)), weight.sum((2, 3)))
    assert align_kernel(weight, (3, 3)) is weight
    torch.testing.assert_close(align_channels(weight, 1, 1), weight.sum(1, keepdim=True))
    torch.testing.assert_close(align_channels(weight, 0, 2), weight[[0, 2]])


def test_gain_gives_a_shared_weight_a_scale():
    torch.manual_seed(0)
    shape, neighbours, dim, _ = SHAPES['hidden input channels']
    synthesis = Synthesis(build_source('share', shape, neighbours, dim, 1.0, {}), gain=0.5)
    for scale in (1, 1000):
        weights = [scale * torch.randn(n) for n in neighbours]
        synthesis.begin(weights)
        weight, bias = synthesis(weights)
        torch.testing.assert_close(weight.flatten(1).norm(dim=1), torch.full(shape[:1], 0.5))
    assert bias.shape == shape[:1] and not bias.any()


@pytest.mark.parametrize('trained', [False, True])
@pytest.mark.parametrize('kind', TRANSFORMS)
def test_coefficients_follow_the_scale_of_new_neighbours(kind, trained):
    """Unless they belong to the new weights already, as those of a checkpoint do."""
    torch.manual_seed(0)
    weights = [torch.randn(6, 4, 3, 3) for _ in range(2)]
    source = FusedWeight((6, 4, 3, 3), [(6, 4, 3, 3)] * 2, type=kind, groups=2)
    source.begin(weights)
    if trained:
        for parameter in source.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    made = source(weights).detach()
    one = 3.0 if kind == 'scalar' else torch.rand(6, 1, 1, 1) * 10 + 1  # lengths of rows, of the whole
    scaled = [weights[0] * one, weights[1] * 7]
    source.begin(scaled)
    torch.testing.assert_close(source(scaled), made)
    belonging = [c.detach().clone() for c in source.coefficients]
    source.begin(weights, rescale=False)
    assert all(map(torch.equal, belonging, source.coefficients))
    source.begin(scaled)
    assert not torch.allclose(source(scaled), made)


def test_synthesis_without_gain_and_bias_is_the_source():
    source = OwnWeight((4, 4, 1, 1))
    weight, bias = Synthesis(source, bias=False)([])
    assert weight is source.weight and bias is None


def test_share_takes_the_preceding_weight_unchanged():
    weights = [torch.randn(4, 3, 3, 3), torch.randn(4, 3, 3, 3)]
    source = SharedWeight((4, 3, 3, 3), [w.shape for w in weights])
    assert torch.equal(source(weights), weights[0]) and not list(source.parameters())


def test_own_ignores_the_neighbours():
    source = OwnWeight((4, 3, 1, 1), [(4, 3, 1, 1)])
    assert source([torch.randn(4, 3, 1, 1)]) is source.weight


@pytest.mark.parametrize('kind', TRANSFORMS)
def test_zero_neighbours_stay_finite(kind):
    """A neighbour whose weights are all zero gives no NaN in either direction."""
    weight = torch.zeros(4, 4, 1, 1, requires_grad=True)
    synthesis = Synthesis(FusedWeight((4, 4, 1, 1), [(4, 4, 1, 1)], type=kind), gain=1.0)
    synthesis.begin([weight])
    made, _ = synthesis([weight])
    made.sum().backward()
    assert made.isfinite().all() and weight.grad.isfinite().all()


@pytest.mark.parametrize('scale', [1e-4, 1e-6, 1e-8, 0.0])
def test_dead_filters_get_no_larger_gradients_than_others(scale):
    """Trained networks have rows that are nearly 0; divided by their length they would receive gradients of 1e6."""
    torch.manual_seed(0)
    weight = torch.randn(16, 8, 3, 3)
    shape = (8, 8, 1, 1)

    def gradient(dead):
        torch.manual_seed(1)
        source = FusedWeight(shape, [weight.shape] * 2, groups=2)
        lent = weight.clone()
        lent[2] *= dead
        lent.requires_grad_()
        source.begin([lent, weight])
        (source([lent, weight]) * torch.randn(shape)).sum().backward()
        return max(t.grad.abs().max() for t in (lent, *source.parameters()))

    assert gradient(scale) < 12 * gradient(1.0)


def test_short_rows_count_for_a_tenth_of_the_typical_length():
    rows = torch.nn.functional.normalize(torch.ones(4, 9), dim=1) * torch.tensor([2.0, 2.0, 2.0, 1e-6])[:, None]
    torch.testing.assert_close(row_lengths(rows), torch.tensor([2.0, 2.0, 2.0, 0.1 * 3**0.5]))
    assert (row_lengths(torch.zeros(3, 2)) > 0).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite_with_dead_filters(dtype):
    torch.manual_seed(0)
    weights = [torch.randn(16, 8, 3, 3) for _ in range(2)]
    weights[0][3] *= 1e-8
    synthesis = Synthesis(FusedWeight((8, 8, 1, 1), [(16, 8, 3, 3)] * 2, groups=2))
    synthesis.begin(weights)
    exact, _ = synthesis(weights)
    kernel, _ = synthesis.to(dtype)([weight.to(dtype) for weight in weights])
    torch.testing.assert_close(kernel.float(), exact, atol=0.05, rtol=0.05)
