"""The ResNets of He et al. for images of 32x32 pixels: ResNet-20, 32, 44, 56, 110."""

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

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
    """

    def __init__(self, inplanes: int, planes: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride = stride
        self.new = planes - inplanes
        self.shortcut = None
        if shortcut == 'B' and stride > 1:
            conv = nn.Conv2d(inplanes, planes, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.stride > 1:
            before = self.new // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new - before))
        return F.relu(out + x)


@MODELS.register_module()
class CifarResNet(BaseModule):
    """ResNet with three stages, ``layer1`` to ``layer3``, of ``(depth - 2) / 6`` blocks each, without pooling inside.

    The names of its weights are those of the public PyTorch CIFAR ResNets.

    Args:
        depth (int): 20, 32, 44, 56, 110 or another 6n + 2.
        shortcut (str): 'A' (without parameters) or 'B' (1x1 convolution), where a stage begins. Default: 'A'.
        base_channels (int): Channels of the first stage, doubled by each of the others. Default: 16.
        in_channels (int): Channels of the images. Default: 3.
        out_indices (Sequence[int]): Stages, counted from 0, whose outputs are returned. Default: (2,).
        init_cfg (dict | list[dict] | None): Default: None, Kaiming's initialization of the convolutions.

    Raises:
        ValueError: A setting is not valid.

    Example:
        >>> CifarResNet(depth=32)(torch.rand(1, 3, 32, 32))[0].shape
        torch.Size([1, 64, 8, 8])
    """

    def __init__(self, depth, shortcut='A', base_channels=16, in_channels=3, out_indices=(2,), init_cfg=None):
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 8 or depth % 6 != 2:
            raise ValueError(f'CifarResNet.depth={depth!r} is not valid: expected 6n + 2, such as 20, 32, 56 or 110')
        if shortcut not in SHORTCUTS:
            raise ValueError(f"CifarResNet.shortcut={shortcut!r} is not valid: expected 'A' or 'B'")
        if not out_indices or not set(out_indices) <= {0, 1, 2}:
            raise ValueError(f'CifarResNet.out_indices={out_indices!r} is not valid: expected stages in 0..2')
        layers = ['_BatchNorm', 'GroupNorm']
        default = [dict(type='Kaiming', layer='Conv2d'), dict(type='Constant', val=1, layer=layers)]
        super().__init__(default if init_cfg is None else init_cfg)
        self.depth = depth
        self.out_indices = out_indices
        self.conv1 = nn.Conv2d(in_channels, base_channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(base_channels)
        inplanes = base_channels
        for stage in range(3):
            planes = base_channels * 2**stage
            blocks = [BasicBlock(inplanes, planes, 2 if stage else 1, shortcut)]
            blocks += [BasicBlock(planes, planes, 1, shortcut) for _ in range((depth - 2) // 6 - 1)]
            self.add_module(f'layer{stage + 1}', nn.Sequential(*blocks))
            inplanes = planes

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the stages ``out_indices``: stage s has ``base_channels * 2**s`` channels at stride 2**s."""
        x = F.relu(self.bn1(self.conv1(x)))
        outs = []
        for stage, layer in enumerate((self.layer1, self.layer2, self.layer3)):
            x = layer(x)
            if stage in self.out_indices:
                outs.append(x)
        return tuple(outs)
