"""Measured steps of the backbones of arms: time, share of the synthesis, peak of memory."""

import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from mmengine.config import Config
from mmengine.utils import ProgressBar
from torch import Tensor, nn

from ..arms import Arm, build_backbones
from ..surgery import computing_layers
from .counting import backward, synthesize


def time_arms(arms: Sequence[Arm], cfg: Config, rounds: int, device: torch.device) -> list[dict]:
    """Measure real steps of the arms' backbones, interleaved in one process, in random order within every round.

    Args:
        arms (Sequence[Arm]): The first one is what the others are compared with.
        cfg (Config): A config with stock or RepL backbones.
        rounds (int): Measured steps of every arm, after one step to warm up.
        device (torch.device): Where the steps run.

    Returns:
        list[dict]: For every arm its name, the seconds of its steps, the ratios to the first arm within the rounds
        with their median and quartiles, the time of the synthesis as a share of the step (0 without computing
        layers) and, on CUDA, the peak of memory in bytes: what a step allocates, gradients included, and the weights.
    """
    built = {arm.name: build_backbones(arm, cfg) for arm in arms}
    backbones = {name: nn.ModuleList(b for b, _ in found).to(device) for name, found in built.items()}
    inputs = {name: [x.make(device) for _, x in found] for name, found in built.items()}
    seconds = {name: [] for name in backbones}
    synthesis = {name: [] for name in backbones}
    peaks = dict.fromkeys(backbones, 0)
    order = list(backbones)
    shuffle = random.Random(0).shuffle
    progress = ProgressBar((rounds + 1) * len(order), file=sys.stderr)
    for turn in range(rounds + 1):
        shuffle(order)
        for name in order:
            found = backbones[name]
            for backbone in found:
                backbone.train()
            step, peak = _seconds(lambda b=found, x=inputs[name]: _step(b, x), device)
            found.zero_grad()
            alone, _ = _seconds(lambda b=found: synthesize(b), device)
            found.zero_grad()
            if turn:  # the first one warms up
                seconds[name].append(step)
                synthesis[name].append(alone / step)
                peaks[name] = max(peaks[name], peak or 0)
            progress.update()
    print(file=sys.stderr)
    first = seconds[arms[0].name]
    results = []
    for name, found in backbones.items():
        ratios = [own / base for own, base in zip(seconds[name], first, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4, method='inclusive') if rounds > 1 else ratios * 3
        layers = any(list(layer.parameters()) for _, layer in computing_layers(found))
        weights = sum(p.numel() * p.element_size() for p in found.parameters())
        results.append(
            dict(
                name=name,
                seconds=seconds[name],
                ratios=ratios,
                median=median,
                quartiles=[low, high],
                synthesis_share=statistics.median(synthesis[name]) if layers else 0,
                peak_bytes=peaks[name] + weights if device.type == 'cuda' else None,
            )
        )
    return results


def _step(backbones: nn.ModuleList, inputs: Sequence[Tensor]) -> None:
    """Forward and backward pass of each backbone, as :func:`repl_mm.cost.measure` counts it."""
    for backbone, x in zip(backbones, inputs, strict=True):
        backward(backbone(x))


def _seconds(work: Callable[[], None], device: torch.device) -> tuple[float, int | None]:
    """Seconds of one call, and on CUDA the peak of memory in bytes above what was allocated before it."""
    if device.type != 'cuda':
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin, None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - begin, torch.cuda.max_memory_allocated(device) - before
