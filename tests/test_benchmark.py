"""Inference of arms, measured in one process: what the rows hold, and the command."""

import functools
import json
import sys
from pathlib import Path

import benchmark
import cv2
import pytest
import torch
from mmengine.config import Config
from torch.fx.experimental.symbolic_shapes import free_symbols

from repl_mm.arms import read_arm
from repl_mm.cost import ImageInput
from repl_mm.deployment.benchmark import benchmark as measure
from repl_mm.deployment.benchmark import interleaved, summary

ROOT = Path(__file__).resolve().parents[1]


def test_rows_by_hand():
    seconds = dict(e2e=[1.0, 2.0, 1.0], fuse=[0.8, 1.2, 0.7], remove=[0.5, 1.0, 0.6])
    rows = {row['name']: row for row in summary(seconds, 'torch', 4, dict(e2e=10, fuse=7, remove=6))}
    assert rows['fuse']['ratio'] == 0.7 and rows['remove']['ratio'] == 0.5  # of 0.8, 0.6, 0.7 and of 0.5, 0.5, 0.6
    assert rows['fuse']['kept'] == pytest.approx(0.6) and rows['e2e']['kept'] == 0 and rows['remove']['kept'] == 1
    assert rows['fuse']['throughput'] == 5 and rows['fuse']['p95'] == 1.2 and rows['fuse']['params'] == 7
    (alone,) = summary(dict(e2e=[1.0]), 'onnx', 1, dict(e2e=1))
    assert alone['kept'] is None and alone['ratio'] == 1 and alone['quartiles'] == [1, 1]


def test_calls_are_interleaved_in_another_order_every_round(capfd):
    order = []
    seconds = interleaved({name: lambda name=name: order.append(name) for name in 'abc'}, 5, None)
    rounds = [order[i : i + 3] for i in range(0, 21, 3)]
    assert all(sorted(turn) == ['a', 'b', 'c'] for turn in rounds) and len({*map(tuple, rounds)}) > 1
    assert {name: len(own) for name, own in seconds.items()} == dict(a=5, b=5, c=5)


def test_every_arm_is_compiled_for_its_own_sizes_and_whole(monkeypatch):
    """dynamo makes variables of sizes that differ between networks, and gives up at the eighth network."""
    graphs = []

    def keep(graph, inputs):
        graphs.append([value for value in inputs if not isinstance(value, torch.Tensor) or free_symbols(value)])
        return graph.forward

    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend=keep))
    cfg = Config.fromfile(ROOT / 'configs' / 'classification' / 'resnet20_repl_cifar10_16px.py')
    names = ('e2e', 'fuse', 'remove', 'patch', 'operator=half')
    arms = [read_arm(name, ImageInput((16, 16), 1)) for name in names]
    rows = measure(arms, cfg, ['compile'], [1, 2], 1, torch.device('cpu'))
    assert len(rows) == 10 and graphs == [[]] * 10


@pytest.mark.slow
def test_the_command(tmp_path, capfd):
    pytest.importorskip('onnxruntime')
    config = str(ROOT / 'configs' / 'classification' / 'resnet32_repl_cifar10.py')
    out, picture = tmp_path / 'out.json', tmp_path / 'out.png'
    benchmark.main(
        [
            config,
            '--shape',
            '32',
            '32',
            '--batch',
            '1',
            '2',
            '--backends',
            'torch',
            'onnx',
            'onnx-int8',
            '--rounds',
            '2',
        ]
        + ['--json', str(out), '--plot', str(picture), '--accuracy', '92', '90', '89']
    )
    rows = json.loads(out.read_text())['rows']
    assert [(r['backend'], r['batch'], r['name']) for r in rows] == [
        (backend, batch, name)
        for backend in ('torch', 'onnx', 'onnx-int8')
        for batch in (1, 2)
        for name in ('e2e', 'fuse', 'remove')
    ]
    assert '| onnx-int8 | 2     | remove |' in capfd.readouterr().out
    assert cv2.imread(str(picture)).std() > 5


@pytest.mark.parametrize(
    ('words', 'wanted'),
    [
        (['--batch', '0'], '--batch and --rounds: must be at least 1'),
        (['--plot', 'a.png'], '--plot and --accuracy belong together'),
        (['--backends', 'tensorrt'], "invalid choice: 'tensorrt'"),
        (['--plot', 'a.foo', '--accuracy', '1', '2', '3'], "--plot 'a.foo': expected a file name that ends with .png"),
    ],
)
def test_wrong_words(words, wanted, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_args(['config.py', *words])
    assert wanted in capsys.readouterr().err


@pytest.mark.parametrize(
    ('config', 'words', 'wanted'),
    [
        (
            'classification/resnet32_repl_cifar10.py',
            ['--device', 'bogus'],
            '--device bogus: expected cpu, or an accel',
        ),
        ('classification/resnet32_repl_cifar10.py', ['--backends', 'torch', 'onnx'], "pip install 'repl_mm.export.'"),
        ('language/gpt2-t_repl_wikitext2.py', [], 'a LanguageModel has no network that is known here'),
    ],
)
def test_what_cannot_be_measured_ends_in_one_line_before_anything_is(config, words, wanted, monkeypatch):
    pytest.importorskip('transformers' if 'gpt2' in config else 'mmengine')
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    monkeypatch.setattr('repl_mm.deployment.benchmark.interleaved', None)
    words = ['--shape', '32', '32', '--arms', 'e2e', *(words or ['--backends', 'torch'])]
    with pytest.raises(SystemExit, match=wanted) as stopped:
        benchmark.main([str(ROOT / 'configs' / config), *words])
    assert '\n' not in stopped.value.code
