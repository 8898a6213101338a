"""Arms in a row: the cost of each, relative to the stock backbone and to the removal of the blocks."""

import multiprocessing
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial, reduce
from operator import add
from types import MappingProxyType

import torch
from mmengine.config import Config
from mmengine.utils import track_iter_progress

from ..arms import REFERENCES, Arm, build_backbones
from .counting import Cost, measure, no_random_change, synthesis_flops


@dataclass(frozen=True)
class Row:
    """Result for one arm: its cost, or a note that says why there is none.

    Attributes:
        name (str): Name of the arm.
        cost (Cost | None): Of all its backbones together.
        note (str): Why there is no cost.
        model_params (int | None): Trainable parameters of the whole model with these backbones, if known.
        synthesis_flops (int | None): See :func:`repl_mm.cost.synthesis_flops`.
    """

    name: str
    cost: Cost | None = None
    note: str = ''
    model_params: int | None = None
    synthesis_flops: int | None = None


def count(arm: Arm, cfg: Config, moments: int = 1, rest: int | None = None, optional: bool = False) -> Row:
    """Build and measure an arm; no random number is drawn.

    Args:
        arm (Arm): The arm.
        cfg (Config): A config with stock or RepL backbones.
        moments (int): As in :func:`measure`. Defaults to 1.
        rest (int | None): Trainable parameters of the model outside of the backbones, see
            :func:`repl_mm.config.params_outside`. Defaults to None, not known.
        optional (bool): Whether an arm that cannot be built or counted gets a note. Defaults to False, an error.

    Returns:
        Row: The costs, or for an optional arm the reason why there are none.

    Raises:
        ValueError: The arm cannot be built; the message names it.
        RuntimeError: A backbone cannot be counted.
    """
    try:
        with no_random_change():
            backbones = build_backbones(arm, cfg)
        cost = reduce(add, [measure(backbone, inputs, moments) for backbone, inputs in backbones])
    except (RuntimeError, TypeError, ValueError, KeyError, AssertionError) as error:  # what constructors say
        message = ' '.join(str(error).split()) or repr(error)
        if optional:
            return Row(arm.name, note=message)
        raise (RuntimeError if isinstance(error, RuntimeError) else ValueError)(
            f'arm {arm.name!r}: {message}'
        ) from error
    whole = None if rest is None else rest + cost.params
    return Row(arm.name, cost, model_params=whole, synthesis_flops=sum(synthesis_flops(b) for b, _ in backbones))


def count_all(
    arms: Sequence[Arm],
    cfg: Config,
    moments: int = 1,
    rest: Mapping[str, int] = MappingProxyType({}),
    optional: Iterable[str] = (),
    jobs: int = 1,
) -> list[Row]:
    """Count all arms of a config, with a progress bar.

    Args:
        arms (Sequence[Arm]): The arms.
        cfg (Config): A config with stock or RepL backbones.
        moments (int): As in :func:`measure`. Defaults to 1.
        rest (Mapping[str, int]): As in :func:`count`, by the arm's name. Defaults to none, not known.
        optional (Iterable[str]): Names of the arms that get a note instead of an error. Defaults to none.
        jobs (int): Processes that count, where the system can fork. Defaults to 1.
    """
    one = partial(_count, cfg=cfg, moments=moments, rest=dict(rest), optional=frozenset(optional))
    with ExitStack() as stack:
        run = map
        if jobs > 1 and 'fork' in multiprocessing.get_all_start_methods():
            # one thread each: the OpenMP threads of a process do not survive a fork, and fake tensors need none
            context = multiprocessing.get_context('fork')
            run = stack.enter_context(context.Pool(jobs, torch.set_num_threads, (1,))).imap
        return list(track_iter_progress((run(one, arms), len(arms)), file=sys.stderr))


def _count(arm: Arm, cfg: Config, moments: int, rest: dict[str, int], optional: frozenset[str]) -> Row:
    return count(arm, cfg, moments, rest.get(arm.name), arm.name in optional)


def share_kept(cost: Cost, e2e: Cost, removed: Cost, key: str) -> float | None:
    """Return the share of the possible saving that is kept: (E2E - this) / (E2E - removed).

    Args:
        cost (Cost): This arm.
        e2e (Cost): The stock backbone.
        removed (Cost): The same slots with nothing in them.
        key (str): Which count, for instance 'flops' or 'activation_bytes'.

    Returns:
        float | None: 1 is the limit; None if removing saves nothing.
    """
    possible = getattr(e2e, key) - getattr(removed, key)
    return (getattr(e2e, key) - getattr(cost, key)) / possible if possible else None


def relative(rows: Sequence[Row]) -> Iterator[dict]:
    """Yield the rows as plain dicts, with the counts relative to 'e2e' and the shares kept: for JSON.

    Without the arm 'e2e' the first arm stands in its place, and there are no shares.
    """
    peers = {row.name: row for row in rows if row.cost}
    e2e, removed = (peers.get(name) for name in REFERENCES)
    base = e2e or next(iter(peers.values()), None)
    for row in rows:
        if row.cost is None:
            yield dict(name=row.name, note=row.note)
            continue
        counts, ones = _counts(row), _counts(base)
        kept = {}
        if e2e and removed and row is not e2e:
            keys = ('flops', 'activation_bytes')
            kept = {key: share_kept(row.cost, e2e.cost, removed.cost, key) for key in keys}
        shares = {key: counts[key] / ones[key] for key in ones if ones[key] and key != 'synthesis_flops'}
        yield dict(name=row.name, **counts, inputs=asdict(row.cost.inputs), relative=shares, kept=kept)


def _counts(row: Row) -> dict[str, int | None]:
    counts = asdict(row.cost)
    counts.pop('inputs')
    return dict(counts, model_params=row.model_params, synthesis_flops=row.synthesis_flops)
