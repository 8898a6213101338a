"""The plan: which blocks are replaced, between which neighbours, and how a plan shows itself."""

import dataclasses
import functools
import json

import pytest

import repl_mm
from repl_mm import PlanError
from repl_mm.families import resnet
from repl_mm.plan import KEYS, differences

make_plan = functools.partial(
    repl_mm.make_plan, openers=range(4), operators=resnet.OPERATORS, defaults=resnet.DEFAULTS
)

DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 'regnet': (1, 2, 7, 12)}


def places(plan):
    return [(s.stage, s.index) for s in plan.slots]


@pytest.mark.parametrize(
    ('depth', 'every', 'indices'),
    [
        (18, None, [[1], [1], [1], [1]]),
        (50, None, [[1], [1], [1, 3], [1]]),
        (101, None, [[1], [1], [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21], [1]]),
        (152, None, [[1], [1, 3, 5], [*range(1, 34, 2)], [1]]),
        ('regnet', None, [[], [1], [1, 3, 5], [1, 3, 5, 7, 9]]),
        (18, 1, [[1], [1], [1], [1]]),
        (50, 1, [[1], [1, 2], [1, 2, 3, 4], [1]]),
        (50, 3, [[1], [1], [1, 4], [1]]),
        (101, 3, [[1], [1], [1, 4, 7, 10, 13, 16, 19], [1]]),
        (50, 100, [[1], [1], [1], [1]]),
    ],
)
def test_slots_of_every(depth, every, indices):
    plan = make_plan('ResNet', DEPTHS[depth], every=every)
    assert places(plan) == [(stage, index) for stage, chosen in enumerate(indices) for index in chosen]


def test_defaults():
    plan = make_plan('ResNet', DEPTHS[50])
    assert plan == make_plan('ResNet', list(DEPTHS[50]), every=2, fusion=dict(type='mix', groups=None), ratio=0.5)
    assert (plan.mode, plan.detach, plan.notes) == ('fuse', False, ())
    assert {field.name for field in dataclasses.fields(plan)} >= set(KEYS) - {'every', 'stages'}


def test_stages():
    plan = make_plan('ResNet', DEPTHS[50], stages=[3, 2, 2])
    assert places(plan) == [(2, 1), (2, 3), (3, 1)]
    assert places(make_plan('ResNet', DEPTHS[50], stages=(1,), every=1)) == [(1, 1), (1, 2)]


def test_frozen_stages_keep_their_blocks_and_the_plan_says_so():
    plan = make_plan('ResNet', DEPTHS[50], frozen=range(2))
    assert places(plan) == [(2, 1), (2, 3), (3, 1)]
    assert plan.notes == ('frozen stages keep all their blocks: 0, 1',)
    assert plan.notes[0] in str(plan)
    assert not make_plan('ResNet', DEPTHS[50], frozen=range(2), stages=(2,)).notes


@pytest.mark.parametrize(
    ('slots', 'neighbours'),
    [
        ([(1, 1)], [((1, 0), (1, 2))]),  # inside a stage
        ([(1, 3)], [((1, 2), (2, 0))]),  # at a stage's end: across the border
        ([(3, 2)], [((3, 1), None)]),  # at the backbone's end
        ([(2, 1), (2, 2), (2, 3)], [((2, 0), (2, 4))] * 3),  # a run: the nearest kept blocks
        ([(2, 3), (2, 4), (2, 5)], [((2, 2), (3, 0))] * 3),
        ([(3, 1), (3, 2)], [((3, 0), None)] * 2),
        ([(0, 1), (0, 2)], [((0, 0), (1, 0))] * 2),
        ([[3, 1], [2, 4]], [((2, 3), (2, 5)), ((3, 0), (3, 2))]),  # lists, unsorted: as a config file has them
    ],
)
def test_neighbours(slots, neighbours):
    plan = make_plan('ResNet', DEPTHS[50], slots=slots)
    assert places(plan) == sorted(map(tuple, slots))
    assert [(s.preceding, s.succeeding) for s in plan.slots] == neighbours


