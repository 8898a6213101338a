"""Image classification on mmengine alone, for the pretraining of RepL backbones: only what mmengine lacks.

A config with ``default_scope = 'repl_mm'`` finds all of it by name; :mod:`.transforms` (pictures in files, needs mmcv)
is loaded when a config asks for a transform.
"""

from ..data_checks import DataError
from .augment import BatchCrop, BatchErase, BatchFlip, BatchMix
from .cifar_resnet import CifarResNet
from .classifier import ClsDataPreprocessor, ImageClassifier, classifier_head
from .datasets import CIFAR10, STL10, SVHN, ImageNet, collate
from .metric import Accuracy

__all__ = [
    'CIFAR10',
    'STL10',
    'SVHN',
    'Accuracy',
    'BatchCrop',
    'BatchErase',
    'BatchFlip',
    'BatchMix',
    'CifarResNet',
    'ClsDataPreprocessor',
    'DataError',
    'ImageClassifier',
    'ImageNet',
    'classifier_head',
    'collate',
]
