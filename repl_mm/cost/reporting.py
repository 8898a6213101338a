"""How costs are told: text and pictures."""

import os
import statistics
import textwrap
from collections.abc import Sequence

from ..tables import amount, markdown, mebibytes
from .counting import Cost
from .rows import Row, relative

WIDTH = 108  # of a caption
_COUNTS = (
    ('trainable params', 'params', amount),
    ('train FLOPs', 'flops', amount),
    ('activations', 'activation_bytes', mebibytes),
    ('operations', 'operations', str),
    ('optimizer', 'optimizer_bytes', mebibytes),
)


def report(before: Cost, after: Cost) -> str:
    """Return a table that sets two costs side by side, with the gap and what remains.

    Args:
        before (Cost): The stock backbone.
        after (Cost): The backbone with RepL.
    """
    lines = [
        ('trainable parameters', 'params', amount),
        ('all parameters', 'total_params', amount),
        ('train FLOPs', 'flops', amount),
        ('activation bytes', 'activation_bytes', mebibytes),
        ('operations', 'operations', str),
        ('optimizer bytes', 'optimizer_bytes', mebibytes),
    ]
    rows = []
    for label, key, text in lines:
        old, new = getattr(before, key), getattr(after, key)
        rows.append((label, text(old), text(new), text(new - old), f'{new / old:.1%}' if old else '-'))
    header = (f'Cost of the backbone, {after.inputs}', 'before', 'after', 'gap', 'remain')
    return markdown(header, rows)


def table(rows: Sequence[Row], title: str = '', optimizer: str = 'SGD with momentum') -> str:
    """Return text with absolute counts, counts relative to the stock backbone, and shares of the possible saving kept.

    Args:
        rows (Sequence[Row]): From :func:`repl_mm.cost.count`.
        title (str): What is compared, for instance the config's name. Defaults to none.
        optimizer (str): The optimizer that the state is counted for. Defaults to 'SGD with momentum'.

    Returns:
        str: The table, its caption and the notes.
    """
    measured = [row for row in rows if row.cost]
    notes = [f'{row.name}: {row.note}' for row in rows if row.note]
    if not measured:
        return '\n'.join(notes)
    counts = list(_COUNTS)
    if any(row.model_params is not None for row in measured):
        counts.append(('whole model params', 'model_params', amount))
    lines = []
    for row in relative(rows):
        if 'note' in row:
            lines.append([row['name'], 'see note', *[''] * (len(counts) + 1)])
            continue
        cells = [f'{text(row[key])}  {_ratio(row["relative"].get(key))}' for _, key, text in counts]
        kept = [_percent(row['kept'].get(key)) for key in ('flops', 'activation_bytes')]
        lines.append([row['name'], *cells, *kept])
    header = ['arm', *(name for name, _, _ in counts), 'kept FLOPs', 'kept act.']
    first = next((row.name for row in measured if row.name == 'e2e'), measured[0].name)
    caption = (
        f'The backbone alone, {measured[0].cost.inputs}; second number: relative to {first}. FLOPs: forward + '
        f'backward, multiply-add = 2. Activations: bytes saved for backward. Operations: of a step, views apart; on a '
        f'GPU a kernel each. Optimizer state: {optimizer}. '
        'Kept: share of the saving that removing the same blocks gives.'
    )
    synthesis = [f'{row.name} {row.synthesis_flops / row.cost.flops:.2%}' for row in measured if row.synthesis_flops]
    if synthesis:
        caption += f' Synthesis of all weights (few positions do without) in train FLOPs: {", ".join(synthesis)}.'
    return '\n'.join(
        [
            *filter(None, [title]),
            markdown(header, lines),
            *textwrap.wrap(caption, WIDTH, break_on_hyphens=False),
            *notes,
        ]
    )


def time_table(results: Sequence[dict], title: str = '') -> str:
    """Return measured steps as a table.

    Args:
        results (Sequence[dict]): From :func:`repl_mm.cost.time_arms`.
        title (str): A line above the table. Defaults to none.
    """
    rows = []
    for result in results:
        peak = result['peak_bytes']
        rows.append(
            (
                result['name'],
                f'{statistics.median(result["seconds"]):.3g}',
                f'{result["median"]:.3f}',
                '{:.3f} .. {:.3f}'.format(*result['quartiles']),
                f'{result["synthesis_share"]:.2%}' if result['synthesis_share'] else '-',
                mebibytes(peak) if peak else '-',
            )
        )
    header = ('arm', 's per step', f'relative to {results[0]["name"]}', 'quartiles', 'synthesis alone', 'peak memory')
    return '\n'.join([*filter(None, [title]), markdown(header, rows)])


def plot(rows: Sequence[Row], path: str | os.PathLike) -> None:
    """Draw parameters, train FLOPs and activation bytes relative to the stock backbone, a group of bars for every arm.

    Args:
        rows (Sequence[Row]): From :func:`repl_mm.cost.count`.
        path (str | os.PathLike): The picture to write.
    """
    from matplotlib.figure import Figure

    bars = [row for row in relative(rows) if 'note' not in row]
    counts = {'trainable parameters': 'params', 'train FLOPs': 'flops', 'activation bytes': 'activation_bytes'}
    figure = Figure(figsize=(1.5 + 1.3 * len(bars), 4), layout='constrained')
    axes = figure.subplots()
    for offset, (label, key) in enumerate(counts.items()):
        heights = [bar['relative'].get(key, 0) for bar in bars]
        drawn = axes.bar([index + 0.27 * (offset - 1) for index in range(len(bars))], heights, 0.27, label=label)
        axes.bar_label(drawn, fmt='%.2f', fontsize=7)
    axes.axhline(1, color='gray', linewidth=0.8, linestyle='--')
    axes.set_xticks(
        range(len(bars)), [bar['name'].replace(':', ':\n').replace(',', ',\n') for bar in bars], fontsize=8
    )
    axes.set_ylabel('relative to e2e')
    inputs = next(row.cost.inputs for row in rows if row.cost)
    axes.set_title(f'Training cost of the backbone, {inputs}', fontsize=10)
    axes.legend(fontsize=8, ncols=3, loc='upper center', bbox_to_anchor=(0.5, -0.25))
    figure.savefig(path, dpi=150)


def _ratio(number: float | None) -> str:
    return '' if number is None else f'{number:.2f}'


def _percent(number: float | None) -> str:
    return '' if number is None else f'{number:.0%}'
