"""Try RepL on every config that a package ships.

    python tools/walk_configs/walk_configs.py [--package mmdet mmseg] [--only 'vit/*' 'swin/*'] [--size 96]
        [--json FILE]

Every backbone in every config of the installed packages is looked at. Those of a family that RepL knows get the
one-word change ``type='X'`` -> ``type='RepLX'`` (the default plan), are built in the config's own scope without
pretrained weights, and run forward and backward on a small input. Backbones that differ only in weights, drop rates or
the size of the image are run once. The exit status is 1 if one fails.
"""

import argparse
import gc
import json
import sys
import warnings
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.utils import track_iter_progress
from try_backbone import essential, family_of, first_sentence, try_backbone
from walk_report import summary

from repl_mm import config


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
    settings = {}  # by their text, which has lists for tuples; mmseg's MobileNetV3 insists on these
    print(f'{package}: reading {len(names)} configs', file=sys.stderr)
    for name in track_iter_progress(names, file=sys.stderr):
        try:
            cfg = Config.fromfile(root / name, import_custom_modules=False)
        except Exception as error:
            unreadable[name] = first_sentence(error).replace(f'{root}/', '')
            continue
        scope = cfg.get('default_scope', package)
        backbones = [essential(b, size) for b in config.all_backbones(cfg.to_dict().get('model', {})).values()]
        texts = {json.dumps(backbone, sort_keys=True): backbone for backbone in backbones}
        settings |= texts
        found += [(name, scope, text) for text in sorted(texts)]

    known = sorted({(text, scope) for _, scope, text in found if family_of(config.type_name(settings[text]))})
    print(f'\n{package}: running {len(known)} different backbones', file=sys.stderr)
    outcomes = {}
    for text, scope in track_iter_progress(known, file=sys.stderr):
        outcomes[text, scope] = try_backbone(settings[text], scope, size)
        gc.collect()  # few objects of many bytes, in cycles: Python would keep several gigabytes of them
    print(file=sys.stderr)

    results = []
    for name, scope, text in found:
        kind = config.type_name(settings[text])
        status, reason = outcomes.get((text, scope), ('other', 'no family of RepL has this backbone'))
        results.append(dict(config=name, type=kind, family=family_of(kind), status=status, reason=reason))
    return dict(package=package, configs=names, unreadable=unreadable, settings=len(known), results=results)


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
