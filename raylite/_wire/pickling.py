"""Values to bytes and back, without copying what is large.

A pickled value is a *blob*. Its first byte says which of three kinds it is:

    0x80   a plain pickle: this is how every protocol-5 pickle begins, so nothing is added
    0x01   framed: head, lengths of the buffers, pickle, buffers (each on a multiple of 64 bytes)
    0x02   raw `bytes`, 0x03 raw `bytearray`: head, then the bytes

    head = kind u8, 3 zero bytes, number of buffers u32, length of the pickle or the bytes u64;
    little-endian. What follows a blob is ignored.

Buffers that a value offers out of band (numpy arrays, mostly) are never copied into the pickle,
and loading does not copy them either: the loaded arrays look at the blob, read-only. That holds
for small ones too, so that whether a value may be written to does not depend on its size.

The C pickler comes first. It cannot take along functions and classes that another process could
not import (those of `__main__`, lambdas, local classes); for a value that has some, cloudpickle
starts over.
"""

import io
import pickle
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from types import CodeType, FunctionType
from typing import Any, Final

import cloudpickle
import msgspec
from cloudpickle import cloudpickle as cloudpickle_internals

from raylite.exceptions import RayError, RaySystemError, is_own_frame, tell

PROTOCOL: Final = 5
ALIGNMENT: Final = 64
_LARGE = 1 << 20
_PAGE, _LARGE_AT = 4096, 2048

_PLAIN, _FRAMED, _BYTES, _BYTEARRAY = 0x80, 0x01, 0x02, 0x03
_HEAD = struct.Struct("<B3xIQ")
_RAW_FROM = 16 << 10  # smaller bytes are copied faster than their head is made
_ATOMS = frozenset([type(None), bool, int, float, complex, str, bytes])
_SCAN = 16  # elements looked at before the pickler is asked to do it

_dumps = pickle.dumps
_loads = pickle.loads


class Pickled(msgspec.Struct, frozen=True):
    """A value on its way into bytes: a pickle or raw bytes, and buffers that were not copied.

    Attributes:
        data: The pickle, or a look at the `bytes` or `bytearray` that is the whole value.
        buffers: The out-of-band buffers: flat bytes of objects that are still alive, and may
            still change. Write them soon.
        size: The length of the blob.
        contained: The references that were met on the way (see `note_contained`).
        kind: The blob's first byte.
    """

    data: bytes | memoryview
    buffers: tuple[memoryview, ...]
    size: int
    contained: tuple[object, ...]
    kind: int = _PLAIN

    def layout(self) -> list[bytes | memoryview]:
        """The blob in pieces, to be written one after the other."""
        if self.kind == _PLAIN:
            return [self.data]
        head = _HEAD.pack(self.kind, len(self.buffers), len(self.data))
        if self.kind != _FRAMED:
            return [head, self.data]
        lengths = [len(buffer) for buffer in self.buffers]
        pieces = [head, struct.pack(f"<{len(lengths)}Q", *lengths), self.data]
        position = _HEAD.size + 8 * len(lengths) + len(self.data)
        for buffer in self.buffers:
            padding = _padding(position, len(buffer))
            pieces += (bytes(padding), buffer)
            position += padding + len(buffer)
        return pieces

    def to_bytes(self) -> bytes:
        """The blob in one piece; a plain pickle is one already."""
        if self.kind == _PLAIN and type(self.data) is bytes:
            return self.data
        return b"".join(self.layout())


