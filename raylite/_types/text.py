"""Text: which strings can travel, be a variable of a process, or be its title."""


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


def show_text(text: str) -> str:
    """Return a text for a message: not too long, and escaped."""
    return repr(text) if len(text) <= 200 else f"{text[:200]!r}..."
