"""Merge a trained RepL model: plain modules with weights of their own in the place of the computing layers.

    python tools/merge.py configs/retinanet_r50_repl_coco.py work_dirs/retinanet_r50_repl_coco/epoch_12.pth merged.pth

OUT holds the weights, and in its meta the config of the merged model. Its outputs are those of CHECKPOINT. The config
builds it with one word, `--cfg-options model.backbone.replace.merged=True`; mm's `init_detector` and `init_model` take
the config that is written beside OUT.
"""

from pathlib import Path

from _arguments import Options, Parser
from _common import one_line_errors, read_quietly, stop
from _files import check_out, save_whole

from repl_mm import BorrowError, MergeError, config, merge
from repl_mm.checkpoint import PLAN_KEY, plan_record
from repl_mm.data_checks import check_checkpoint
from repl_mm.reading import load_trained
from repl_mm.surgery import check_keys, repl_backbones


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('config', help='config with a RepL backbone, or PACKAGE::PATH')
    parser.add_argument('checkpoint', help='weights that were trained with it')
    parser.add_argument('out', type=Path, help='file to write, .pth; its config is written beside it, .py')
    parser.add_argument('--cfg-options', nargs='+', action=Options, default={}, help='override settings')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    cfg = read_quietly(args)
    check_out(args.out, [args.checkpoint, *filter(None, [cfg.filename])], ('.pth', '.py'))
    config_out = args.out.with_suffix('.py')
    if config_out.exists() and 'merged=True' not in config_out.read_text():  # one that CONFIG inherits, for instance
        stop(f"OUT '{args.out}' would overwrite '{config_out}', which is not of a merged model: expected another name")
    with one_line_errors(MergeError, BorrowError):
        check_checkpoint(args.checkpoint)
        found = config.find_backbones(cfg.get('model'))
        if any((node.get('replace') or {}).get('merged') for node in found.values()):
            stop(f"config '{args.config}' is of a merged model already: expected replace without merged=True")
        model = config.build(cfg.model, cfg.get('default_scope'))
        checkpoint = load_trained(model, args.checkpoint)
        model.eval()
        merge(model)
        plans = {name: plan_record(backbone.repl) for name, backbone in repl_backbones(model)}
        cfg.model = config.with_backbones(
            cfg.model, lambda node: dict(node, replace=dict(check_keys(node.get('replace')), merged=True))
        )
    text = cfg.pretty_text
    meta = dict(checkpoint.get('meta') or {}, cfg=text)
    meta[PLAN_KEY] = plans
    save_whole(dict(meta=meta, state_dict=model.state_dict()), args.out)
    save_whole(text, config_out)
    parameters = sum(p.numel() for p in model.parameters())
    print(f'{args.out}: {parameters:,} parameters, merged; its config: {config_out}')


if __name__ == '__main__':
    main()
