"""One process of test_ddp.py: trains every case for some steps in DDP; the first process saves what it saw."""

import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from small import WITH_TRANSFORMERS, build_backbone, gradients, images
from torch.nn.parallel import DistributedDataParallel

STEPS = 3
LEARNING_RATE = dict(vit=1e-4, vit_full=1e-4, gpt2=1e-3, llama_full=1e-3)  # by row of the table, 0.5 for others
BATCH = 2  # of each process

# name: (row of the table of backbones, settings)
CASES = {
    f'{name}{"_with_cp" if with_cp else ""}': (name, dict(with_cp=with_cp))
    for name in ('basic', 'adjacent', 'full', 'detach', 'share', 'own', 'remove', 'v1d', 'vit', 'vit_full')
    for with_cp in (False, True)
} | {name: (name, {}) for name in (('gpt2', 'llama_full') if WITH_TRANSFORMERS else ())}
CASES |= {'trained_stem': ('basic', dict(frozen_stages=-1, with_cp=True))}


def build(case):
    """The backbone of a case."""
    name, settings = CASES[case]
    return build_backbone(name, **settings)


def train(case, model, parts) -> list[dict]:
    """Some steps of SGD on every process's share of a batch; gradients of every step, averaged over the processes."""
    backbone = getattr(model, 'module', model)
    lr = LEARNING_RATE.get(CASES[case][0], 0.5)
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=lr)
    history = []
    for step in range(STEPS):
        batch = images(2 * BATCH, seed=step).chunk(2)
        history.append(gradients(backbone, torch.cat([batch[part] for part in parts]), call=model))
        optimizer.step()
    return history


def main(path):
    dist.init_process_group('gloo', timeout=timedelta(seconds=240))
    rank = dist.get_rank()
    seen = {}
    for case in CASES:
        try:
            model = DistributedDataParallel(build(case), find_unused_parameters=False)
            seen[case] = train(case, model, [rank])
        except RuntimeError as error:  # the same on every process: the others' cases shall run
            seen[case] = str(error)
    if rank == 0:
        torch.save(seen, path)
    dist.destroy_process_group()


if __name__ == '__main__':
    main(sys.argv[1])