def dumps(value: object) -> Pickled:
    """Pickle a value.

    Small builtin values cost little more than `pickle.dumps`. May be called again from within
    (by a ``__reduce__``); each call collects the references of its own value.

    Raises:
        TypeError: Something in the value cannot be pickled; `describe_unpicklable` finds it.
        Exception: Whatever the value's own ``__reduce__`` raised.
    """
    kind = type(value)
    if _is_plain(value, kind):
        data = _dumps(value, PROTOCOL)
        return Pickled(data, (), len(data), ())
    if kind is bytes or kind is bytearray or kind is memoryview:
        raw = _flat(value)  # type: ignore[arg-type]
        if raw is not None:
            name = _BYTEARRAY if kind is bytearray else _BYTES
            return Pickled(raw, (), _HEAD.size + len(raw), (), name)
    buffers: list[memoryview] = []
    outer = _collected.found
    found: list[object] = []
    _collected.found = found
    try:
        try:
            file = io.BytesIO()
            _FastPickler(file, buffers).dump(value)
        except (_NeedsCloudpickle, pickle.PicklingError, AttributeError, TypeError):
            # AttributeError is what the C pickler raises for a local object before Python 3.14.
            buffers.clear()
            found.clear()
            file = io.BytesIO()
            _FullPickler(file, buffers).dump(value)
    except pickle.PicklingError as error:
        raise TypeError(str(error)) from error
    except RecursionError as error:
        raise TypeError("the value is nested too deeply to be pickled") from error
    finally:
        _collected.found = outer
    data = file.getvalue()
    if not buffers:
        return Pickled(data, (), len(data), tuple(found))
    size = _HEAD.size + 8 * len(buffers) + len(data)
    for buffer in buffers:
        size += _padding(size, len(buffer)) + len(buffer)
    return Pickled(data, tuple(buffers), size, tuple(found), _FRAMED)


def loads(blob: bytes | memoryview) -> Any:
    """The value of a blob. Arrays in it look at the blob, read-only, and keep it alive.

    Raises:
        ValueError: This is not a blob, or not all of it.
        pickle.UnpicklingError: The pickle in it is damaged.
        Exception: Whatever making the value raised: a class that cannot be imported, its own
            ``__setstate__``.
    """
    if not blob:
        raise ValueError("an empty blob")
    kind = blob[0]
    if kind == _PLAIN:
        return _unpickle(blob, ())
    if len(blob) < _HEAD.size:
        raise ValueError(f"a blob of {len(blob)} bytes, shorter than its head")
    _, count, length = _HEAD.unpack_from(blob)
    view = memoryview(blob).toreadonly()
    position = _HEAD.size + 8 * count
    _require(view, position + length)
    if kind == _FRAMED:
        data = view[position : position + length]
        return _unpickle(data, _buffers(view, count, position + length))
    if kind == _BYTES and count == 0:
        return bytes(view[position : position + length])
    if kind == _BYTEARRAY and count == 0:
        return bytearray(view[position : position + length])
    raise ValueError(f"a blob of unknown kind {kind:#x}")


def load_value(blob: bytes | memoryview) -> Any:
    """The value of a blob that a program put, passed or returned, on its way to a program.

    Raises:
        RaySystemError: It cannot be unpickled; the message has the traceback, and the cause is
            what was raised.
        RayError: Making the value needed something of raylite that failed.
    """
    try:
        return loads(blob)
    except RayError:
        raise
    except Exception as error:
        raise RaySystemError(error, tell(error)) from error


def dumps_function(
    function: Callable[..., Any] | type, contained: list[object] | None = None
) -> bytes:
    """Pickle a function or class, with its code if another process could not import it.

    Args:
        function: The function or class.
        contained: Takes the references captured in it (its closure, globals and defaults);
            without it they count as the value's that is just being pickled, if there is one.

    Raises:
        TypeError: Something that it captures cannot be pickled.
    """
    outer = _collected.found
    _collected.found = (outer if outer is not None else []) if contained is None else contained
    try:
        file = io.BytesIO()
        _FullPickler(file, None).dump(function)
    except pickle.PicklingError as error:
        raise TypeError(str(error)) from error
    finally:
        _collected.found = outer
    return file.getvalue()


def loads_function(blob: bytes | memoryview) -> Any:
    """The function or class of `dumps_function`."""
    return _unpickle(blob, ())


def note_contained(ref: object) -> bool:
    """Called by a reference that is being pickled; False if that happens outside of `dumps`.

    Then nobody learns that the reference travels, and it must see to its own survival.
    """
    found = _collected.found
    if found is None:
        return False
    found.append(ref)
    return True


