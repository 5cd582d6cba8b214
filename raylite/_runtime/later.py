"""The functions that the processes of a node run, by their roles; what only workers need comes later.

Two nodes are up a tenth sooner if the GCS and the raylet have begun before the rest is imported.
"""

import gc
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from raylite._runtime.loading import load
from raylite._runtime.node import Inherited

Role = Callable[[Inherited], Any]


class Later:
    """A role whose module need not be imported before the node's first processes have begun.

    Args:
        function: Where it is, as ``module:attribute``.
        options: Further arguments for it.
    """

    def __init__(self, function: str, **options: Any) -> None:
        self._function = function
        self._options = options
        self._role: Role | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether its module has been imported."""
        return self._role is not None

    def load(self) -> Role:
        """Import it; another time this does nothing."""
        if self._role is None:
            module, _, attribute = self._function.partition(":")
            self._role = partial(getattr(load(module), attribute), **self._options)
        return self._role

    def __call__(self, inherited: Inherited) -> Any:
        return self.load()(inherited)


Roles = Mapping[str, Role]


def load_roles(place: str) -> Roles:
    """Import the functions with all that they need, but for those which are a `Later`.

    Args:
        place: Where they are, as ``module:attribute``.
    """
    module, _, attribute = place.partition(":")
    loaded: Roles = getattr(import_module(module), attribute)
    return loaded


def is_complete(roles: Roles) -> bool:
    """Whether nothing is left to be imported."""
    return all(role.is_loaded for role in roles.values() if isinstance(role, Later))


def complete(roles: Roles) -> None:
    """Import what is left, so that no child has to."""
    if not is_complete(roles):
        for role in roles.values():
            if isinstance(role, Later):
                role.load()
        gc.freeze()  # or the first collection of every child writes to it, and so copies it
