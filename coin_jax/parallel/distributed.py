"""Several processes, one run: how they find each other, share the data, stop and fail together.

JAX runs the same program in every process; what is said here is who is there, what only one of
them does, and that none of them is left waiting for another that is gone.

    plain       one process, unless the environment says that there are others
    explicit    COIN_JAX_COORDINATOR=host:port COIN_JAX_PROCESSES=4 COIN_JAX_PROCESS=0..3
    SLURM       started by srun with more than one task: one process a GPU
    TPU VM      every worker of the slice (or slices) runs the same command

COIN_JAX_PROCESSES=1 makes any of them a plain process. COIN_JAX_START_TIMEOUT (300) is how many
seconds the processes wait for each other at the start, COIN_JAX_HEARTBEAT_TIMEOUT (100) how many
later, before one that is not heard of counts as dead.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import faulthandler
import hashlib
import itertools
import os
import pathlib
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from coin_jax.config import ConfigError

EXPLICIT = ("COIN_JAX_COORDINATOR", "COIN_JAX_PROCESSES", "COIN_JAX_PROCESS")
_DAY = 24 * 3600 * 1000
_barriers = itertools.count()  # one name is good for one barrier
_ENDED, _ALIVE, _LEFT = "coin_jax/ended", "coin_jax/alive", "coin_jax/left"


# --- who is there -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cluster:
    """How the processes of this run find each other; None: JAX asks the cluster itself."""

    method: str | None = None
    """JAX's name of the kind of cluster, or "deactivate" where all is said here."""
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


def find_cluster(environment: Mapping[str, str], has_tpu: bool = False) -> Cluster | None:
    """What `environment` says of other processes; None: this one is alone.

    has_tpu: whether this machine is a TPU VM. Raises ConfigError where it says half.
    """
    given = {name: environment[name] for name in EXPLICIT if environment.get(name)}
    if given == {"COIN_JAX_PROCESSES": "1"}:
        return None
    if given:
        return _explicit(given)
    tasks = environment.get("SLURM_NTASKS", "1")
    if tasks.isdecimal() and int(tasks) > 1:
        needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
        if missing := [name for name in needed if name not in environment]:
            raise ConfigError(
                f"SLURM_NTASKS={tasks}, but {', '.join(missing)} is not set: the process was "
                "not started by srun. Do that, or set COIN_JAX_PROCESSES=1 for a single process."
            )
        return Cluster("slurm")
    if has_tpu and "tpu" in (environment.get("JAX_PLATFORMS") or "tpu"):
        hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
        return Cluster("gketpu" if hosts else "gcetpu")
    return None


