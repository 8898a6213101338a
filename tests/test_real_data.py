"""Real photographs through the shipped configs, where the folder of test data is there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / 'tools'


def run(*command, cwd):
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, env={**os.environ, 'CI': '1'}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.real_data
def test_the_shipped_coco_config_trains_and_evaluates_on_real_photographs(shared_data, tmp_path):
    """Only ``data_root`` differs from the shipped config; a few photographs and no download keep it short."""
    root = f'{shared_data / "coco_mini"}/'
    options = ['model.backbone.init_cfg=None', 'train_cfg.max_epochs=1', 'default_hooks.logger.interval=1']
    options += ['custom_hooks.0.shape=None']
    options += ['model.test_cfg.score_thr=0.0']  # two steps from scratch give no score that the config would keep
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        options += [f'{loader}.dataset.data_root={root}', f'{loader}.dataset.indices=4', f'{loader}.num_workers=0']
        options += [f'{loader}.persistent_workers=False']
    for evaluator in ('val_evaluator', 'test_evaluator'):
        options += [f'{evaluator}.ann_file={root}annotations/instances_val2017.json']
    config = ROOT / 'configs' / 'retinanet_r50_repl_coco.py'
    log = run(TOOLS / 'train.py', config, '--work-dir', tmp_path, '--cfg-options', *options, cwd=tmp_path)
    assert '4 of 16 blocks replaced' in log  # layer1 is frozen in this config
    assert 'coco/bbox_mAP' in log
    plan = json.loads((tmp_path / 'repl_plan.json').read_text())['backbone']
    assert [(s['stage'], s['index']) for s in plan['slots']] == [(1, 1), (2, 1), (2, 3), (3, 1)]

    checkpoint = tmp_path / 'epoch_1.pth'
    log = run(TOOLS / 'test.py', config, checkpoint, '--work-dir', tmp_path, '--cfg-options', *options, cwd=tmp_path)
    assert 'coco/bbox_mAP' in log
