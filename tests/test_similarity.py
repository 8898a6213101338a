"""Cosine similarity and linear CKA of blocks: repl_mm/similarity.py."""

import copy
import math

import numpy as np
import pytest
import torch
from small import STOCK, TRANSFORMERS, blocks, images
from test_choosing import identity, stock_of

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
