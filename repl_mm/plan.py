"""The plan: which blocks of a backbone are replaced, by what, and between which neighbours.

Pure Python: a plan knows numbers of blocks, not modules. It is checked completely before anything is changed.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence

from .fusion import TRANSFORMS

MODES = ('fuse', 'remove', 'patch', 'linear', 'share', 'own', 'random')
PLAIN = ('remove', 'patch', 'linear')  # those without an operator: nothing is synthesized
WHOLE = ('half', 'conv', 'full')  # operators as wide as the block: `ratio` says nothing of them
WORDS = ('mode', 'operator', 'ratio', 'fusion', 'detach')  # what stands in a slot: for all of them, or for one
KEYS = ('every', 'stages', 'slots', 'mode', 'operator', 'ratio', 'fusion', 'detach', 'merged')


class PlanError(ValueError):
    """A ``replace`` setting or a backbone that is not possible; the message names key, value and what is valid."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of a replaced block and its neighbours, each as (stage, index), counted from 0.

    ``succeeding`` is None behind the last kept block of the backbone.
    """

    stage: int
    index: int
    preceding: tuple[int, int]
    succeeding: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is replaced, and how. ``str(plan)`` is a table for people, :meth:`to_dict` one for files.

    Args:
        backbone (str): Class name of the backbone.
        depths (tuple[int]): Number of blocks of each stage, before replacement.
        slots (tuple[Slot]): The replaced blocks.
        mode (str): One of ``MODES``.
        operator (str): One of the family's ``OPERATORS``.
        ratio (float): Hidden width of a light operator, as a share of the replaced block's inner width.
        fusion (dict): Settings of the learnable transformation, see :class:`repl_mm.fusion.FusedWeight`.
        detach (bool): Whether the neighbours get no gradient through the computing layers.
        merged (bool): Whether the computing layers are plain modules with weights of their own. Defaults to False.
        notes (tuple[str]): What the plan left out, for the log.
        each (dict[str, dict]): Words of single slots that differ from these, by 'stage.index'. Defaults to none.
    """

    backbone: str
    depths: tuple[int, ...]
    slots: tuple[Slot, ...]
    mode: str
    operator: str
    ratio: float
    fusion: dict
    detach: bool
    merged: bool = False
    notes: tuple[str, ...] = ()
    each: dict = dataclasses.field(default_factory=dict)

    def at(self, slot: Slot) -> 'Plan':
        """The plan with the words of one slot for all."""
        return dataclasses.replace(self, each={}, **self.each.get(f'{slot.stage}.{slot.index}', {}))

    def lenders(self, neighbours: tuple) -> tuple:
        """Those of a slot's neighbours that lend weights: in mode 'own' none, in mode 'share' the preceding one."""
        return neighbours[: {'own': 0, 'share': 1}.get(self.mode)]

    def to_dict(self) -> dict:
        """The plan as plain lists, numbers and strings (without the notes)."""
        plan = dataclasses.asdict(self)
        plan.pop('notes')
        if not self.each:
            plan.pop('each')
        return json.loads(json.dumps(plan))

    def __str__(self) -> str:
        total = sum(self.depths)
        lines = [
            f'RepL plan of {self.backbone}: {len(self.slots)} of {total} blocks replaced',
            f'  mode={self.mode!r}'
            + ('' if self.mode in PLAIN else f', operator={self.operator!r}')
            + ('' if self.mode in PLAIN or self.operator in WHOLE else f', ratio={self.ratio:g}')
            + (f', fusion={self.fusion}' if self.mode in ('fuse', 'random') else '')
            + (f', detach={self.detach}' if self.mode == 'fuse' else '')
            + (f', merged={self.merged}' if self.merged else ''),
        ]
        for stage, depth in enumerate(self.depths):
            replaced = {s.index for s in self.slots if s.stage == stage}
            picture = ' '.join('R' if i in replaced else 'o' for i in range(depth))
            lines.append(f'  stage {stage}: {picture}')
        lines.append('  (o kept, R replaced; neighbours as stage.index)')
        for slot in self.slots:
            names = [f'{s}.{i}' for s, i in filter(None, (slot.preceding, slot.succeeding))]
            source = ' and '.join(names) if len(names) == 2 else f'{names[0]} (nothing succeeds)'
            name = f'{slot.stage}.{slot.index}'
            own = ', '.join(f'{key}={value!r}' for key, value in self.each.get(name, {}).items())
            lines.append(f'  {name} between {source}' + (f': {own}' if own else ''))
        return '\n'.join(lines + [f'  note: {note}' for note in self.notes])


