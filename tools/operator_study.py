"""How well can each computing layer stand in for the block that it replaces? Measured on real pretrained weights.

Blocks 1 and 3 of every stage of a CIFAR-10 ResNet-32 are replaced. The computing layers' own parameters are fitted on
a few hundred unlabelled training images as tools/convert.py does it: block by block, then together; nothing else is
trained. What remains of the test accuracy says how rich operator and transformation are::

    python tools/operator_study.py --cifar data/cifar-10-batches-py --weights resnet32-d509ac18.th

reads the official python batches of CIFAR-10 and the weights of the public PyTorch CIFAR ResNets (keys ``state_dict``,
``module.*``). The table is docs/operators.md.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import repl_mm
from repl_mm import conversion
from repl_mm.classification import CIFAR10, CifarResNet, DataError

SLOTS = [(stage, index) for stage in range(3) for index in (1, 3)]
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def mix(groups):
    return dict(type='mix', groups=groups)


ARMS = {
    'separable, mix': dict(fusion=mix(1)),
    'separable, mix in 2 groups': dict(fusion=mix(2)),
    'separable, mix in 4 groups': dict(fusion=mix(4)),
    'separable, lowrank 8': dict(fusion=dict(type='lowrank', rank=8)),
    'separable, channel': dict(fusion='channel'),
    'separable, scalar': dict(fusion='scalar'),
    'separable, mix in 2 groups, detach': dict(fusion=mix(2), detach=True),
    'separable, own': dict(mode='own'),
    'separable, share': dict(mode='share'),
    'pointwise, mix': dict(operator='pointwise', fusion=mix(1)),
    'narrow, mix': dict(operator='narrow', fusion=mix(1)),
    'conv, mix': dict(operator='conv', fusion=mix(1)),
    'conv, own': dict(operator='conv', mode='own'),
    'removed': dict(mode='remove'),
}


class ResNet(CifarResNet):
    """ResNet-32 with its linear layer, named as in the public weights."""

    def __init__(self):
        super().__init__(depth=32)
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        return self.linear(super().forward(x)[0].mean((2, 3)))


def load(folder, split):
    """At most 10,000 normalized images (N, 3, 32, 32) and labels of a split."""
    try:
        data = CIFAR10(folder, split, indices=10000)
    except DataError as error:
        raise SystemExit(f'operator_study: {error}') from None
    return (data.images / 255 - MEAN) / STD, data.labels


@torch.no_grad()
def accuracy(net, images, labels):
    return sum(
        int((net(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True)
    ) / len(labels)


def finetune(net, images, labels, steps):
    """Train the whole network for a few steps of 128 images, its batch norms in eval mode, as ``norm_eval`` does."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(0, len(images), (128,))
        x = F.pad(images[chosen], (4, 4, 4, 4))
        top, left = torch.randint(0, 9, (2,)).tolist()
        x = x[:, :, top : top + 32, left : left + 32]
        x = torch.where((torch.rand(len(x)) < 0.5)[:, None, None, None], x.flip(3), x)
        loss = F.cross_entropy(net(x), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 2)
        optimizer.step()
        schedule.step()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cifar', required=True, help='folder of the official python batches')
    parser.add_argument('--weights', required=True, help='weights of the CIFAR-10 ResNet-32')
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=list(ARMS), help='default: all')
    parser.add_argument('--images', type=int, default=512, help='unlabelled images to fit on (default: 512)')
    parser.add_argument('--test-images', type=int, default=2500, help='test images, at most 10000 (default: 2500)')
    parser.add_argument('--block-steps', type=int, default=150, help='steps per block (default: 150)')
    parser.add_argument('--steps', type=int, default=300, help='steps of all blocks together (default: 300)')
    parser.add_argument('--finetune', type=int, default=0, help='steps of training the whole network (default: 0)')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    state = torch.load(args.weights, map_location='cpu', weights_only=True)['state_dict']
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    torch.manual_seed(args.seed)
    train = load(args.cifar, 'train')
    images = train[0][torch.randperm(len(train[0]))[: args.images]]
    test = [part[: args.test_images] for part in load(args.cifar, 'test')]

    def network(replace=None):
        net = ResNet()
        net.load_state_dict(state)
        if replace is not None:
            repl_mm.apply_repl(net, slots=SLOTS, **replace)
        return net.eval()

    stock = network()
    removed = network(dict(mode='remove'))
    print(f'E2E {accuracy(stock, *test):.4f}, blocks removed {accuracy(removed, *test):.4f}')
    columns = ['operator, transformation', 'block by block', 'together', 'error', 'new parameters']
    columns += ['fine-tuned'] if args.finetune else []
    lines = [f'| {" | ".join(columns)} |', '|---' + '|---:' * (len(columns) - 1) + '|']
    for i, arm in enumerate(args.arms):
        print(f'{arm} ({i + 1} of {len(args.arms)})')
        torch.manual_seed(args.seed)
        net = network(ARMS[arm])
        conversion.convert(net, stock, images, block_steps=args.block_steps, steps=0)
        fitted = accuracy(net, *test)
        errors = conversion.convert(net, stock, images, block_steps=0, steps=args.steps)
        error = f'{errors[-1].after:.2f}' if errors else '1'
        new = sum(p.numel() for name, p in net.named_parameters() if '.repl.' in name)
        line = f'| {arm} | {fitted:.1%} | {accuracy(net, *test):.1%} | {error} | {new} |'
        if args.finetune:
            finetune(net, *train, args.finetune)
            line += f' {accuracy(net, *test):.1%} |'
        lines.append(line)
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
