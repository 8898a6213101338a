"""The ResNets of He et al. for images of 32x32 pixels: ResNet-20, 32, 44, 56, 110."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..registry import MODELS

SHORTCUTS = ('A', 'B')


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
        inplanes (int): Channels of the input.
        planes (int): Channels of the output.
        stride (int): Stride of the first convolution and the shortcut; above 1 where the number of channels changes.
        shortcut (str): What stands there: 'A', every ``stride``-th position and zeros for the new channels, or 'B', a
            1x1 convolution with batch norm.
        with_cp (bool): Keep only the input for backward and compute the rest again. Defaults to False.
        drop_path (nn.Module | None): What stands behind the branch beside the shortcut. Defaults to None, nothing.
    """

    def __init__(self, inplanes: int, planes: int, stride: int, shortcut: str, with_cp=False, drop_path=None):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride = stride
        self.with_cp = with_cp
        self.drop_path = drop_path or nn.Identity()
        self.new = planes - inplanes
        self.shortcut = None
        if shortcut == 'B' and stride > 1:
            conv = nn.Conv2d(inplanes, planes, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(self.compute, x, use_reentrant=False)
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """The output, without regard to ``with_cp``."""
        out = self.drop_path(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.stride > 1:
            before = self.new // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new - before))
        return F.relu(out + x)


def drop_path_layers(rate: float, num: int) -> list[nn.Module | None]:
    """Stochastic depth of ``num`` blocks, its rate growing linearly up to ``rate``; nothing for a rate of 0."""
    if not rate:
        return [None] * num
    from mmcv.cnn.bricks import DropPath  # here, because all else works without mmcv

    return [DropPath(rate * (i + 1) / num) for i in range(num)]


@MODELS.register_module()
class CifarResNet(BaseModule):
    """ResNet with three stages, ``layer1`` to ``layer3``, of ``(depth - 2) / 6`` blocks each, without pooling inside.

    The names of its weights are those of the public PyTorch CIFAR ResNets.

    Args:
        depth (int): 20, 32, 44, 56, 110 or another 6n + 2.
        shortcut (str): 'A' (without parameters) or 'B' (1x1 convolution), where a stage begins. Defaults to 'A'.
        base_channels (int): Channels of the first stage, doubled by each of the others. Defaults to 16.
        in_channels (int): Channels of the images. Defaults to 3.
        out_indices (Sequence[int]): Stages, counted from 0, whose outputs are returned. Defaults to (2,).
        with_cp (bool): Activation checkpointing: of each block only the input is kept for backward. Batch norms then
            update their running statistics twice in a step, as with mm's own ``with_cp``. Defaults to False.
        drop_path_rate (float): Stochastic depth: the branch of block l of L is left out for a share of
            ``drop_path_rate * l / L`` of the training images, and the branches of the others are scaled up. Above 0 it
            needs mmcv. Defaults to 0.
        init_cfg (dict | list[dict] | None): Defaults to None, Kaiming's initialization of the convolutions.

    Raises:
        ValueError: A setting is not valid.

    Example:
        >>> CifarResNet(depth=32)(torch.rand(1, 3, 32, 32))[0].shape
        torch.Size([1, 64, 8, 8])
    """

    def __init__(
        self,
        depth,
        shortcut='A',
        base_channels=16,
        in_channels=3,
        out_indices=(2,),
        with_cp=False,
        drop_path_rate=0.0,
        init_cfg=None,
    ):
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 8 or depth % 6 != 2:
            raise ValueError(f'CifarResNet.depth={depth!r} is not valid: expected 6n + 2, such as 20, 32, 56 or 110')
        if shortcut not in SHORTCUTS:
            raise ValueError(f"CifarResNet.shortcut={shortcut!r} is not valid: expected 'A' or 'B'")
        if not out_indices or not set(out_indices) <= {0, 1, 2}:
            raise ValueError(f'CifarResNet.out_indices={out_indices!r} is not valid: expected stages in 0..2')
        if not isinstance(drop_path_rate, int | float) or not 0 <= drop_path_rate < 1:
            raise ValueError(f'CifarResNet.drop_path_rate={drop_path_rate!r} is not valid: expected 0 <= number < 1')
        layers = ['_BatchNorm', 'GroupNorm']
        default = [dict(type='Kaiming', layer='Conv2d'), dict(type='Constant', val=1, layer=layers)]
        super().__init__(default if init_cfg is None else init_cfg)
        self.depth = depth
        self.out_indices = out_indices
        self.conv1 = nn.Conv2d(in_channels, base_channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(base_channels)
        num = (depth - 2) // 6
        drop_paths = iter(drop_path_layers(drop_path_rate, 3 * num))
        inplanes = base_channels
        for stage in range(3):
            planes = base_channels * 2**stage
            blocks = []
            for index in range(num):
                stride = 2 if stage and not index else 1
                blocks.append(BasicBlock(inplanes, planes, stride, shortcut, with_cp, next(drop_paths)))
                inplanes = planes
            self.add_module(f'layer{stage + 1}', nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the stages ``out_indices``: stage s has ``base_channels * 2**s`` channels at stride 2**s."""
        x = F.relu(self.bn1(self.conv1(x)))
        outs = []
        for stage, layer in enumerate((self.layer1, self.layer2, self.layer3)):
            x = layer(x)
            if stage in self.out_indices:
                outs.append(x)
        return tuple(outs)
