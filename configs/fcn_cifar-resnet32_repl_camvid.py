"""FCN with a ResNet-32 of He et al. (stride 4 as it is), RepL, on CamVid at half size: for weights from CIFAR-10.

``--cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.prefix=backbone.
model.backbone.init_cfg.checkpoint=work_dirs/.../epoch_200.pth`` starts from such weights; without them, from scratch.
"""

_base_ = './fcn_r18-d8_repl_camvid.py'

model = dict(
    backbone=dict(_delete_=True, type='RepLCifarResNet', replace=dict(), depth=32),
    decode_head=dict(in_channels=64, channels=64),
)
train_cfg = dict(max_epochs=6, val_interval=3)
