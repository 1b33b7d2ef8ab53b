"""Reading foreign binary files in a child process with little memory and little time.

Parsers of .mat and image files can be made to crash the interpreter, to fill the memory or never to end. In a child
that costs one recording instead of the whole run. One child serves many files; another takes its place when it dies.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from openbrainmass.cohort.files.messages import read_exactly, receive_message, send_message
from openbrainmass.errors import OpenBrainMassError

# Importing the readers may take long on a busy machine; it says nothing about a file.
_SECONDS_TO_START = 120.0
_COUNTS_COMPUTING = hasattr(signal, "setitimer")
_CLOCK_FACTOR = 6 if _COUNTS_COMPUTING else 1
_MOST_LOST = 256 << 20
_LONGEST_REASON = 300
_COMMAND = "from openbrainmass.cohort.files.limited import _serve; _serve()"


def in_child(
    function: Callable[..., Any],
    path: str | Path,
    *args: Any,
    seconds: float = 4.5,
    extra_bytes: int = 512 << 20,
) -> Any:
    """Call ``function(path, *args)`` in a child process with limited memory and time.

    Modules named in ``IN_CHILD`` (a tuple of str) of the function's module are imported before the clock starts.

    Parameters
    ----------
    function : callable
        A function that can be imported by name. What it returns is made of dicts with text keys, lists, tuples, text,
        numbers, None and arrays of numbers or text.
    path : path
        The file it reads, for the messages.
    *args : object
        Its further arguments: of the same, and instances of dataclasses.
    seconds : float
        Seconds of computing it may take; by the clock six times as many, so that a busy machine or a slow disk costs
        no good file. (Where the system does not count computing, Windows, both are the clock's.)
    extra_bytes : int
        Bytes of memory it may add to what the child has when it starts. Not enforced where the system cannot
        (macOS, Windows).

    Returns
    -------
    object
        What the function returns.

    Raises
    ------
    OpenBrainMassError
        If the function raises an error, or runs out of memory or time, or its process dies.
    """
    path = Path(path)
    request = {
        "search": [entry or os.getcwd() for entry in sys.path],
        "module": function.__module__,
        "function": function.__qualname__,
        "seconds": seconds,
        "extra_bytes": extra_bytes,
    }
    with _HELD.lock:
        kind, result = _ask(request, (path, *args))
    if kind == "result":
        return result
    if kind == "sentence":
        raise OpenBrainMassError(result)
    raise OpenBrainMassError(
        f"The file {path} cannot be read ({result}). A whole {_type(path)} file was "
        "expected; write or download it again, or remove it."
    )


def _type(path: Path) -> str:
    double = next((end for end in (".nii.gz", ".ptseries.nii", ".dtseries.nii") if path.name.endswith(end)), None)
    return double or path.suffix or "binary"


class _Held:
    """The child of this process, if it has one, and who may talk to it."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        self.lock = threading.Lock()


_HELD = _Held()


def _ask(request: dict[str, Any], arguments: tuple) -> tuple[str, Any]:
    """The kind of answer (``result``, ``sentence``, ``error``) and the answer."""
    whole = False
    try:
        child, seconds = _ready_child(request, arguments), request["seconds"]
        limit = _Deadline(child, seconds * _CLOCK_FACTOR)
        with limit:
            try:
                kind, result = receive_message(_pipe(child.stdout), request["extra_bytes"])
                whole = _pipe(child.stdout).read(1) == b"+"
                return kind, result
            except (EOFError, OSError):
                code = _ended(child)
            except (ValueError, TypeError):
                return "error", "what came back of it was garbled"
        if limit.passed or (_COUNTS_COMPUTING and code == -signal.SIGPROF):
            return "error", f"opening it took more than {seconds:g} s"
        return "error", f"opening it ended the process that did, {_cause(code)}"
    finally:
        # Whatever else happened, Ctrl-C included, an answer may still be under way: nobody must take it for the next.
        if not whole:
            _stop()


def _ready_child(request: dict[str, Any], arguments: tuple) -> subprocess.Popen[bytes]:
    """A child that has taken the request and imported what it needs."""
    for _ in range(2):
        child = _HELD.child or _start()
        with _Deadline(child, _SECONDS_TO_START), contextlib.suppress(OSError, EOFError):
            send_message(_pipe(child.stdin), request)
            send_message(_pipe(child.stdin), arguments)
            if read_exactly(_pipe(child.stdout), 1) == b"+":
                return child
        # It may have been killed since the last file, so a fresh one gets a try.
        _stop()
    raise OpenBrainMassError(
        "The process that opens .mat and image files did not start. Memory or a limit on processes may be short: "
        "close other programs or use fewer jobs, and run it again."
    )


def _start() -> subprocess.Popen[bytes]:
    one_thread = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    search = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    try:
        _HELD.child = subprocess.Popen(
            # -P: a module lying in the current folder must not pass for one of the library's.
            [sys.executable, "-P", "-c", _COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Unbuffered, so that closing them in a forked process writes nothing.
            bufsize=0,
            env={**os.environ, **one_thread, "PYTHONPATH": search},
        )
    except OSError as error:
        raise OpenBrainMassError(
            f"The process that opens .mat and image files cannot be started ({error.strerror or error}). Close other "
            "programs or use fewer jobs, and run it again."
        ) from error
    return _HELD.child


def _stop() -> None:
    child, _HELD.child = _HELD.child, None
    if child is None:
        return
    child.kill()
    for pipe in (child.stdin, child.stdout):
        with contextlib.suppress(OSError):
            _pipe(pipe).close()
    child.wait()


def _forget() -> None:
    """After a fork: the child belongs to the process that started it, and it ends when all its pipes are closed."""
    child, _HELD.child, _HELD.lock = _HELD.child, None, threading.Lock()
    if child is None:
        return
    for pipe in (child.stdin, child.stdout):
        with contextlib.suppress(OSError):
            _pipe(pipe).close()
    # Whoever forked is not its parent and must not wait for it.
    child.returncode = 0


atexit.register(_stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class _Deadline:
    """Kills the child when time is up, which ends reading from its pipe; pipes know no time-outs everywhere."""

    def __init__(self, child: subprocess.Popen[bytes], seconds: float) -> None:
        self.passed = False
        self._child = child
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def _end(self) -> None:
        self.passed = True
        self._child.kill()

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _ended(child: subprocess.Popen[bytes]) -> int:
    """Exit code of a child that has closed its pipe."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return child.wait(timeout=2)
    child.kill()
    return child.wait()


def _cause(code: int) -> str:
    with contextlib.suppress(ValueError):
        return f"by {signal.Signals(-code).name}"
    return f"with exit code {code}"


# -- the child -------------------------------------------------------------------------------------------------------


def _serve() -> None:
    """Answer requests until the parent closes the pipe; its death closes it too."""
    # Ctrl-C reaches both; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _without_core_dumps()
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    # Whatever a parser prints must not get between the answers.
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    lost = 0
    # Memory that files leave behind counts; a child that has lost much of it makes room for another.
    while lost < _MOST_LOST:
        try:
            request = receive_message(requests, trusted=True)
        except EOFError:
            return
        try:
            function = _prepared(request)
        except Exception as error:
            answers.write(b"+")
            send_message(answers, ("error", f"its reader does not start: {error}"))
            return
        arguments = receive_message(requests, trusted=True)
        answers.write(b"+")
        before = _size()
        _answer(function, arguments, request, answers)
        lost += max(0, _size() - before)
        answers.write(b"+" if lost < _MOST_LOST else b".")


def _prepared(request: dict[str, Any]) -> Callable[..., Any]:
    sys.path[:] = request["search"]
    module = importlib.import_module(request["module"])
    for name in getattr(module, "IN_CHILD", ()):
        importlib.import_module(name)
    return getattr(module, request["function"])


def _answer(function: Callable[..., Any], arguments: tuple, request: dict[str, Any], answers: IO[bytes]) -> None:
    _set_alarms(request["seconds"])
    _limit_memory(_size() + request["extra_bytes"])
    try:
        send_message(answers, ("result", function(*arguments)))
    except BaseException as error:
        send_message(answers, _told(error, request["extra_bytes"]))
    _set_alarms(0)


def _set_alarms(seconds: float) -> None:
    """End this process when it has computed too long, or (its parent may have been killed) waited too long; 0: never."""
    if _COUNTS_COMPUTING:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, seconds and seconds * _CLOCK_FACTOR + 1)


def _told(error: BaseException, extra_bytes: int) -> tuple[str, str]:
    if isinstance(error, OpenBrainMassError):
        return "sentence", str(error)
    if isinstance(error, MemoryError):
        return "error", f"opening it needs more than {extra_bytes >> 20} MiB of memory"
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (LookupError, TypeError, AttributeError)):
        # These quote a key or an index, which says nothing by itself.
        text = f"its structure is broken, {type(error).__name__}: {text}"
    return "error", text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + " ..."


def _size() -> int:
    """Bytes of address space in use; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 0


def _limit_memory(n_bytes: int) -> None:
    if not _size():
        return
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    with contextlib.suppress(ValueError, OSError):
        soft = n_bytes if hard == resource.RLIM_INFINITY else min(n_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _without_core_dumps() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