def register_serializer(
    cls: type, *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]
) -> None:
    """From now on, this process pickles exact instances of a class by these functions.

    The deserializer travels with each value, so only the pickling process has to register.
    """
    _serializers[cls] = lambda value: (deserializer, (serializer(value),))


def deregister_serializer(cls: type) -> None:
    """Undo `register_serializer`; a class that is not registered is ignored."""
    _serializers.pop(cls, None)


def clear_serializers() -> None:
    """Forget all registrations: a worker that is given to another driver starts clean."""
    _serializers.clear()


def describe_unpicklable(value: object, name: str = "value") -> str:
    """Say which part of a value keeps it from being pickled, for an error message.

    A line for the value, and below it, indented, the members that are to blame:

        value: Server: cannot pickle '_thread.lock' object
          value.lock: lock: cannot pickle '_thread.lock' object
    """
    lines: list[str] = []
    _explain(value, name, 0, lines, set())
    return "\n".join(lines) or f"{name}: can be pickled"


def raised_by_pickler(error: BaseException) -> bool:
    """Say of an error of `dumps` whether the pickler raised it, not code of a value's class."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is None or is_own_frame(trace.tb_frame.f_code.co_filename)


class _Collected(threading.local):
    found: list[object] | None = None


_collected = _Collected()
_serializers: dict[type, Callable[[Any], tuple[Any, ...]]] = {}
_importable: set[object] = set()
"""Functions and classes known to be importable; they live as long as their modules anyway."""

_by_value_modules: set[str] = cloudpickle_internals._PICKLE_BY_VALUE_MODULES


class _NeedsCloudpickle(Exception):
    """Ends the fast attempt."""


class _FastPickler(pickle.Pickler):
    """The C pickler, stopping at what another process could not import."""

    def __init__(self, file: io.BytesIO, buffers: list[memoryview]) -> None:
        super().__init__(file, PROTOCOL, buffer_callback=_keep_out_of_band(buffers))

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is FunctionType or issubclass(kind, type):
            if (obj not in _importable or _by_value_modules) and not _is_importable(obj):
                raise _NeedsCloudpickle
        elif _serializers and (reduce := _serializers.get(kind)) is not None:
            return reduce(obj)
        return NotImplemented


_FORGOTTEN = "<dynamic-code>"  # what cloudpickle calls every file


class _FullPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Cloudpickle with the registered serializers."""

    def __init__(self, file: io.BytesIO, buffers: list[memoryview] | None) -> None:
        callback = None if buffers is None else _keep_out_of_band(buffers)
        super().__init__(file, PROTOCOL, buffer_callback=callback)

    def reducer_override(self, obj: Any) -> Any:
        if (reduce := _serializers.get(type(obj))) is not None:
            return reduce(obj)
        if type(obj) is CodeType:
            return _with_file_name(obj)
        return super().reducer_override(obj)


def _with_file_name(code: CodeType) -> tuple[Any, ...]:
    """Reduce as cloudpickle does; but it forgets the file since 3.1.3, and tracebacks name it."""
    make, parts = cloudpickle_internals._code_reduce(code)
    return make, tuple(code.co_filename if part == _FORGOTTEN else part for part in parts)


def _keep_out_of_band(buffers: list[memoryview]) -> Callable[[pickle.PickleBuffer], None]:
    return lambda buffer: buffers.append(buffer.raw())


def _is_importable(obj: Any) -> bool:
    """Would another process find the same function or class under its name?"""
    if not cloudpickle_internals._should_pickle_by_reference(obj):
        return False
    _importable.add(obj)
    return True


