"""What a command says when it cannot do what it was asked for: one sentence, and exit code 1."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from raylite.exceptions import RayError, RaySystemError


@contextmanager
def explained() -> Iterator[None]:
    """Turn the errors that a user can cause into the end of the command."""
    try:
        yield
    except RaySystemError as error:
        raise click.ClickException(str(error.client_exc)) from error
    except (ConnectionError, RuntimeError, ValueError, TypeError, OSError, RayError) as error:
        raise click.ClickException(str(error)) from error
