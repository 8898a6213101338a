"""Subclasses made at run time: one object of an mm class gets another behaviour, the class stays as it is."""

import functools

from torch import nn


class Specialized:
    """Base of the mixins: an object of a class made at run time survives pickle and deepcopy."""

    def __reduce_ex__(self, protocol):
        # The class cannot be imported by name: it is found through its bases.
        return _rebuild, type(self).__bases__, self.__dict__


@functools.lru_cache
def _combined(mixin: type, base: type) -> type:
    return type(base.__name__, (mixin, base), {'__module__': base.__module__})


def _rebuild(mixin: type, base: type) -> nn.Module:
    cls = _combined(mixin, base)
    return cls.__new__(cls)


def specialize(module: nn.Module, mixin: type) -> None:
    """Let a module behave by ``mixin``, a subclass of :class:`Specialized`, in place.

    It keeps its class name, ``isinstance`` relations, attributes and state_dict keys.
    """
    module.__class__ = _combined(mixin, type(module))
