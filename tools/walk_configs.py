"""Try RepL on every config that a package ships.

    python tools/walk_configs.py [--package mmdet mmseg] [--only 'vit/*' 'swin/*'] [--size 96] [--json FILE]

Every backbone in every config of the installed packages is looked at. Those of a family that RepL knows get the
one-word change ``type='X'`` -> ``type='RepLX'`` (the default plan), are built in the config's own scope without
pretrained weights, and run forward and backward on a small input. Backbones that differ only in weights, drop rates or
the size of the image are run once. The exit status is 1 if one fails.
"""

import argparse
import copy
import json
import sys
import warnings
from collections import Counter
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import track_iter_progress
from rich.console import Console
from rich.table import Table
from torch.utils._pytree import tree_leaves

import repl_mm
from repl_mm.families import FAMILIES

STATUSES = ('works', 'refused', 'stock fails', 'fails')  # from good to bad
WEIGHTS = ('init_cfg', 'pretrained', 'convert_weights')  # would download something, or say what it looks like
DROPS = ('drop_rate', 'attn_drop_rate', 'drop_path_rate')


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
    """All backbone settings below a node of a config: dicts with a ``type`` whose key speaks of a backbone.

    ``image_encoder`` is what the backbone of a text-and-image model is called.
    """
    if isinstance(node, dict):
        for key, value in node.items():
            if ('backbone' in key or key == 'image_encoder') and isinstance(value, dict) and 'type' in value:
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


def essential(settings, size: int):
    """Settings without weights and drop rates, and for images of ``size``: BEiT takes those of ``img_size`` only."""
    if not isinstance(settings, dict):
        return settings
    kept = {key: essential(value, size) for key, value in settings.items() if key not in (*WEIGHTS, *DROPS)}
    return kept | dict(img_size=size) if 'img_size' in kept else kept


def with_repl(settings: dict) -> dict:
    """Backbone settings with the one-word change: ``X`` -> ``RepLX``; a type's scope becomes ``_scope_``."""
    scope, _, name = settings['type'].rpartition('.')
    return dict(settings, type=f'RepL{name}', **(dict(_scope_=scope) if scope else {}))


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
    outputs = tree_leaves(backbone(torch.randn(2, channels, size, size)))
    assert all(out.isfinite().all() for out in outputs), 'an output is not finite'
    sum(out.square().mean() for out in outputs).backward()
    plan = repl_mm.plan_of(backbone)
    indices = getattr(backbone, 'out_indices', [len(plan.depths) - 1])  # of stages, or of the layers of the only stage
    for slot, (name, layer) in zip(plan.slots, repl_mm.computing_layers(backbone), strict=True):
        if (slot.index if len(plan.depths) == 1 else slot.stage) <= max(indices):
            for key, parameter in layer.named_parameters():
                assert parameter.grad is not None and parameter.grad.isfinite().all(), f'{name}.{key}: no gradient'


def try_backbone(settings: dict, scope: str, size: int = 96) -> tuple[str, str]:
    """Try RepL on one backbone.

    Args:
        settings (dict): Stock settings of the backbone, without weights.
        scope (str): The config's ``default_scope``.
        size (int): Height and width of the images. Defaults to 96.

    Returns:
        tuple[str, str]: One of ``STATUSES`` and the reason, empty if it works.
    """
    try:
        backbone = build(with_repl(settings), scope)
        package = (settings['type'].rpartition('.')[0] or scope).partition('.')[0]
        assert type(backbone).__module__.startswith(f'{package}.'), f'this is not the backbone of {package}'
        run(backbone, settings.get('in_channels', 3), size)
        return 'works', ''
    except repl_mm.PlanError as error:
        status, reason = 'refused', str(error)
    except Exception as error:
        status, reason = 'fails', first_sentence(error)
    try:
        build(settings, scope)
    except Exception as error:
        return 'stock fails', first_sentence(error)
    return status, reason


def walk(package: str, size: int = 96, only: tuple[str, ...] = ('*',)) -> dict:
    """Try RepL on the configs of a package.

    Args:
        package (str): 'mmdet' or 'mmseg'.
        size (int): Height and width of the images, a multiple of 32. Defaults to 96.
        only (tuple[str]): Patterns of config names, such as ``'swin/*'``; a config that fits one of them is walked.
            Defaults to all configs.

    Returns:
        dict: ``package``; ``configs``, the names of the configs; ``unreadable``, config -> reason; ``settings``, the
        number of different backbones run; ``results``, a list of dicts with ``config, type, family, status, reason``,
        one for every different backbone of every config. ``family`` is None for a backbone that no family knows.

    Raises:
        SystemExit: The package is not installed.
    """
    paths = shipped_configs(package)
    root = next(parent for parent in paths[0].parents if parent.name == 'configs')
    names = [path.relative_to(root).as_posix() for path in paths]
    names = [name for name in names if any(fnmatch(name, pattern) for pattern in only)]
    found, unreadable = [], {}
    print(f'{package}: reading {len(names)} configs', file=sys.stderr)
    for name in track_iter_progress(names, file=sys.stderr):
        try:
            cfg = Config.fromfile(root / name, import_custom_modules=False)
        except Exception as error:
            unreadable[name] = first_sentence(error).replace(f'{root}/', '')
            continue
        scope = cfg.get('default_scope', package)
        texts = {json.dumps(essential(b, size), sort_keys=True) for b in backbones(cfg.to_dict().get('model', {}))}
        found += [(name, scope, text) for text in sorted(texts)]

    known = sorted({(text, scope) for _, scope, text in found if family_of(bare_name(json.loads(text)))})
    print(f'\n{package}: running {len(known)} different backbones', file=sys.stderr)
    outcomes = {
        (text, scope): try_backbone(json.loads(text), scope, size)
        for text, scope in track_iter_progress(known, file=sys.stderr)
    }
    print(file=sys.stderr)

    results = []
    for name, scope, text in found:
        kind = bare_name(json.loads(text))
        status, reason = outcomes.get((text, scope), ('other', 'no family of RepL has this backbone'))
        results.append(dict(config=name, type=kind, family=family_of(kind), status=status, reason=reason))
    return dict(package=package, configs=names, unreadable=unreadable, settings=len(known), results=results)


