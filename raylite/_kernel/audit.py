"""An audit of what the interpreter does, for processes that serve others and run nobody's code.

The GCS and raylets only read protobuf and msgspec. If one is made to unpickle all the same, or to
start a program, it is under attack or broken, and ends before the deed is done.
"""

import os
import sys
from typing import Any

REFUSED = 70  # the exit status, EX_SOFTWARE: no core file, which would hold the cluster's secrets

_NEVER = frozenset({"pickle.find_class", "os.system", "subprocess.Popen"})
_IMPORTING = frozenset({"<frozen importlib._bootstrap_external>", "<frozen zipimport>"})


def refuse_unpickling() -> None:
    """End this process when it looks a class up for a pickle, unmarshals, or starts a program.

    Cannot be undone. Importing goes on, although it unmarshals compiled modules; a pickle of plain
    values needs no class and is not noticed.
    """
    sys.addaudithook(_audit)


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event in _NEVER or (event == "marshal.loads" and not _is_importing()):
        what = f"{args[0]!a}.{args[1]!a}" if event == "pickle.find_class" else ""
        told = f"raylite: this process may not do this, and ends: {event} {what}".rstrip()
        os.write(2, told.encode(errors="replace")[:500] + b"\n")
        os._exit(REFUSED)


def _is_importing() -> bool:
    """Whether the import system has asked, two frames above: this function's and the hook's."""
    return sys._getframe(2).f_code.co_filename in _IMPORTING
