"""Text: which strings can travel, and how any of them is shown in a line."""

_MOST = 200  # characters of a text in a message or a title
_SHOWN = 1000  # characters of a value in a message


def refuse_text(what: str, text: str) -> str | None:
    r"""Return why a text is refused, or None: half a surrogate pair has no encoding.

    Names of files that are not UTF-8 have such halves: `os.listdir` gives ``b"\xff"`` as ``"\udcff"``.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        return (
            f"{what} is {show_text(text)}, which cannot be encoded as UTF-8: {half!r} at "
            f"{error.start} is half a surrogate pair. Leave it out, or write something else for it"
        )
    return None


def sendable(text: str) -> str:
    """Return a text that is for people only with what cannot be encoded escaped, so that it can travel."""
    return text.encode("utf-8", "backslashreplace").decode()


def show_text(text: str) -> str:
    """Return a text for a message: not too long, and escaped."""
    return repr(text) if len(text) <= _MOST else f"{text[:_MOST]!r}..."


def show(value: object) -> str:
    """Return the value's `repr` for a message: not too long, and never an error itself."""
    try:
        text = repr(value)
    except Exception:  # of the value's own making, or nested too deeply
        text = object.__repr__(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def one_line(text: str) -> str:
    """Return a text for a title or a prefix: not too long, and nothing in it ends a line or a string.

    What cannot be printed becomes a ``?``.
    """
    if len(text) > _MOST:
        text = f"{text[:_MOST]}..."
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else "?" for each in text)
