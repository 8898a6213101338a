"""Stages of tools/compress.py: tools one after another, each a process of its own, and none whose result is there."""

import fcntl
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from _common import save_whole, stop

TOOLS = Path(__file__).resolve().parent
POLL = 0.2  # seconds between two looks at a process


def run_measured(command, lock):
    """Run a command in a process of its own, which ends with this one's interruption.

    Args:
        command (Sequence[str]): The program and its arguments.
        lock (int): Descriptor of a locked file, which stays locked as long as the process lives, whatever becomes of
            this one.

    Returns:
        tuple[int, int | None]: The exit code, and the most main memory that the process held, in bytes, as far as it
        was looked at; without the processes that it started. None where there is no /proc.
    """
    peak = None
    with subprocess.Popen(command, pass_fds=[lock]) as process:
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


def options(words):
    """Return the words of a command, option by option, each with its values."""
    found = []
    for word in words:
        if word.startswith('--') or not found:
            found.append(word)
        else:
            found[-1] += f' {word}'
    return found


class Stages:
    """Runs tools one after another, as a context: one process at a time has the folder.

    Args:
        out (Path): Folder of the results; what every stage took is kept there as well.

    Attributes:
        took (dict[str, dict]): ``seconds``, ``peak`` (bytes of main memory, or None) and, once it is done, ``words``
            (the tool and its arguments) of each stage.
    """

    def __init__(self, out):
        self.out = out
        self.file = out / 'took.json'
        self.took = json.loads(self.file.read_text()) if self.file.is_file() else {}

    def __enter__(self):
        self.out.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.out / 'lock', 'w')
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stop(f"OUT_DIR '{self.out}' is in use, by another such command or by a stage that one left behind")
        self.handler = signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends its stage too
        return self

    def __exit__(self, *error):
        signal.signal(signal.SIGTERM, self.handler)
        self.lock.close()

    def run(self, name, done, tool, *words, needed=True):
        """Run a tool unless ``done()``.

        It ends with the tool's exit code if it fails, which has said why in one line, or if it is not ``needed``
        returns False. What was done with other words is no reason to go on: it ends in one line.
        """
        if done():
            self.check(name, self.plain(tool, words))
            print(f'{name}: done before')
            return True
        print(f'\n== {name} ==', flush=True)
        start, code, peak = time.monotonic(), None, None
        try:
            code, peak = run_measured([sys.executable, TOOLS / tool, *map(str, words)], self.lock.fileno())
        except KeyboardInterrupt:
            stop(f'{name} was interrupted; the same command goes on from here')
        finally:
            self.record(name, time.monotonic() - start, peak)
        if code < 0:
            stop(f'{name} was killed by {signal.Signals(-code).name}; the same command goes on from here')
        if code and needed:
            sys.exit(code)
        if not code:
            self.record(name, 0, None, words=self.plain(tool, words))
        return not code

    def plain(self, tool, words):
        """Return the words of a stage; files however they are named, and those in OUT_DIR wherever that is moved."""
        out, found = self.out.resolve(), [tool]
        for word in map(str, words):
            file = Path(word).resolve()
            if file.is_relative_to(out):
                word = str(file.relative_to(out))
            elif file.exists():
                word = str(file)
            found.append(word)
        return found

    def check(self, name, words):
        """End in one line if a stage that is done had other words."""
        then = self.took.get(name, {}).get('words', words)
        lost, new = (
            ', '.join(f"'{option}'" for option in options(some) if option not in options(others)) or 'less'
            for some, others in ((then, words), (words, then))
        )
        if then != words:
            change = f'{name} was done with {lost}, now with {new}'
            stop(f"OUT_DIR '{self.out}': {change}: expected the same, or another folder")

    def record(self, name, seconds, peak, **more):
        """Add what a stage took, to what it took before it was stopped."""
        before = self.took.get(name, dict(seconds=0, peak=None))
        peaks = [value for value in (before['peak'], peak) if value]
        self.took[name] = dict(before, seconds=before['seconds'] + seconds, peak=max(peaks, default=None), **more)
        save_whole(json.dumps(self.took, indent=1), self.file)
