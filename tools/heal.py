"""Heal a network whose blocks were replaced: it learns what the stock network puts out, and no label is read.

    python tools/heal.py CONFIG STOCK START OUT.pth --images DIR --steps 400

CONFIG has a RepL backbone, STOCK is what tools/convert.py takes, START what it writes. DIR is a folder of pictures;
without it, or where it is the data_root of the config's dataset, the images are the config's own training data. It
is an ordinary training, in work_dirs/heal/OUT, and the same command goes on from its last checkpoint. OUT has the
names of the config's model: ``load_from=OUT.pth``.
"""

import os
from contextlib import contextmanager
from pathlib import Path

from _arguments import Options, Parser, rate, seed, side
from _common import build_runner, check_files, end_process_group, one_line_errors, read_config, set_data_root, stop
from _files import check_out, fingerprint, save_whole
from _images import pictures_of
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.runner import CheckpointLoader

from repl_mm.checkpoint import PLAN_KEY
from repl_mm.data_checks import DataError, check_checkpoint
from repl_mm.healing import healing_config, last_checkpoint
from repl_mm.optim import enable_amp
from repl_mm.reading import read_checkpoint, read_weights_only


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('config', help='config with a RepL backbone')
    parser.add_argument('stock', help='weights of the stock model')
    parser.add_argument('start', help='checkpoint to start from')
    parser.add_argument('out', type=Path, help='checkpoint to write, .pth')
    parser.add_argument('--images', type=Path, metavar='DIR', help="folder of pictures, or the dataset's data_root")
    parser.add_argument(
        '--shape', type=side, nargs=2, default=[224, 224], metavar=('H', 'W'), help='of pictures (default: 224 224)'
    )
    parser.add_argument('--steps', type=int, default=400, help='default: 400')
    parser.add_argument('--batch', type=int, help="images in a step (default: the config's)")
    parser.add_argument('--lr', type=rate, default=3e-4, help='of AdamW (default: 3e-4)')
    parser.add_argument('--seed', type=seed, default=0, help='default: 0')
    parser.add_argument('--work-dir', type=Path, help='folder of logs and checkpoints (default: work_dirs/heal/OUT)')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--cfg-options', nargs='+', action=Options, default={}, help='settings, of the healing too')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args(argv)
    for key in ('steps', 'batch'):
        if getattr(args, key) is not None and getattr(args, key) < 1:
            parser.error(f'--{key} {getattr(args, key)}: must be at least 1')
    return args


def prepare(args):
    """Return the config of the training that the arguments ask for."""
    cfg = read_config(args.config)
    cfg.merge_from_dict(args.cfg_options)
    folder = args.images
    if folder is not None and not pictures_of(cfg, folder, '--images'):
        set_data_root(cfg, str(folder))
        folder = None
    if not cfg.get('model'):
        stop(f"config '{args.config}' has no model: expected one with a RepL backbone")
    if folder is None and not cfg.get('train_dataloader'):
        stop(f"config '{args.config}' has no train_dataloader: expected one, or --images DIR with pictures")
    with one_line_errors():
        check_checkpoint(args.stock)
    cfg = healing_config(cfg, args.stock, args.start, args.steps, folder, args.shape, args.batch, args.lr)
    cfg.randomness = dict(seed=args.seed)
    # the model has its words already, and may have another preprocessor now
    cfg.merge_from_dict({key: value for key, value in args.cfg_options.items() if key.split('.')[0] != 'model'})
    if args.amp:
        with one_line_errors(ValueError):
            enable_amp(cfg)
    cfg.launcher = args.launcher
    cfg.work_dir = str(args.work_dir or Path('work_dirs') / 'heal' / args.out.stem)
    return cfg


def is_first():
    """Whether this is the first process of a launcher, before the processes know each other."""
    ranks = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')
    return int(next((os.environ[rank] for rank in ranks if rank in os.environ), 0)) == 0


