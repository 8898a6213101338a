"""Sharding by ``fully_shard`` (FSDP2): whole backbones train; blocks apart are refused in one line."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from test_borrowing import BORROWING, REPLACE, build, step
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import repl_mm
from repl_mm import RepLHook
from repl_mm.checkpoint import PLAN_KEY
from repl_mm.computing_layers import BorrowError, is_sharded


@pytest.fixture(scope='module')
def mesh():
    """A mesh of this process alone: it shards, gathers and reduces like a larger one."""
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh('cpu', (1,))
    dist.destroy_process_group()


def test_a_sharded_network_is_not_folded_for_evaluation(mesh):
    """Its weights are whole in the forward pass only; the hook leaves it as it is."""
    backbone = build('default')
    assert not is_sharded(backbone)
    fully_shard(backbone, mesh=mesh)
    fully_shard(model := torch.nn.Sequential(backbone), mesh=mesh)
    step(model)
    assert is_sharded(model)
    RepLHook().before_val_epoch(SimpleNamespace(model=model))
    with pytest.raises(BorrowError, match='is sharded apart'):
        repl_mm.fold(model)


UNITS = {
    'backbone': lambda backbone: [],
    'stages': lambda backbone: [backbone.layer1, backbone.layer2, backbone.layer3],
    'blocks': lambda backbone: [*backbone.layer1, *backbone.layer2, *backbone.layer3],
}


@pytest.mark.parametrize('units', UNITS)
@pytest.mark.parametrize('name', REPLACE)
def test_fully_shard(name, units, mesh):
    whole, backbone = build(name), build(name)
    optimizer = torch.optim.SGD(whole.parameters(), 0.05)
    wanted = [step(whole, optimizer) for _ in range(2)]
    for unit in UNITS[units](backbone):
        fully_shard(unit, mesh=mesh)
    fully_shard(backbone, mesh=mesh)
    optimizer = torch.optim.SGD(backbone.parameters(), 0.05)
    if units == 'blocks' and name in BORROWING:
        with pytest.raises(BorrowError, match="block 'layer1.0' .* is sharded apart .*, fully_shard"):
            step(backbone, optimizer)
    else:
        assert [step(backbone, optimizer) for _ in range(2)] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize('name', BORROWING)
def test_a_merged_network_is_sharded_block_by_block(name, mesh):
    """As the stock one is: nothing is borrowed any more."""
    whole, backbone = (repl_mm.merge(build(name)).train() for _ in range(2))
    optimizer = torch.optim.SGD(whole.parameters(), 0.05)
    wanted = [step(whole, optimizer) for _ in range(2)]
    for unit in UNITS['blocks'](backbone):
        fully_shard(unit, mesh=mesh)
    fully_shard(backbone, mesh=mesh)
    optimizer = torch.optim.SGD(backbone.parameters(), 0.05)
    assert [step(backbone, optimizer) for _ in range(2)] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize('name', REPLACE)
def test_the_plan_goes_through_distributed_checkpoints(name, mesh):
    state = get_model_state_dict(build(name))
    assert (PLAN_KEY in state) == (name != 'stock')
    assert not any(set_model_state_dict(build(name), state))
