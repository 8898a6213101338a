"""What all classification configs have in common.

Further switches, each a word of --cfg-options: compile=True, model.channels_last=True,
optim_wrapper.accumulative_counts=4, default_hooks.ema.type=EMAHook; and --amp.
"""

default_scope = 'repl_mm'
env_cfg = dict(cudnn_benchmark=True, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
)
val_cfg = dict()
test_cfg = dict()
val_evaluator = dict(type='Accuracy')
test_evaluator = val_evaluator
randomness = dict(seed=0)
