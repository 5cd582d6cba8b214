"""The generated messages: made again from the .proto files, or compared with what is checked in.

Run `python raylite/_wire/generate.py` after editing a .proto file, and commit what it writes.
`--check` writes nothing and fails when the two differ; needs the `dev` extra either way.
"""

import argparse
import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROTOS = HERE / "proto"
MESSAGES = HERE / "messages"
PACKAGE = "raylite"  # every .proto file's package begins with it

_BUILTINS = ("bool", "bytes", "dict", "float", "int", "list", "str", "None")
_CLASS = re.compile(r"class (\w+)\(")
_FIELD = re.compile(r'    (\w+): "(.*)" = ')
_NAME = re.compile(r"\w+")


def compile_protos(directory: Path) -> dict[str, str]:
    """Compile all .proto files in one call; returns the text of each module by relative path.

    The compiler formats its output with ruff, which obeys whatever configuration it finds: it
    is run in an empty directory, with an empty home for configuration.
    """
    workplace, output = directory / "cwd", directory / "out"
    workplace.mkdir()
    output.mkdir()
    tools = Path(sys.executable).parent  # not resolved: a virtual environment's own scripts
    environment = os.environ | {
        "PATH": os.pathsep.join([str(tools), os.environ.get("PATH", os.defpath)]),
        "XDG_CONFIG_HOME": str(workplace),
    }
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}"]
    command += [f"--python_betterproto2_out={output}"]
    command += ["--python_betterproto2_opt=client_generation=none"]  # stubs would import grpcio
    command += [proto.name for proto in sorted(PROTOS.glob("*.proto"))]
    subprocess.run(command, cwd=workplace, env=environment, check=True, stderr=subprocess.DEVNULL)
    return dict(_flattened(output))


def _flattened(output: Path) -> Iterator[tuple[str, str]]:
    """Drop the folder of the common package: `messages.gcs`, not `messages.raylite.gcs`."""
    for path in sorted(output.rglob("*.py")):
        parts = path.relative_to(output).parts
        if parts == ("__init__.py",):
            continue  # empty; the common package's own module takes its place
        text = path.read_text()
        if parts[0] == PACKAGE:
            parts = parts[1:]
            text = re.sub(
                r"^from \.(\.+)message_pool ", r"from \1message_pool ", text, flags=re.MULTILINE
            )
        yield "/".join(parts), _evaluated(text)


def _evaluated(module: str) -> str:
    """Take the quotes off each annotation that means something where it stands.

    What is text is compiled once more in every process that loads the module, and again when its class
    is used first. A name that comes later, or that a field of the class hides, stays text.
    """
    known, hidden, lines = {*_BUILTINS}, set[str](), list[str]()
    current = ""  # the class whose body this is: it can be named when that has ended
    for line in module.splitlines(keepends=True):
        if begun := _CLASS.match(line):
            known.add(current)
            current, hidden = begun[1], set()
        elif field := _FIELD.match(line):
            name, annotation = field.groups()
            if {*_NAME.findall(annotation)} <= known - hidden:
                line = line.replace(f'"{annotation}"', annotation, 1)
            hidden.add(name)
        lines.append(line)
    return "".join(lines)


def checked_in() -> dict[str, str]:
    """Return the text of each module under `messages`, by relative path."""
    modules = MESSAGES.rglob("*.py")
    return {path.relative_to(MESSAGES).as_posix(): path.read_text() for path in modules}


def write(modules: dict[str, str]) -> None:
    """Replace `messages` by what was compiled."""
    shutil.rmtree(MESSAGES, ignore_errors=True)
    for name, text in modules.items():
        path = MESSAGES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def differences(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Return a unified diff from what is checked in to what the .proto files say."""
    lines: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, "").splitlines(), new.get(name, "").splitlines()
        here, there = f"checked in: {name}", f"generated: {name}"
        lines += difflib.unified_diff(before, after, here, there, lineterm="")
        if (name in old) != (name in new) and before == after:
            lines.append(f"{name} is {'not generated' if name in old else 'missing'}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Write the messages, or with `--check` print how they differ; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        generated = compile_protos(Path(directory))
    if not options.check:
        write(generated)
        print(f"wrote {len(generated)} modules to {MESSAGES}")
        return 0
    changed = differences(checked_in(), generated)
    print("\n".join(changed) if changed else f"{len(generated)} generated modules are up to date")
    return 1 if changed else 0


if __name__ == "__main__":
    raise SystemExit(main())
