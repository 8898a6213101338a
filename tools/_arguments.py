"""Arguments of the tools: their parser, types of numbers, and what several of them take."""

import argparse
import re

from mmengine.config import DictAction

from repl_mm.choosing import MEASURES
from repl_mm.plan import MODES, PLAIN

UNITS = dict(GB=10**9, GiB=2**30, MB=10**6, MiB=2**20)


class Parser(argparse.ArgumentParser):
    """Ends in one line at a wrong argument, without argparse's lines of usage; ``--help`` shows the text as it is."""

    def __init__(self, description=None, **more):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def error(self, message):
        self.exit(2, f'{self.prog}: {message} (--help tells more)\n')


class Options(DictAction):
    """Settings as ``KEY=VALUE``; what cannot be read ends in one line."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            super().__call__(parser, namespace, values, option_string)
            understood = all(all(key.split('.')) for key in getattr(namespace, self.dest))
        except (ValueError, AssertionError):
            understood = False
        if not understood:
            parser.error(f'{option_string} {" ".join(values)}: expected KEY=VALUE, lists as KEY="[a,b]"')


class Words(Options):
    """Keeps the words as they were given too, for other tools, in ``cfg_options_words`` for ``--cfg-options``."""

    def __call__(self, parser, namespace, values, option_string=None):
        before = getattr(namespace, f'{self.dest}_words') or ['--cfg-options']
        setattr(namespace, f'{self.dest}_words', [*before, *values])
        super().__call__(parser, namespace, values, option_string)


def make_parser(description):
    """Return a parser with the arguments that training and testing have in common."""
    parser = Parser(description)
    parser.add_argument(
        'config', help='config file, or PACKAGE::PATH for one that an installed package carries, as repl_mm::NAME.py'
    )
    parser.add_argument('--work-dir', help='folder of logs and checkpoints (default: ./work_dirs/CONFIG_NAME)')
    parser.add_argument('--data-root', help='folder of the dataset, in place of data_root in all of the config')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Options,
        help='override settings, as key=value; lists as key="[a,b]" or key=a,b, nested ones as key="[(a,b),(c,d)]"',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # torch.distributed.launch has passed both spellings
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def side(text):
    """Return the height or the width of pictures."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f'{text} is not valid: expected a number of pixels, at least 1')
    return int(text)


def seed(text):
    """Return the seed of random numbers."""
    if not text.isdigit() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f'{text} is not valid: expected a whole number from 0 to {2**31 - 1}')
    return int(text)


def rate(text):
    """Return a learning rate."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f'{text} is not valid: expected a number above 0')
    return value


def share(text):
    """Return a share above 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f'{text} is not valid: expected what may be left, above 0 and below 1')
    return value


def size(text):
    """Return a number of bytes."""
    found = re.fullmatch(r'(\d+(?:\.\d+)?) ?([KMG]i?B)', text)
    if not found or found[2] not in UNITS or not float(found[1]):
        raise argparse.ArgumentTypeError(f'{text} is not valid: expected a size such as 8GB ({", ".join(UNITS)})')
    return float(found[1]) * UNITS[found[2]]


def add_budgets(parser):
    """Add the options of a budget, of which one may be given."""
    budget = parser.add_mutually_exclusive_group()
    for name, what in dict(flops='FLOPs', activations='bytes of activations', params='trainable parameters').items():
        text = f"share of the backbone's {what} that may be left" + (' (default: 0.8)' if name == 'flops' else '')
        budget.add_argument(f'--{name}', type=share, metavar='SHARE', help=text)
    budget.add_argument('--memory', type=size, metavar='8GB', help='of the whole model in training, in fp32')
    parser.add_argument(
        '--kinds',
        type=kind_of,
        nargs='+',
        default=[],
        metavar='KIND',
        help='with --fit: what each slot may choose among, each at its price: modes, or MODE:OPERATOR, for instance '
        "patch linear own fuse own:half (default: the config's words for all)",
    )


def kind_of(text):
    """Return what may stand in a slot, a mode or mode:operator, as its name and its words of ``replace``."""
    mode, _, operator = text.partition(':')
    if mode not in MODES or text.endswith(':') or (operator and mode in PLAIN):
        valid = f'one of {", ".join(MODES)}, or MODE:OPERATOR, which {", ".join(PLAIN)} have not'
        raise argparse.ArgumentTypeError(f'{text} is not valid: expected {valid}')
    return text, dict(mode=mode, **(dict(operator=operator) if operator else {}))


def read_budget(args):
    """Set ``measure`` and ``limit`` of parsed arguments: 0.8 of the FLOPs where no budget is given."""
    given = [(name, value) for name in MEASURES if (value := getattr(args, name)) is not None]
    args.measure, args.limit = given[0] if given else ('flops', 0.8)
