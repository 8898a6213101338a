"""How far two tests of the same images differ, and how sure that is: the images that happen to be in the test set."""

import contextlib
import io
import math
import numbers
from collections.abc import Sequence

from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MMLogger

GROUPS = 20  # of images; with t in place of the normal distribution the interval is 7 % wider than with very many


class KeepResults(Hook):
    """Keeps what the metrics of a test have gathered image by image, which they forget when they evaluate.

    Attributes:
        results (list[list]): For every metric of the test evaluator one entry per image; known after the test.
    """

    results: Sequence[list] = ()

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Copy the results after the last batch."""
        if batch_idx == len(runner.test_dataloader) - 1:
            self.results = [list(metric.results) for metric in runner.test_evaluator.metrics]


def figures(metric: BaseMetric, results: list) -> dict[str, float]:
    """What a metric says of some images, silently; keys as the evaluator names them.

    Args:
        metric (BaseMetric): It has evaluated the whole test set before.
        results (list): Of these images.
    """
    if hasattr(metric, 'img_ids'):  # COCO's: an image without results would count as one where nothing was found
        metric.img_ids = [prediction['img_id'] for _, prediction in results]
    log = MMLogger.get_current_instance()
    level = log.level
    log.setLevel('ERROR')
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            found = metric.compute_metrics(results)
    finally:
        log.setLevel(level)
    prefix = f'{metric.prefix}/' if metric.prefix else ''
    return {f'{prefix}{key}': float(value) for key, value in found.items() if isinstance(value, numbers.Real)}


def differences(metric: BaseMetric, one: list, other: list, groups: int = GROUPS) -> dict[str, tuple]:
    """By how much a second test differs from a first one, with its 95 % interval over images.

    The interval is Student's, with the variance of the jackknife that leaves out a group of images at a time; this
    serves figures that are no mean over images as well (average precision, mean IoU). For those that are, it is the
    interval of the mean over groups.

    Args:
        metric (BaseMetric): It has evaluated the whole test set before.
        one (list): Its results for every image, in the order of the test set.
        other (list): Those of the second test.
        groups (int): Number of groups; of neighbouring images, which are often of one scene. Defaults to 20, and never
            more than there are images.

    Returns:
        dict[str, tuple]: By figure, of those that no part is without (COCO's has none where nothing was found): its
        value in the first test, in the second, and the half width of the interval of the difference; NaN where there
        are fewer than two images.

    Raises:
        ValueError: The tests are of different numbers of images.
    """
    if len(one) != len(other):
        raise ValueError(f'{len(one)} and {len(other)} images: expected two tests of the same images')
    groups = min(groups, len(one))
    first, second = figures(metric, one), figures(metric, other)
    left_out = []
    for group in range(groups if groups > 1 else 0):
        start, end = (len(one) * edge // groups for edge in (group, group + 1))
        a, b = (figures(metric, results[:start] + results[end:]) for results in (one, other))
        left_out.append({key: b[key] - a[key] for key in a if key in b})
    shared = [key for key in first if all(key in found for found in (second, *left_out))]
    return {key: (first[key], second[key], _half_width([each[key] for each in left_out])) for key in shared}


def _half_width(values: Sequence[float]) -> float:
    from scipy import stats  # of the extra `tools`

    groups = len(values)
    if groups < 2:
        return math.nan
    mean = sum(values) / groups
    variance = (groups - 1) / groups * sum((value - mean) ** 2 for value in values)
    return float(stats.t.ppf(0.975, groups - 1)) * math.sqrt(variance)


def difference_table(found: dict[str, tuple]) -> str:
    """One line for each figure: both values, the difference, its interval."""
    width = max(map(len, found), default=0)
    lines = [f'{"":{width}}     first    second  difference  95 % interval over images']
    for key, (first, second, half) in found.items():
        change = second - first
        interval = f'[{change - half:+.4f}, {change + half:+.4f}]'
        lines.append(f'{key:{width}}  {first:8.4f}  {second:8.4f}    {change:+8.4f}  {interval}')
    return '\n'.join(lines)