def _is_plain(value: Any, kind: type, depth: int = 2) -> bool:
    """Is this small and made of nothing but builtin values?"""
    if kind in _ATOMS:
        return kind is not bytes or len(value) < _RAW_FROM
    if kind is tuple or kind is list:
        if len(value) > _SCAN:
            return False
        if _ATOMS.issuperset(map(type, value)):
            return True
        items = value
    elif kind is dict:
        if len(value) > _SCAN or not _ATOMS.issuperset(map(type, value)):
            return False
        items = value.values()
    else:
        return False
    if not depth:
        return not items
    for item in items:  # noqa: SIM110 -- a generator expression takes twice as long
        if not _is_plain(item, type(item), depth - 1):
            return False
    return True


def _flat(value: bytes | bytearray | memoryview) -> memoryview | None:
    """The bytes of a large bytes-like value; None if it is small or its bytes lie apart."""
    view = memoryview(value)
    if view.nbytes < _RAW_FROM or not view.c_contiguous:
        return None
    return view.cast("B")


def _padding(position: int, length: int) -> int:
    """How many bytes to leave before a buffer.

    A large one begins in the middle of a page. Large arrays begin near the start of one, and a copy
    that writes slightly further into its pages than it reads is slow: the processor takes each
    load to depend on the store before (4K aliasing), so libc gives up its way of copying around
    the caches. 400 MB of zeros by two threads, 32 KiB of L1, glibc 2.36: 8 to 10 GB/s with 64 to
    256 bytes between source and target modulo 4,096, and 30 GB/s with 1,024 to 3,072.
    """
    if length < _LARGE:
        return -position % ALIGNMENT
    return (_LARGE_AT - position) % _PAGE


def _require(view: memoryview, size: int) -> None:
    if len(view) < size:
        raise ValueError(f"a blob of {len(view)} bytes that should have at least {size}")


def _buffers(view: memoryview, count: int, position: int) -> Iterator[memoryview]:
    for length in struct.unpack_from(f"<{count}Q", view, _HEAD.size):
        position += _padding(position, length)
        _require(view, position + length)
        yield view[position : position + length]
        position += length


def _unpickle(data: bytes | memoryview, buffers: Iterator[memoryview] | tuple[()]) -> Any:
    try:
        return _loads(data, buffers=buffers)
    except (EOFError, IndexError, KeyError, OverflowError) as error:
        if _raised_by_unpickler(error):
            raise pickle.UnpicklingError(f"a damaged pickle: {error!r}") from error
        raise


def _raised_by_unpickler(error: BaseException) -> bool:
    """Did the unpickler itself raise this, not Python code that it called?"""
    trace = error.__traceback__
    return trace is not None and trace.tb_next is None


def _explain(value: object, name: str, depth: int, lines: list[str], seen: set[int]) -> bool:
    """Add the lines for a value and its culprits; False if it can be pickled."""
    if id(value) in seen:
        return False
    seen.add(id(value))
    try:
        dumps(value)
    except Exception as error:
        text = str(error).partition("\n")[0] or type(error).__name__
        lines.append(f"{'  ' * depth}{name}: {type(value).__name__}: {text}")
    else:
        return False
    if depth < 4:
        culprits = 0
        try:
            for member, inner in islice(_members(value, name), 10_000):
                culprits += _explain(inner, member, depth + 1, lines, seen)
                if culprits == 5:
                    break
        except Exception as error:  # a container or a `repr` of the user's own
            lines.append(f"{'  ' * depth}  {name}: what is in it cannot be seen: {error!r}")
    return True


def _members(value: Any, name: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, FunctionType):
        code = value.__code__
        for variable, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield f"{name}: captured {variable}", cell.cell_contents
            except ValueError:
                continue  # not assigned yet
        for variable in code.co_names:
            if variable in value.__globals__:
                yield f"{name}: global {variable}", value.__globals__[variable]
        for number, default in enumerate(value.__defaults__ or ()):
            yield f"{name}: default {number}", default
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield f"{name}[{key!r}]", item
    elif isinstance(value, list | tuple | set | frozenset):
        for number, item in enumerate(value):
            yield f"{name}[{number}]", item
    else:
        for attribute, item in list(getattr(value, "__dict__", {}).items()):
            if not attribute.startswith("__"):
                yield f"{name}.{attribute}", item
