"""Texts of words, each read from its official token files. Nothing is downloaded."""

import functools
import lzma
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data_checks import DataError
from ..registry import DATASETS

EOS = '<eos>'  # at the end of every line


@DATASETS.register_module()
class WordText(Dataset):
    """A text as windows of words, in which every word but the first is predicted exactly once.

    The words of a line stand apart; the vocabulary is that of the training split, in the order of first appearance.
    A window of ``length`` words begins ``stride`` words behind the one before it, and predicts what that one did not:
    with ``stride=length`` every word once, with a smaller one from at least ``length - stride`` words before it. The
    last window ends with the text.

    Args:
        data_root (str): Folder of the official files; each may be packed, as ``wiki.train.tokens.xz``.
        split (str): 'train', 'valid' or 'test'. Defaults to 'train'.
        length (int): Words of a window. Defaults to 256.
        stride (int | None): Words from one window to the next. Defaults to None, ``length``.
        vocab_size (int | None): Number of words that the training split must have. Defaults to None, any.
        tokens (int | None): Only the first so many words of the split. Defaults to None, all of them.

    Attributes:
        words (tuple[str]): The vocabulary.
        text (Tensor): Numbers of the split's words, int64 ``(N,)``.

    Raises:
        ValueError: A setting is not valid.
        DataError: A file is missing, cut off or something else.
    """

    FILES = dict(train='wiki.train.tokens', valid='wiki.valid.tokens', test='wiki.test.tokens')
    SIZES: dict[str, int] = {}  # of the splits, where they are known
    metainfo: dict = {}

    def __init__(self, data_root, split='train', length=256, stride=None, vocab_size=None, tokens=None):
        name = type(self).__name__
        if split not in self.FILES:
            valid = ', '.join(map(repr, self.FILES))
            raise ValueError(f'{name}.split={split!r} is not valid: expected one of {valid}')
        stride = length if stride is None else stride
        for key, value, most in (('length', length, None), ('stride', stride, length), ('tokens', tokens or 2, None)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most and value > most):
                wanted = f'1..{most}' if most else 'at least 1'
                raise ValueError(f'{name}.{key}={value!r} is not valid: expected an integer of {wanted}')
        root = Path(data_root)
        numbers, text = read_training_split(self._file(root, 'train'))
        self._check_size(root, 'train', len(text))
        if vocab_size not in (None, len(numbers)):
            raise DataError(f"'{data_root}': {len(numbers)} words in the training split, expected {vocab_size}")
        if split != 'train':
            text = read_numbers(self._file(root, split), numbers)
            self._check_size(root, split, len(text))
        self.words = tuple(numbers)
        self.text = text[:tokens]
        self.length, self.stride = length, stride
        if len(self.text) < length + 1:
            raise ValueError(
                f'{name}.length={length} is not valid for {len(self.text)} words of split {split!r}: expected '
                f'{max(len(self.text) - 1, 1)} at most'
            )

    def _file(self, root: Path, split: str) -> Path:
        file = root / self.FILES[split]
        packed = file.with_name(f'{file.name}.xz')
        if not file.is_file() and not packed.is_file():
            raise DataError(f"'{file}' not found, nor '{packed.name}' beside it: expected the official token files")
        return file if file.is_file() else packed

    def _check_size(self, root: Path, split: str, found: int) -> None:
        wanted = self.SIZES.get(split, found)
        if found != wanted:
            raise DataError(
                f"'{self._file(root, split)}' has {found} words, that of {type(self).__name__} has {wanted}: it was "
                'cut off, or is another file'
            )

    def __len__(self) -> int:
        return 1 + -(-(len(self.text) - 1 - self.length) // self.stride)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """A window.

        Returns:
            dict[str, Tensor]: ``inputs``, int64 ``(length,)``, and ``labels``, the word behind each of them; -100
            where another window predicts it.
        """
        if not 0 <= index < len(self):
            raise IndexError(f'window {index} of {len(self)}')
        end = min(self.length + index * self.stride, len(self.text) - 1)
        start = end - self.length
        done = self.length + (index - 1) * self.stride - start if index else 0
        labels = self.text[start + 1 : end + 1].clone()
        labels[:done] = -100
        return dict(inputs=self.text[start:end], labels=labels)


@DATASETS.register_module()
class WikiText2(WordText):
    """WikiText-2: 2,088,628 words for training, 217,646 and 245,569 for validation and test, 33,278 different ones."""

    SIZES = dict(train=2_088_628, valid=217_646, test=245_569)


def read_training_split(file: Path) -> tuple[dict[str, int], Tensor]:
    """Read a training split.

    Returns:
        tuple[dict[str, int], Tensor]: The words with their numbers, and the text in numbers, int64 ``(N,)``.

    Raises:
        DataError: The file cannot be read.
    """
    found = file.stat()
    return _read_training_split(file, found.st_mtime_ns, found.st_size)


@functools.lru_cache(maxsize=1)  # the datasets of a run read it once
def _read_training_split(file: Path, *_) -> tuple[dict[str, int], Tensor]:
    numbers = {}
    text = [numbers.setdefault(word, len(numbers)) for word in _words(file)]
    return numbers, torch.tensor(text)


def read_numbers(file: Path, numbers: dict[str, int]) -> Tensor:
    """Read a text by the words of another one, int64 ``(N,)``.

    Raises:
        DataError: The file cannot be read, or has a word that is none of them.
    """
    text = _words(file)
    unknown = next((word for word in text if word not in numbers), None)
    if unknown is not None:
        raise DataError(f"'{file}' has the word {unknown!r}, which is not in the training split: another text?")
    return torch.tensor([numbers[word] for word in text])


def _words(file: Path) -> list[str]:
    try:
        with (lzma.open if file.suffix == '.xz' else open)(file, 'rt', encoding='utf-8') as lines:
            words = [word for line in lines for word in (*line.split(), EOS)]
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise DataError(f"'{file}' is cut off or no text: {error}") from None
    if not words:
        raise DataError(f"'{file}' is empty: expected lines of words")
    return words
