"""What the runs reached: means, paired differences, a table and a picture of accuracy against cost."""

import json
import os
import statistics
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..arms import REFERENCES
from ..tables import amount, markdown, mebibytes
from ..visualization.bubbles import Bubble, draw_bubbles

# the costs over which there is a chord, with their titles
CHORDS = dict(flops='train FLOPs', params='trained params', activation_bytes='activations')
METRICS = ('coco/bbox_mAP', 'mIoU', 'accuracy/top1', 'lm/perplexity')
LOWER = ('lm/perplexity', 'lm/nats')  # the better


def collect(folders: dict[str, Path], seeds: Sequence[int], wanted: str | None = None) -> dict:
    """Return what the runs of one config reached.

    Args:
        folders (dict[str, Path]): Folder of each arm, with a work dir ``seed_<seed>`` for each run.
        seeds (Sequence[int]): The seeds.
        wanted (str | None): The metric to compare. Defaults to None, the first of :data:`METRICS` that is there.

    Returns:
        dict: ``metric`` and ``arms``, for each arm with a finished run what :func:`summarize` gives, its ``scores``
        and ``runs`` by seed and its median ``step_time`` in seconds.

    Raises:
        ValueError: No run has finished, or the metric is not reported by all.
    """
    runs = {}
    for arm, folder in folders.items():
        files = {seed: folder / f'seed_{seed}' / 'result.json' for seed in seeds}
        runs[arm] = {seed: json.loads(file.read_text()) for seed, file in files.items() if file.is_file()}
    runs = {arm: by_seed for arm, by_seed in runs.items() if by_seed}
    names = [set(run['metrics']) for by_seed in runs.values() for run in by_seed.values()]
    metric = choose_metric(set.intersection(*names) if names else (), wanted)
    scores = {arm: {seed: run['metrics'][metric] for seed, run in by_seed.items()} for arm, by_seed in runs.items()}
    arms = summarize(scores)
    for arm, row in arms.items():
        row.update(scores=scores[arm], runs=runs[arm])
        row['step_time'] = statistics.median(run['step_time'] for run in runs[arm].values())
    return dict(metric=metric, arms=arms)


def choose_metric(names: Collection[str], wanted: str | None = None) -> str:
    """Return the metric to compare.

    Args:
        names (Collection[str]): Metrics that every run reports.
        wanted (str | None): The one to take. Defaults to None, the first of :data:`METRICS` that is there.

    Raises:
        ValueError: The runs do not report it.
    """
    wanted = wanted or next((name for name in METRICS if name in names), ' or '.join(METRICS))
    if wanted not in names:
        valid = ', '.join(sorted(names)) or 'none'
        raise ValueError(f"--metric '{wanted}' is not reported by all runs, valid: {valid}")
    return wanted


def summarize(scores: dict[str, dict[int, float]]) -> dict[str, dict]:
    """Return mean, spread and paired differences of every arm.

    Args:
        scores (dict[str, dict[int, float]]): Score by arm and seed.

    Returns:
        dict[str, dict]: For every arm ``n``, ``mean``, ``std`` (of the sample; None for one run) and ``differences``,
        by those of :data:`repl_mm.arms.REFERENCES` that it shares seeds with, see :func:`paired`.
    """
    rows = {}
    for arm, by_seed in scores.items():
        values = list(by_seed.values())
        std = statistics.stdev(values) if len(values) > 1 else None
        others = {name: paired(by_seed, scores[name]) for name in REFERENCES if name in scores and name != arm}
        differences = {name: found for name, found in others.items() if found['n']}
        rows[arm] = dict(n=len(values), mean=statistics.mean(values), std=std, differences=differences)
    return rows


