"""YOLOX-tiny-RepL from scratch on BCCD: the recipe of its base on small pictures, shortened to minutes.

tools/dataset_converters/voc_to_coco.py makes data/bccd from the published dataset.
"""

_base_ = './yolox_tiny_repl_coco.py'

img_scale = (192, 192)
resize = dict(type='BatchSyncRandomResize', random_size_range=(128, 192), size_divisor=32, interval=10)
model = dict(bbox_head=dict(num_classes=3), data_preprocessor=dict(batch_augments=[resize]))

data_root = 'data/bccd/'
metainfo = dict(classes=('RBC', 'WBC', 'Platelets'))
dataset = dict(data_root=data_root, data_prefix=dict(img='images/'), metainfo=metainfo)
fit = [
    dict(type='Resize', scale=img_scale, keep_ratio=True),
    dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0))),
]
train_pipeline = [
    dict(type='Mosaic', img_scale=img_scale, pad_val=114.0),
    dict(type='RandomAffine', scaling_ratio_range=(0.5, 1.5), border=(-img_scale[0] // 2, -img_scale[1] // 2)),
    dict(type='YOLOXHSVRandomAug'),
    dict(type='RandomFlip', prob=0.5),
    *fit,
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1), keep_empty=False),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    *fit,
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(dataset=dict(**dataset, ann_file='annotations/instances_train.json'), pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=1, dataset=dict(**dataset, ann_file='annotations/instances_val.json', pipeline=test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator

max_epochs, num_last_epochs = 7, 2
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True),  # follows train_cfg.max_epochs
]
custom_hooks = [
    dict(hook, num_last_epochs=num_last_epochs) if hook['type'] == 'YOLOXModeSwitchHook' else hook
    for hook in _base_.custom_hooks
]
custom_hooks[-1]['shape'] = img_scale
