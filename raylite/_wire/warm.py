"""What betterproto does at the first use of each class of messages, done for all of them beforehand.

It works out what the fields are from annotations that are text: each time a compilation. A process
from which others are forked does that once for all of them.
"""

from types import ModuleType
from typing import get_type_hints

from betterproto2 import Message


def warm_messages(*modules: ModuleType) -> None:
    """Use every class of messages of these modules for the first time."""
    for module in modules:
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, Message):
                # It asks for the meanings of all annotations once for each field: none is text then.
                kind.__annotations__.update(get_type_hints(kind, vars(module)))
                kind.parse(b"")