def by_config(report: dict, family: str | None = None) -> dict[str, str]:
    """What became of each config.

    Args:
        report (dict): From :func:`walk`.
        family (str | None): Look at the backbones of this family only. Defaults to None, of all families.

    Returns:
        dict[str, str]: Config -> one of ``STATUSES``, the worst of its backbones that a family knows. With
        ``family=None`` the other configs are there too: ``'other'`` with other backbones only, ``'none'`` without
        any, ``'unreadable'``.
    """
    outcome = {}
    if family is None:
        outcome = {name: 'unreadable' if name in report['unreadable'] else 'none' for name in report['configs']}
        outcome |= {result['config']: 'other' for result in report['results']}
    for result in report['results']:
        if result['family'] and family in (None, result['family']):
            statuses = (outcome.get(result['config']), result['status'])
            outcome[result['config']] = max((s for s in statuses if s in STATUSES), key=STATUSES.index)
    return outcome


def summary(report: dict) -> str:
    """The report as text: a table by backbone type, the reasons, one line for every family, and the totals."""
    package, outcome = report['package'], by_config(report)
    table = Table(title=f'{package}: configs by backbone', title_justify='left')
    table.add_column('family')
    table.add_column('backbone')
    for column in ('configs', *STATUSES):
        table.add_column(column, justify='right')
    rows = {}
    for result in report['results']:
        # an unknown backbone around a known one, such as ICNet around a ResNet, does not count
        if result['family'] or outcome[result['config']] == 'other':
            rows.setdefault((result['family'] or '', result['type']), {})[result['config'], result['status']] = None
    for (family, kind), pairs in sorted(rows.items(), key=lambda row: (row[0][0] == '', row[0][0], -len(row[1]))):
        statuses = Counter(status for _, status in pairs)
        cells = [str(statuses[status] or '-') if family else '' for status in STATUSES]
        table.add_row(family or 'other', kind, str(len({config for config, _ in pairs})), *cells)
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]

    reasons = {}
    for result in report['results']:
        if result['family'] and result['status'] != 'works':
            reasons.setdefault((result['status'], result['type'], result['reason']), {})[result['config']] = None
    for (status, kind, reason), configs in sorted(reasons.items(), key=lambda item: STATUSES.index(item[0][0])):
        lines.append(f'{status}: {kind} in {len(configs)} configs such as {next(iter(configs))}: {reason}')
    lines += [f'unreadable: {name}: {reason}' for name, reason in report['unreadable'].items()]
    for family in sorted({family for family, _ in rows if family}):
        counts = Counter(by_config(report, family).values())
        lines.append(f'{package}, {family}: RepL works in {counts["works"]} of {counts.total()} configs')
    counts = Counter(outcome.values())
    lines.append(
        f'{package}: RepL works in {counts["works"]} of {len(report["configs"])} configs ({report["settings"]} '
        f'different backbones were run), is refused with a reason in {counts["refused"]}, fails in {counts["fails"]}; '
        f'{counts["stock fails"]} need what is not installed here, {counts["other"]} have other backbones, '
        f'{counts["none"]} have none, {counts["unreadable"]} cannot be read'
    )
    return '\n'.join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--package', nargs='+', default=['mmdet', 'mmseg'], help='packages whose configs are walked')
    parser.add_argument('--only', nargs='+', default=['*'], metavar='PATTERN', help='of configs, for instance swin/*')
    parser.add_argument('--size', type=int, default=96, help='height and width of the images, a multiple of 32')
    parser.add_argument('--json', type=Path, help='write the full result here')
    args = parser.parse_args(arguments)
    warnings.simplefilter('ignore')
    reports = [walk(package, args.size, tuple(args.only)) for package in args.package]
    if not any(report['configs'] for report in reports):
        parser.error(f'--only {" ".join(args.only)}: no config fits; expected patterns such as swin/*')
    for report in reports:
        print(summary(report))
    if args.json:
        args.json.write_text(json.dumps(reports, indent=1))
    return int(any(result['status'] == 'fails' for report in reports for result in report['results']))


if __name__ == '__main__':
    sys.exit(main())
