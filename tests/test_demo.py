"""The demo: its quiet steps, and its chain with tiny networks through the real tools."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import demo
import mini_dataset
import numpy as np
import pytest
import steps
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from repl_mm import plan_of
from repl_mm.registry import MODELS

ROOT = Path(__file__).parents[1]


# ---- configs ----


def test_the_configs_name_the_classes_and_the_dataset_that_the_demo_draws():
    configs = {name: Config.fromfile(network['config']) for name, network in demo.NETWORKS.items()}
    assert len({cfg.data_root for cfg in configs.values()}) == len(configs)
    for loader in ('train_dataloader', 'val_dataloader'):
        assert tuple(configs['detection'][loader].dataset.metainfo.classes) == mini_dataset.CLASSES
    assert configs['detection'].model.bbox_head.num_classes == len(mini_dataset.CLASSES)
    assert all(network[0].is_file() for network in demo.COSTS.values())


@pytest.mark.parametrize('name', demo.NETWORKS)
def test_the_config_says_how_its_dataset_is_made(name, monkeypatch):
    text = demo.NETWORKS[name]['config'].read_text()
    (command,) = (line for line in text.splitlines() if line.startswith('python tools/demo/mini_dataset.py '))
    made = []
    monkeypatch.setattr(mini_dataset, 'write', lambda *args: made.append(args))
    mini_dataset.main(command.split()[2:])
    layout, out, num_train, num_val, size, seed = made[0]
    wanted = dict(num_train=1000, num_val=100, size=(128, 128)) | demo.NETWORKS[name]['dataset']
    assert wanted == dict(layout=layout, num_train=num_train, num_val=num_val, size=tuple(size))
    assert f'{out}/' == Config.fromfile(demo.NETWORKS[name]['config']).data_root and seed == 0


# a classifier and the dense network that starts from it
STARTS = {
    'mmdet': ('classification/resnet50_repl_imagenet.py', 'retinanet_r50_repl_coco.py'),
    'mmseg': ('classification/resnetv1c34_repl_mini.py', 'deeplabv3plus_r34-d8_repl_mini.py'),
}


@pytest.mark.parametrize('scope', STARTS)
def test_all_tensors_of_the_dense_backbone_come_from_the_pretraining(scope, tmp_path):
    pytest.importorskip(scope)
    first, second = (Config.fromfile(ROOT / 'configs' / file).model for file in STARTS[scope])
    with DefaultScope.overwrite_default_scope('repl_mm'):
        classifier = MODELS.build(first)
    torch.save(dict(state_dict=classifier.state_dict()), tmp_path / 'pretrained.pth')
    settings = second.backbone
    settings.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'pretrained.pth'), prefix='backbone.')
    with DefaultScope.overwrite_default_scope(scope):
        backbone = MODELS.build(settings)
    backbone.init_weights()
    wanted = classifier.backbone.state_dict()
    assert plan_of(backbone) is not None and set(backbone.state_dict()) == set(wanted)
    for key, value in backbone.state_dict().items():
        torch.testing.assert_close(value, wanted[key], rtol=0, atol=0)


# ---- steps ----

LOG = '11/26 08:24:36 - mmengine - INFO - '


@pytest.mark.parametrize(
    ('line', 'shown'),
    [
        (
            'Epoch(train)  [5][ 40/125]  base_lr: 4e-04 lr: 4e-04  eta: 0:01:32  time: 0.5  loss: 0.204  loss_cls: 0',
            'train: epoch 5, 40 of 125, loss 0.204, 0:01:32 left',
        ),
        ('Iter(train) [ 50/600]  eta: 0:09:10  time: 1.0  loss: 1.5', 'train: 50 of 600, loss 1.5, 0:09:10 left'),
        ('Epoch(test) [10/13]    eta: 0:00:01  time: 0.3', 'test: 10 of 13, 0:00:01 left'),
        ('Checkpoints will be saved', ''),
    ],
)
def test_progress_is_read_from_the_log(line, shown):
    assert steps.progress(LOG + line) == shown


def tool(folder, text):
    """A script of this text among the demo's tools, and the arguments of ``Steps.run`` for it."""
    (folder / 'tool.py').write_text(text)
    return folder / 'logs' / 'tool.log', folder, 'out*', 'tool.py'


