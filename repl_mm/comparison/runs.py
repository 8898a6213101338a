"""The runs of a comparison: their folders, their share of the machine, what they leave behind."""

import copy
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config

Task = tuple[Path, Path, int]  # config file, work dir and seed of a run
Running = dict[int, tuple[subprocess.Popen, Path, float]]  # process, work dir and time of the start by slot


def folder_name(arm: str) -> str:
    """Return the name of an arm's folder: a colon would make the path look like a URL, and a shell reads brackets."""
    return re.sub(r'[^\w.=,-]', '+', arm)


def with_options(cfg: Config, options: dict, **names: str) -> Config:
    """Return a copy of a config with the settings of a command line.

    Args:
        cfg (Config): The config.
        options (dict): Values by dotted key.
        **names (str): What stands for ``{config}`` and ``{arm}`` in values.
    """
    cfg, options = copy.deepcopy(cfg), copy.deepcopy(options)
    for key, value in options.items():
        for name, text in names.items():
            value = value.replace(f'{{{name}}}', text) if isinstance(value, str) else value
        options[key] = value
    cfg.merge_from_dict(options)
    return cfg


def write_config(cfg: Config, path: Path) -> None:
    """Write the config of a run, or check that the one from an earlier start is the same.

    Args:
        cfg (Config): The config.
        path (Path): Where to write it.

    Raises:
        ValueError: The file there is a different config, so what lies beside it answers another question.
    """
    if path.is_file() and path.read_text(encoding='utf-8') != cfg.pretty_text:
        raise ValueError(f"'{path.parent}' holds a run with other settings: choose another folder, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(cfg.pretty_text, encoding='utf-8')


# ---- results --------------------------------------------------------------------------------------------------------


def read_scalars(work_dir: str | os.PathLike) -> list[dict]:
    """Return the records of all ``vis_data/scalars.json`` of a run, oldest first; a resumed run has several files.

    Args:
        work_dir (str | os.PathLike): Work dir of the run.

    Returns:
        list[dict]: Training records (they have a ``loss``) and validation records (they have metrics). What the RepL
        hook logs of the fusion coefficients is left out.
    """
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    records = [json.loads(line) for file in files for line in file.read_text(encoding='utf-8').splitlines()]
    return [record for record in records if not any(key.startswith('repl/') for key in record)]


def run_result(work_dir: str | os.PathLike) -> dict:
    """Return what a finished run reached.

    Args:
        work_dir (str | os.PathLike): Work dir of the run.

    Returns:
        dict: ``metrics`` of the last validation; ``step_time``, the median over the log records in seconds; on CUDA
        ``peak_bytes``, the peak of memory that mmengine logged.

    Raises:
        ValueError: The run left no training or no validation record, or the last one has no metric.
    """
    records = read_scalars(work_dir)
    times = [record['time'] for record in records if 'loss' in record]
    final = next((record for record in reversed(records) if 'loss' not in record), None)
    if final is None or not times:
        raise ValueError(f"'{work_dir}' has no training or no validation record")
    metrics = {key: value for key, value in final.items() if key not in ('time', 'data_time', 'step')}
    if not metrics:  # as of a detector that finds nothing
        raise ValueError(f"the last validation record of '{work_dir}' has no metric")
    peaks = [record['memory'] for record in records if 'loss' in record and 'memory' in record]  # in MiB
    memory = dict(peak_bytes=max(peaks) * 2**20) if peaks else {}
    return dict(metrics=metrics, step_time=statistics.median(times), **memory)


# ---- running --------------------------------------------------------------------------------------------------------


def run_all(tasks: Sequence[Task], jobs: int, train: Path, poll: float = 0.5, report: float = 60) -> list[Path]:
    """Run what is not finished, ``jobs`` at a time, and write ``result.json`` into each finished work dir.

    Args:
        tasks (Sequence[Task]): Config file, work dir and seed of each run.
        jobs (int): Runs at a time. Each gets CPU cores of its own, and one GPU where there are several.
        train (Path): The training script.
        poll (float): Seconds between two looks at the runs. Defaults to 0.5.
        report (float): Seconds between two progress lines. Defaults to 60.

    Returns:
        list[Path]: Work dirs of the runs that failed, or that left no result.
    """
    waiting = [task for task in tasks if not (task[1] / 'result.json').is_file()]
    slots, running, failed, seconds = list(range(jobs)), {}, [], []
    reported = 0
    try:
        while waiting or running:
            for slot, (process, work_dir, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                slots.append(slot)
                reported = 0
                took = time.time() - began
                problem = _finish(work_dir, process.returncode, took)
                if problem:
                    failed.append(work_dir)
                    print(problem, flush=True)
                else:
                    seconds.append(took)
            while waiting and slots:
                slot = slots.pop(0)
                running[slot] = (start(*waiting[0], train, jobs, slot), waiting.pop(0)[1], time.time())
            if time.time() - reported > report:
                reported = time.time()
                print(progress(len(tasks), len(failed), len(waiting), running, seconds, jobs), flush=True)
            time.sleep(poll)
    finally:
        for process, _, _ in running.values():
            process.terminate()
    return failed


def _finish(work_dir: Path, returncode: int, seconds: float) -> str:
    """Write the result of a run that has ended; returns what is wrong with it, '' if nothing is."""
    if returncode:
        words = (work_dir / 'train.log').read_text(errors='replace').splitlines()
        last = next((line.strip() for line in reversed(words) if line.strip()), 'no output')
        return f'{work_dir}: failed with exit code {returncode}, see train.log there; its last line: {last}'
    try:
        result = dict(run_result(work_dir), minutes=seconds / 60)
    except ValueError as error:  # the other runs go on
        return f'{work_dir}: ended without a result: {error}'
    (work_dir / 'result.json').write_text(json.dumps(result, indent=1))
    return ''


def start(config: Path, work_dir: Path, seed: int, train: Path, jobs: int, slot: int) -> subprocess.Popen:
    """Start one training run with its share of the machine; its output goes to ``train.log``.

    A run stays on its own cores, where the system can bind it: OpenMP's threads spin while they wait for each other,
    and where two runs meet on one core, that of one waits for a thread which the spinning of the other keeps from
    running. It costs a factor of 10 and more.

    Args:
        config (Path): Config file.
        work_dir (Path): Folder of the run.
        seed (int): Seed of the run.
        train (Path): The training script.
        jobs (int): Runs at a time.
        slot (int): Which of these the run is, from 0.
    """
    can_bind = hasattr(os, 'sched_setaffinity')
    cores = sorted(os.sched_getaffinity(0)) if can_bind else list(range(os.cpu_count() or 1))
    cores = cores[slot % len(cores) :: jobs]  # one core at least, if there are more runs than cores
    threads = str(len(cores))
    env = dict(os.environ, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    if torch.cuda.device_count() > 1:
        visible = os.environ.get('CUDA_VISIBLE_DEVICES') or ','.join(map(str, range(torch.cuda.device_count())))
        env['CUDA_VISIBLE_DEVICES'] = visible.split(',')[slot % torch.cuda.device_count()]
    command = [sys.executable, train, config, '--work-dir', work_dir, '--resume', '--cfg-options']
    command.append(f'randomness.seed={seed}')
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / 'train.log').open('a') as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, env=env)
    if can_bind:
        os.sched_setaffinity(process.pid, cores)  # long before it starts threads: they inherit it
    return process


def progress(total: int, failed: int, waiting: int, running: Running, seconds: Sequence[float], jobs: int) -> str:
    """Return one line: what is done, what runs, and how long the rest takes.

    Args:
        total (int): Number of runs.
        failed (int): How many failed.
        waiting (int): How many have not begun.
        running (Running): Those at work.
        seconds (Sequence[float]): What each finished run took.
        jobs (int): Runs at a time.
    """
    left = [logged_eta(work_dir / 'train.log') for _, work_dir, _ in running.values()]
    spent = [time.time() - began for _, _, began in running.values()]
    per_run = statistics.mean(seconds or [a + b for a, b in zip(left, spent, strict=True) if a is not None] or [0])
    eta = 'not known yet'
    if per_run:
        rest = sum(per_run if a is None else a for a in left) + waiting * per_run
        eta = time.strftime('%H:%M:%S', time.gmtime(rest / max(1, min(jobs, len(running) + waiting))))
    names = ', '.join('/'.join(work_dir.parts[-3:]) for _, work_dir, _ in running.values()) or 'nothing'
    return f'{total - waiting - len(running) - failed}/{total} runs done, running {names}, ETA {eta}'


def logged_eta(log: Path) -> int | None:
    """Return the seconds of the last ``eta:`` in a log of mmengine; None before the first."""
    found = re.findall(r'eta: (?:(\d+) days?, )?(\d+):(\d+):(\d+)', log.read_text(errors='replace'))
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found[-1])
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