def chord_heights(scores: dict[str, dict[int, float]], costs: dict[str, float]) -> dict[str, dict]:
    """Return how far every arm lies above the chord, the straight line from `remove` to `e2e` over one kind of cost.

    On the chord lies what is to be had by fewer or more blocks alone: what lies above it is worth its cost.

    Args:
        scores (dict[str, dict[int, float]]): Score by arm and seed.
        costs (dict[str, float]): One cost by arm.

    Returns:
        dict[str, dict]: For every other arm what :func:`paired` gives, of the seeds that it has in common with both
        ends, and ``share``, how far its cost lies on the way from `remove` (0) to `e2e` (1). Empty without both ends,
        or if their costs are the same.
    """
    if not {*REFERENCES} <= {*scores} or costs['e2e'] == costs['remove']:
        return {}
    heights = {}
    for arm in scores.keys() - {*REFERENCES}:
        share = (costs[arm] - costs['remove']) / (costs['e2e'] - costs['remove'])
        common = scores['e2e'].keys() & scores['remove'].keys()
        chord = {s: scores['remove'][s] + share * (scores['e2e'][s] - scores['remove'][s]) for s in common}
        height = paired(scores[arm], chord)
        if height['n']:
            heights[arm] = dict(height, share=share)
    return heights


def paired(scores: dict[int, float], reference: dict[int, float]) -> dict:
    """Return the paired difference of two arms.

    Args:
        scores (dict[int, float]): Score by seed.
        reference (dict[int, float]): Of the arm that it is compared with.

    Returns:
        dict: ``n``, the number of seeds that both have; ``mean`` of the differences (None without any); ``ci``, its
        95 % t-interval (None below two).
    """
    diffs = [scores[seed] - reference[seed] for seed in scores if seed in reference]
    mean = statistics.mean(diffs) if diffs else None
    if len(diffs) < 2:
        return dict(n=len(diffs), mean=mean, ci=None)
    from scipy import stats  # of the extra `tools`

    half = float(stats.t.ppf(0.975, len(diffs) - 1)) * statistics.stdev(diffs) / len(diffs) ** 0.5
    return dict(n=len(diffs), mean=mean, ci=[mean - half, mean + half])


# ---- output ---------------------------------------------------------------------------------------------------------


def table(result: dict) -> str:
    """Return the comparison of one config as a Markdown table.

    Args:
        result (dict): The config's part of ``compare.json``.

    Returns:
        str: The table and a line that says what its columns are.
    """
    references = [name for name in REFERENCES if name in result['arms']]
    metric = result['metric'] + (', lower is better' if result['metric'] in LOWER else '')
    columns = ['arm', 'n', metric, *(f'difference to {name}' for name in references)]
    columns += ['trained params', 'train FLOPs', 'activations', 'step']
    first, base = _base(result)
    rows = []
    for arm, row in result['arms'].items():
        spread = '' if row['std'] is None else f' ± {row["std"]:.2g}'
        differences = [_difference_text(row['differences'].get(name)) for name in references]
        texts = dict(params=amount, flops=amount, activation_bytes=mebibytes)
        counts = [f'{text(row["cost"][k])} ({row["cost"][k] / base["cost"][k]:.2f})' for k, text in texts.items()]
        step = f'{row["step_time"]:.3g} s ({row["step_time"] / base["step_time"]:.2f})'
        rows.append([arm, str(row['n']), f'{row["mean"]:#.4g}{spread}', *differences, *counts, step])
    note = (
        f'Seeds {", ".join(map(str, result["seeds"]))}: mean ± standard deviation, paired '
        f'difference with 95 % t-interval. Cost of the backbone at {"x".join(map(str, result["shape"]))}, batch '
        f'{result["batch"]}, in brackets relative to {first}; step: median time of a training step of the whole '
        f'model; runs at a time: {result["jobs"]}.'
    )
    parts = [f'## {result["config"]}', markdown(columns, rows), note]
    chords = _chord_rows(result)
    if chords:
        better = 'the better below it' if result['metric'] in LOWER else 'the better above it'
        parts.append(markdown(['above the chord of', *CHORDS.values()], chords))
        parts.append(
            'The chord is the straight line from remove to e2e over a cost; in brackets its 95 % t-interval, then how '
            f'far the cost lies on the way from remove (0) to e2e (1). On a chord lie thinner and thicker nets, '
            f'{better}.'
        )
    return '\n\n'.join([*parts, ''])


