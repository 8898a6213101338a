"""The backbone of deeplabv3plus_r34-d8_repl_mini.py, pretrained like that of the detector."""

_base_ = 'resnet50_repl_mini.py'

model = dict(
    backbone=dict(type='RepLResNetV1c', _scope_='mmseg', depth=34, stem_channels=16, base_channels=16),
    in_channels=128,
)
train_cfg = dict(max_epochs=6)
optim_wrapper = dict(optimizer=dict(lr=4e-3))
