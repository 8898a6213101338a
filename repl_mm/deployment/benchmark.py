"""Inference of arms, measured: merged networks by several engines, interleaved in one process."""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.utils import ProgressBar
from torch import Tensor, nn

from ..arms import Arm, arm_config
from ..config import build, with_backbones, without_weights
from ..merging import merge
from ..surgery import repl_backbones
from .network import Network, find_network
from .quantization import quantize
from .serving import open_file
from .writing import ExportError, check_packages, export

BACKENDS = ('torch', 'compile', 'onnx', 'onnx-int8')


def build_network(arm: Arm, cfg: Config) -> Network:
    """The network of an arm's whole model, merged, in eval mode; weights as they are initialized at random.

    Raises:
        ExportError: The model is of a kind that has none.
    """
    model_config = arm_config(arm, cfg).model
    model_config.pop('init_cfg', None)
    plain = with_backbones(model_config, without_weights)
    model = build(plain, cfg.get('default_scope'))
    if any(not backbone.repl.merged for _, backbone in repl_backbones(model)):
        merge(model)
    model.eval()
    try:
        return find_network(model).eval()
    except TypeError as error:
        raise ExportError(str(error)) from None


def engine(network: Network, backend: str, images: Tensor, folder: Path) -> Callable[[], object]:
    """A call that runs a network on images.

    Args:
        network (Network): Of :func:`build_network`.
        backend (str): One of ``BACKENDS``.
        images (Tensor): ``(N, C, H, W)``; their device is that of the run.
        folder (Path): Where files are written.

    Raises:
        ExportError: The network cannot be exported.
    """
    if backend in ('torch', 'compile'):
        network = network.to(images.device)
        # not dynamic: from the second arm on its weights' sizes would be variables of far slower code
        run = torch.compile(network, dynamic=False) if backend == 'compile' else network
        return lambda: run(images)
    path = folder / f'{backend}-{id(network)}.onnx'
    export(network.model.cpu(), path, tuple(images.shape[-2:]))
    if backend == 'onnx-int8':
        quantize(path, path, [images.cpu()])
    file, inputs = open_file(path), images.cpu()
    return lambda: file.run(inputs)


@torch.no_grad()
def benchmark(
    arms: Sequence[Arm],
    cfg: Config,
    backends: Sequence[str],
    batches: Sequence[int],
    rounds: int,
    device: torch.device,
) -> list[dict]:
    """Measure inference of the arms' whole networks, interleaved, in random order within every round.

    Args:
        arms (Sequence[Arm]): The first one is what the others are compared with. Their ``inputs`` give the size.
        cfg (Config): A config with stock or RepL backbones.
        backends (Sequence[str]): Of ``BACKENDS``; those of ONNX Runtime run on the CPU.
        batches (Sequence[int]): Images in a call.
        rounds (int): Measured calls of every arm, after two to warm up.
        device (torch.device): Where 'torch' and 'compile' run.

    Returns:
        list[dict]: For every backend, batch and arm: backend, batch, name, params, seconds (all calls), latency
        (median) and p95 in seconds, throughput in images per second, ratio (median of the ratios to the first arm
        within the rounds) with its quartiles, and kept: the share of the saving that the arm 'remove' gives, if it is
        there.

    Raises:
        ExportError: A network cannot be exported, or a package for that is missing.
    """
    if any(backend.startswith('onnx') for backend in backends):
        check_packages()
    results = []
    for backend in backends:
        for batch in batches:
            torch.compiler.reset()  # which gives up, in silence, at the eighth network of a process
            images = arms[0].inputs.make(device)[:1].expand(batch, -1, -1, -1).contiguous()
            with tempfile.TemporaryDirectory() as folder:
                networks = {arm.name: build_network(arm, cfg) for arm in arms}
                calls = {name: engine(n, backend, images, Path(folder)) for name, n in networks.items()}
                seconds = interleaved(calls, rounds, device if backend in ('torch', 'compile') else None)
            results += summary(seconds, backend, batch, {name: parameters(n) for name, n in networks.items()})
    return results


def parameters(network: nn.Module) -> int:
    """Number of the parameters of a network's model."""
    return sum(p.numel() for p in network.parameters())


def interleaved(calls: dict[str, Callable], rounds: int, device: torch.device | None) -> dict[str, list[float]]:
    """Seconds of every call by name, in random order within every round; two rounds to warm up."""
    seconds, order = {name: [] for name in calls}, list(calls)
    shuffle = random.Random(0).shuffle
    progress = ProgressBar((rounds + 2) * len(order), file=sys.stderr)
    for turn in range(rounds + 2):
        shuffle(order)
        for name in order:
            begin = time.perf_counter()
            calls[name]()
            if device is not None and device.type == 'cuda':
                torch.cuda.synchronize(device)
            if turn > 1:
                seconds[name].append(time.perf_counter() - begin)
            progress.update()
    print(file=sys.stderr)
    return seconds


def summary(seconds: dict[str, list[float]], backend: str, batch: int, params: dict[str, int]) -> list[dict]:
    """The rows of :func:`benchmark` for one backend and batch."""
    first = next(iter(seconds.values()))
    rows = []
    for name, own in seconds.items():
        ratios = [time / base for time, base in zip(own, first, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method='inclusive') if len(ratios) > 1 else ratios * 3
        ordered = sorted(own)
        rows.append(
            dict(
                backend=backend,
                batch=batch,
                name=name,
                params=params[name],
                seconds=own,
                latency=statistics.median(own),
                p95=ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
                throughput=batch / statistics.median(own),
                ratio=middle,
                quartiles=[low, high],
            )
        )
    removed = next((row['ratio'] for row in rows if row['name'] == 'remove'), None)
    for row in rows:
        row['kept'] = (1 - row['ratio']) / (1 - removed) if removed is not None and removed < 1 else None
    return rows