@pytest.mark.parametrize('name', ['a.pth', 'a.onnx'])
def test_a_step_is_quiet_and_is_skipped_until_its_network_is_newer(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(steps, 'TOOLS', tmp_path)
    monkeypatch.setattr(steps, 'EVERY', 0)
    run, checkpoint = steps.Steps(2), tmp_path / name
    checkpoint.touch()
    text = f'import sys\nprint("{LOG}Iter(train) [1/2]")\nprint("noise", *sys.argv[1:])\nopen("out", "w")'
    arguments = tool(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    run('first')
    assert run.run(*arguments, checkpoint, 'word') == tmp_path / 'out'
    assert (tmp_path / 'logs' / 'tool.log').read_text() == f'{LOG}Iter(train) [1/2]\nnoise {checkpoint} word\n'
    header, shown, done = capsys.readouterr().out.splitlines()
    assert (header, shown.strip()) == ('[1/2] first', 'train: 1 of 2') and done.endswith('log: logs/tool.log')
    for change, words in ((0, 'is there'), (10, 'done in'), (-10, 'is there')):
        when = (tmp_path / 'out').stat().st_mtime + change
        os.utime(checkpoint, (when, when))
        run.run(*arguments, checkpoint)
        assert words in capsys.readouterr().out
        os.utime(checkpoint, (0, 0))


@pytest.mark.parametrize('text', ['print("why")\nraise SystemExit(3)', 'print("why")'])
def test_a_failing_step_shows_the_end_of_its_log(text, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, 'TOOLS', tmp_path)
    with pytest.raises(SystemExit, match=r'(?s)tool.py failed with exit code [03]; the end of .*tool.log:\nwhy$'):
        steps.Steps(1).run(*tool(tmp_path, text))


# ---- the chain ----

# one step on eight pictures, with an eighth of the width
TINY = {
    'detection': {
        'model.neck.in_channels': [32, 64, 128, 256],
        'model.test_cfg.score_thr': 0.0,  # untrained networks are never sure
        'train_cfg.max_epochs': 1,
    },
    'pretraining': {'model.in_channels': 64, 'model.backbone.stem_channels': 8, 'train_cfg.max_epochs': 1},
    'segmentation': {
        'model.backbone.stem_channels': 8,
        'model.decode_head.in_channels': 64,
        'model.decode_head.c1_in_channels': 8,
        'train_cfg.max_iters': 1,
        'optim_wrapper.optimizer.lr': 0.0,
    },
}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The demo with tiny networks and few pictures, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name, options in TINY.items():
        cfg = Config.fromfile(demo.NETWORKS[name]['config'])
        options = options | {'model.backbone.base_channels': 8, 'train_dataloader.batch_size': 8}
        cfg.merge_from_dict(options | {'train_cfg.val_interval': 1, 'default_hooks.logger.interval': 1})
        cfg.dump(tmp_path / f'{name}.py')
        network = demo.NETWORKS[name] | dict(config=tmp_path / f'{name}.py', minimum=0)
        network['dataset'] = network['dataset'] | dict(num_train=8, num_val=4, size=(64, 64))
        monkeypatch.setitem(demo.NETWORKS, name, network)
    return Path('work_dirs/demo')


@pytest.mark.slow
def test_the_demo_trains_tests_draws_and_counts_and_a_second_call_starts_nothing(tiny, monkeypatch, capfd):
    pytest.importorskip('mmdet')
    monkeypatch.setitem(demo.COSTS, 'detection', (*demo.COSTS['detection'][:1], 64, 64))
    demo.main([])
    out = capfd.readouterr()
    assert not out.err and len(out.out.splitlines()) < 30
    headers = [line for line in out.out.splitlines() if line.startswith('[')]
    assert [line[:5] for line in headers] == [f'[{i}/6]' for i in range(1, 7)]
    assert all(f'| {arm}' in out.out for arm in ('e2e', 'fuse', 'remove'))
    picture = out.out.splitlines()[-1].strip()
    assert picture == f'{tiny}/detection/predictions.jpg' and cv2.imread(picture).std() > 5
    log = (tiny / 'detection' / 'train.log').read_text()
    assert '5 of 16 blocks replaced' in log and 'seed: 0' in log.replace('Set random ', '')

    monkeypatch.setattr(subprocess, 'Popen', None)
    demo.main([])
    assert capfd.readouterr().out.count('is there') == 7
    demo.NETWORKS['detection']['minimum'] = 1.01
    with pytest.raises(SystemExit, match='coco/bbox_mAP_50 .* is below 1.01: detection has not learned'):
        demo.main([])
    with pytest.raises(SystemExit, match='holds a run with other settings'):
        demo.main(['--seed', '1'])


@pytest.mark.slow
def test_the_segmentor_starts_from_its_pretraining_and_is_evaluated_officially(tiny, capfd):
    pytest.importorskip('mmseg')
    if not hasattr(np, 'in1d'):
        pytest.skip('cityscapesscripts 2.3.0 calls numpy.in1d, gone in numpy 2.4')
    run = steps.Steps(6)
    start, _ = demo.learn('pretraining', tiny / 'pretraining', run)
    checkpoint, value = demo.learn('segmentation', tiny / 'segmentation', run, backbone=start)
    assert run.done == run.total and 0 <= value <= 100
    # its learning rate is zero: the segmentor ends with the parameters that the classifier ended with
    before, after = (
        {
            key: value
            for key, value in torch.load(path, weights_only=True)['state_dict'].items()
            if key.startswith('backbone.') and not key.endswith(('running_mean', 'running_var', 'num_batches_tracked'))
        }
        for path in (start, checkpoint)
    )
    assert set(before) == set(after)
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=0)
    log = (tiny / 'segmentation' / 'test.log').read_text()
    assert 'averageScoreCategories' in log and 'Score Average' in log
    names = [f'minival_{i:06d}_000000_leftImg8bit.png' for i in range(4)]
    assert sorted(path.name for path in (tiny / 'segmentation' / 'test' / 'results').iterdir()) == names


# ---- tools/compare.py on the same pictures ----


@pytest.mark.slow
def test_two_arms_are_compared_by_the_real_tools(tmp_path):
    pytest.importorskip('mmdet')
    data, out = tmp_path / 'mini', tmp_path / 'out'
    mini_dataset.write_coco(data, num_train=4, num_val=2, size=(64, 64))
    options = [
        'model.backbone.depth=18',
        'model.backbone.base_channels=8',
        'model.neck.in_channels=8,16,32,64',
        'model.test_cfg.score_thr=0.0',  # untrained networks are never sure, and no boxes are no metrics
        'train_dataloader.batch_size=2',
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=1',
        'default_hooks.logger.interval=1',
    ]
    command = [sys.executable, ROOT / 'tools' / 'compare.py', ROOT / 'configs' / 'retinanet_r50_repl_mini.py']
    command += ['--arms', 'e2e', 'fuse', '--seeds', 0, '--out', out, '--jobs', 2, '--data-root', data]
    command = list(map(str, [*command, '--cfg-options', *options]))
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    logs = [path.read_text()[-3000:] for path in out.glob('*/*/*/train.log')]
    assert run.returncode == 0, '\n'.join([run.stderr, *logs])
    result = json.loads((out / 'compare.json').read_text())['retinanet_r50_repl_mini']
    assert list(result['arms']) == ['e2e', 'fuse'] and result['metric'] == 'coco/bbox_mAP'
    assert result['batch'] == 2 and result['shape'] == [64, 64]
    costs = [result['arms'][arm]['cost'] for arm in ('e2e', 'fuse')]
    assert costs[0]['params'] > costs[1]['params'] and costs[0]['flops'] > costs[1]['flops']
    assert all((out / name).is_file() for name in ('compare.png', 'bubbles.png'))
    assert '| fuse | 1 |' in (out / 'compare.md').read_text()

    start = time.time()
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 0 and 'running' not in again.stdout and time.time() - start < 60
