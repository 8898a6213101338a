"""Controls that borrow nothing: what the least repair of a removed block is worth (``mode='patch'``, ``'linear'``)."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import ComputingLayer
from .merged import MergedBlock, ScaleShift, plain_conv, plain_linear


class PatchComputingLayer(ComputingLayer):
    """``activation(x + gain * x + bias)`` per channel, plus a linear map of the channels if asked for; all of its own.

    It starts as the identity, all parameters at 0, and weight decay draws it there. After it comes what follows the
    shortcut in the replaced block.

    Args:
        channels (int): Channels of ``x``.
        linear (bool): Whether to have the map, ``(channels, channels)``.
        maps (bool): Whether ``x`` is a feature map ``(N, C, H, W)``; else tokens ``(N, L, C)``.
        last (nn.Module | None): What follows the shortcut in the replaced block. Defaults to None: ReLU for feature
            maps, as in residual blocks, nothing for tokens.

    Shape: that of ``x``.
    """

    def __init__(self, channels: int, linear: bool, maps: bool, last: nn.Module | None = None):
        super().__init__()
        parameters = dict(gain=torch.zeros(channels), bias=torch.zeros(channels))
        if linear:
            parameters['map'] = torch.zeros(channels, channels)
        self.repl['patch'] = nn.ParameterDict({name: nn.Parameter(value) for name, value in parameters.items()})
        self.maps = maps
        self.last = last or (nn.ReLU(inplace=True) if maps else nn.Identity())

    def make_plain(self) -> nn.Module:
        patch = self.repl['patch']
        gain, bias = 1 + patch['gain'], patch['bias']
        if self.maps:
            linear = 'map' in patch
            weight = patch['map'] + gain.diag() if linear else gain[:, None]
            module = plain_conv(weight[:, :, None, None], bias, groups=1 if linear else len(gain))
        else:
            module = plain_linear(patch['map'] + gain.diag(), bias) if 'map' in patch else ScaleShift(gain, bias)
        return MergedBlock(module, copy.deepcopy(self.last), with_args=False)

    def compute(self, x: Tensor, *args, **kwargs) -> Tensor:
        """Args beyond ``x``, as the shape of a token grid, are not needed."""
        patch = self.repl['patch']
        if 'map' in patch:
            weight = patch['map'] + (1 + patch['gain']).diag()
            if not self.maps:
                return self.last(F.linear(x, weight, patch['bias']))
            return self.last(F.conv2d(x, weight[:, :, None, None], patch['bias']))
        # in the precision of x, also under autocast, which would take that of the parameters
        gain, bias = ((1 + patch['gain']).to(x.dtype), patch['bias'].to(x.dtype))
        if self.maps:
            gain, bias = gain[:, None, None], bias[:, None, None]
        return self.last(torch.addcmul(bias, gain, x))
