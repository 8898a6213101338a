"""Try RepL on every config that a package ships.

    python tools/walk_configs.py [--package mmdet mmseg] [--size 96] [--json FILE]

Every backbone in every config of the installed package is looked at. Those of a family that RepL knows get the
one-word change ``type='X'`` -> ``type='RepLX'`` (the default plan), are built in the config's own scope without
pretrained weights, and run forward and backward on a small input. Equal backbone settings are run once. The exit
status is 1 if one fails.
"""

import argparse
import copy
import json
import sys
import warnings
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import track_iter_progress
from rich.console import Console
from rich.table import Table

import repl_mm
from repl_mm.families import FAMILIES

STATUSES = ('works', 'refused', 'stock fails', 'fails')  # from good to bad


def shipped_configs(package: str) -> list[Path]:
    """The configs in a package's wheel, without the parts in ``_base_``.

    Raises:
        SystemExit: The package is not installed, or has no configs.
    """
    spec = find_spec(package)
    if spec is None:
        raise SystemExit(f'--package {package}: not installed here; expected mmdet or mmseg')
    root = Path(spec.origin).parent / '.mim' / 'configs'
    paths = sorted(path for path in root.rglob('*.py') if '_base_' not in path.parts)
    if not paths:
        raise SystemExit(f'--package {package}: no configs in {root}')
    return paths


def backbones(node):
    """All backbone settings below a node of a config: dicts with a ``type`` whose key speaks of a backbone."""
    if isinstance(node, dict):
        for key, value in node.items():
            if 'backbone' in key and isinstance(value, dict) and 'type' in value:
                yield value
            yield from backbones(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from backbones(value)


def bare_name(settings: dict) -> str:
    """Name of a backbone's class without its scope."""
    kind = settings['type']
    return (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]


def family_of(name: str) -> str | None:
    """Name of the family that serves, or refuses by name, a backbone class; None if no family knows it."""
    for family in FAMILIES:
        if name in family.BACKBONES or name in family.REFUSED:
            return family.__name__.rpartition('.')[2]
    return None


def without_weights(settings):
    """Settings without everything that would download pretrained weights."""
    if isinstance(settings, dict):
        return {k: without_weights(v) for k, v in settings.items() if k not in ('init_cfg', 'pretrained')}
    return settings


def with_repl(settings: dict) -> dict:
    """Backbone settings with the one-word change: ``X`` -> ``RepLX``, ``scope.X`` -> ``scope.RepLX``."""
    scope, dot, name = settings['type'].rpartition('.')
    return dict(settings, type=f'{scope}{dot}RepL{name}')


def first_sentence(error: Exception) -> str:
    """An exception in one short line."""
    return f'{type(error).__name__}: {error}'.splitlines()[0].split('. ')[0]


def build(settings: dict, scope: str) -> torch.nn.Module:
    """Build a backbone in a scope, its SyncBN made plain BN, in train mode."""
    with DefaultScope.overwrite_default_scope(scope):
        backbone = revert_sync_batchnorm(MODELS.build(copy.deepcopy(settings)))  # mm pops from it
    backbone.train()
    return backbone


def run(backbone: torch.nn.Module, channels: int, size: int) -> None:
    """Forward and backward on random images.

    Raises:
        AssertionError: An output is not finite, or a parameter of a computing layer that leads to an output gets no
            finite gradient.
    """
    outputs = backbone(torch.randn(2, channels, size, size))
    outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
    assert all(out.isfinite().all() for out in outputs), 'an output is not finite'
    sum(out.square().mean() for out in outputs).backward()
    last = max(getattr(backbone, 'out_indices', [len(repl_mm.plan_of(backbone).depths) - 1]))
    for name, parameter in backbone.named_parameters():
        if '.repl.' in name and int(name.split('.')[0].removeprefix('layer')) <= last + 1:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), f'{name}: no finite gradient'


def try_backbone(settings: dict, scope: str, size: int = 96) -> tuple[str, str]:
    """Try RepL on one backbone.

    Args:
        settings (dict): Stock settings of the backbone, without weights.
        scope (str): The config's ``default_scope``.
        size (int): Height and width of the images. Default: 96.

    Returns:
        tuple[str, str]: One of ``STATUSES`` and the reason, empty if it works.
    """
    try:
        run(build(with_repl(settings), scope), settings.get('in_channels', 3), size)
        return 'works', ''
    except repl_mm.PlanError as error:
        return 'refused', str(error)
    except Exception as error:
        reason = first_sentence(error)
    try:
        build(settings, scope)
    except Exception as error:
        return 'stock fails', first_sentence(error)
    return 'fails', reason


