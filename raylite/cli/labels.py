"""Labels of a node as they are typed, and as they stand in a file."""

from pathlib import Path


def typed(text: str | None) -> dict[str, str]:
    """Return the labels of ``a=b,c=d``.

    Raises:
        ValueError: One has no value.
    """
    pairs = [each.partition("=") for each in (text or "").split(",") if each.strip()]
    for name, equals, value in pairs:
        if not equals or not name.strip():
            what, part = ("value", name) if name.strip() else ("key", f"{equals}{value}")
            raise ValueError(f"--labels={text}: {part!r} has no {what}; write key=value,key=value")
    return {name.strip(): value.strip() for name, _, value in pairs}


def in_file(path: str) -> dict[str, str]:
    """Return the labels in a file: a line ``key: value`` for each, which is YAML as far as labels need it.

    Raises:
        ValueError: The file cannot be read, or a line is none of that.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(
            f"--labels-file={path} cannot be read: {reason}; name a file of lines like zone: a"
        ) from error
    labels: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition(" #")[0].strip()
        if not text or text.startswith("#") or text == "---":
            continue
        key, colon, value = text.partition(": ")
        if not colon:
            key, colon, value = (text[:-1], ":", "") if text.endswith(":") else (text, "", "")
        if not colon or line[0].isspace():
            raise ValueError(
                f"--labels-file={path}: line {number}, {line!r}, is no label; write key: value"
            )
        labels[_bare(key)] = _bare(value)
    return labels


def _bare(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text
