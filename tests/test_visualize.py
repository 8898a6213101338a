"""Pictures of networks: repl_mm/visualization and tools/visualize.py."""

import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import visualize as tool
from mmengine.config import Config
from mmengine.registry import DATASETS
from small import TRANSFORMERS, VIT, images, write_cifar
from test_choosing import identity, stock_of
from test_conversion import build_model

from repl_mm import visualization
from repl_mm.classification import CifarResNet
from repl_mm.heads import pooled

CIFAR = dict(_scope_='repl_mm', type='CifarResNet', depth=20, base_channels=4)


def drawn(file):
    """Whether a picture was written, of no more than 300 kB, in which something stands."""
    return cv2.imread(str(file)).std() > 5 and Path(file).stat().st_size < 300_000


# ---- features -------------------------------------------------------------------------------------------------------


def test_colours_are_the_principal_components():
    """Three channels of different variance, mixed: whatever the mixing, each colour is one of them."""
    rng = np.random.default_rng(0)
    scores = np.linalg.qr(rng.standard_normal((2 * 5 * 5, 4)))[0]  # orthogonal to one another ...
    scores = scores - scores.mean(0)
    scores = np.linalg.qr(scores)[0][:, :3]  # ... and to 1
    mixed = scores * [5, 3, 1] @ np.linalg.qr(rng.standard_normal((7, 7)))[0][:3] + rng.standard_normal(7)
    maps = torch.from_numpy(mixed.reshape(2, 5, 5, 7).transpose(0, 3, 1, 2))
    (colours,) = visualization.pca_colours([maps])
    assert colours.shape == (2, 5, 5, 3) and colours.min() >= 0 and colours.max() <= 1
    for number in range(3):
        same = np.corrcoef(colours[..., number].ravel(), scores[:, number])[0, 1]
        assert abs(same) > 0.98  # but for what is beyond the last colour


def test_colours_of_networks_that_do_the_same_are_the_same():
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(2, 6, 4, 5, generator=generator) * torch.tensor([9, 5, 3, 1, 1, 1.0]).view(-1, 1, 1)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q[:6]
    other = 2 * torch.einsum('nchw,cd->ndhw', one, rotation) - 1
    first, second = visualization.pca_colours([one, other])
    assert torch.allclose(first, second, atol=1e-4)
    assert visualization.pca_colours([one[:, :1]])[0].shape == (2, 4, 5, 3)  # of a single channel
    with pytest.raises(ValueError, match=r'\(2, 6, 4, 5\) and \(2, 6, 4, 4\) cannot be compared: expected the same'):
        visualization.pca_colours([one, one[..., :4]])


def test_maps_are_what_the_backbone_puts_out():
    net = stock_of(dict(VIT, output_cls_token=True))
    found = visualization.feature_maps(net, images(2, 64))
    assert [x.shape for x in found] == [(2, 16, 4, 4)] * 2 and net.training  # class tokens left out
    net = CifarResNet(8, base_channels=4, out_indices=(0, 2))
    assert [x.shape[1] for x in visualization.feature_maps(net, images(2, 16))] == [4, 16]
    with pytest.raises(ValueError, match='Linear puts out no feature maps'):
        visualization.feature_maps(torch.nn.Linear(16, 2), torch.zeros(2, 16))


def test_networks_of_other_stages_are_refused(tmp_path):
    maps = [torch.rand(1, 4, 8, 8), torch.rand(1, 8, 4, 4)]
    pictures = np.zeros((1, 16, 24, 3), np.uint8)
    visualization.draw_features(dict(e2e=maps, repl=maps), pictures, tmp_path / 'x.png')
    assert drawn(tmp_path / 'x.png')
    with pytest.raises(ValueError, match=r"different numbers of feature maps \({'e2e': 2, 'repl': 1}\)"):
        visualization.draw_features(dict(e2e=maps, repl=maps[:1]), pictures, tmp_path / 'y.png')


# ---- t-SNE ----------------------------------------------------------------------------------------------------------


def clusters(num=40):
    """Two groups far from each other, with their classes."""
    points = np.random.default_rng(0).standard_normal((num, 5)).astype(np.float32)
    labels = np.arange(num) % 2
    return points + 100 * labels[:, None], labels


def test_neighbours_of_known_points():
    pytest.importorskip('sklearn')
    points, labels = clusters()
    assert visualization.neighbour_accuracy(points, labels) == 1
    assert visualization.neighbour_accuracy(points, 1 - labels) == 1  # whatever the classes are called
    line = np.sqrt(np.arange(12.0))[:, None]  # ever closer to one another: the next one is the nearest
    assert visualization.neighbour_accuracy(line, np.arange(12) % 2, k=1) == 0
    lonely = np.array([1, 0, 0, 0])
    assert visualization.neighbour_accuracy(line[:4], lonely, k=1) == 0.75  # no point is its own neighbour
    with pytest.raises(ValueError, match='40 images have no 40 neighbours each: expected at least 41'):
        visualization.neighbour_accuracy(points, labels, k=40)