def walk(package: str, size: int = 96) -> dict:
    """Try RepL on all configs of a package.

    Args:
        package (str): 'mmdet' or 'mmseg'.
        size (int): Height and width of the images. Default: 96.

    Returns:
        dict: ``configs``, their number; ``with_backbone``, those that have a backbone; ``unreadable``, config ->
        reason; ``settings``, the number of different backbone settings run; ``results``, a list of dicts with
        ``config, type, family, status, reason``, one for every different backbone of every config.
    """
    paths = shipped_configs(package)
    root = next(parent for parent in paths[0].parents if parent.name == 'configs')
    found, unreadable = [], {}
    print(f'{package}: reading {len(paths)} configs', file=sys.stderr)
    for path in track_iter_progress(paths, file=sys.stderr):
        name = path.relative_to(root).as_posix()
        try:
            cfg = Config.fromfile(path, import_custom_modules=False)
        except Exception as error:
            unreadable[name] = first_sentence(error)
            continue
        scope = cfg.get('default_scope', package)
        plain = {json.dumps(without_weights(b), sort_keys=True) for b in backbones(cfg.to_dict().get('model', {}))}
        found += [(name, scope, text) for text in sorted(plain)]

    known = sorted({(text, scope) for _, scope, text in found if family_of(bare_name(json.loads(text)))})
    print(f'\n{package}: running {len(known)} different backbones', file=sys.stderr)
    outcomes = {
        (t, scope): try_backbone(json.loads(t), scope, size)
        for t, scope in track_iter_progress(known, file=sys.stderr)
    }
    print(file=sys.stderr)

    results = []
    for name, scope, text in found:
        kind = bare_name(json.loads(text))
        status, reason = outcomes.get((text, scope), ('unknown', 'no RepL family serves this backbone'))
        results.append(dict(config=name, type=kind, family=family_of(kind), status=status, reason=reason))
    with_backbone = len({name for name, _, _ in found})
    return dict(
        package=package,
        configs=len(paths),
        with_backbone=with_backbone,
        unreadable=unreadable,
        settings=len(known),
        results=results,
    )


def count(report: dict, family: str) -> dict:
    """Number of configs of a family by status; a config with several backbones counts once, with its worst status."""
    worst = {}
    for result in report['results']:
        if result['family'] == family:
            rank = STATUSES.index(result['status'])
            worst[result['config']] = max(worst.get(result['config'], 0), rank)
    counts = Counter(worst.values())
    return {status: counts[rank] for rank, status in enumerate(STATUSES)}


def summary(report: dict) -> str:
    """The report as text: a table by backbone type, the reasons, and one line for every family."""
    table = Table(title=f'{report["package"]}: configs by backbone', title_justify='left')
    table.add_column('family')
    table.add_column('backbone')
    for column in ('configs', *STATUSES):
        table.add_column(column, justify='right')
    rows = {}
    for result in report['results']:
        rows.setdefault((result['family'] or '', result['type']), {})[result['config'], result['status']] = None
    for (family, kind), pairs in sorted(rows.items(), key=lambda row: (row[0][0] == '', row[0][0], -len(row[1]))):
        statuses = Counter(status for _, status in pairs)
        cells = [str(statuses[status] or '-') if family else '' for status in STATUSES]
        table.add_row(family, kind, str(len({config for config, _ in pairs})), *cells)
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(table)
    lines = [capture.get()]

    reasons = {}
    for result in report['results']:
        if result['family'] and result['status'] != 'works':
            reasons.setdefault((result['status'], result['reason']), {})[result['config']] = None
    for (status, reason), configs in sorted(reasons.items(), key=lambda item: STATUSES.index(item[0][0])):
        lines.append(f'{status}, {len(configs)} configs such as {next(iter(configs))}: {reason}')
    lines += [f'unreadable: {name}: {reason}' for name, reason in report['unreadable'].items()]
    for family in sorted({family for family, _ in rows if family}):
        counts = count(report, family)
        lines.append(
            f'{report["package"]}, {family} family: RepL works in {counts["works"]} of {sum(counts.values())} '
            f'configs, is refused with a reason in {counts["refused"]}, fails in {counts["fails"]}; '
            f'{counts["stock fails"]} need what is not installed here'
        )
    lines.append(
        f'{report["package"]}: {report["with_backbone"]} of {report["configs"]} configs have a backbone; '
        f'{report["settings"]} different settings were run'
    )
    return '\n'.join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--package', nargs='+', default=['mmdet'], help='packages whose configs are walked')
    parser.add_argument('--size', type=int, default=96, help='height and width of the images, a multiple of 32')
    parser.add_argument('--json', type=Path, help='write the full result here')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    reports = [walk(package, args.size) for package in args.package]
    for report in reports:
        print(summary(report))
    if args.json:
        args.json.write_text(json.dumps(reports, indent=1))
    return int(any(result['status'] == 'fails' for report in reports for result in report['results']))


if __name__ == '__main__':
    sys.exit(main())
