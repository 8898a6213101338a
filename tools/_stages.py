"""Stages of tools/compress.py: tools one after another, each a process of its own, and none whose result is there."""

import fcntl
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from _common import stop
from _files import fingerprint, save_whole

TOOLS = Path(__file__).resolve().parent
POLL = 0.2  # seconds between two looks at a process
WAIT = 10  # seconds: so long the loader's workers of a stage that was ended may live on
WRITTEN = (
    'plan',
    'heal',
    'test',
    'report.md',
    'stock.py',
    'merged.py',
    'stock.pth',
    'converted.pth',
    'healed.pth',
    'merged.pth',
)


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
            process.wait()
            raise
    return process.returncode, peak


def peak_memory(pid):
    """Return the most main memory that a process has held so far, in bytes; None where there is no /proc."""
    try:
        lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM:')), None)


def locked(file):
    """Lock an open file; False if another process has it. Where a disk knows no locks, nothing is locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def read_json(file):
    """Return the dict that a JSON file holds; None where it is not there or damaged."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


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
        took (dict[str, dict]): ``seconds``, ``peak`` (bytes of main memory, or None), ``words`` (the tool and its
            arguments) and ``files`` (fingerprints of what it read) of each stage.
    """

    def __init__(self, out):
        self.out = out
        self.file = out / 'took.json'

    def __enter__(self):
        """Take the folder, in which ``lock`` stays; end in one line if another process has it for ``WAIT`` seconds."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.out / 'lock', 'a')
        last = time.monotonic() + WAIT
        while not locked(self.lock):
            if time.monotonic() > last:
                stop(f"OUT_DIR '{self.out}' is in use, by another such command or by a stage that one left behind")
            time.sleep(POLL)
        self.took = read_json(self.file) if self.file.exists() else {}
        there = next((name for name in WRITTEN if (self.out / name).exists()), None)
        if self.took is None or (there and not self.took):
            what = 'a damaged took.json' if self.file.exists() else f"'{there}', which this command did not make"
            stop(f"OUT_DIR '{self.out}' holds {what}: expected another folder")
        self.handler = signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends its stage too
        return self

    def __exit__(self, *error):
        """Give the folder back."""
        signal.signal(signal.SIGTERM, self.handler)
        self.lock.close()

    def run(self, name, done, tool, *words, needed=True):
        """Run a tool unless it is done; what was done with other words or files ends in one line.

        Args:
            name (str): Of the stage.
            done (Callable): Whether what it writes is there.
            tool (str): File of the tool.
            *words: Its arguments, files that it reads and folders as a Path, what it writes as text.
            needed (bool): Whether all ends with the tool's exit code if it fails, which has said why in one line.
                Defaults to True.

        Returns:
            bool: Whether it is done.
        """
        read = [word.absolute() for word in words if isinstance(word, Path) and word.is_file()]
        words = [tool, *(str(word.absolute() if isinstance(word, Path) else word) for word in words)]
        if done():
            self.check(name, words, read)
            print(f'{name}: done before')
            return True
        print(f'\n== {name} ==', flush=True)
        start, code, peak = time.monotonic(), None, None
        files = {str(file): fingerprint(file) for file in read}
        # now: killed, this process leaves a stage behind that goes on
        self.record(name, 0, None, words=words, files=files)
        try:
            code, peak = run_measured([sys.executable, TOOLS / tool, *words[1:]], self.lock.fileno())
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f'{name} was interrupted; the same command goes on from here') from None
        finally:
            self.record(name, time.monotonic() - start, peak)
        if code < 0:
            stop(f'{name} was killed by {signal.Signals(-code).name}; the same command goes on from here')
        if code and needed:
            sys.exit(code)
        return not code

    def check(self, name, words, read):
        """End in one line if a stage that is done had other words, or read files that have changed since."""
        took = self.took.get(name, {})
        then, files = took.get('words', []), took.get('files', {})
        lost, new = (
            ', '.join(f"'{option}'" for option in options(some) if option not in options(others)) or 'nothing more'
            for some, others in ((then, words), (words, then))
        )
        if then != words:
            change = f'{name} was done with {lost}, now with {new}'
            stop(f"OUT_DIR '{self.out}': {change}: expected the same, or another folder")
        for file in map(str, read):
            if file in files and files[file] != fingerprint(file):
                change = f"{name} was done with another content of '{file}'"
                stop(f"OUT_DIR '{self.out}': {change}: expected the same, or another folder")

    def record(self, name, seconds, peak, **more):
        """Add what a stage took, to what it took before it was stopped."""
        before = self.took.get(name, dict(seconds=0, peak=None))
        peaks = [value for value in (before['peak'], peak) if value]
        self.took[name] = dict(before, seconds=before['seconds'] + seconds, peak=max(peaks, default=None), **more)
        save_whole(json.dumps(self.took, indent=1), self.file)
