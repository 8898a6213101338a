"""Data-parallel training in two processes gives the gradients of one process on the joint batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ddp_worker import CASES, STEPS, build, train
from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
from small import REPO, build_backbone, gradients, images

TESTS = Path(__file__).resolve().parent


@pytest.fixture(scope='module')
def two_processes(tmp_path_factory):
    """dict: By case, the gradients of every step that the first of two processes saw, or an error message."""
    path = tmp_path_factory.mktemp('ddp') / 'seen.pth'
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    done = subprocess.run(
        [*command, str(TESTS / 'ddp_worker.py'), str(path)],
        env={**os.environ, 'PYTHONPATH': f'{REPO}{os.pathsep}{TESTS}', 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=570,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return torch.load(path)


@pytest.mark.parametrize('case', CASES)
def test_gradients_are_those_of_the_joint_batch(case, two_processes):
    seen = two_processes[case]
    assert not isinstance(seen, str), seen
    backbone = build(case)
    wanted = train(case, backbone, [0, 1])
    assert len(seen) == len(wanted) == STEPS
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    for step in range(STEPS):
        assert seen[step].keys() == wanted[step].keys() == trained
        torch.testing.assert_close(seen[step], wanted[step], rtol=1e-3, atol=1e-5)
        assert step == 0 or any(not torch.equal(g, wanted[0][name]) for name, g in wanted[step].items())
    if CASES[case][1].get('frozen_stages', 1) == 1:
        assert not any(name.startswith(('conv1', 'bn1', 'layer1.', 'stem')) for name in trained)


@pytest.mark.parametrize('how', ['convert', 'config'])
@pytest.mark.parametrize('with_cp', [False, True])
def test_sync_bn_comes_and_goes(how, with_cp):
    """Also inside computing layers. (torch's DDP runs SyncBN on GPUs only.)"""
    settings = dict(norm_cfg=dict(type='SyncBN', requires_grad=True)) if how == 'config' else {}
    backbone = build_backbone('full', with_cp=with_cp, **settings)
    if how == 'convert':
        backbone = convert_sync_batchnorm(backbone)
    assert sum(isinstance(m, torch.nn.SyncBatchNorm) for m in backbone.layer2[1].modules()) == 3
    state = {key: value.clone() for key, value in backbone.state_dict().items()}

    backbone = revert_sync_batchnorm(backbone)  # as Runner does where there is one process
    assert not any(isinstance(m, torch.nn.SyncBatchNorm) for m in backbone.modules())
    torch.testing.assert_close(dict(backbone.state_dict()), state, rtol=0, atol=0)
    backbone.train()  # the norms are new objects
    found = gradients(backbone, images())
    torch.testing.assert_close(found, gradients(build_backbone('full'), images()), rtol=1e-4, atol=1e-6)
