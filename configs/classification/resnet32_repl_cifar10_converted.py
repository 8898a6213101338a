"""One epoch on CIFAR-10 for a ResNet-32 that tools/convert.py has converted: it learns the stock network's answers.

``load_from`` and ``model.teacher`` are both made by the tool, the teacher with
``--cfg-options model.backbone.type=CifarResNet``. Channels are mixed in one group: the computing layers can come
nearer to pretrained blocks so.
"""

_base_ = 'resnet32_repl_cifar10.py'
model = dict(
    type='HealedModel',
    student='ImageClassifier',
    teacher='work_dirs/converted/e2e.pth',
    backbone=dict(replace=dict(fusion=dict(type='mix', groups=1))),
)
train_cfg = dict(max_epochs=1, val_interval=1)
# coefficients are factors of whole rows of weights: at a higher rate they lose what the conversion has found
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=0.002, weight_decay=5e-4),
    paramwise_cfg=dict(custom_keys={'.repl.': dict(lr_mult=0.3)}),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', convert_to_iter_based=True),
]