def test_all_start_from_the_same_plane(tmp_path):
    pytest.importorskip('sklearn')
    points, labels = clusters()
    planes = visualization.embed(dict(a=points, b=points.copy(), c=points[:, :3]), perplexity=10)
    assert np.array_equal(planes['a'], planes['b']) and planes['c'].shape == (40, 2)
    assert all(visualization.neighbour_accuracy(plane, labels) == 1 for plane in planes.values())
    for many in (labels, np.arange(40)):
        visualization.draw_embedding(planes, many, 'abc', tmp_path / 'tsne.png', ('cat', 'dog'))
        assert drawn(tmp_path / 'tsne.png')
    for wrong in (dict(a=points, b=points[:39]), dict(a=points[:30])):
        with pytest.raises(ValueError, match=r'images \(a \d+.*\): expected more than 30, as many of each network'):
            visualization.embed(wrong)


def test_features_are_pooled_and_their_classes_are_those_of_the_images(prepared):
    cfg = Config.fromfile(prepared)
    cfg.test_dataloader.dataset.data_root = 'data'
    backbone = build_model(prepared, stock=True).backbone
    features, labels, names = visualization.test_features(cfg, backbone, 7, seed=3)
    again = visualization.test_features(cfg, backbone, 7, seed=3)
    assert np.array_equal(features, again[0]) and len(names) == 10 and len(labels) == 7
    dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, _scope_='repl_mm'))
    mean, std = (torch.tensor(cfg.model.data_preprocessor[key]).view(-1, 1, 1) for key in ('mean', 'std'))
    whole = (dataset.images.float() - mean) / std
    backbone.eval()
    with torch.no_grad():
        expected = backbone(whole)[-1].mean((2, 3))
    nearest = torch.cdist(torch.from_numpy(features), expected).min(1)
    assert nearest.values.max() < 1e-3 and labels.tolist() == dataset.labels[nearest.indices].tolist()


def test_pooling_takes_the_class_token_or_the_mean():
    maps, token = torch.rand(2, 3, 4, 5), torch.rand(2, 3)
    assert pooled((maps, (maps, token))) is token
    assert torch.equal(pooled((token, maps)), maps.mean((2, 3)))
    assert torch.equal(pooled(maps.flatten(2).transpose(1, 2)), maps.flatten(2).transpose(1, 2).mean(1))


# ---- similarity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('settings', [CIFAR, TRANSFORMERS['swin']], ids=['cifar', 'swin'])
def test_a_block_that_does_nothing_is_alike_and_has_no_influence(settings):
    pytest.importorskip('scipy')
    stock = stock_of(settings)
    stage = {'CifarResNet': lambda net: net.layer2, 'SwinTransformer': lambda net: net.stages[1].blocks}
    identity(stage[settings['type']](stock)[1])
    found = visualization.prediction(stock, images(4, 64))
    assert min(found['influence'], key=found['influence'].get) == '1.1'
    assert found['influence']['1.1'] == pytest.approx(0, abs=1e-9)
    for kind in ('cosine', 'cka'):
        assert found[kind]['similarity']['1.1'] == pytest.approx(1, abs=1e-5)
        assert list(found[kind]['similarity']) == list(found['influence']) and -1 <= found[kind]['rho'] <= 1


def test_neighbours_and_others_of_a_matrix():
    matrix = torch.tensor([[1, 0.9, 0.3, 0.1], [0.9, 1, 0.5, 0.2], [0.3, 0.5, 1, 0.7], [0.1, 0.2, 0.7, 1]])
    said = visualization.neighbours(matrix, [(0, 0), (0, 1), (1, 0), (1, 1)])
    assert said == dict(
        median=pytest.approx(0.7), lowest=pytest.approx(0.5), at=['0.1', '1.0'], others=pytest.approx(0.2)
    )
    assert visualization.neighbours(matrix[:2, :2], [(0, 0), (0, 1)])['others'] is None


# ---- bubbles --------------------------------------------------------------------------------------------------------


def test_bubbles(tmp_path):
    bubbles = [visualization.Bubble(x, x * x, x, 'odd' if x % 2 else 'even', f'no. {x}') for x in range(1, 5)]
    visualization.draw_bubbles(
        {'one': bubbles, 'other': bubbles[:1]}, tmp_path / 'x.png', 'right', dict(one=1, other=2)
    )
    assert drawn(tmp_path / 'x.png')
    for nothing in ({}, dict(one=[])):
        with pytest.raises(ValueError, match='no bubbles to draw'):
            visualization.draw_bubbles(nothing, tmp_path / 'y.png', '', '')


