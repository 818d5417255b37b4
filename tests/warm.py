"""Python processes that have their imports done when they start: forks of a server that imports and nothing else.

A fork takes some hundredths of a second, while torch and `transformers.Trainer` take several seconds to import. Each
process of tests starts a server when it first needs one. What is imported, how fast and with which messages is tested
in ordinary processes.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

TESTS = Path(__file__).resolve().parent
IMPORTED = (
    "accelerate", "datasets", "hf_whittle.cli.run", "hf_whittle.run", "matplotlib.figure", "peft", "torch",
    "torch.distributed.fsdp", "transformers", "transformers.models.gpt_neox.modeling_gpt_neox", "transformers.trainer",
)  # fmt: skip
READ_AT_IMPORT = ("ATEN", "DS_", "HF_", "MKL", "OMP", "ONEDNN", "PYTHON", "TORCH_", "TRANSFORMERS_")
"""Beginnings of the names of variables that a process must have when it imports; others may change at a fork."""
READ_LATER = {"HF_TOKEN", "PYTHONPATH"}
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: processes below this one whose parent ends become its children
LONGEST = 1 << 17  # bytes of a request


def environment_of_scripts(**changes):
    """Environment with one thread, in which the package and helpers of the tests can be imported."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    modules = os.path.join(os.environ["HF_HOME"], "modules of scripts")  # code of models that scripts load
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "HF_MODULES_CACHE": modules, **changes}


class Popen(subprocess.Popen):
    """`subprocess.Popen` of a Python command, warm if it is a script or `-c` and its variables allow it."""

    def __init__(self, command, env=None, **options):
        super().__init__(list(map(str, command)), env=env or environment_of_scripts(), **options)

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):
        server = Server.of_this_process()
        if args[1] == "-m" or not server.may_start(env):
            return super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
        pipes = stdin, _, _, stdout, _, stderr = rest[3:9]
        streams = [own if given < 0 else given for own, given in enumerate((stdin, stdout, stderr))]
        try:
            self.pid = server.start(args[1:], str(cwd or os.getcwd()), env, streams)
            self._child_created = True
        finally:
            self._close_pipe_fds(*pipes)


def run(command, timeout=300, **options):
    """`subprocess.run` of a warm process, which captures its output as text."""
    with Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            output = process.communicate(timeout=timeout)
        finally:
            process.kill()
    return subprocess.CompletedProcess(command, process.returncode, *output)


class Server:
    """The server as its client sees it; it ends when the client does."""

    _only = None

    @classmethod
    def of_this_process(cls):
        if cls._only is None:
            cls._only = cls()
        return cls._only

    def __init__(self):
        self.variables = _read_at_import(environment_of_scripts())
        self.connection = None

    def may_start(self, environment):
        return sys.platform == "linux" and _read_at_import(environment) == self.variables

    def start(self, command, cwd, environment, streams):
        """Start a process, which becomes a child of this one; returns its number."""
        if self.connection is None:
            self._launch()
        request = json.dumps([command, cwd, environment]).encode()
        assert len(request) < LONGEST, "too long for a warm process"
        socket.send_fds(self.connection, [request], streams)
        started = self.connection.recv(32)
        assert started, "the server of warm processes ended; its error stands above"
        return int(started)

    def _launch(self):
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
        self.connection, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            command = [sys.executable, __file__, str(its.fileno())]
            nothing = subprocess.DEVNULL
            environment = environment_of_scripts()
            process = subprocess.Popen(command, env=environment, pass_fds=[its.fileno()], stdin=nothing, stdout=nothing)
        atexit.register(process.wait)
        atexit.register(self.connection.close)


def _read_at_import(environment):
    return {
        name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT) and name not in READ_LATER
    }


def serve(connection):
    """Fork for each request. Returns its contents and streams in the fork, whose parent ends at once."""
    while True:
        request, streams, *_ = socket.recv_fds(connection, LONGEST, 3)
        if not request:
            os._exit(0)
        read, write = os.pipe()
        if (between := os.fork()) == 0:
            if number := os.fork():
                os.write(write, str(number).encode())
                os._exit(0)
            for unused in (read, write, connection.detach()):
                os.close(unused)
            return json.loads(request), streams
        os.waitpid(between, 0)
        connection.send(os.read(read, 32))
        for done in (read, write, *streams):
            os.close(done)


def become(command, cwd, environment, streams):
    """Make this process one that was started with a command; returns its `__main__` and the code to run in it."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(cwd)
    before, after = (paths.split(os.pathsep) for paths in (os.environ["PYTHONPATH"], environment["PYTHONPATH"]))
    installed = [path for path in sys.path[1:] if path not in before]
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main = sys.modules["__main__"] = ModuleType("__main__")
    if command[0] == "-c":
        first, name, code = "", "<string>", command.pop(1)
    else:
        main.__file__ = name = command[0]
        first, code = str(Path(name).resolve().parent), Path(name).read_bytes()
    sys.argv[:], sys.path[:] = command, [first, *after, *installed]
    return main, compile(code, name, "exec", dont_inherit=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which is for the processes that it started
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    main, code = become(*(request := serve(socket.socket(fileno=int(sys.argv[1]))))[0], request[1])
    exec(code, vars(main))
