"""Starts what `python SCRIPT`, -m or -c start, in copies of a process that has imported TensorFlow.

Only that import is saved, which takes seconds. A script has a process of its own, with the command
line, environment, working directory, signals and end of one that Python has just started; it
imports the project itself. After its exit handlers it does not free TensorFlow's objects one by
one, which takes longer than to refuse a command line.
"""

import atexit
import concurrent.futures
import contextlib
import gc
import json
import os
import pathlib
import runpy
import select
import signal
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
LARGEST = 1 << 20  # bytes of a command line and an environment
_server = None


def heed_signals():
    """Restores signals, which background jobs, such as these tests may be, ignore."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)


class Script:
    """A script that runs: what the tests use of `subprocess.Popen`."""

    def __init__(self, pipes, status):
        self.stdout, self.stderr = (os.fdopen(pipe) for pipe in pipes)
        self.returncode = None
        self._status = os.fdopen(status)
        self.pid = int(self._status.readline())

    def poll(self):
        """Returns the exit code, negative after a signal, or None while the script runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = int(self._status.readline())
        return self.returncode

    def wait(self, timeout=None):
        """Returns the exit code once the script has ended."""
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("the script", timeout)
        return self.poll()

    def send_signal(self, number):
        """Sends a signal, unless the script has ended."""
        with contextlib.suppress(ProcessLookupError):  # it ends at this moment
            if self.poll() is None:
                os.kill(self.pid, number)

    def kill(self):
        """Kills the script, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout=None):
        """Returns what is left of stdout and stderr, once the script has ended."""
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            texts = [pool.submit(stream.read) for stream in (self.stdout, self.stderr)]
            if concurrent.futures.wait(texts, timeout).not_done:
                self.kill()
                raise subprocess.TimeoutExpired("the script", timeout)
        self.wait(timeout)
        self.stdout.close()
        self.stderr.close()
        return tuple(text.result() for text in texts)


def start(command, cwd, environment):
    """Starts a command, of a script, or of -m or -c and what it names; returns it as a `Script`."""
    pipes = [os.pipe() for _ in ("stdout", "stderr", "status")]
    readers, writers = zip(*pipes)
    request = json.dumps([list(map(str, command)), str(cwd), environment])
    global _server
    if _server is None:
        _server = _started_server(environment)
    socket.send_fds(_server, [request.encode()], writers)
    for writer in writers:
        os.close(writer)
    return Script(readers[:2], readers[2])


def _started_server(environment):
    """Starts the process that is copied, which ends with this one; returns the way to it."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        subprocess.Popen(
            [sys.executable, "-m", "tests.forked", str(its.fileno())],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[its.fileno()],
            preexec_fn=heed_signals,
        )
    return ours


def _serve(channel):
    """Copies this process for each request; returns the request in the copy, None at the end."""
    keepers = []
    while True:
        request, handles, _, _ = socket.recv_fds(channel, LARGEST, 3)
        keepers = [keeper for keeper in keepers if not os.waitpid(keeper, os.WNOHANG)[0]]
        if not request:
            return None
        keeper = os.fork()
        if not keeper:
            channel.close()
            script = os.fork()
            if not script:
                os.close(handles[2])
                return json.loads(request), handles[:2]
            # This one stays to tell how the script ends.
            for handle in handles[:2]:
                os.close(handle)
            os.write(handles[2], f"{script}\n".encode())
            _, status = os.waitpid(script, 0)
            os.write(handles[2], f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os._exit(0)
        keepers.append(keeper)
        for handle in handles:
            os.close(handle)


def _become(cwd, environment, handles):
    """Makes this process like a new Python."""
    for number, handle in enumerate(handles, start=1):
        os.dup2(handle, number)
        os.close(handle)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)


def _run(first, *others):
    """Runs a command in this process."""
    if first == "-m":
        sys.argv, sys.path[0] = list(others), os.getcwd()
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, sys.path[0] = ["-c", *others[1:]], ""
        exec(compile(others[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = [first, *others], os.path.dirname(os.path.realpath(first))
        runpy.run_path(first, run_name="__main__")


class _End:
    """The end of a script, as Python's own, but for the objects, which end with the process."""

    code = None

    def __init__(self):
        atexit.register(self._leave)  # handlers that are registered later run before it

    def run(self, command):
        """Runs a command; an exit without a message is left to `_leave`."""
        try:
            _run(*command)
        except SystemExit as end:
            if end.code is None or isinstance(end.code, int):
                self.code = (end.code or 0) & 0xFF
            raise

    def _leave(self):
        if self.code is None:
            return
        with contextlib.suppress(OSError, ValueError):  # Python's own end says what is wrong
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.code)


if __name__ == "__main__":
    end = _End()
    # What a script imports sooner or later, but for the project.
    import keras  # noqa: F401
    import numpy  # noqa: F401
    import tensorflow  # noqa: F401
    from absl import app  # noqa: F401

    gc.collect()
    gc.freeze()  # or each copy would read all of it, and copy its memory, as it ends
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        request = _serve(channel)
    if request is not None:
        (command, cwd, environment), handles = request
        _become(cwd, environment, handles)
        end.run(command)