def settings_of(text):
    """Return the settings of a saved healing by dotted names, and the files that it read with their fingerprints."""

    def flat(node, name):
        words = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
        found = {}
        for word, value in words:
            found |= flat(value, f'{name}.{word}'.strip('.'))
        return found or {name: node}

    files = dict(line[2:].rsplit(': ', 1) for line in text.splitlines() if line.startswith('# '))
    return {**flat(Config.fromstring(text, '.py').to_dict(), ''), **files}


def go_on(cfg):
    """Let a healing go on from its latest checkpoint; one of other settings is not touched."""
    work_dir, text = Path(cfg.work_dir), cfg.pretty_text
    for file in filter(os.path.isfile, (cfg.model.teacher, cfg.load_from or '')):
        text += f'\n# {file}: {fingerprint(file)}'
    said, latest = work_dir / 'heal.py', last_checkpoint(work_dir)
    if latest:
        if not said.is_file():
            stop(f"'{work_dir}' holds a training that is no healing: choose another --work-dir")
        then, now = map(settings_of, (said.read_text(), text))
        if change := next((key for key in {**then, **now} if then.get(key) != now.get(key)), None):
            values = f'with {change}={then.get(change)!r}, now it is {now.get(change)!r}'
            anew = 'remove that folder to begin anew, or choose another --work-dir'
            stop(f"'{work_dir}' holds a healing {values}: expected the same, or {anew}")
    if is_first():
        save_whole(text, said)
    if latest:
        cfg.resume, cfg.load_from = True, latest
    return latest


def check_start(model, file):
    """End in one line unless a checkpoint has the student's backbone: what it has not would stay at random.

    Args:
        model (nn.Module): The healed model, or what DDP makes of it.
        file (str): START.
    """
    model = model.module if is_model_wrapper(model) else model
    with one_line_errors():
        state = CheckpointLoader.load_checkpoint(file, map_location='cpu')
    state = {key.removeprefix('module.'): x for key, x in state.get('state_dict', state).items()}
    own = {
        key: x
        for key, x in model.state_dict().items()
        if key.startswith(f'{model.teacher.path}.') and not key.endswith((PLAN_KEY, 'num_batches_tracked'))
    }
    lacking = [key for key, x in own.items() if getattr(state.get(key), 'shape', None) != x.shape]
    if lacking:
        count = f'{len(lacking)} of {len(own)} tensors of the backbone, first {lacking[0]!r}'
        stop(f"START '{file}' has no values for {count}: expected what tools/convert.py writes for this config")


@contextmanager
def broken_pictures():
    """End in one line where the config's own training data has a picture that cannot be read."""
    try:
        yield
    except Exception as error:  # an AssertionError of mmcv, or of OpenCV its own
        text, wrong = str(error), 'failed to load image: '
        if wrong not in text and 'imdecode' not in text:
            raise
        name = f"'{text.rpartition(wrong)[2].strip()}'" if wrong in text else 'a picture, empty as it is,'
        stop(
            f"{name} of the config's training data cannot be read: repair or remove it, or give --images DIR, which "
            'leaves such pictures out; the same command goes on from its last checkpoint'
        )


def main(argv=None):
    args = parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    read_weights_only()
    check_out(args.out, [args.stock, args.start])
    cfg = prepare(args)
    check_files(cfg, 'train', option='--images')
    latest = go_on(cfg)
    if latest is None or not latest.endswith(f'iter_{args.steps}.pth'):
        with one_line_errors(DataError, ValueError):
            runner = build_runner(cfg)
            if latest is None:
                check_start(runner.model, args.start)
            with broken_pictures():
                runner.train()
    if is_first():
        state = read_checkpoint(last_checkpoint(cfg.work_dir))['state_dict']
        save_whole(dict(state_dict=state, meta=dict(stock=Path(args.stock).name)), args.out)
        print(f"{args.out}: {len(state)} tensors; load_from='{args.out}'")
    end_process_group()


if __name__ == '__main__':
    main()
