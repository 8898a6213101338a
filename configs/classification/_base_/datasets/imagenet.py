"""ImageNet-1k at 224x224 pixels, 32 images per GPU."""

data_root = 'data/imagenet/'
load = dict(type='LoadImage')
crop = dict(type='RandomResizedCrop', size=224)
flip = dict(type='RandomFlip', prob=0.5)
resize = dict(type='Resize', scale=(65536, 256), keep_ratio=True)  # the short side to 256
pack = dict(type='PackImage')
loader = dict(num_workers=8, persistent_workers=True, pin_memory=True, collate_fn=dict(type='repl_mm.collate'))
dataset = dict(type='ImageNet', data_root=data_root, num_classes=1000)
train_dataloader = dict(
    **loader,
    batch_size=32,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**dataset, split='train', pipeline=[load, crop, flip, pack]),
)
val_dataloader = dict(
    **loader,
    batch_size=32,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, split='val', pipeline=[load, resize, dict(type='CenterCrop', crop_size=224), pack]),
)
test_dataloader = val_dataloader
custom_hooks = [dict(type='RepLHook', shape=(224, 224))]
auto_scale_lr = dict(enable=False, base_batch_size=256)