def differences(have: dict, want: dict) -> list[str]:
    """Readable differences between two plans as dicts; empty if weights of one fit the other.

    What changes no weight's meaning (``detach``, which neighbour a removed block had) is not compared. Nor is the name
    of the class, which a subclass changes: it is told beside other differences.
    """
    lines = [_difference('depths', have, want)] if have.get('depths') != want.get('depths') else []
    places = [{(s['stage'], s['index']) for s in plan.get('slots', [])} for plan in (have, want)]
    if have.get('each') or want.get('each'):
        for stage, index in sorted(places[0] & places[1]):
            name = f'{stage}.{index}'
            both = [{**plan, **(plan.get('each') or {}).get(name, {})} for plan in (have, want)]
            lines += [f'slot {name}: {line}' for line in _other_words(*both)]
    else:
        lines += _other_words(have, want)
    for text, only in (('checkpoint', places[0] - places[1]), ('model', places[1] - places[0])):
        if only:
            lines.append(f'slots only in the {text}: {sorted(only)}')
    if have.get('merged', False) != want.get('merged', False):
        lines.append(
            'merged: the checkpoint was merged, the model is not: build it with replace=dict(..., merged=True)'
            if have.get('merged')
            else 'merged: the model is merged, the checkpoint is not: merge it with tools/merge.py or repl_mm.merge()'
        )
    if lines and have.get('backbone') != want.get('backbone'):
        lines.insert(0, _difference('backbone', have, want))
    return lines


def _other_words(have: dict, want: dict) -> list[str]:
    """Differences between what stands in the slots of two plans."""
    keys = ['mode']
    if not {*PLAIN} & {have.get('mode'), want.get('mode')}:
        keys += ['operator'] + (['ratio'] if want.get('operator') not in WHOLE else [])
        if not want.get('merged') and have.get('mode') == want.get('mode') and want.get('mode') in ('fuse', 'random'):
            keys += ['fusion']
    return [_difference(key, have, want) for key in keys if have.get(key) != want.get(key)]


def _difference(key: str, have: dict, want: dict) -> str:
    return f'{key}: {have.get(key)!r} in the checkpoint, {want.get(key)!r} in the model'


