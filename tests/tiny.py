"""A small classifier and a Runner for it, with mmengine alone."""

import uuid
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

SIZE = 32
BACKBONE = dict(type='repl_mm.RepLCifarResNet', depth=20, base_channels=4, replace=dict())


class Net(BaseModel):
    """One backbone, or several whose features are added, and a linear classifier.

    Args:
        backbone (nn.Module | dict | list): Built backbones, or their configs.
    """

    def __init__(self, backbone, channels: int = 16):
        super().__init__()
        several = isinstance(backbone, list)
        built = [MODELS.build(b) if isinstance(b, dict) else b for b in (backbone if several else [backbone])]
        self.backbone = nn.ModuleList(built) if several else built[0]
        self.head = nn.Linear(channels, 3)

    def forward(self, inputs: Tensor, labels: Tensor, mode: str = 'loss'):
        backbones = self.backbone if isinstance(self.backbone, nn.ModuleList) else [self.backbone]
        features = sum(F.adaptive_avg_pool2d(last(backbone(inputs)), 1).flatten(1) for backbone in backbones)
        # part of the loss comes from the global generators, as augmentation does
        noise = torch.randn_like(features) * 0.1 if self.training else 0
        scores = self.head(features + noise)
        return dict(loss=F.cross_entropy(scores, labels)) if mode == 'loss' else scores


def last(outputs) -> Tensor:
    """The last output of a backbone."""
    return outputs[-1] if isinstance(outputs, tuple | list) else outputs


def dataset() -> list[dict]:
    """Eight images of noise."""
    generator = torch.Generator().manual_seed(0)
    return [dict(inputs=torch.randn(3, SIZE, SIZE, generator=generator), labels=i % 3) for i in range(8)]


class Noise(Dataset):
    """The same as a class, for configs."""

    def __init__(self):
        self.items = dataset()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        return self.items[index]


def build_runner(model, work_dir, hook: dict | None = None, optimizer=None, **settings) -> Runner:
    """A Runner of two epochs of two steps, without any ``cfg.model``; the model's weights are initialized.

    Args:
        model (nn.Module): The model.
        work_dir (Path): Where its files go.
        hook (dict | None): Settings of the hook. Defaults to None, no hook.
        optimizer (torch.optim.Optimizer | None): Defaults to None, SGD of all parameters.
        **settings: Further settings of the Runner.
    """
    hooks = [] if hook is None else [dict(type='RepLHook', **hook)]
    wrapper = dict(type='OptimWrapper', optimizer=optimizer or dict(type='SGD', lr=0.1, momentum=0.9))
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        experiment_name=uuid.uuid4().hex,  # two runs of one second and one name would share their log
        train_dataloader=dict(
            dataset=dataset(),
            batch_size=4,
            sampler=dict(type='DefaultSampler'),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=wrapper,
        custom_hooks=hooks,
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=2)),
        randomness=dict(seed=0),
        **settings,
    )
    runner.model.init_weights()
    return runner


def log_of(runner: Runner) -> str:
    """The text of a Runner's log."""
    return next(Path(runner.log_dir).glob('*.log')).read_text()
