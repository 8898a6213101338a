"""Networks of ``transformers`` as types for configs: ``type='GPT2Model'`` and the others that RepL serves."""

import dataclasses
import difflib

from torch import nn

from ..config import ConfigError
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
    except Exception as error:  # a class of its own for fields of another type
        raise ConfigError(f'{name}: {" ".join(str(error).split())}') from None


class Network:
    """Base of the types: calling one gives a network of ``transformers``, as :func:`build_network` does.

    They are classes, as all types of backbones are: builders look at those of whom they build.
    """

    def __new__(cls, **settings):
        return build_network(cls.__name__, settings)


@MODELS.register_module()
class GPT2Model(Network):
    """GPT-2."""


@MODELS.register_module()
class LlamaModel(Network):
    """Llama."""


@MODELS.register_module()
class MistralModel(Network):
    """Mistral."""


@MODELS.register_module()
class Qwen2Model(Network):
    """Qwen2."""


@MODELS.register_module()
class Qwen3Model(Network):
    """Qwen3."""
