"""Choosing: which blocks of a trained backbone are replaced, by measurement instead of by rule.

The *influence* of a block is how far the network's outputs move when this block alone is left out, or when its fitted
computing layer stands there: squared distance in units of the outputs' variance, on pictures without labels. Its
*saving* is counted exactly. Blocks are then taken one by one, each time the one that moves the outputs least for what
it saves, and all are measured again after every choice, because blocks depend on one another. At last each chosen
block is tried against the blocks beside it.
"""

import copy
import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager

import torch
from rich.progress import track
from torch import Tensor, nn

from .calibration import calibrate
from .computing_layers import ComputingLayer
from .conversion import fit_block, frozen, tensors
from .cost import Cost, measure, no_random_change
from .families import branches_of, find_family
from .heads import Given
from .plan import WORDS, PlanError, Slot, make_plan
from .surgery import apply_repl, check_keys, plan_of
from .tables import markdown

Place = tuple[int, int]  # (stage, index), as in ``replace.slots``
Option = tuple  # a place, with the name of what stands there where there is a choice: (stage, index, kind)

PLACES = ('every', 'stages', 'slots')  # keys of ``replace`` that say where; all others say what
BORROWING = ('fuse', 'share', 'random')  # modes whose layers depend on their neighbours
PIXELS = 2**21  # of the images that go through a network at once
CACHE = 2**30  # bytes of the stock network's outputs that are kept
LR = 0.02  # of the fits, as tools/convert.py has it
FIT_BATCH = 48
SLACK = 0.01  # by which the sum of single savings may miss that of a set


def memory(cost: Cost) -> int:
    """Bytes that a training step needs: parameters, gradients, the optimizer's state, activations; in fp32."""
    return 4 * (cost.total_params + cost.params) + cost.optimizer_bytes + cost.activation_bytes


