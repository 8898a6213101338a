"""Draw docs/verdict.png from the tables of results.md and log.md: the accuracy of RepL and of removing blocks.

python docs/verdict.py
"""

import re
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402

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


def rows(page, heading):
    """Label and difference to E2E (mean, low, high; in points) of the rows of a section's table that have one."""
    section = (DOCS / page).read_text().partition(f'# {heading}\n')[2].partition('\n##')[0]
    table = [[cell.strip() for cell in line.split('|')[1:-1]] for line in section.splitlines() if line[:1] == '|']
    column = next(i for i, cell in enumerate(table[0]) if cell.startswith('difference to E2E'))
    scale = 100 if any(cell.startswith('mAP') for cell in table[0]) else 1
    for cells in table[2:]:
        if cells[column]:
            mean, low, high = (scale * float(number) for number in re.findall(r'[-+][\d.]+', cells[column]))
            yield cells[0], (mean, low, high)


def pair(page, heading):
    """The differences of the table's RepL, in bold, and of the removal that follows."""
    found = list(rows(page, heading))
    first = next(i for i, (label, _) in enumerate(found) if label.startswith('**RepL'))
    return found[first][1], next(values for label, values in found[first:] if 'removed' in label)


def main():
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
