"""The demo's parts; the slow test trains tiny networks through the real tools."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import _common
import cv2
import demo
import mini_dataset
import numpy as np
import pictures
import pytest
import shapes
import steps
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from repl_mm import plan_of
from repl_mm.registry import MODELS

ROOT = Path(__file__).parents[1]


# ---- the demo ----


def test_mini_config_and_dataset_name_the_same_classes():
    cfg = Config.fromfile(ROOT / 'configs' / 'retinanet_r50_repl_mini.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert tuple(loader.dataset.metainfo.classes) == shapes.CLASSES
    assert cfg.model.bbox_head.num_classes == len(shapes.CLASSES)


def test_the_parts_of_the_demo_find_their_configs_and_do_not_share_a_folder():
    assert all(part.costs[0].is_file() for part in demo.PARTS.values())
    assert len({Config.fromfile(part.config).data_root for part in demo.PARTS.values()}) == len(demo.PARTS)


@pytest.mark.parametrize('part', [demo.PARTS['segmentation'], demo.PARTS['detection'].pretraining])
def test_the_config_says_how_its_dataset_is_made(part):
    assert f'\npython tools/demo/mini_dataset.py {" ".join(map(str, part.dataset))}\n' in part.config.read_text()


def test_an_output_older_than_its_source_is_made_again(tmp_path):
    source, output = tmp_path / 'source', tmp_path / 'output'
    source.touch()
    assert not steps.is_done(output, source)
    output.touch()
    assert steps.is_done(output, source)
    later = output.stat().st_mtime + 10
    os.utime(source, (later, later))
    assert not steps.is_done(output, source)


def test_a_failing_tool_ends_the_demo_in_one_line(capfd):
    with pytest.raises(SystemExit) as error:
        steps.run_tool('demo/mini_dataset.py', '--num-train', 0)
    assert 'tools/demo/mini_dataset.py failed with exit code 2' in str(error.value)
    assert 'num_train=0' in capfd.readouterr().err


@pytest.mark.slow
def test_comparison_and_pictures_with_the_real_tools(tmp_path):
    """Two arms of a tiny network through train.py, then the demo's evaluation and pictures from its checkpoint."""
    pytest.importorskip('mmdet')
    data, out = tmp_path / 'mini', tmp_path / 'out'
    mini_dataset.write_coco(data, num_train=4, num_val=2, size=(64, 64))
    options = [
        'model.backbone.depth=18',
        'model.backbone.base_channels=8',
        'model.neck.in_channels=8,16,32,64',
        'model.test_cfg.score_thr=0.0',  # untrained networks are never sure, and no boxes are no metrics
        'train_dataloader.batch_size=2',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'val_dataloader.num_workers=0',
        'val_dataloader.persistent_workers=False',
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
    assert (out / 'compare.png').is_file() and '| fuse | 1 |' in (out / 'compare.md').read_text()

    start = time.time()
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 0 and 'running' not in again.stdout and time.time() - start < 60

    arm = out / 'retinanet_r50_repl_mini' / 'fuse'
    config, work_dir = arm / 'config.py', arm / 'seed_0'
    metrics = steps.evaluate(config, work_dir / 'epoch_1.pth', work_dir / 'test')
    trained = result['arms']['fuse']['runs']['0']['metrics']
    assert metrics['coco/bbox_mAP_50'] == pytest.approx(trained['coco/bbox_mAP_50'], abs=1e-3)
    part = demo.PARTS['detection']
    part.draw(config, work_dir / 'epoch_1.pth', work_dir / 'predictions.png', columns=2, rows=1)
    pictures.draw_curves(work_dir, work_dir / 'curves.png', part.losses, part.metrics)
    for name in ('predictions.png', 'curves.png'):
        assert cv2.imread(str(work_dir / name)).std() > 5


# ---- the chain: pretrain, then detect or segment ----

SCOPES = dict(detection='mmdet', segmentation='mmseg')


@pytest.mark.parametrize('name', demo.PARTS)
def test_all_tensors_of_the_dense_backbone_come_from_the_pretraining(name, tmp_path):
    pytest.importorskip(SCOPES[name])
    part = demo.PARTS[name]
    with DefaultScope.overwrite_default_scope('repl_mm'):
        classifier = MODELS.build(Config.fromfile(part.pretraining.config).model)
    torch.save(dict(state_dict=classifier.state_dict()), tmp_path / 'pretrained.pth')
    settings = Config.fromfile(part.config).model.backbone
    settings.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'pretrained.pth'), prefix='backbone.')
    with DefaultScope.overwrite_default_scope(SCOPES[name]):
        backbone = MODELS.build(settings)
    backbone.init_weights()
    wanted = classifier.backbone.state_dict()
    assert plan_of(backbone) is not None and set(backbone.state_dict()) == set(wanted)
    for key, value in backbone.state_dict().items():
        torch.testing.assert_close(value, wanted[key], rtol=0, atol=0)


