"""The writer of all tables."""

import pytest

from repl_mm import tables


def test_columns_are_aligned():
    text = tables.markdown(('arm', 'n', 'score'), [('e2e', '1', '0.5'), ('a|b', '12', '')])
    assert text.splitlines() == [
        '| arm  |  n | score |',
        '|------|---:|------:|',
        '| e2e  |  1 |   0.5 |',
        '| a\\|b | 12 |       |',
    ]
    assert tables.markdown(('a', 'b'), [], left=2).splitlines() == ['| a | b |', '|---|---|']
    with pytest.raises(ValueError):
        tables.markdown(('a', 'b'), [('1',)])


def test_numbers():
    assert [tables.amount(n) for n in (None, 0, 999, 1500, -2_500_000, 3e9, 4e12)] == [
        *('-', '0', '999', '1.50 k', '-2.50 M', '3.00 G', '4.00 T')
    ]
    assert tables.mebibytes(3 * 2**19) == '1.5 MiB'