def _integer(value, key: str, low: int, high: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        wanted = f'an integer of at least {low}' if high is None else f'an integer in {low}..{high}'
        raise PlanError(f'replace.{key}={value!r} is not valid: expected {wanted}')
    return value


def _choice(value, key: str, valid: Sequence[str]) -> str:
    if value not in valid:
        raise PlanError(f'replace.{key}={value!r} is not valid: expected one of {", ".join(map(repr, valid))}')
    return value


def _fusion(fusion, default: dict) -> dict:
    """Check ``replace.fusion`` and fill in what it leaves out."""
    fusion = default if fusion is None else fusion
    if isinstance(fusion, str):
        fusion = dict(type=fusion)
    if not isinstance(fusion, dict):
        raise PlanError(f'replace.fusion={fusion!r} is not valid: expected a dict such as {default}')
    fusion = dict(fusion)
    kind = _choice(fusion.pop('type', default['type']), 'fusion.type', TRANSFORMS)
    extra = {'mix': ('groups', default.get('groups', 1))}.get(kind)
    checked = dict(type=kind)
    if extra:
        value = fusion.pop(extra[0], extra[1])
        if value is not None or extra[1] is not None:
            value = _integer(value, f'fusion.{extra[0]}', 1)
        checked[extra[0]] = value
    if fusion:
        key, value = next(iter(fusion.items()))
        valid = f"'type' and {extra[0]!r}" if extra else "'type'"
        raise PlanError(f'replace.fusion.{key}={value!r} is not valid: type={kind!r} takes {valid} only')
    return checked


def default_slots(depth: int, every: int) -> range:
    """Indices replaced in a stage of ``depth`` blocks: 1, 1 + every, ... up to the last but one.

    The first block of a stage is never chosen (in many families it sets stride and width); the last one is left in
    place, so that both neighbours lie in the stage, unless the stage has two blocks only (ResNet-18).
    """
    return range(1, max(2, depth - 1) if depth > 1 else 0, every)


def make_plan(
    backbone: str,
    depths: Sequence[int],
    frozen: Iterable[int] = (),
    openers: Iterable[int] = (),
    branches: Iterable[int] = (),
    *,
    operators: Sequence[str],
    defaults: dict,
    every=None,
    stages=None,
    slots=None,
    mode='fuse',
    operator=None,
    ratio=None,
    fusion=None,
    detach=False,
    merged=False,
) -> Plan:
    """Make and check a plan.

    Args:
        backbone (str): Class name of the backbone, for messages and for comparison on load.
        depths (Sequence[int]): Number of blocks of each stage.
        frozen (Iterable[int]): Stages which are not trained; they get no slots. Defaults to none.
        openers (Iterable[int]): Stages whose first block cannot be replaced. Defaults to none.
        branches (Iterable[int]): Stages with which another branch of the network begins: neighbours are of one branch.
            Defaults to none.
        operators (Sequence[str]): The operators that the family has, the default first.
        defaults (dict): The family's ``every``, ``ratio`` and ``fusion`` where the user gives none.
        every (int | None): Replace every ``every``-th block: indices 1, 1 + every, ... of each stage, without the
            stage's last block (see :func:`default_slots`); if no stage has two blocks, of all stages in order.
            Defaults to None, the family's if ``slots`` is not given.
        stages (Sequence[int] | None): The stages in which ``every`` works. Defaults to None, all that are not frozen.
        slots (Sequence[tuple] | None): Explicit (stage, index) pairs instead of ``every``; a third item is a dict of
            words for this slot alone: mode, operator, ratio, fusion, detach. Defaults to None.
        mode (str): 'fuse' (RepL), or a control: 'remove' (nothing stands in the slot), 'patch' (a gain and a bias per
            channel), 'linear' (with them a linear map of the channels), 'share' (the preceding block's weights), 'own'
            (free weights) or 'random' (fixed random weights in the neighbours' place). Defaults to 'fuse'.
        operator (str | None): One of ``operators``. Defaults to None, the first of them.
        ratio (float | None): Hidden width of the light operators relative to the replaced block's. Defaults to None,
            the family's.
        fusion (dict | str | None): The learnable transformation. Defaults to None, the family's.
        detach (bool): No gradient to the neighbours through the computing layers. Defaults to False.
        merged (bool): Plain modules with weights of their own, as :func:`repl_mm.merge` leaves them. Defaults to
            False.

    Raises:
        PlanError: A value is not valid; the message names the key, the value and what would be valid.
    """
    depths = tuple(depths)
    frozen = set(frozen)
    if every is not None and slots is not None:
        raise PlanError(f'replace.every={every!r} and replace.slots={slots!r} exclude each other: give one of them')
    words = dict(mode=mode, operator=operator, ratio=ratio, fusion=fusion, detach=detach)
    checked = _check_words(words, operators, defaults)
    if not isinstance(merged, bool):
        raise PlanError(f'replace.merged={merged!r} is not valid: expected True or False')
    slots, single = _split_slots(slots)
    each = {}
    for name, own in single.items():
        full = _check_words({**words, **own}, operators, defaults)
        each[name] = {key: value for key, value in full.items() if value != checked[key]}
    openers, branches = set(openers), sorted(set(branches))
    notes = []

    if slots is None:
        every = _integer(defaults['every'] if every is None else every, 'every', 1)
        chosen = _check_stages(stages, depths, frozen)
        places = {(s, i) for s in chosen for i in default_slots(depths[s], every)}
        if not places:
            places = _across_stages(chosen, depths, openers, branches, every)
            if places:
                notes.append('no stage has two blocks: every counts those of all stages')
        if frozen and stages is None:
            names = ', '.join(map(str, sorted(frozen)))
            notes.append(f'frozen stages keep all their blocks: {names}')
        if not places:
            where = f'replace.stages={tuple(stages)!r}' if stages is not None else f'replace.every={every}'
            raise PlanError(
                f'{where} selects no block of {backbone} with {depths} blocks per stage'
                + (f' and frozen stages {sorted(frozen)}' if frozen else '')
                + ': expected stages that are trained and have at least 2 blocks, or replace.slots'
            )
    else:
        if stages is not None:
            raise PlanError(
                f'replace.stages={stages!r} works with replace.every only: replace.slots={slots!r} names its stages'
            )
        places = _check_slots(slots, depths, frozen, openers)
    return Plan(
        backbone=backbone,
        depths=depths,
        slots=_with_neighbours(places, depths, branches),
        **checked,
        merged=merged,
        notes=tuple(notes),
        each={name: own for name, own in each.items() if own},
    )


def _check_words(words: dict, operators: Sequence[str], defaults: dict) -> dict:
    """Check what stands in slots, and fill in what is left out."""
    _choice(words['mode'], 'mode', MODES)
    operator = _choice(operators[0] if words['operator'] is None else words['operator'], 'operator', operators)
    ratio = defaults['ratio'] if words['ratio'] is None else words['ratio']
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
        raise PlanError(f'replace.ratio={ratio!r} is not valid: expected a number above 0 and up to 1')
    if not isinstance(words['detach'], bool):
        raise PlanError(f'replace.detach={words["detach"]!r} is not valid: expected True or False')
    fusion = _fusion(words['fusion'], defaults['fusion'])
    return dict(words, operator=operator, ratio=float(ratio), fusion=fusion)


def _split_slots(slots) -> tuple:
    """Slots without the words that some of them have of their own, and these by 'stage.index'."""
    if isinstance(slots, str) or not isinstance(slots, Sequence):
        return slots, {}
    pairs, single = [], {}
    for slot in slots:
        if isinstance(slot, Sequence) and not isinstance(slot, str) and len(slot) == 3 and isinstance(slot[2], dict):
            for key, value in slot[2].items():
                if key not in WORDS:
                    raise PlanError(
                        f'replace.slots holds {tuple(slot)!r}: {key}={value!r} is not valid, expected one of '
                        f'{", ".join(WORDS)}'
                    )
            single[f'{slot[0]}.{slot[1]}'] = dict(slot[2])
            slot = slot[:2]
        pairs.append(slot)
    return pairs, single


def _across_stages(chosen, depths, openers, branches, every) -> set[tuple[int, int]]:
    """Slots where every stage has one block: chosen among the blocks of a branch as else among those of a stage."""
    chains = {}
    for stage in chosen:
        if stage not in openers and depths[stage]:
            chains.setdefault(_branch(stage, branches), []).append((stage, 0))
    return {chain[i] for chain in chains.values() for i in default_slots(len(chain), every)}


def _branch(stage: int, branches: Sequence[int]) -> int:
    """Number of the branch that a stage belongs to."""
    return sum(first <= stage for first in branches)


def _check_stages(stages, depths, frozen) -> list[int]:
    if stages is None:
        return [s for s in range(len(depths)) if s not in frozen]
    if isinstance(stages, str) or not isinstance(stages, Sequence) or not stages:
        raise PlanError(
            f'replace.stages={stages!r} is not valid: expected a tuple of stages in 0..{len(depths) - 1}, e.g. (1, 2)'
        )
    for stage in stages:
        _integer(stage, 'stages', 0, len(depths) - 1)
        if stage in frozen:
            raise PlanError(
                f'replace.stages={tuple(stages)!r}: stage {stage} is frozen (frozen_stages), a computing layer there '
                f'would never be trained; valid are {[s for s in range(len(depths)) if s not in frozen]}'
            )
    return sorted(set(stages))


def _check_slots(slots, depths, frozen, openers) -> set[tuple[int, int]]:
    if isinstance(slots, str) or not isinstance(slots, Sequence) or not slots:
        raise PlanError(
            f'replace.slots={slots!r} is not valid: expected a list of (stage, index) pairs, e.g. [(2, 1), (2, 3)]'
        )
    places = set()
    for slot in slots:
        if isinstance(slot, str) or not isinstance(slot, Sequence) or len(slot) != 2:
            raise PlanError(
                f'replace.slots holds {slot!r}: expected a (stage, index) pair, counted from 0, and a dict of words'
            )
        stage, index = slot
        _integer(stage, 'slots[...][0]', 0, len(depths) - 1)
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < depths[stage]:
            raise PlanError(
                f'replace.slots holds {tuple(slot)!r}: stage {stage} has {depths[stage]} blocks, '
                f'expected an index in 0..{depths[stage] - 1}'
            )
        if index == 0 and stage in openers:
            raise PlanError(
                f'replace.slots holds {tuple(slot)!r}: the first block of a stage sets its stride and width and '
                f'cannot be replaced; valid indices of stage {stage} are '
                + (f'1..{depths[stage] - 1}' if depths[stage] > 1 else 'none')
            )
        if stage in frozen:
            raise PlanError(
                f'replace.slots holds {tuple(slot)!r}: stage {stage} is frozen (frozen_stages), a computing layer '
                'there would never be trained'
            )
        if (stage, index) in places:
            raise PlanError(f'replace.slots holds {tuple(slot)!r} twice: expected every slot once')
        places.add((stage, index))
    return places


def _with_neighbours(places: set[tuple[int, int]], depths: Sequence[int], branches: Sequence[int]) -> tuple[Slot, ...]:
    """Add to every place the nearest kept blocks of its branch, across stage borders where needed."""
    chain = [(s, i) for s, depth in enumerate(depths) for i in range(depth)]
    slots = []
    for place in sorted(places):
        branch = _branch(place[0], branches)
        kept = [other for other in chain if other not in places and _branch(other[0], branches) == branch]
        before = [other for other in kept if other < place]
        after = [other for other in kept if other > place]
        if not before:
            raise PlanError(
                f'replace.slots holds {place!r}, but no kept block precedes it'
                + (' in its branch' if branches else '')
                + ': keep at least one'
            )
        slots.append(Slot(*place, preceding=before[-1], succeeding=after[0] if after else None))
    return tuple(slots)