def _chord_rows(result: dict) -> list[list[str]]:
    """For every arm between the ends its heights above the chords; empty without both ends."""
    scores = {arm: row['scores'] for arm, row in result['arms'].items()}
    heights = {}
    for key in CHORDS:
        heights[key] = chord_heights(scores, {arm: row['cost'][key] for arm, row in result['arms'].items()})
    rows = []
    for arm in result['arms']:
        found = [heights[key].get(arm) for key in CHORDS]
        if any(found):
            rows.append([arm, *(h and f'{_difference_text(h)} at {h["share"]:.2f}' or '' for h in found)])
    return rows


def _base(result: dict) -> tuple[str, dict]:
    """Name and row of the arm that costs are relative to: e2e, or the first."""
    first = 'e2e' if 'e2e' in result['arms'] else next(iter(result['arms']))
    return first, result['arms'][first]


def _difference_text(difference: dict | None) -> str:
    """A paired difference with its interval, as in ``+0.33 [+0.16, +0.5]``; empty for None."""
    if difference is None:
        return ''
    text = f'{difference["mean"]:+.3g}'
    return text + (' [{:+.3g}, {:+.3g}]'.format(*difference['ci']) if difference['ci'] else '')


def plot(results: dict[str, dict], path: str | os.PathLike) -> None:
    """Draw accuracy against saved activations and train FLOPs, both relative to E2E, a row of panels per config.

    Args:
        results (dict[str, dict]): Content of ``compare.json``.
        path (str | os.PathLike): The picture to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4 * len(results)), layout='constrained')
    panels = figure.subplots(len(results), 2, sharey='row', squeeze=False)
    for row, result in zip(panels, results.values(), strict=True):
        _plot_one(result, row)
    figure.savefig(path, dpi=150)


def plot_bubbles(results: dict[str, dict], path: str | os.PathLike) -> None:
    """Draw accuracy against bytes, of activations, or on CUDA the measured peak; an area by trained parameters.

    Args:
        results (dict[str, dict]): Content of ``compare.json``.
        path (str | os.PathLike): The picture to write.
    """
    panels, costs, metrics = {}, {}, {}
    for result in results.values():
        arms, title = result['arms'], result['config']
        needed = {arm: row['cost']['activation_bytes'] for arm, row in arms.items()}
        costs[title] = f'activations of the backbone, batch {result["batch"]}, MiB'
        peaks = {arm: [run.get('peak_bytes') for run in row['runs'].values()] for arm, row in arms.items()}
        if all(all(found) for found in peaks.values()):
            needed = {arm: statistics.median(found) for arm, found in peaks.items()}
            costs[title] = 'peak of memory in training, MiB'
        panels[title] = [
            Bubble(needed[arm] / 2**20, row['mean'], row['cost']['params'], arm) for arm, row in arms.items()
        ]
        metrics[title] = result['metric']
    draw_bubbles(panels, path, costs, metrics)


def _plot_one(result: dict, panels: Iterable[Any]) -> None:
    """Draw the panels of one config: one point with its spread per arm, and its runs in gray."""
    first, base = _base(result)
    keys = {'activation_bytes': 'saved activations', 'flops': 'train FLOPs'}
    for axes, (key, label) in zip(panels, keys.items(), strict=True):
        for arm, row in result['arms'].items():
            x = row['cost'][key] / base['cost'][key]
            axes.plot([x] * row['n'], list(row['scores'].values()), '.', color='gray', markersize=4)
            axes.errorbar(x, row['mean'], yerr=row['std'], marker='o', capsize=3, linestyle='none', label=arm)
        axes.margins(x=0.2)
        axes.set_xlabel(f'{label}, relative to {first}')
        axes.grid(alpha=0.3)
    panels[0].set(title=result['config'], ylabel=result['metric'])
    panels[1].legend(fontsize='small', loc='upper left', bbox_to_anchor=(1, 1))