# ---- the tool -------------------------------------------------------------------------------------------------------


def run(*words):
    tool.main([str(word) for word in words])


@pytest.fixture
def arms(prepared, tmp_path):
    """A stock arm and one with RepL, of one network, as words of the tool."""
    stock = tmp_path / 'stock.py'
    stock.write_text("_base_ = './resnet.py'\nmodel = dict(backbone=dict(type='CifarResNet'))\n")
    model = build_model(prepared)
    model.load_state_dict(torch.load('stock.pth'))
    torch.save(dict(state_dict=model.state_dict()), 'repl.pth')
    write_cifar(tmp_path / 'more' / 'cifar-10-batches-py', 40)
    return ['--arm', 'e2e', stock, 'stock.pth', '--arm', 'repl', prepared, 'repl.pth']


def test_features_of_two_arms(arms, capsys):
    run('features', *arms, '--images', 'data', '--num', 2, '--stages', 0, 2, '--out', 'out')
    assert drawn('out/features.png') and 'maps of 4x32x32, 16x8x8' in capsys.readouterr().out


def test_tsne_of_two_arms(arms, capsys):
    pytest.importorskip('sklearn')
    run('tsne', *arms, '--data-root', 'more', '--out', 'out')
    text = capsys.readouterr().out
    assert drawn('out/tsne.png') and 'by the 10 nearest of 40 test images' in text and '| repl |' in text
    saved = json.loads(Path('out/tsne.json').read_text())
    assert saved['images'] == 40 and set(saved['features']) == set(saved['picture']) == {'e2e', 'repl'}


def test_similarity_of_two_arms(arms, capsys):
    pytest.importorskip('scipy')
    run('similarity', *arms, '--images', 'data', '--num', 8, '--out', 'out')
    text = capsys.readouterr().out
    assert drawn('out/similarity.png') and '8 images, linear CKA of what 9 blocks put out' in text
    assert '| e2e, repl' in text and re.search(r'\| e2e +\| +cka \| +model \| +6 \|', text)
    saved = json.loads(Path('out/similarity.json').read_text())
    assert list(saved['cka']) == ['e2e / e2e', 'repl / repl', 'e2e / repl'] and set(saved['prediction']) == {'e2e'}
    own = np.array(saved['cka']['e2e / e2e'])
    assert own.shape == (9, 9) and np.array_equal(own, own.T) and own.diagonal().tolist() == [1] * 9
    # the same blocks in front of the first replaced one
    assert saved['cka']['e2e / repl'][0][0] == pytest.approx(1)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--images', 'nowhere'], "--images 'nowhere': no such folder"),
        (['--images', 'data', '--shape', 32, 32, '--cfg-options', 'model.backbone.depth=32'], 'has no values for'),
        (['--images', 'data', '--cfg-options', 'model.backbone.type=VGG'], "does not support backbone type 'VGG'"),
        (['--images', 'data', '--arm', 'none', 'resnet.py', 'none.pth'], "checkpoint 'none.pth' not found"),
        (['--images', 'data', '--arm', 'x', 'resnet.py', 'stock.pth'], "'stock.pth': has no RepL plan: expected what"),
        (
            ['--images', 'data', '--arm', 'x', 'other.py', 'repl.pth'],
            "'repl.pth': the checkpoint was made with another",
        ),
        (['--images', 'data', '--arm', 'x', 'none.py', 'repl.pth'], "config 'none.py'"),
    ],
)
def test_the_tool_ends_in_one_line(words, message, arms):
    Path('other.py').write_text("_base_ = './resnet.py'\nmodel = dict(backbone=dict(replace=dict(mode='own')))\n")
    with pytest.raises(SystemExit) as stopped:
        run('similarity', *arms, *words)
    assert message in str(stopped.value) and '\n' not in str(stopped.value)
    assert not list(Path().rglob('*.png'))


@pytest.mark.parametrize(('command', 'package'), [('tsne', 'sklearn'), ('similarity', 'scipy')])
def test_what_is_missing_is_named(command, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    words = [] if command == 'tsne' else ['--images', 'data']
    with pytest.raises(SystemExit, match=f'{command} needs sci.*: pip install sci'):
        run(command, '--arm', 'a', 'a.py', 'a.pth', *words)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['features', '--images', 'x'], 'the following arguments are required: --arm'),
        (['features', '--arm', 'a', 'b', 'c'], 'the following arguments are required: --images'),
        (['tsne', '--arm', 'a', 'b'], 'argument --arm: expected 3 arguments'),
        (['tsne', '--arm', 'a', 'b', 'c', '--arm', 'a', 'd', 'e'], '--arm a: two arms have this name'),
        (['tsne', '--arm', 'a', 'b', 'c', '--num', 0], '--num 0: must be at least 1'),
    ],
)
def test_words_that_are_wrong_are_named(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
