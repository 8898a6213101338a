"""Train the model of a config: detection, segmentation or classification, with or without RepL."""

from _arguments import make_parser
from _common import build_runner, check_files, end_process_group, load_config, one_line_errors, stop
from mmengine.runner import find_latest_checkpoint

from repl_mm.config import check_optimizer
from repl_mm.optim import enable_amp


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument(
        '--amp',
        action='store_true',
        help='automatic mixed precision; on a CPU in bfloat16, for one-stage detectors (mmcv has NMS and RoIAlign in '
        'float32 only there)',
    )
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size, by auto_scale_lr'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='continue from this checkpoint, or without a value from the latest one in the work dir',
    )
    return parser.parse_args()


def main():
    args = parse_args()
    cfg = load_config(args)
    if args.amp:
        with one_line_errors(ValueError):
            enable_amp(cfg)
    if args.auto_scale_lr:
        if not {'enable', 'base_batch_size'} <= set(cfg.get('auto_scale_lr') or ()):
            stop('--auto-scale-lr: the config lacks auto_scale_lr=dict(enable=..., base_batch_size=...)')
        cfg.auto_scale_lr.enable = True
    if args.resume is not None and args.resume != 'auto':
        cfg.resume, cfg.load_from = True, args.resume
    elif args.resume and find_latest_checkpoint(cfg.work_dir):  # else the run starts, from load_from if there is one
        cfg.resume, cfg.load_from = True, None
    with one_line_errors():
        check_optimizer(cfg)
    check_files(cfg, 'train', 'val')
    with one_line_errors():
        build_runner(cfg).train()
    end_process_group()


if __name__ == '__main__':
    main()
