"""What ``plan.py --memory`` predicts, against the peak of PyTorch's allocator in a real training step."""

from functools import partial

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from torch.profiler import ProfilerActivity, profile

from repl_mm import apply_repl, choosing, config, cost, heads

FASTER_RCNN = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
FCN = 'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'


def boxes(shape):
    """Five boxes of random classes."""
    corners = torch.rand(5, 2) * torch.tensor(shape[::-1]) / 2
    sides = torch.rand(5, 2) * 50 + 20
    sizes = dict.fromkeys(('img_shape', 'pad_shape', 'batch_input_shape', 'ori_shape'), shape)
    labels = InstanceData(bboxes=torch.cat((corners, corners + sides), 1), labels=torch.randint(0, 80, (5,)))
    return DetDataSample(metainfo=sizes, gt_instances=labels)


def classes(shape):
    """A random class at every position."""
    sizes = dict(img_shape=shape, ori_shape=shape)
    return SegDataSample(metainfo=sizes, gt_sem_seg=PixelData(data=torch.randint(0, 19, (1, *shape))))


def peak(step):
    """Return the most bytes that were allocated at once in a call, above those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    total, most = 0, 0
    events = record.profiler.kineto_results.events()
    for _, size in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == '[memory]'):
        total += size
        most = max(most, total)
    return most


@pytest.mark.slow
@pytest.mark.parametrize('replaced', [False, True], ids=['stock', 'repl'])
@pytest.mark.parametrize(
    ('name', 'shape', 'sample', 'error'),
    [(FASTER_RCNN, (256, 416), boxes, 0.12), (FCN, (128, 256), classes, 0.1)],
    ids=['faster_rcnn', 'fcn'],
)
def test_predicted_memory_is_near_the_measured_peak(name, shape, sample, error, replaced):
    torch.manual_seed(0)
    cfg = config.read_config(name)
    moments, _ = config.optimizer_moments(cfg)
    _, count = heads.countable(cfg, 'backbone', partial(cost.measure, inputs=cost.ImageInput(shape), moments=moments))
    model = heads.stock_model(cfg)
    if replaced:
        apply_repl(model.backbone)
    predicted = choosing.memory(count(model.backbone))

    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    samples = [sample(shape) for _ in range(2)]
    model.train()

    def step():
        loss, _ = model.parse_losses(model(torch.randn(2, 3, *shape), samples, mode='loss'))
        optimizer.update_params(loss)

    step()  # it makes the optimizer's state
    states = [value for state in optimizer.optimizer.state.values() for value in state.values()]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    held = [*model.parameters(), *model.buffers(), *gradients, *filter(torch.is_tensor, states)]
    measured = sum(tensor.nbytes for tensor in held) + peak(step)
    print(f'predicted {predicted / 1e9:.3f} GB, measured {measured / 1e9:.3f} GB, {predicted / measured - 1:+.1%}')
    assert predicted == pytest.approx(measured, rel=error)
