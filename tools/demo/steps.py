"""Run the demo's steps quietly: a header a step, one line of progress, everything else into a log file."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent
EVERY = 60  # seconds between two lines of progress where no terminal shows them
# a line of mmengine's log, as ``Epoch(train)  [2][ 40/125]  lr: 1.0e-03  eta: 0:02:10  time: 0.4  loss: 0.51``
_PROGRESS = re.compile(
    r'(?:Epoch|Iter)\((\w+)\)\s*(?:\[(\d+)\])?\[\s*(\d+)/(\d+)\](?:.*?eta: (\S+))?(?:.*?loss: (\S+))?'
)


def stop(message):
    """End the program with a message and exit code 1."""
    if sys.stdout.isatty():
        print()  # behind a line of progress
    sys.exit(f'demo: {message}')


def duration(seconds):
    """Minutes and seconds, as ``3:07``."""
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


def progress(line):
    """What a line of mmengine's log says of how far a run is; empty if it says nothing of that.

    Args:
        line (str): The line.

    Returns:
        str: As ``train: epoch 2, 40 of 125, loss 0.51, 0:02:10 left``.
    """
    found = _PROGRESS.search(line)
    if not found:
        return ''
    phase, epoch, done, total, left, loss = found.groups()
    parts = (epoch and f'epoch {epoch}', f'{done} of {total}', loss and f'loss {loss}', left and f'{left} left')
    return f'{phase}: ' + ', '.join(filter(None, parts))


class Steps:
    """Print a header before each step and what came of it behind.

    Args:
        total (int): Number of steps.
    """

    def __init__(self, total):
        self.total, self.done = total, 0

    def __call__(self, text):
        self.done += 1
        print(f'[{self.done}/{self.total}] {text}', flush=True)

    def run(self, log, folder, output, name, *args):
        """Run a script of tools/, unless its output is there and no older than the network among its arguments.

        Args:
            log (Path): File to which all that the script prints is added.
            folder (Path): Folder of the output.
            output (str): File that the script leaves in the folder, as a pattern of ``Path.glob``.
            name (str): File name of the script.
            *args (str | Path): Its arguments.

        Returns:
            Path: The output, the newest one if there are several.

        Raises:
            SystemExit: The script failed, or left no output.
        """
        network = next((path for path in args if getattr(path, 'suffix', '') in ('.pth', '.onnx')), None)
        if (found := newest(folder, output)) and not (network and _time(network) > _time(found)):
            show(f'is there: {os.path.relpath(found)}', last=True)
            return found
        began = time.time()
        log.parent.mkdir(parents=True, exist_ok=True)
        code = follow([sys.executable, str(TOOLS / name), *map(str, args)], log)
        if code or not newest(folder, output):
            tail = '\n'.join(log.read_text(errors='replace').splitlines()[-15:])
            stop(f'tools/{name} failed with exit code {code}; the end of {os.path.relpath(log)}:\n{tail}')
        show(f'done in {duration(time.time() - began)}; log: {os.path.relpath(log)}', last=True)
        return newest(folder, output)


def _time(path):
    return path.stat().st_mtime


def newest(folder, pattern):
    """The newest file in a folder that fits a pattern; None if there is none."""
    return max(folder.glob(pattern), key=_time, default=None)


def show(text, last=False):
    """Put a line in the place of the last one on a terminal; elsewhere just print it."""
    text = f'      {text}'
    if sys.stdout.isatty():
        print(f'\r\x1b[K{text}', end='\n' if last else '', flush=True)
    else:
        print(text, flush=True)


def follow(command, log):
    """Run a command, add its output to a log file, and show how far it is.

    Args:
        command (list[str]): The command.
        log (Path): The log file.

    Returns:
        int: The exit code.
    """
    shown = time.time()
    # threads that wait for each other asleep, not at work: else a third busy process slows a training down many times
    environment = {'OMP_WAIT_POLICY': 'PASSIVE', **os.environ}
    with (
        log.open('a') as file,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace', env=environment
        ) as process,
    ):
        if sys.stdout.isatty():
            show('starts')
        for line in process.stdout:
            file.write(line)
            file.flush()
            text = progress(line)
            if text and (sys.stdout.isatty() or time.time() - shown >= EVERY):
                show(text)
                shown = time.time()
    return process.returncode
