"""The report of a compression: what was chosen, what each step gave, what the network costs now."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from .choosing import name_of
from .comparison.runs import read_scalars
from .comparison.summary import METRICS
from .cost import Cost
from .cost import report as cost_report
from .tables import markdown

ROWS = dict(  # checkpoints by the stage that makes them
    stock='the stock network',
    converted='blocks replaced, layers fitted',
    healed='healed',
    merged='merged',
)


def score(work_dir: str | os.PathLike) -> tuple[str, float] | None:
    """Return the name and value of the metric that a Runner's test wrote last, or None."""
    files = sorted(file for file in Path(work_dir).glob('*/*.json') if file.stem == file.parent.name)
    try:
        found = json.loads(files[-1].read_text()) if files else {}
    except json.JSONDecodeError:  # cut off: the test was killed while it wrote
        return None
    names = [name for name in (*METRICS, *found) if isinstance(found.get(name), int | float)]
    return (names[0], found[names[0]]) if names else None


def plot_healing(work_dir: str | os.PathLike, path: str | os.PathLike) -> bool:
    """Draw the losses of a healing over its steps; return whether there were any."""
    from matplotlib.figure import Figure

    records = [record for record in read_scalars(work_dir) if 'loss' in record]
    if not records:
        return False
    figure = Figure(figsize=(6, 3.5), layout='constrained')
    axes = figure.subplots()
    for name in [key for key in records[-1] if key.startswith('loss')]:
        points = [(record['step'], record[name]) for record in records if name in record]
        axes.plot(*zip(*points, strict=True), label=name)
    axes.set_xlabel('step')
    axes.set_yscale('log')
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    return True


def page(
    name: str,
    plan: dict,
    scores: dict[str, tuple[str, float] | None],
    took: dict[str, dict],
    costs: tuple[Cost, Cost],
    notes: Sequence[str] = (),
    healing: str | None = None,
) -> str:
    """Return the report as Markdown.

    Args:
        name (str): Of what was compressed.
        plan (dict): The chosen blocks, as of :meth:`repl_mm.choosing.Choice.to_dict`, and what was ``counted``.
        scores (dict): Metric and value of each checkpoint, by the keys of :data:`ROWS`; None where none was measured.
        took (dict): ``seconds`` and ``peak`` (bytes of main memory, or None) of each stage.
        costs (tuple[Cost]): Of the stock backbone and of the compressed one.
        notes (Sequence[str]): Further lines. Defaults to none.
        healing (str | None): The picture of the losses. Defaults to None.
    """
    slots = ', '.join(f'{slot[0]}.{slot[1]}' for slot in plan['slots'])
    last = plan['steps'][-1]
    left = "the whole model's memory in training" if plan['measure'] == 'memory' else f'its {plan["measure"]}'
    metric = next((found[0] for found in scores.values() if found), 'metric')
    rows = [
        [ROWS[key], f'{found[1]:.4g}' if found else '-', f'{key}.pth' if key != 'stock' else '']
        for key, found in scores.items()
    ]
    words = ', '.join(f'{key}={value!r}' for key, value in dict(plan['words'], slots=plan['slots']).items())
    lines = [
        f'# {name}, compressed',
        f'Of {plan["backbone"]} the blocks {slots} (stage.index) were replaced: {last["left"]:.3f} of '
        f'{left} are left, at most {plan["limit"]:.3g} were wanted.',
        f'`replace=dict({words})`',
        f'{plan["share"]}.',
        '## What each step gave',
        markdown(['network', metric, 'file'], rows),
        *notes,
        '## What it costs now',
        cost_report(*costs),
        '## What was chosen',
        f'Distances are those of {plan.get("counted", "the outputs")}, in units of their variance.',
        '![influence against saving](plan/plan.png)',
        markdown(
            ['step', 'distance of the outputs', f'{plan["measure"]} left', 'blocks'],
            [
                [n, f'{step["distance"]:.4f}', f'{step["left"]:.3f}', ' '.join(map(name_of, step['slots']))]
                for n, step in enumerate(plan['steps'], 1)
            ],
        ),
        *([f'## Healing\n\n![losses]({healing})'] if healing else []),
        '## What compressing took',
        'Main memory is that of each process itself, without the workers of its data loaders; - where a stage went on '
        'after this command was killed.',
        markdown(
            ['stage', 'seconds', 'peak of main memory, GB'],
            [
                [
                    stage,
                    f'{used["seconds"]:.0f}' if used['seconds'] else '-',
                    f'{used["peak"] / 1e9:.2f}' if used['peak'] else '-',
                ]
                for stage, used in took.items()
            ],
        ),
    ]
    return '\n\n'.join(lines) + '\n'
