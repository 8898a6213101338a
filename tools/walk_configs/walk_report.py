"""What came of the walk over the configs, by config, and as text."""

from collections import Counter

from repl_mm.tables import markdown

STATUSES = ('works', 'refused', 'stock fails', 'fails')  # from good to bad


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
    rows = {}
    for result in report['results']:
        # an unknown backbone around a known one, such as ICNet around a ResNet, does not count
        if result['family'] or outcome[result['config']] == 'other':
            rows.setdefault((result['family'] or '', result['type']), {})[result['config'], result['status']] = None
    table = []
    for (family, kind), pairs in sorted(rows.items(), key=lambda row: (row[0][0] == '', row[0][0], -len(row[1]))):
        statuses = Counter(status for _, status in pairs)
        cells = [str(statuses[status] or '-') if family else '' for status in STATUSES]
        table.append((family or 'other', kind, str(len({config for config, _ in pairs})), *cells))
    header = ('family', 'backbone', 'configs', *STATUSES)
    lines = [f'{package}: configs by backbone', markdown(header, table, left=2)]

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
