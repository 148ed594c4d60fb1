"""Safe deserialization of Dask messages: only messages of the service may contain pickled objects.

Dask unpickles values of messages, results, exceptions and warnings of any sender. A worker runs
user code, so the process of the service, and a scheduler that it starts, must not unpickle what
workers send. `protect` replaces, for the whole process,

- how messages are read (`distributed.comm.tcp`): sizes and counts are bounded, and values that Dask
  has serialized or pickled stay serialized;
- how errors are read (`clean_exception`): by their text;
- how the client reads types and warnings: not at all.

Values are deserialized in one place only, `opened`, for a peer with the certificate of the service.
"""

import logging
import struct
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace, TracebackType
from typing import Any, Never

import distributed.client
import distributed.core
import distributed.scheduler
import msgpack
from distributed.comm import tcp as _tcp
from distributed.core import Status
from distributed.protocol import pickle
from distributed.protocol.compression import decompress
from distributed.protocol.serialize import Pickled, Serialized

log = logging.getLogger(__name__)

LARGEST = 64 << 20
"""Bytes of one message."""

FRAMES = 4_096
"""Frames of one message."""

ITEMS = 1 << 14
"""Items of one list: msgpack allocates them before it reads them, at each level of nesting."""

_TEXT = 2_000
"""Characters of an error's text."""

_PRELUDE = "Q"

Frames = list[memoryview]

tcp: Any = _tcp
"""The module of Dask's TCP connections; the functions that are replaced in it are not public."""


class RemoteError(Exception):
    """Another process of the cluster reported an error; only its text is known."""


def protect() -> None:
    """Have this process read messages of Dask as data, without unpickling them."""
    if tcp.from_frames is _from_frames:
        return
    vars(tcp).update(
        from_frames=_from_frames,
        read_bytes_rw=_bounded_read(tcp.read_bytes_rw),
        unpack_frames=_bounded_unpack(tcp.unpack_frames),
    )
    closed = SimpleNamespace(dumps=pickle.dumps, loads=_refuse)
    client: Any = distributed.client
    client.loads = _refuse
    client.pickle = closed
    # by default a client prints the output of workers, and unpickles their warnings
    client.Client._default_event_handlers = {}  # noqa: SLF001  # there is no setting
    for module in (distributed.core, distributed.client, distributed.scheduler):
        vars(module)["clean_exception"] = clean_exception


def opened(message: Any) -> Any:
    """Unpickle the values of a message. Use it for messages of the service only."""
    if isinstance(message, Pickled):
        frames = message.frames
        if "compression" in message.header:
            frames = decompress(message.header, frames)
        return pickle.loads(message.header["pickled-obj"], buffers=frames)
    if isinstance(message, dict):
        return {name: opened(value) for name, value in message.items()}
    if isinstance(message, tuple):
        return tuple(opened(value) for value in message)
    return message


def plain_bytes(value: object) -> bytes | None:
    """Return the bytes that a worker returned, without deserializing; None if not bytes."""
    if not isinstance(value, Serialized) or any(value.header.get("compression") or ()):
        return None
    return b"".join(value.frames)


def clean_exception(
    exception: object = None, traceback: object = None, **about: Any
) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """Replace `distributed.core.clean_exception`: return an error with the text only."""
    del traceback
    if isinstance(exception, BaseException):
        return type(exception), exception, exception.__traceback__
    text = about.get("exception_text")
    if not isinstance(text, str):
        text = exception if isinstance(exception, str) else "an error whose text is not known"
    error = RemoteError(text[:_TEXT])
    return type(error), error, None


def _refuse(*data: object, **options: object) -> Never:
    del data, options
    raise RemoteError("pickled data of other processes is not read")


async def _from_frames(
    frames: Frames,
    deserialize: bool = True,  # noqa: FBT001, FBT002  # the signature is Dask's
    deserializers: object = None,
    allow_offload: bool = True,  # noqa: FBT001, FBT002  # the signature is Dask's
) -> Any:
    """Read a message; its values stay serialized, even if Dask asks to deserialize them."""
    del deserialize, deserializers, allow_offload
    try:
        return _load(frames)
    except Exception as error:  # noqa: BLE001  # the sender decides what fails
        log.warning("a Dask message is rejected: %s: %s", type(error).__name__, error)
        # Dask closes the connection on this error
        raise EOFError("a Dask message is rejected") from None


def _load(frames: Frames) -> Any:
    def hook(found: dict[Any, Any]) -> Any:
        for name, kind in (("__Serialized__", Serialized), ("__Pickled__", Pickled)):
            if name in found:
                return kind(*_closed(frames, found[name]))
        if "__Set__" in found:
            return set(found["as-list"])
        if "__Enum__" in found:
            if (found["__module__"], found["__name__"]) != (Status.__module__, Status.__name__):
                raise ValueError("an enumeration that is not known")
            return Status[found["name"]]
        return found

    return _unpack(frames[0], hook)


def _closed(frames: Frames, position: object) -> tuple[Mapping[str, Any], Sequence[Any]]:
    """Return the header and the frames of a value."""
    if type(position) is not int or not 0 < position < len(frames):
        raise ValueError("a value without frames")
    header = _unpack(frames[position], None)
    count = header["num-sub-frames"]
    if type(count) is not int or not 0 <= count < len(frames) - position:
        raise ValueError("a value with fewer frames than it says")
    return header, frames[position + 1 : position + 1 + count]


def _unpack(frame: memoryview, hook: Callable[[dict[Any, Any]], Any] | None) -> Any:
    return msgpack.unpackb(
        frame,
        object_hook=hook,
        use_list=False,
        raw=False,
        strict_map_key=False,
        max_array_len=ITEMS,
        max_ext_len=0,
    )


def _bounded_read(read: Callable[..., Any]) -> Callable[..., Any]:
    async def bounded(stream: Any, size: int) -> Any:
        if size > LARGEST:
            raise OSError(f"a message of {size} bytes is rejected; at most {LARGEST} are allowed")
        return await read(stream, size)

    return bounded


def _bounded_unpack(unpack: Callable[..., Any]) -> Callable[..., Any]:
    def bounded(data: Any, *, partial: bool) -> Any:
        try:
            (count,) = struct.unpack_from(_PRELUDE, data)
            if count > FRAMES:
                raise OSError(f"a message of {count} frames is rejected; {FRAMES} are allowed")
            frames, missing = unpack(data, partial=partial)
        except (AssertionError, struct.error) as error:
            raise OSError(f"a message is rejected: {error}") from None
        if sum(missing) > LARGEST:
            raise OSError(f"a message of {sum(missing)} bytes is rejected")
        return frames, missing

    return bounded
