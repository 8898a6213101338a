"""Tables as text: Markdown whose columns are aligned, for a terminal and for a file alike."""

from collections.abc import Iterable, Sequence


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table with aligned columns.

    Args:
        header (Sequence[str]): Names of the columns.
        rows (Iterable[Sequence[str]]): Cells of each row, as many as the header has.
        left (int): Columns that are aligned to the left; all others are numbers, to the right. Defaults to 1.

    Raises:
        ValueError: A row has more or fewer cells than the header.
    """
    lines = [[str(cell).replace('|', '\\|') for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def text(cells: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f'| {" | ".join(aligned)} |'

    dashes = ['-' * (width + 2) if index < left else '-' * (width + 1) + ':' for index, width in enumerate(widths)]
    return '\n'.join([text(lines[0]), f'|{"|".join(dashes)}|', *map(text, lines[1:])])


def amount(number: float | None) -> str:
    """Return a number in three or more digits with k, M, G or T; '-' for None."""
    if number is None:
        return '-'
    for unit, size in (('T', 10**12), ('G', 10**9), ('M', 10**6), ('k', 10**3)):
        if abs(number) >= size:
            return f'{number / size:.2f} {unit}'
    return str(number)


def mebibytes(number: float) -> str:
    """Return a number of bytes in MiB."""
    return f'{number / 2**20:.1f} MiB'
