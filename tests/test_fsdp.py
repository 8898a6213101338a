"""Sharding by ``fully_shard`` (FSDP2): stages and whole backbones train; single blocks are refused in one line."""

import pytest
import torch
import torch.distributed as dist
from test_borrowing import BORROWING, REPLACE, build, step
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from repl_mm.checkpoint import PLAN_KEY
from repl_mm.computing_layers import BorrowError


@pytest.fixture(scope='module')
def mesh():
    """A mesh of this process alone: it shards, gathers and reduces like a larger one."""
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh('cpu', (1,))
    dist.destroy_process_group()


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


@pytest.mark.parametrize('name', REPLACE)
def test_the_plan_goes_through_distributed_checkpoints(name, mesh):
    state = get_model_state_dict(build(name))
    assert (PLAN_KEY in state) == (name != 'stock')
    assert not any(set_model_state_dict(build(name), state))