def test_resnet18_neighbours_lie_across_the_borders():
    plan = make_plan('ResNet', DEPTHS[18])
    assert [(s.preceding, s.succeeding) for s in plan.slots] == [
        ((0, 0), (1, 0)),
        ((1, 0), (2, 0)),
        ((2, 0), (3, 0)),
        ((3, 0), None),
    ]


def test_openers():
    """A family whose stages do not open with a special block may say so."""
    plan = make_plan('ViT', (6,), slots=[(0, 2)], openers=())
    assert places(plan) == [(0, 2)]
    assert places(make_plan('Swin', (2, 6), slots=[(1, 0)], openers=(0,))) == [(1, 0)]
    with pytest.raises(PlanError, match='no kept block precedes it'):
        make_plan('ViT', (6,), slots=[(0, 0)], openers=())


def test_neighbours_are_of_one_branch():
    plan = make_plan('Net', (2, 2, 2, 2), slots=[(0, 1), (1, 1), (2, 1), (3, 1)], branches=(2, 3))
    assert [(slot.preceding, slot.succeeding) for slot in plan.slots] == [
        ((0, 0), (1, 0)),
        ((1, 0), None),
        ((2, 0), None),
        ((3, 0), None),
    ]
    with pytest.raises(PlanError, match='no kept block precedes it in its branch'):
        make_plan('Net', (2, 2), slots=[(1, 0)], openers=(), branches=(1,))


@pytest.mark.parametrize(
    ('depths', 'settings', 'expected'),
    [
        ((1, 1, 1), dict(), [(1, 0)]),
        ((1, 1, 1, 1, 1), dict(), [(1, 0), (3, 0)]),
        ((1, 1, 1, 1, 1), dict(every=3), [(1, 0)]),
        ((1, 1, 1, 1, 1), dict(stages=(1, 2, 3)), [(2, 0)]),
        ((1, 1, 1, 1, 1), dict(frozen=(0,)), [(2, 0)]),
        ((1, 1, 1, 1, 1, 1), dict(branches=(3,)), [(1, 0), (4, 0)]),
        ((1, 1, 2), dict(), [(2, 1)]),  # a stage with two blocks: as ever
    ],
)
def test_stages_of_one_block_are_counted_together(depths, settings, expected):
    plan = make_plan('Net', depths, **dict(openers=()) | settings)
    assert places(plan) == expected
    assert any('no stage has two blocks' in note for note in plan.notes) == (2 not in depths)
    if 2 not in depths:
        with pytest.raises(PlanError, match='selects no block'):
            make_plan('Net', depths, openers=range(9))


def test_to_dict_survives_json():
    plan = make_plan('ResNet', DEPTHS[50], frozen=[0], slots=[(3, 2)], fusion=dict(type='mix', groups=8), ratio=1)
    saved = plan.to_dict()
    assert json.loads(json.dumps(saved)) == saved
    assert saved == dict(
        backbone='ResNet',
        depths=[3, 4, 6, 3],
        slots=[dict(stage=3, index=2, preceding=[3, 1], succeeding=None)],
        mode='fuse',
        operator=plan.operator,
        ratio=1.0,
        fusion=dict(type='mix', groups=8),
        detach=False,
        merged=False,
    )


def test_str():
    slots = [(2, 1), (2, 2), (3, 2)]
    text = str(make_plan('ResNet', DEPTHS[50], slots=slots, operator='conv', ratio=0.5, fusion='scalar'))
    assert text.splitlines() == [
        'RepL plan of ResNet: 3 of 16 blocks replaced',
        "  mode='fuse', operator='conv', fusion={'type': 'scalar'}, detach=False",
        '  stage 0: o o o',
        '  stage 1: o o o o',
        '  stage 2: o R R o o o',
        '  stage 3: o o R',
        '  (o kept, R replaced; neighbours as stage.index)',
        '  2.1 between 2.0 and 2.3',
        '  2.2 between 2.0 and 2.3',
        '  3.2 between 3.1 (nothing succeeds)',
    ]
    removed = str(make_plan('ResNet', DEPTHS[50], mode='remove')).splitlines()[:2]
    assert removed == ['RepL plan of ResNet: 5 of 16 blocks replaced', "  mode='remove'"]


