"""Stages of tools/compress.py: tools one after another, each a process of its own, and none whose result is there."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from _common import save_whole, stop

TOOLS = Path(__file__).resolve().parent
POLL = 0.2  # seconds between two looks at a process


def run_measured(command):
    """Run a command in a process of its own, which ends with this one's interruption.

    Args:
        command (Sequence[str]): The program and its arguments.

    Returns:
        tuple[int, int | None]: The exit code, and the most main memory that the process held, in bytes, as far as it
        was looked at; without the processes that it started. None where there is no /proc.
    """
    peak = None
    with subprocess.Popen(command) as process:
        try:
            while process.poll() is None:
                peak = peak_memory(process.pid) or peak
                time.sleep(POLL)
        except BaseException:
            process.kill()
            raise
    return process.returncode, peak


def peak_memory(pid):
    """Return the most main memory that a process has held so far, in bytes; None where there is no /proc."""
    try:
        lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM:')), None)


class Stages:
    """Runs tools one after another.

    Args:
        out (Path): Folder of the results; what every stage took is kept there as well.

    Attributes:
        took (dict[str, dict]): ``seconds`` and ``peak`` (bytes of main memory, or None) of each stage.
    """

    def __init__(self, out):
        self.file = out / 'took.json'
        self.took = json.loads(self.file.read_text()) if self.file.is_file() else {}

    def run(self, name, done, tool, *words, needed=True):
        """Run a tool unless ``done()``.

        It ends with the tool's exit code if it fails, which has said why in one line, or if it is not ``needed``
        returns False.
        """
        if done():
            print(f'{name}: done before')
            return True
        print(f'\n== {name} ==', flush=True)
        start, code, peak = time.monotonic(), None, None
        try:
            code, peak = run_measured([sys.executable, TOOLS / tool, *map(str, words)])
        except KeyboardInterrupt:
            stop(f'{name} was interrupted; the same command goes on from here')
        finally:
            self.record(name, time.monotonic() - start, peak)
        if code < 0:
            stop(f'{name} was killed by {signal.Signals(-code).name}; the same command goes on from here')
        if code and needed:
            sys.exit(code)
        return not code

    def record(self, name, seconds, peak):
        """Add what a stage took, to what it took before it was stopped."""
        before = self.took.get(name, dict(seconds=0, peak=None))
        peaks = [value for value in (before['peak'], peak) if value]
        self.took[name] = dict(seconds=before['seconds'] + seconds, peak=max(peaks, default=None))
        save_whole(json.dumps(self.took, indent=1), self.file)