# what a budget may limit: name -> the figure of a Cost
MEASURES: dict[str, Callable[[Cost], int]] = dict(
    flops=lambda cost: cost.flops,
    activations=lambda cost: cost.activation_bytes,
    params=lambda cost: cost.params,
    memory=memory,
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A block that can be replaced.

    Attributes:
        place (tuple[int, int]): Its (stage, index).
        influence (float): Distance of the outputs with this block alone replaced; 0 is none, 1 is their variance.
        savings (dict[str, float]): What replacing it alone saves, as shares of the stock network's, by the names of
            :data:`MEASURES`.
        kind (str): What would stand there, where there is a choice. Defaults to ''.
    """

    place: Place
    influence: float
    savings: dict[str, float]
    kind: str = ''

    @property
    def option(self) -> Option:
        """tuple: Its place, and its kind where there is a choice."""
        return (*self.place, self.kind) if self.kind else self.place


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of the choice.

    Attributes:
        slots (tuple[tuple]): The blocks chosen after it, as (stage, index), or (stage, index, kind).
        distance (float): Of the outputs then.
        left (float): What is left of the limited cost then, as a share of the stock network's.
    """

    slots: tuple[Option, ...]
    distance: float
    left: float


@dataclasses.dataclass(frozen=True)
class Choice:
    """Blocks chosen under a budget. ``str(choice)`` is a table for people, :meth:`to_dict` is for files.

    Attributes:
        backbone (str): Class name.
        measure (str): What the budget limits, one of :data:`MEASURES`.
        limit (float): How much of it may be left, as a share of the stock network's.
        fit (bool): Whether fitted computing layers were measured; else blocks left out.
        words (dict): The other words of ``replace``.
        blocks (tuple[Block]): All blocks that can be replaced.
        steps (tuple[Step]): How the choice grew; the last one is the choice.
        kinds (dict[str, dict]): What each slot could choose among: words of ``replace`` by name. Defaults to none.
    """

    backbone: str
    measure: str
    limit: float
    fit: bool
    words: dict
    blocks: tuple[Block, ...]
    steps: tuple[Step, ...]
    kinds: dict = dataclasses.field(default_factory=dict)

    @property
    def slots(self) -> tuple[Option, ...]:
        """tuple[tuple]: The chosen blocks, as (stage, index), or (stage, index, kind) where there was a choice."""
        return self.steps[-1].slots

    @property
    def replace(self) -> dict:
        """dict: What to write into the backbone's config as ``replace``."""
        return dict(slots=[slot_of(option, self.kinds) for option in self.slots], **self.words)

    @property
    def share(self) -> str:
        """str: What RepL's share in the result is: the slots whose layers borrow from their neighbours."""
        modes = [
            dict(self.words, **(self.kinds[option[2]] if self.kinds else {})).get('mode', 'fuse')
            for option in self.slots
        ]
        fused = modes.count('fuse')
        others = ', '.join(f'{modes.count(mode)} {mode}' for mode in dict.fromkeys(modes) if mode != 'fuse')
        return f'RepL (fuse) stands in {fused} of {len(modes)} slots' + (f'; {others}' if others else '')

    def to_dict(self) -> dict:
        """The choice as plain lists, numbers and strings."""
        slots = [list(slot_of(option, self.kinds)) for option in self.slots]
        return dict(dataclasses.asdict(self), slots=slots, share=self.share)

    def __str__(self) -> str:
        shown = [name for name in MEASURES if name in self.blocks[0].savings]
        rows = [
            [
                name_of(block.option),
                'x' if block.option in self.slots else '',
                f'{block.influence:.4f}',
                *(f'{block.savings[name]:.1%}' for name in shown),
            ]
            for block in sorted(self.blocks, key=lambda block: block.influence)
        ]
        what = 'its fitted computing layer in its place' if self.fit else 'this block alone left out'
        lines = [
            f'Blocks of {self.backbone}, by influence ({what}); savings relative to the stock network:',
            markdown(['block', 'chosen', 'influence', *(f'{name} saved' for name in shown)], rows),
        ]
        for number, step in enumerate(self.steps, 1):
            places = ' '.join(map(name_of, step.slots))
            lines.append(f'step {number}: distance {step.distance:.4f}, {self.measure} {step.left:.3f}: {places}')
        if self.kinds:
            lines.append(f'{self.share}.')
        return '\n'.join(lines)


def name_of(option: Option) -> str:
    """A place as people write it: stage.index, and what stands there where there is a choice."""
    return f'{option[0]}.{option[1]}' + (f' {option[2]}' if len(option) > 2 else '')


def slot_of(option: Option, kinds: dict[str, dict]) -> tuple:
    """An option as an item of ``replace.slots``."""
    return (*option[:2], dict(kinds[option[2]])) if len(option) > 2 else tuple(option)


# ---- what can be replaced, and what it saves ------------------------------------------------------------------------


def replaceable(backbone: nn.Module) -> list[Place]:
    """Return the places of a stock backbone's blocks that can be replaced, in the order of the chain.

    All but those in frozen stages, those that set a stage's stride and width, and the first block of each branch,
    which nothing precedes: any set of them is one that a plan takes.

    Raises:
        PlanError: There is none; the backbone is not supported, or was changed already.
    """
    if plan_of(backbone) is not None:
        raise PlanError(f'RepL was applied to this {type(backbone).__name__} before: give the stock backbone')
    family = find_family(backbone)
    stages, shut, openers = family.stages(backbone), set(family.frozen(backbone)), set(family.openers(backbone))
    chain = [(s, i) for s, stage in enumerate(stages) for i in range(len(stage))]
    firsts = {next((place for place in chain if place[0] >= s), None) for s in (0, *branches_of(family, backbone))}
    places = [(s, i) for s, i in chain if (s, i) not in firsts and s not in shut and (i or s not in openers)]
    if not places:
        frozen_ones = f' and frozen stages {sorted(shut)} (frozen_stages)' if shut else ''
        raise PlanError(
            f'no block of {type(backbone).__name__} with {tuple(map(len, stages))} blocks per stage{frozen_ones} can '
            'be replaced: expected stages that are trained and have at least 2 blocks'
        )
    return places


class Savings:
    """What sets of replaced blocks cost, each counted once.

    Args:
        backbone (nn.Module): The stock backbone.
        words (dict): Words of ``replace`` but for the slots.
        count (Callable | None): Gives the :class:`repl_mm.cost.Cost` of a backbone. Defaults to None, that of the
            backbone alone on 2 images of 800x1344.
        kinds (dict | None): Words of single slots by name. Defaults to None.
    """

    def __init__(self, backbone: nn.Module, words: dict, count: Callable | None = None, kinds: dict | None = None):
        self.backbone = backbone
        self.kinds = kinds or {}
        self.words = words
        self.count = count or measure
        self.known = {}

    def cost(self, places: Iterable[Option] = ()) -> Cost:
        """The cost with these blocks replaced; of the stock network without any."""
        places = frozenset(places)
        if places not in self.known:
            with no_random_change():
                backbone = copy.deepcopy(self.backbone)
                if places:
                    apply_repl(backbone, slots=[slot_of(o, self.kinds) for o in sorted(places)], **self.words)
            self.known[places] = self.count(backbone)
        return self.known[places]

    def left(self, places: Iterable[Option], name: str) -> float:
        """What is left of a cost with these blocks replaced, as a share of the stock network's."""
        figure = MEASURES[name]
        stock = figure(self.cost())
        return figure(self.cost(places)) / stock if stock else 1.0  # of frozen parameters there is nothing to save

    def of(self, place: Option) -> dict[str, float]:
        """What replacing one block alone saves of each cost, as shares."""
        return {name: 1 - self.left([place], name) for name in MEASURES}


# ---- the choice -----------------------------------------------------------------------------------------------------


def choose(
    backbone: nn.Module,
    images: Tensor,
    limit: float,
    measure: str = 'flops',
    fit: bool = False,
    head: Callable | None = None,
    count: Callable[[nn.Module], Cost] | None = None,
    block_steps: int = 150,
    kinds: dict[str, dict] | None = None,
    **replace,
) -> Choice:
    """Choose the blocks whose replacement moves a trained network least, under a budget.

    Args:
        backbone (nn.Module): A stock backbone with trained weights; it stays as it is.
        images (Tensor): Normalized images ``(N, 3, H, W)`` where the backbone is; no labels are needed. With ``fit``
            one half is fitted on and the other one measured.
        limit (float): How much may be left of what ``measure`` names, as a share of the stock network's, above 0 and
            below 1.
        measure (str): 'flops' (of a training step), 'activations' (bytes), 'params' (trainable ones) or 'memory' (all
            that training needs). Defaults to 'flops'.
        fit (bool): Measure with each block's computing layer in its place, fitted to the block; it is fitted again
            where its neighbours change. Defaults to False, the block left out.
        head (Callable | None): What the model makes of the backbone's outputs, a classifier its logits, or, where what
            is measured will be used as it is, the roots of its probabilities; then these count. Defaults to None, the
            backbone's outputs count.
        count (Callable | None): As in :class:`Savings`. Defaults to None, the backbone alone at 2x3x800x1344.
        block_steps (int): Steps of each fit. Defaults to 150.
        kinds (dict[str, dict] | None): What each slot may choose among, each at its price: words of ``replace`` (mode,
            operator, ratio, fusion, detach) by a name of yours, as ``dict(patch=dict(mode='patch'), repl={})``; with
            ``fit`` only. Defaults to None, no choice.
        **replace: Words of ``replace`` but for ``slots``, ``every`` and ``stages``: what will stand in the slots.

    Returns:
        Choice: The chosen blocks, and how they were found.

    Raises:
        PlanError: The budget is not valid or out of reach, ``kinds`` are not valid, no block can be replaced, or
            outputs are not finite.
        ValueError: There are too few images.

    Example:
        >>> choice = repl_mm.choose(backbone, images, 0.8, mode='own')
        >>> repl_mm.apply_repl(backbone, **choice.replace)
    """
    if measure not in MEASURES:
        raise PlanError(f'measure={measure!r} is not valid: expected one of {", ".join(map(repr, MEASURES))}')
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < 1:
        raise PlanError(f'{measure}={limit!r} is not valid: expected a share above 0 and below 1')
    if len(images) < 2:
        raise ValueError(f'images: {len(images)} are too few, expected at least 2')
    words = {key: value for key, value in check_keys(replace).items() if key not in PLACES}
    kinds = _check_kinds(kinds)
    if kinds and not fit:
        raise PlanError(f'kinds={list(kinds)!r} without fit=True: left out, a block is the same whatever stands there')
    places = replaceable(backbone)
    if kinds:
        places = [(*place, kind) for place in places for kind in kinds]
    savings = Savings(backbone, words, count, kinds)
    with closing(track(places, 'counting what each block saves')) as counted:
        single = {place: savings.of(place) for place in counted}
    useful = sorted((p for p in places if single[p][measure] > 0), key=lambda place: single[place][measure])
    most = {place[:2]: place for place in useful}  # what saves most in each place
    least = savings.left(most.values(), measure)
    if least > limit:
        share = math.ceil(1000 * least) / 1000
        size = f' (--memory {math.ceil(least * memory(savings.cost()) / 1e6)}MB)' if measure == 'memory' else ''
        raise PlanError(
            f'{measure}={limit:g} is out of reach: with all {len(most)} blocks replaced that save any, {share:.3f} '
            f'are left; expected a share of at least {share:.3f}{size}'
        )
    trials = _Trials(backbone, images, words, fit, head, block_steps, kinds)
    steps, first = [], {}
    chosen, distance = frozenset(), 0.0
    while savings.left(chosen, measure) > limit:
        taken = {place[:2]: place for place in chosen}
        free = [place for place in (useful if chosen else places) if place[:2] not in taken]
        # where all are taken, each may be exchanged for what saves more: at last that is `most`, which is enough
        more = free or [p for n, p in enumerate(useful) if n > useful.index(taken[p[:2]])]
        sets = {place: chosen - {taken.get(place[:2])} | {place} for place in more}
        title = f'choosing block {len(chosen) + 1}' if free else 'choosing what saves more'
        found = trials.distances(chosen, list(sets.values()), title)
        moved = dict(zip(sets, found, strict=True))
        first = first or moved
        missing = savings.left(chosen, measure) - limit

        def price(place, taken=taken, moved=moved, missing=missing, distance=distance):
            # more than what is missing is worth nothing
            old = taken.get(place[:2])
            saved = single[place][measure] - (single[old][measure] if old else 0)
            return max(moved[place] - distance, 0) / max(min(saved, missing), 1e-12), -saved

        best = min((place for place in sets if place in useful), key=price)
        chosen, distance = sets[best], moved[best]
        steps.append(Step(tuple(sorted(chosen)), distance, savings.left(chosen, measure)))
    steps += _exchanged(trials, savings, single, measure, limit, steps[-1])
    blocks = tuple(Block(place[:2], first[place], single[place], *place[2:]) for place in places)
    return Choice(type(backbone).__name__, measure, float(limit), fit, words, blocks, tuple(steps), kinds)


def _check_kinds(kinds) -> dict[str, dict]:
    """Check the names of kinds and of their words; the plan checks the words' values."""
    if kinds is None:
        return {}
    if not isinstance(kinds, dict):
        raise PlanError(
            f"kinds={kinds!r} is not valid: expected a dict of dicts, such as dict(patch=dict(mode='patch'))"
        )
    for name, words in kinds.items():
        if not isinstance(name, str) or not name:
            raise PlanError(f'kinds has the name {name!r}: expected a string that is not empty')
        if not isinstance(words, dict):
            raise PlanError(
                f'kinds[{name!r}]={words!r} is not valid: expected a dict with keys among {", ".join(WORDS)}'
            )
        for key in words:
            if key not in WORDS:
                raise PlanError(
                    f'kinds[{name!r}] holds {key}={words[key]!r}: unknown key; expected one of {", ".join(WORDS)}'
                )
    return kinds


def influences(backbone: nn.Module, images: Tensor, head: Callable | None = None) -> dict[Place, float]:
    """The influence of each block that can be replaced: how far the outputs move when it alone is left out.

    Args:
        backbone (nn.Module): A stock backbone with trained weights; it stays as it is.
        images (Tensor): Normalized images ``(N, 3, H, W)`` where the backbone is.
        head (Callable | None): As in :func:`choose`. Defaults to None, the backbone's outputs count.

    Returns:
        dict[tuple[int, int], float]: Distances as in :class:`Block`, by (stage, index).

    Raises:
        PlanError: No block can be replaced, or outputs are not finite.
    """
    places = replaceable(backbone)
    trials = _Trials(backbone, images, {}, False, head, 0)
    single = [frozenset([place]) for place in places]
    return dict(zip(places, trials.distances(frozenset(), single, 'leaving out each block'), strict=True))


def _exchanged(trials, savings, single, measure, limit, step: Step) -> Iterator[Step]:
    """Steps that leave out a chosen block, or take one beside it or another kind, while the outputs come nearer."""
    chain = list(dict.fromkeys(option[:2] for option in single))
    while True:
        chosen = frozenset(step.slots)
        moves = set()
        for old in chosen:
            at, others = chain.index(old[:2]), {option[:2] for option in chosen - {old}}
            beside = {*chain[max(0, at - 1) : at + 2]} - others
            moves |= {chosen - {old}, *(chosen - {old} | {new} for new in single if new[:2] in beside)} - {chosen}
        # by the sum of what single blocks save, which is nearly exact; counted is what comes out best
        within = [m for m in moves if m and 1 - sum(single[place][measure] for place in m) <= limit + SLACK]
        within.sort(key=sorted)
        found = trials.distances(chosen, within, 'trying the blocks beside them')
        better = sorted((d, sorted(m)) for d, m in zip(found, within, strict=True) if d < step.distance)
        best = next(((d, m) for d, m in better if savings.left(m, measure) <= limit), None)
        if best is None:
            return
        step = Step(tuple(best[1]), best[0], savings.left(best[1], measure))
        yield step


# ---- measuring ------------------------------------------------------------------------------------------------------


class _Trials:
    """A copy of a trained backbone, in whose places other things are put for a moment."""

    def __init__(self, backbone, images, words, fit, head, block_steps, kinds=None):
        self.backbone = backbone
        self.kinds = kinds or {}
        self.words = words
        self.block_steps = block_steps
        self.fit = fit
        self.head = head
        self.net = copy.deepcopy(backbone).requires_grad_(False)
        self.net.eval()  # that of some backbones returns None
        self.family = find_family(self.net)
        self.stages = self.family.stages(self.net)
        self.chain = [(s, i) for s, stage in enumerate(self.stages) for i in range(len(stage))]
        self.layers = {}
        batch = max(1, PIXELS // images[0, 0].numel())
        half = len(images) // 2 if fit else 0
        self.fitted_on, self.batches = images[:half].split(batch), images[half:].split(batch)
        self.targets, self.kept = {}, 0

    @torch.no_grad()
    def distances(self, base: frozenset, sets: Sequence[frozenset], title: str) -> list[float]:
        """How far the outputs are from the stock network's with each of several sets of blocks replaced.

        Args:
            base (frozenset): What the sets have in common: up to the first difference nothing is computed twice.
            sets (Sequence[frozenset]): The sets.
            title (str): What the progress is called.
        """
        if not sets:
            return []
        standing = [self.standing(places) for places in (base, *sets)]
        stock, *sums = [_Sums() for _ in standing]
        with closing(track([(x, n) for x in range(len(self.batches)) for n in range(len(sets))], title)) as turns:
            for number, index in turns:
                x = self.batches[number]
                if not index:
                    given = {}
                    outputs = self.run(x, standing[0], record=given)
                    targets = self.target(number, None if base else outputs)
                    stock.add(targets)
                ready = self.ready(given, standing[0], standing[index + 1])
                outputs = self.run(x, {**standing[index + 1], **ready})
                sums[index].add([a - b for a, b in zip(outputs, targets, strict=True)])
        found = [one.relative_to(stock) for one in sums]
        if not all(map(math.isfinite, found)):
            raise PlanError(
                f'outputs of this {type(self.net).__name__} are not finite: expected trained weights, and images that '
                'are normalized as for them'
            )
        return found

    def target(self, number: int, outputs: list[Tensor] | None) -> list[Tensor]:
        """The stock network's outputs for a batch, which are kept as long as there is room."""
        if number not in self.targets:
            outputs = self.run(self.batches[number], {}) if outputs is None else outputs
            self.kept += sum(output.nbytes for output in outputs)
            if self.kept > CACHE:
                return outputs
            self.targets[number] = outputs
        return self.targets[number]

    def ready(self, given: dict, one: dict, other: dict) -> dict[Place, nn.Module]:
        """What stands in the places that run before two sets of modules differ, and gives what it gave in the first.

        Places run in the order of ``given``; in networks of several branches that is not the order of the chain.
        """
        order = list(given)
        first = next((n for n, place in enumerate(order) if one.get(place) is not other.get(place)), 0)
        return {place: _Again(given[place]) for place in order[:first]}

    def run(self, x: Tensor, modules: dict[Place, nn.Module], record: dict | None = None) -> list[Tensor]:
        """The outputs that count, with modules in some places; ``record`` takes what each place gives, as they run."""
        handles = []
        with self.put(modules):
            for place in self.chain if record is not None else ():
                block = self.stages[place[0]][place[1]]
                handles.append(block.register_forward_hook(_keep(record, place)))
            try:
                outputs = self.net(x)
                return tensors(outputs if self.head is None else self.head(outputs))
            finally:
                for handle in handles:
                    handle.remove()

    @contextmanager
    def put(self, modules: dict[Place, nn.Module]) -> Iterator[None]:
        """Put modules in their places, and the blocks back afterwards."""
        blocks = {(s, i): self.stages[s][i] for s, i in modules}
        try:
            for (s, i), module in modules.items():
                self.stages[s][i] = module
            yield
        finally:
            for (s, i), block in blocks.items():
                self.stages[s][i] = block

    def standing(self, places: frozenset) -> dict[Place, nn.Module]:
        """What stands in the places of replaced blocks: the same objects for the same neighbours."""
        if not places:
            return {}
        plan = make_plan(
            '',
            [len(stage) for stage in self.stages],
            branches=branches_of(self.family, self.net),
            operators=self.family.OPERATORS,
            defaults=self.family.DEFAULTS,
            slots=[slot_of(option, self.kinds) for option in sorted(places)],
            **self.words,
        )
        named = {option[:2]: option[2:] for option in places}
        keys = {(s.stage, s.index): (self.key(s, plan.at(s).mode), *named[s.stage, s.index]) for s in plan.slots}
        missing = [place for place, key in keys.items() if key not in self.layers]
        if missing and self.fit:
            fitted = self.fitted(places, missing)
        else:
            fitted = {place: ComputingLayer(copies=True) for place in missing}
        self.layers.update((keys[place], layer) for place, layer in fitted.items())
        return {place: self.layers[key] for place, key in keys.items()}

    def key(self, slot: Slot, mode: str) -> Slot | Place:
        """What a layer depends on: its place, and its neighbours if it borrows from them."""
        return slot if self.fit and mode in BORROWING else (slot.stage, slot.index)

    def fitted(self, places: frozenset, missing: Sequence[Place]) -> dict[Place, nn.Module]:
        """Layers for some of the replaced blocks, each fitted to its block as it is in the stock network."""
        backbone = copy.deepcopy(self.backbone)
        apply_repl(backbone, slots=[slot_of(option, self.kinds) for option in sorted(places)], **self.words)
        stages = self.family.stages(backbone)
        names = {id(module): name for name, module in self.net.named_modules()}
        found = {}
        with torch.enable_grad(), frozen(backbone):
            with torch.no_grad():
                backbone(self.fitted_on[0])  # layers of operator 'half' learn of the grid, in the network they leave
            calibrate(backbone, self.fitted_on)
            for s, i in missing:
                layer, name = stages[s][i], names[id(self.stages[s][i])]
                if list(layer.parameters()):
                    fit_block(layer, name, self.net, self.net, self.fitted_on, self.block_steps, FIT_BATCH, LR)
                plain = layer.plain()  # it borrows nothing, so it may stand in another network
                plain.between = ()
                found[s, i] = plain.eval().requires_grad_(False)
        return found


class _Again(Given):
    """Gives a copy each time, which the network may change in place."""

    def forward(self, *args, **kwargs):
        return copy.deepcopy(self.output)


def _keep(record: dict, place: Place) -> Callable:
    def hook(module, args, output):
        record[place] = copy.deepcopy(output)  # DDRNet adds to it in place

    return hook


class _Sums:
    """Sums and sums of squares of several tensors, batch by batch."""

    def __init__(self):
        self.sums = []

    def add(self, outputs: Sequence[Tensor]) -> None:
        """Add a batch."""
        new = [
            (x.numel(), float(x.sum(dtype=torch.float64)), float(x.square().sum(dtype=torch.float64))) for x in outputs
        ]
        self.sums = (
            [tuple(map(sum, zip(*pair, strict=True))) for pair in zip(self.sums, new, strict=True)]
            if self.sums
            else new
        )

    def relative_to(self, stock: '_Sums') -> float:
        """Mean square, each tensor's in units of the variance of the stock network's."""
        shares = []
        for (count, _, squares), (_, total, stock_squares) in zip(self.sums, stock.sums, strict=True):
            variance = stock_squares / count - (total / count) ** 2
            shares.append(squares / count / max(variance, 1e-30))
        return sum(shares) / len(shares)


# ---- showing --------------------------------------------------------------------------------------------------------


def plot(choice: Choice, path: str | os.PathLike) -> None:
    """Draw influence against saving, block by block, the chosen ones marked.

    Args:
        choice (Choice): The choice.
        path (str | os.PathLike): The picture to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout='constrained')
    axes = figure.subplots()
    order = sorted(choice.blocks, key=lambda block: block.influence)
    for chosen, color, label in ((False, 'tab:gray', 'kept'), (True, 'tab:red', 'chosen')):
        blocks = [block for block in choice.blocks if (block.option in choice.slots) == chosen]
        points = [(100 * block.savings[choice.measure], block.influence) for block in blocks]
        axes.scatter(*zip(*points, strict=True) if points else ((), ()), color=color, label=label)
        for block, point in zip(blocks, points, strict=True):
            left = order.index(block) % 2  # neighbours of about the same saving would hide each other's name
            shift, side = (-6, 'right') if left else (6, 'left')
            axes.annotate(name_of(block.option), point, (shift, -3), textcoords='offset points', fontsize=8, ha=side)
    if all(block.influence > 0 for block in choice.blocks):
        axes.set_yscale('log')
    axes.set_xlabel(f'{choice.measure} saved, % of the stock network')
    axes.set_ylabel('influence: ' + ('with its fitted layer' if choice.fit else 'left out'))
    axes.set_title(f'{choice.backbone}: {len(choice.slots)} blocks for {choice.measure} {choice.limit:g}', fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
