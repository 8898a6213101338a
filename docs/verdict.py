"""Draw three pictures from the tables of results.md, log.md and compressing.md.

verdict.png: the accuracy of RepL and of removing blocks; bubbles.png: the chart of tools/compare.py for CIFAR-10;
healing.png: accuracy over steps of healing.

python docs/verdict.py
"""

import re
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402

from repl_mm.visualization import Bubble, draw_bubbles  # noqa: E402

DOCS = Path(__file__).resolve().parent
# page, heading, label of the row
TABLES = (
    ('results.md', 'Blood-cell photographs, RetinaNet', 'from scratch: blood cells, RetinaNet (mAP)'),
    ('results.md', 'CIFAR-10, ResNet-32', 'from scratch: CIFAR-10, ResNet-32 (top-1)'),
    ('results.md', 'From CIFAR-10 to street scenes', 'pretrained in its own form: CamVid, FCN (mIoU)'),
    ('log.md', 'Learning the labels', 'converted, one epoch: CIFAR-10, ResNet-32 (top-1)'),
    ('results.md', 'Street scenes, a ViT', 'pretrained: CamVid, DeiT-tiny (mIoU)'),
    ('results.md', 'Street scenes, an FCN with a ResNet-18', 'pretrained: CamVid, ResNet-18 (mIoU)'),
    ('results.md', 'CIFAR-10, a ViT', 'pretrained: CIFAR-10, DeiT-tiny, late layers (top-1)'),
)
# sections of compressing.md: the lowest accuracy that is shown, and the stock network's
HEALED = {'ResNet-32, six blocks': (70, 92.6), 'ResNet-32, three blocks': (86, 92.6), 'ResNet-56': (89, 93.4)}
KINDS = ('RepL', 'free weights', 'random weights', 'linear', 'patch', 'nothing')  # of rows of these sections


def cells(page, heading):
    """The cells of a section's table, row by row."""
    section = (DOCS / page).read_text().partition(f'# {heading}\n')[2].partition('\n##')[0]
    return [[cell.strip() for cell in line.split('|')[1:-1]] for line in section.splitlines() if line[:1] == '|']


def rows(page, heading):
    """Label and difference to E2E (mean, low, high; in points) of the rows of a section's table that have one."""
    table = cells(page, heading)
    column = next(i for i, cell in enumerate(table[0]) if cell.startswith('difference to E2E'))
    scale = 100 if any(cell.startswith('mAP') for cell in table[0]) else 1
    for row in table[2:]:
        if row[column]:
            mean, low, high = (scale * float(number) for number in re.findall(r'[-+][\d.]+', row[column]))
            yield row[0], (mean, low, high)


def pair(page, heading):
    """The differences of the table's RepL, in bold, and of the removal that follows."""
    found = list(rows(page, heading))
    first = next(i for i, (label, _) in enumerate(found) if label.startswith('**RepL'))
    return found[first][1], next(values for label, values in found[first:] if 'removed' in label)


def bubbles(page, heading):
    """The bubbles of a section's table: activations, accuracy and trained parameters of each row."""
    header, _, *table = cells(page, heading)
    places = [next(i for i, cell in enumerate(header) if word in cell) for word in ('activations', 'mean', 'params')]
    for row in table:
        numbers = [float(row[place].split()[0]) for place in places]
        yield Bubble(*numbers, re.sub('[*`]', '', row[0]))


def curves(page, heading):
    """Steps of healing and accuracies of each row of a section's table."""
    header, _, *table = cells(page, heading)
    steps = {}
    for column, cell in enumerate(header):
        found = re.search(r'(\d+) steps|not healed', cell)
        if found and ' minus ' not in cell:
            steps[column] = int(found[1] or 0)
    for row in table:
        points = [(step, float(re.search(r'[\d.]+', row[column])[0])) for column, step in steps.items() if row[column]]
        yield re.sub('[*`]', '', row[0]), points


def draw_curves(path):
    """Draw accuracy over steps of healing; the dotted line is the stock network."""
    figure, panels = plt.subplots(1, len(HEALED), figsize=(11, 3.8))
    for axes, (heading, (low, stock)) in zip(panels, HEALED.items(), strict=True):
        for label, points in curves('compressing.md', heading):
            number = next(i for i, kind in enumerate(KINDS) if kind in label)
            axes.plot(*zip(*points, strict=True), 'o-', color=f'C{number}', markersize=4, label=KINDS[number])
        axes.axhline(stock, color='gray', linestyle=':')
        axes.set(title=heading, xlabel='steps of healing', ylim=(low, stock + 0.5))
        axes.set_xscale('symlog', linthresh=25)
        axes.set_xticks([0, 25, 100, 400, 4000], [0, 25, 100, 400, 4000])
        axes.grid(alpha=0.3)
    panels[0].set_ylabel('top-1 accuracy, %')
    panels[0].legend(fontsize=8, loc='lower right')
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main():
    draw_curves(DOCS / 'healing.png')
    chart = {'': list(bubbles('results.md', 'CIFAR-10, ResNet-32'))}
    draw_bubbles(chart, DOCS / 'bubbles.png', 'activations of the backbone, batch 128, MiB', 'top-1 accuracy, %')
    figure, axes = plt.subplots(figsize=(9, 3.6))
    for place, (page, heading, _) in enumerate(TABLES):
        for name, color, shift, (mean, low, high) in zip(
            ('RepL', 'same blocks removed'), ('C1', 'C2'), (-0.13, 0.13), pair(page, heading), strict=True
        ):
            axes.plot([low, high], [place + shift] * 2, color=color, linewidth=2)
            axes.plot(mean, place + shift, 'o', color=color, label=None if place else name)
    axes.axvline(0, color='C0')
    axes.set_yticks(range(len(TABLES)), [label for *_, label in TABLES])
    axes.invert_yaxis()
    axes.set_xlabel('difference to E2E, the unchanged network, in points')
    axes.grid(axis='x', alpha=0.3)
    axes.legend(loc='upper left')
    figure.tight_layout()
    figure.savefig(DOCS / 'verdict.png', dpi=100)


if __name__ == '__main__':
    main()
