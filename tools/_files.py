"""Files that the tools write."""

import hashlib
import os
import tempfile
from pathlib import Path

import torch
from _common import stop


def save_whole(content, file):
    """Save a text as it is, all else with torch; what stands there stays until the new file is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f'{file.name}.part')
    try:
        with open(part, 'w' if isinstance(content, str) else 'wb') as stream:
            stream.write(content) if isinstance(content, str) else torch.save(content, stream)
        part.replace(file)
    except BaseException as error:
        part.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__  # torch says of a full disk something else
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(file)) from error
        raise


def check_out(file, read, suffixes=('.pth',)):
    """End in one line, before any work, unless a tool can write its OUT, which it does not read.

    Args:
        file (Path): OUT.
        read (Sequence[str]): The files that the tool reads.
        suffixes (Sequence[str]): Of OUT, and of what is written beside it. Defaults to '.pth'.
    """
    if file.is_dir():
        stop(f"OUT '{file}' is a folder: expected a file name")
    if file.suffix != suffixes[0]:
        stop(f"OUT '{file}': expected a file name that ends with {suffixes[0]}")
    for written in map(file.with_suffix, suffixes):
        if any(written.resolve() == Path(other).resolve() for other in read):
            stop(f"OUT '{file}' would overwrite '{written}', which is read: expected another name")
    check_folder(file.parent, f"OUT '{file}'")


def check_folder(folder, what):
    """End in one line if a folder cannot be made, or nothing can be written there.

    Args:
        folder (Path): The folder.
        what (str): What the user has to change: a word and its value.
    """
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        stop(f"{what}: '{there}' cannot be written to ({error.strerror}); expected another place")


def fingerprint(file):
    """Return the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(file, 'rb') as stream:
        while part := stream.read(2**24):
            digest.update(part)
    return digest.hexdigest()
