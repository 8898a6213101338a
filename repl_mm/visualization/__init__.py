"""Pictures of networks: their feature maps, their features in a plane, how alike their blocks are, what they cost.

Plain functions of tensors and models; matplotlib and scikit-learn are imported where something is drawn with them.
"""

from .blocks import draw_similarity, neighbours, prediction, similarity_tables
from .bubbles import Bubble, draw_bubbles
from .embedding import NEIGHBOURS, draw_embedding, embed, neighbour_accuracy, test_features
from .features import draw_features, feature_maps, pca_colours

__all__ = [
    'NEIGHBOURS',
    'Bubble',
    'draw_bubbles',
    'draw_embedding',
    'draw_features',
    'draw_similarity',
    'embed',
    'feature_maps',
    'neighbour_accuracy',
    'neighbours',
    'pca_colours',
    'prediction',
    'similarity_tables',
    'test_features',
]
