"""What every step of the demo needs: its header line, the tools, and whether it was done before."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent


def stop(message):
    """End the program with one line and exit code 1."""
    sys.exit(f'demo: {message}')


class Steps:
    """Print a header line before each step, with the time since the start.

    Args:
        total (int): Number of steps.
    """

    def __init__(self, total):
        self.total, self.done, self.start = total, 0, time.time()

    def __call__(self, text):
        self.done += 1
        elapsed = time.strftime('%M:%S', time.gmtime(time.time() - self.start))
        print(f'\n=== [{self.done}/{self.total}] {text} (elapsed {elapsed}) ===', flush=True)


def run_tool(name, *args, stdout=None):
    """Run a script of tools/ in a process of its own.

    Args:
        name (str): File name of the script.
        *args (str | Path): Its arguments.
        stdout (IO | None): Where its output goes. Defaults to None, the screen.

    Raises:
        SystemExit: The script failed.
    """
    command = [sys.executable, str(TOOLS / name), *map(str, args)]
    print('$ python', *(os.path.relpath(part) if os.path.exists(part) else part for part in command[1:]), flush=True)
    code = subprocess.run(command, stdout=stdout).returncode
    if code:
        stop(f'tools/{name} failed with exit code {code}')


def is_done(path, *sources):
    """Whether an output exists and is no older than what it is made from.

    Args:
        path (Path): The output.
        *sources (Path): Its inputs.

    Returns:
        bool: True if there is nothing to do.
    """
    if not path.is_file() or any(source.stat().st_mtime > path.stat().st_mtime for source in sources):
        return False
    print(f'{path}: is there already')
    return True


def evaluate(config, checkpoint, work_dir, *options):
    """Test a checkpoint with tools/test.py.

    Args:
        config (Path): Config file.
        checkpoint (Path): Checkpoint file.
        work_dir (Path): Where the logs go; the metrics are kept in ``metrics.json`` there.
        *options (str | Path): Further arguments of tools/test.py.

    Returns:
        dict[str, float]: The metrics.
    """
    kept = work_dir / 'metrics.json'
    if not is_done(kept, checkpoint):
        run_tool('test.py', config, checkpoint, '--work-dir', work_dir, *options)
        newest = max(work_dir.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
        kept.write_text(newest.read_text())
    return json.loads(kept.read_text())