def test_equal_plans_do_not_differ():
    one, other = (make_plan('ResNet', DEPTHS[50]).to_dict() for _ in range(2))
    assert differences(one, other) == []
    assert differences(one, make_plan('ResNet', DEPTHS[50], detach=True).to_dict()) == []
    full = dict(operator='full', ratio=0.25)
    assert (
        differences(
            make_plan('R', DEPTHS[50], **full).to_dict(), make_plan('R', DEPTHS[50], operator='full').to_dict()
        )
        == []
    )


@pytest.mark.parametrize(
    ('have', 'want', 'lines'),
    [
        (dict(mode='own'), dict(), ["mode: 'own' in the checkpoint, 'fuse' in the model"]),
        (dict(mode='remove'), dict(operator='full'), ["mode: 'remove' in the checkpoint, 'fuse' in the model"]),
        (
            dict(operator='separable'),
            dict(operator='conv'),
            ["operator: 'separable' in the checkpoint, 'conv' in the model"],
        ),
        (dict(ratio=0.25), dict(ratio=0.5), ['ratio: 0.25 in the checkpoint, 0.5 in the model']),
        (
            dict(fusion='scalar'),
            dict(fusion='channel'),
            ["fusion: {'type': 'scalar'} in the checkpoint, {'type': 'channel'} in the model"],
        ),
        (dict(mode='own', fusion='scalar'), dict(mode='own'), []),  # own weights know no fusion
        (
            dict(slots=[(2, 1), (3, 1)]),
            dict(slots=[(2, 1), (2, 3)]),
            ['slots only in the checkpoint: [(3, 1)]', 'slots only in the model: [(2, 3)]'],
        ),
    ],
)
def test_differences(have, want, lines):
    have, want = (make_plan('ResNet', DEPTHS[50], **settings).to_dict() for settings in (have, want))
    assert differences(have, want) == lines


def test_differences_of_backbone_and_depth():
    have, want = make_plan('ResNet', DEPTHS[50]), make_plan('ResNeXt', DEPTHS[101])
    lines = differences(have.to_dict(), want.to_dict())
    assert lines[0] == "backbone: 'ResNet' in the checkpoint, 'ResNeXt' in the model"
    assert lines[1] == 'depths: [3, 4, 6, 3] in the checkpoint, [3, 4, 23, 3] in the model'
    assert lines[2].startswith('slots only in the model: [(2, 5), (2, 7)')


def test_slots_may_have_words_of_their_own():
    words = dict(operators=('separable', 'half'), defaults=dict(every=2, ratio=0.5, fusion=dict(type='mix', groups=2)))
    slots = [(1, 1), (1, 2, dict(mode='linear')), (2, 1, dict(operator='half', mode='own'))]
    plan = make_plan('Net', (2, 4, 3), slots=slots, **words)
    assert [(plan.at(s).mode, plan.at(s).operator) for s in plan.slots] == [
        ('fuse', 'separable'),
        ('linear', 'separable'),
        ('own', 'half'),
    ]
    assert "1.2 between 1.0 and 1.3: mode='linear'" in str(plan)
    same = make_plan('Net', (2, 4, 3), slots=[(1, 1, dict(mode='fuse')), *slots[1:]], **words)
    assert differences(plan.to_dict(), same.to_dict()) == []
    other = make_plan('Net', (2, 4, 3), slots=[(1, 1), (1, 2), (2, 1, dict(operator='half', mode='own'))], **words)
    assert differences(plan.to_dict(), other.to_dict()) == [
        "slot 1.2: mode: 'linear' in the checkpoint, 'fuse' in the model"
    ]
    for own, message in ((dict(size=1), r'size=1 is not valid, expected one of mode, '), (dict(mode='x'), "mode='x'")):
        with pytest.raises(PlanError, match=message):
            make_plan('Net', (2, 4, 3), slots=[(1, 1, own)], **words)
