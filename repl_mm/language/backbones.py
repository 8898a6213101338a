"""Networks of ``transformers`` as types for configs: ``type='GPT2Model'`` and the others that RepL serves."""

import dataclasses
import difflib

from torch import nn

from ..config import ConfigError
from ..families import decoder
from ..registry import MODELS


def build_network(name: str, settings: dict) -> nn.Module:
    """Build a network of ``transformers`` with random weights.

    Args:
        name (str): Its class.
        settings (dict): Of its config class, as ``n_embd=128``. ``use_cache`` is False unless it is given: a cache is
            for generating text.

    Raises:
        ConfigError: ``transformers`` is not installed, or a setting is none of the class's or not valid.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"type={name!r} needs transformers ({error}): pip install 'repl_mm[language]', or 'transformers>=5.24'"
        ) from None
    kind = getattr(transformers, name)
    known = [field.name for field in dataclasses.fields(kind.config_class)] + [*kind.config_class.attribute_map]
    for key, value in settings.items():
        if key not in known:  # transformers would keep it, and ignore it
            near = difflib.get_close_matches(key, known, n=3) or sorted(kind.config_class.attribute_map)
            raise ConfigError(f'{name}.{key}={value!r}: unknown setting; expected one as {", ".join(near)}')
    try:
        return kind(kind.config_class(**{'use_cache': False, **settings}))
    except (TypeError, ValueError) as error:
        raise ConfigError(f'{name}: {" ".join(str(error).split())}') from None


def _network(name: str) -> type:
    def new(cls, **settings):
        return build_network(name, settings)

    words = dict(__new__=new, __doc__=f'The {name} of transformers; see :func:`build_network`.', __module__=__name__)
    return type(name, (), words)


# classes, as all types of backbones are: builders look at those of whom they build
NETWORKS = {name: MODELS.register_module(name=name, module=_network(name)) for name in decoder.BACKBONES}
