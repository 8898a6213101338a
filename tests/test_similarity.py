"""Cosine similarity and linear CKA of blocks: repl_mm/similarity.py."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from small import STOCK, TRANSFORMERS, VIT, blocks, images
from test_choosing import identity, stock_of

import repl_mm
from repl_mm import choosing, similarity

CIFAR = dict(STOCK['cifar b'], base_channels=4)


def test_cosine_of_known_angles():
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).T.reshape(1, 2, 2, 1)  # channels of two positions
    b = torch.tensor([[1.0, 1.0], [0.0, -3.0]]).T.reshape(1, 2, 2, 1)
    assert similarity.cosine(a, b) == pytest.approx((math.sqrt(0.5) - 1) / 2, rel=1e-6)
    assert similarity.cosine(a, 3 * a) == pytest.approx(1)


def test_cka_is_that_of_gram_matrices():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5, 6)), rng.standard_normal((2, 5, 3))  # tokens
    center = np.eye(10) - 0.1
    k, l = (center @ x.reshape(10, -1) @ x.reshape(10, -1).T @ center for x in (a, b))  # noqa: E741
    expected = (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())
    assert similarity.linear_cka(*map(torch.from_numpy, (a, b))) == pytest.approx(expected, rel=1e-9)
    rotation, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    assert similarity.linear_cka(torch.from_numpy(a), torch.from_numpy(2 * a @ rotation + 1)) == pytest.approx(1)


@pytest.mark.parametrize('kind', ['cosine', 'cka'])
@pytest.mark.parametrize('settings', [CIFAR, TRANSFORMERS['vit'], TRANSFORMERS['swin']], ids=['cifar', 'vit', 'swin'])
def test_a_block_that_does_nothing_is_most_alike(kind, settings):
    stock = stock_of(settings)
    known = choosing.replaceable(stock)[3]
    identity(blocks(stock)[known])
    before = copy.deepcopy(stock.state_dict())
    found = similarity.block_similarities(stock, images(2, 64), kind)
    assert similarity.most_alike(found, 1) == [known] and found[known] == pytest.approx(1, abs=1e-5)
    assert all(value <= 1 + 1e-6 for value in found.values())
    assert stock.training and not any(module._forward_hooks for module in stock.modules())
    assert all(torch.equal(value, before[key]) for key, value in stock.state_dict().items())


def test_the_controls_are_places_of_the_chain():
    places = [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert similarity.latest(places, 3) == places[1:]
    drawn = similarity.random_places(places, 2, 5)
    assert len({tuple(one) for one in drawn}) == 5 and all(sorted(one) == one for one in drawn)
    assert drawn == similarity.random_places(places, 2, 5)
    assert len(similarity.random_places(places, 2, 100)) == 6  # all there are


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match=r'expected \(N, C, H, W\) or \(N, L, C\)'):
        similarity.cosine(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="kind='l2' is not valid: expected one of 'cosine', 'cka'"):
        similarity.block_similarities(stock_of(CIFAR), images(2, 32), 'l2')


# ---- all blocks -----------------------------------------------------------------------------------------------------


def test_the_matrix_has_the_pairs_and_ones():
    generator = torch.Generator().manual_seed(0)
    fine, other, coarse = (torch.randn(3, c, s, s, generator=generator) for c, s in ((4, 4), (5, 4), (6, 2)))
    matrix = similarity.cka_matrix([fine, other, coarse])
    assert torch.equal(matrix, matrix.T) and matrix.diagonal().tolist() == [1, 1, 1]
    assert matrix[0, 1].item() == pytest.approx(similarity.linear_cka(fine, other))
    mean = torch.stack([fine[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]).mean(0)  # of each 2x2
    assert matrix[0, 2].item() == pytest.approx(similarity.linear_cka(mean, coarse))
    across = similarity.cka_matrix([fine], [coarse, 3 * fine + 1])
    assert across.shape == (1, 2) and across[0].tolist() == pytest.approx([matrix[0, 2].item(), 1])
    assert similarity.cka_matrix([fine, torch.zeros(3, 2, 4, 4)])[0, 1] == 0  # a block that says nothing
    with pytest.raises(ValueError, match=r'shapes \(3, 4, 4, 4\) and \(3, 16, 4\) have no positions in common'):
        similarity.cka_matrix([fine], [fine.flatten(2).transpose(1, 2)])


@pytest.mark.parametrize('settings', [CIFAR, TRANSFORMERS['swin'], VIT], ids=['cifar', 'swin', 'vit'])
@pytest.mark.parametrize('replace', [None, dict(), dict(merged=True)], ids=['stock', 'repl', 'merged'])
def test_outputs_of_all_blocks_in_their_order(settings, replace):
    net = stock_of(settings)
    if replace is not None:
        repl_mm.apply_repl(net, **replace)
    x = images(2, 64)
    found = similarity.block_outputs(net, x)
    places = list(found)
    assert places == sorted(places) and len(places) == len(blocks(net))
    assert not any(module._forward_hooks for module in net.modules())
    net.eval()
    with torch.no_grad():
        last = net(x)[-1]
    if settings is not TRANSFORMERS['swin']:  # which has a norm behind its last block
        own = found[places[-1]]
        own = own if own.dim() == 4 else own[:, 1:].transpose(1, 2).unflatten(2, (4, 4))  # a class token in front
        assert torch.allclose(own, last, atol=1e-6)
    else:
        assert {x.dim() for x in found.values()} == {4} and found[places[-1]].shape == last.shape


def test_outputs_are_as_the_blocks_gave_them():
    """DDRNet adds to what its blocks gave."""
    net, x, given = stock_of(STOCK['ddrnet']), images(2, 64), {}
    found = similarity.block_outputs(net, x)
    for place, module in blocks(net).items():
        module.register_forward_hook(lambda module, args, output, place=place: given.update({place: output.clone()}))
    net.eval()
    with torch.no_grad():
        net(x)
    assert found.keys() == given.keys() and all(torch.equal(found[place], given[place]) for place in given)


def test_what_takes_too_much_memory_is_said(monkeypatch):
    monkeypatch.setattr(similarity, 'KEPT', 1000)
    net = stock_of(CIFAR)
    with pytest.raises(ValueError, match='2 images of 32x32: .* can be compared; expected fewer or smaller images'):
        similarity.block_outputs(net, images(2, 32))
    assert not any(module._forward_hooks for module in net.modules())


def test_ranks_are_correlated_as_by_counting():
    pytest.importorskip('scipy')
    a, b = [0.9, 0.2, 0.5, 0.7, 0.1], [1.0, 30.0, 2.0, 4.0, 3.0]
    ranks = [[sum(other < value for other in values) for value in values] for values in (a, b)]
    squares = sum((one - other) ** 2 for one, other in zip(*ranks, strict=True))
    rho, p = similarity.rank_correlation(a, b)
    assert rho == pytest.approx(1 - 6 * squares / (5 * (25 - 1)))
    observed = sum(one * other for one, other in zip(*ranks, strict=True))
    found = [sum(x * y for x, y in zip(ranks[0], order, strict=True)) for order in itertools.permutations(ranks[1])]
    tails = [sum(value <= observed for value in found), sum(value >= observed for value in found)]
    assert p == pytest.approx(2 * min(tails) / 120)
    many = list(range(20))
    assert similarity.rank_correlation(many, many) == (1, pytest.approx(2 / 10000))
    with pytest.raises(ValueError, match='2 pairs have no rank correlation: expected at least 3'):
        similarity.rank_correlation([1, 2], [1, 2])


def test_influences_are_those_of_a_choice():
    stock = stock_of(CIFAR)
    x = images(16, 32)
    choice = choosing.choose(stock, x, 0.9)
    assert choosing.influences(stock, x) == {block.place: block.influence for block in choice.blocks}