def _explicit(given: Mapping[str, str]) -> Cluster:
    written = ", ".join(f"{name}={value}" for name, value in given.items())
    if missing := [name for name in EXPLICIT if name not in given]:
        raise ConfigError(
            f"{written}: {' and '.join(missing)} must be set as well, or none of the three. "
            "COIN_JAX_PROCESSES=1 alone means a single process."
        )
    host, separator, port = given["COIN_JAX_COORDINATOR"].rpartition(":")
    if not (separator and host and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(
            f"{written}: COIN_JAX_COORDINATOR must be host:port, an address of the machine of "
            "process 0 and a port that is free there"
        )
    count, number = given["COIN_JAX_PROCESSES"], given["COIN_JAX_PROCESS"]
    if not (count.isdecimal() and number.isdecimal() and int(number) < int(count)):
        raise ConfigError(
            f"{written}: COIN_JAX_PROCESSES must be a number of processes, and COIN_JAX_PROCESS "
            "one of 0, 1, .. below it"
        )
    if int(count) == 1:
        return None
    return Cluster("deactivate", given["COIN_JAX_COORDINATOR"], int(count), int(number))


def seconds(environment: Mapping[str, str], name: str, default: int) -> int:
    """A whole number of seconds from the environment. Raises ConfigError."""
    text = environment.get(name) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{name}={text}: must be a whole number of seconds, at least 1")
    return int(text)


def initialize(environment: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes of this run, if there are any. Before anything uses a device.

    Raises ConfigError where the environment is half set or the others cannot be found.
    """
    start = seconds(environment, "COIN_JAX_START_TIMEOUT", 300)
    silence = seconds(environment, "COIN_JAX_HEARTBEAT_TIMEOUT", 100)
    if jax.distributed.is_initialized():
        return
    from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm

    cluster = find_cluster(environment, running_in_cloud_tpu_vm)
    if cluster is None:
        return
    # Its own SIGTERM handler would take the place of the loop's, and stops at no common step.
    jax.config.update("jax_enable_preemption_service", False)
    # Two programs that both talk to other processes must run in the same order in all of them.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    with _ends_after(start, _not_found(cluster, start)):
        try:
            jax.distributed.initialize(
                cluster.coordinator,
                cluster.processes,
                cluster.process,
                cluster_detection_method=cluster.method,
                # Where JAX itself runs out of patience it aborts, without a word for people.
                initialization_timeout=2 * start + 60,
                heartbeat_timeout_seconds=3 * silence,
            )
            count = jax.process_count()
        except Exception as error:
            raise ConfigError(
                f"the processes of this run cannot find each other ({cluster.method}): {error}\n"
                f"Set {', '.join(EXPLICIT)} to say where they are, or COIN_JAX_PROCESSES=1 for a "
                "single process."
            ) from error
    if count > 1:
        global _watch
        _abort_late()
        _watch = _Watch(silence)
        _watch.start()


def _not_found(cluster: Cluster, timeout: int) -> str:
    if cluster.coordinator is None:
        return (
            f"The other processes ({cluster.method}) were not found within {timeout} s. Every "
            "worker has to run the same command; COIN_JAX_START_TIMEOUT sets the time."
        )
    if cluster.process:
        return (
            f"Process {cluster.process} of {cluster.processes} found no coordinator at "
            f"{cluster.coordinator} within {timeout} s, or not all processes came there. Process 0 "
            "runs it: is it started, is COIN_JAX_COORDINATOR its address, is the port open?"
        )
    return (
        f"Process 0 waited {timeout} s at {cluster.coordinator} for the other "
        f"{cluster.processes - 1}, and not all of them came. Each needs the same "
        "COIN_JAX_COORDINATOR and COIN_JAX_PROCESSES and a COIN_JAX_PROCESS of its own."
    )


@contextlib.contextmanager
def _ends_after(timeout: int, sentence: str) -> Iterator[None]:
    """Ends the process with `sentence` where what is within, in native code, takes too long."""
    timer = threading.Timer(timeout, lambda: (_say(sentence), os._exit(1)))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_main() -> bool:
    """Whether this process is the one that writes what is for people."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Returns when every process has come here.

    Not a collective of the devices: those give up where one of them reads data for an hour.
    """
    if jax.process_count() > 1:
        _client().wait_at_barrier(f"coin_jax/{name}/{next(_barriers)}", _DAY)


@contextlib.contextmanager
def main_first(name: str) -> Iterator[None]:
    """Process 0 does what is within before the others: they find the files that it made."""
    if not is_main():
        barrier(name)
    yield
    if is_main():
        barrier(name)


def check_shared(folder: pathlib.Path) -> None:
    """Raises ConfigError where the processes do not see one and the same `folder`."""
    if jax.process_count() == 1:
        return
    number = int(multihost_utils.broadcast_one_to_all(np.int32(os.getpid())))
    probe = folder / ".shared"
    if is_main():
        probe.write_text(str(number))
    barrier("probe written")
    with contextlib.suppress(OSError):
        if probe.read_text() == str(number):
            number = 0
    if number:
        raise ConfigError(
            f"output: process {jax.process_index()} ({socket.gethostname()}) does not see in "
            f"{folder} what process 0 wrote there. All processes need one folder: mount a shared "
            "one and name it with --output."
        )
    barrier("probe read")
    if is_main():
        probe.unlink()


def check_same(what: str, content: str) -> None:
    """Raises ConfigError in a process where `content` is another than in process 0.

    Processes that disagree about what comes next would wait for each other for ever.
    """
    if jax.process_count() == 1:
        return
    name = f"coin_jax/same/{next(_barriers)}"
    digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
    if is_main():
        _client().key_value_set(name, digest)
    elif _client().blocking_key_value_get(name, _DAY) != digest:
        raise ConfigError(
            f"process {jax.process_index()} ({socket.gethostname()}) has another {what} than "
            "process 0: all of them need the same command, the same files and the same packages"
        )


# --- how they end -----------------------------------------------------------------------------


@contextlib.contextmanager
def together(describe: Callable[[BaseException], str | None]) -> Iterator[None]:
    """An error within ends every process, this one at once: what it would close in order waits for
    processes that wait for it. A single process has its error raised as ever.

    describe: what people read of an error; None: its traceback.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        if isinstance(error, jax.errors.JaxRuntimeError) or _XLA_STATUS.match(str(error)):
            time.sleep(
                3
            )  # if another one told of its end, or the coordinator is gone, that is heard
            leave(
                f"{str(error).splitlines()[0]}\nOf several processes this mostly means that "
                f"another is gone: its own output says why. {_REMEDY}"
            )
        leave(describe(error) or traceback.format_exc())


def leave(message: str) -> NoReturn:
    """Ends this process, one of several, with `message`; the others are told, and end with it."""
    _say(message)
    if _watch is not None:
        _watch.finishing.set()  # it has nothing to tell of this process
    _end(f"process {jax.process_index()} ({socket.gethostname()}) ended: {message}")


def _say(sentence: str) -> None:
    """The last words of this process. Only the first ones are said: what another thread notices
    after that has the same cause."""
    if _spoken.acquire(blocking=False):
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os.write(2, f"{sentence}\n".encode())


def _end(sentence: str | None = None) -> NoReturn:
    """Ends the process from any thread, whatever its others wait for; `sentence` is for the others.

    Process 0 is the coordinator: where it goes first, JAX aborts the others.
    """
    deadline = time.monotonic() + 3
    # If the coordinator does not answer, which may be for an abort that waits.
    late = threading.Timer(5 if is_main() else 2.5, os._exit, (1,))
    late.daemon = True
    late.start()
    if sentence is not None:
        with contextlib.suppress(Exception):  # another was first, or the coordinator is gone
            _client().key_value_set(_ENDED, sentence)
    with contextlib.suppress(Exception):
        _client().key_value_set(f"{_LEFT}/{jax.process_index()}", "", allow_overwrite=True)
        while is_main() and time.monotonic() < deadline:
            if len(_client().key_value_dir_get(_LEFT)) == jax.process_count():
                time.sleep(0.5)  # their last step out
                break
            time.sleep(0.05)
    os._exit(1)


def _client() -> Any:
    from jax._src import distributed  # its key-value store has no public name

    return distributed.global_state.client


def _abort_late() -> None:
    """Lets the other threads of this process go on for six seconds after one has aborted.

    JAX aborts in the moment in which it loses the coordinator, and has no hook that works (jaxlib
    0.10 cannot hand its status to Python); the watch needs some time to say what happened. A
    signal's handler is a C function that is given the signal's number: C's sleep(6) for SIGABRT,
    which is 6. Then the abort goes on.
    """
    faulthandler.enable()  # before, so that it tells of every fault but this one
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


class _Watch:
    """Ends this process with a sentence when another one has ended or is not heard of.

    Every process leaves signs of life with the coordinator, which is process 0 and counts them; the
    others count how often it did not answer. JAX watches too, with three times the patience, and
    aborts without a word for people.
    """

    def __init__(self, silence: int):
        self._silence = silence
        self._beat = min(1.0, silence / 8)  # well within the six seconds before an abort
        self._patience = round(silence / self._beat)
        self._unanswered = 0
        self._client, self._main = _client(), is_main()
        self._me = jax.process_index()
        self.finishing = threading.Event()
        self._threads = [
            threading.Thread(target=work, name="watch", daemon=True)
            for work in (self._count, self._live)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """A thread that waits in native code when Python ends would abort the process."""
        self.finishing.set()
        for thread in self._threads:
            thread.join()

    def _count(self) -> None:
        """Calls nobody: where JAX has noticed that the coordinator is gone, calls never return."""
        while not self.finishing.wait(self._beat):
            self._unanswered += 1
            said = self._of_the_coordinator()
            if said and not self.finishing.is_set():
                _say(f"This process stops, because {said}")
                os._exit(1)

    def _of_the_coordinator(self) -> str | None:
        """What has happened to it; None: nothing, as far as can be told."""
        from jax._src import distributed

        address = distributed.global_state.coordinator_address
        main = f"process 0, the coordinator at {address},"
        if self._unanswered >= self._patience:
            return f"{main} has not been heard of for {self._silence} s\n{_REMEDY}"
        if self._unanswered > 1:
            host, _, port = address.rpartition(":")
            try:
                socket.create_connection((host.strip("[]"), int(port)), 1).close()
            except TimeoutError:
                pass  # it may be busy
            except OSError as error:
                reason = error.strerror or error
                return f"{main} is gone ({reason}); its own output says why, if it could\n{_REMEDY}"
        return None

    def _live(self) -> None:
        # Of each process: its last sign, and how many looks ago it was new.
        seen = {str(process): ("", 0) for process in range(jax.process_count())}
        for beat in range(sys.maxsize):
            if self.finishing.wait(self._beat):
                return
            said = None
            with contextlib.suppress(Exception):  # the other thread counts what is not answered
                self._client.key_value_set(f"{_ALIVE}/{self._me}", str(beat), allow_overwrite=True)
                if self._main:
                    self._judge(seen)
                said = self._ended()
                self._unanswered = 0
            if said and not self.finishing.is_set():
                _say(f"This process stops, because {said}")
                _end()

    def _ended(self) -> str | None:
        """How another process ended. Asked for and not waited for: what a call waits for stays with
        the coordinator when the call has given up."""
        try:
            return self._client.key_value_try_get(_ENDED)
        except Exception as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def _judge(self, seen: dict[str, tuple[str, int]]) -> None:
        """Counts looks and not seconds: after a pause of its own nobody else is late."""
        signs = self._client.key_value_dir_get(_ALIVE)
        signs = {name.rsplit("/", 1)[-1]: sign for name, sign in signs}
        for process, (last, unchanged) in seen.items():
            sign = signs.get(process, "")
            unchanged = unchanged + 1 if sign == last else 0
            seen[process] = sign, unchanged
            if unchanged >= self._patience:
                said = f"process {process} has not been heard of for {self._silence} s\n{_REMEDY}"
                with contextlib.suppress(Exception):
                    self._client.key_value_set(_ENDED, said)


_XLA_STATUS = re.compile("(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")
_REMEDY = "What was saved before is whole; the same command goes on from there."
_watch: _Watch | None = None
_spoken = threading.Lock()


def finish() -> None:
    """At the end of a run, in every process: from here on it is no fault that others are gone."""
    global _watch
    if _watch is not None:
        barrier("the end")
        _watch.finish()
        _watch = None