# one step on eight pictures, with an eighth of the width
COMMON = {
    'train_dataloader.batch_size': 8,
    'train_cfg.val_interval': 1,
    'model.backbone.base_channels': 8,
    'default_hooks.logger.interval': 1,
}
DETECTOR = {
    'train_cfg.max_epochs': 1,
    'model.neck.in_channels': [32, 64, 128, 256],
    'model.test_cfg.score_thr': 0.0,  # untrained networks are never sure
}
SEGMENTOR = {
    'train_cfg.max_iters': 1,
    'model.backbone.stem_channels': 8,
    'model.decode_head.in_channels': 64,
    'model.decode_head.c1_in_channels': 8,
}
TINY = dict(
    detection=({'train_cfg.max_epochs': 1, 'model.in_channels': 256}, DETECTOR),
    segmentation=({'train_cfg.max_epochs': 1, 'model.in_channels': 64, 'model.backbone.stem_channels': 8}, SEGMENTOR),
)


def tiny(part, folder, options):
    """The part with these options in its config and few pictures, so that every network is good enough."""
    cfg = Config.fromfile(part.config)
    _common.set_data_root(cfg, str(folder / f'data_{part.config.stem}'))
    cfg.merge_from_dict(COMMON | options)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    config = folder / part.config.name
    cfg.dump(config)
    dataset = (*part.dataset, '--num-train', 8, '--num-val', 4, '--size', 64, 64)
    return dataclasses.replace(part, config=config, dataset=dataset, minimum=0, costs=())


@pytest.mark.slow
@pytest.mark.parametrize('name', demo.PARTS)
def test_a_part_pretrains_and_trains_and_the_second_call_starts_nothing(name, tmp_path, monkeypatch, capfd):
    pytest.importorskip(SCOPES[name])
    if name == 'segmentation' and not hasattr(np, 'in1d'):
        pytest.skip('cityscapesscripts 2.3.0 calls numpy.in1d, gone in numpy 2.4')
    monkeypatch.chdir(tmp_path)
    first, second = TINY[name]
    part = tiny(demo.PARTS[name], tmp_path, second | {'optim_wrapper.optimizer.lr': 0.0})
    pretraining = tiny(part.pretraining, tmp_path, first)
    work_dir = tmp_path / 'out'

    part.pretraining = dataclasses.replace(pretraining, minimum=101)
    with pytest.raises(SystemExit, match=r'accuracy/top1 .* is below 101, resnet\w+ has not learned'):
        part.run(work_dir, steps.Steps(part.num_steps))
    assert [path.name for path in work_dir.iterdir()] == ['pretraining']

    part.pretraining = pretraining
    capfd.readouterr()
    header = steps.Steps(part.num_steps)
    checkpoint = part.run(work_dir, header)
    assert header.done == header.total == 10
    out = capfd.readouterr().out
    assert out.count('train.py') == 1
    loaded = re.findall(r'RepL: weights of the same plan .* (\d+) of (\d+) tensors loaded', out)
    assert loaded and len(set(loaded[0])) == 1
    # its learning rate is zero: the detector or segmentor ends with the parameters that the classifier ended with
    states = [
        torch.load(path, weights_only=True)['state_dict']
        for path in (work_dir / 'pretraining' / 'train' / 'epoch_1.pth', checkpoint)
    ]
    before, after = (
        {key: value for key, value in state.items() if key.startswith('backbone.') and 'running_' not in key}
        for state in states
    )
    assert set(before) == set(after)
    for key, value in before.items():
        if not key.endswith('num_batches_tracked'):
            torch.testing.assert_close(after[key], value, rtol=0, atol=0)

    for file in ('predictions.png', 'curves.png', f'cost_{part.config.stem}.png', 'pretraining/curves.png'):
        assert cv2.imread(str(work_dir / file)).std() > 5
    assert '| e2e' in (work_dir / f'cost_{part.config.stem}.txt').read_text()
    if name == 'segmentation':
        assert 'averageScoreCategories' in out and 'Score Average' in out
        names = [f'minival_{i:06d}_000000_leftImg8bit.png' for i in range(4)]
        assert sorted(path.name for path in (work_dir / 'test' / 'results').iterdir()) == names

    assert part.run(work_dir, steps.Steps(part.num_steps)) == checkpoint
    assert '$ python' not in capfd.readouterr().out  # nothing was started
