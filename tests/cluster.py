"""The main job as several processes of this machine, each with CPU devices of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import time

import jax
from training_runs import ROOT


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(number, count, port, devices=1, **more):
    """Of process `number` of `count`; programs are shared with the test's own process."""
    return os.environ | {
        "COIN_JAX_COORDINATOR": f"127.0.0.1:{port}",
        "COIN_JAX_PROCESSES": str(count),
        "COIN_JAX_PROCESS": str(number),
        "XLA_FLAGS": f"--xla_backend_optimization_level=0 "
        f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **more,
    }


@contextlib.contextmanager
def cluster(
    count, *arguments, devices=1, script=None, module="coin_jax.train", folders=None, **more
):
    """A job in `count` processes, or a script; what still runs at the end is killed.

    folders: process N works in the folder N of it.
    """
    port, what = free_port(), ["-m", module] if script is None else [str(script)]
    more.setdefault("PYTHONPATH", str(ROOT))
    processes = [
        subprocess.Popen(
            [sys.executable, *what, *map(str, arguments)],
            cwd=ROOT if folders is None else folders / str(number),
            env=environment(number, count, port, devices, **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


def endings(processes, timeout=600):
    """(exit status, stdout, stderr) of each, once all have ended."""
    deadline = time.monotonic() + timeout
    texts = [process.communicate(timeout=deadline - time.monotonic()) for process in processes]
    return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]


def wait_for(condition, processes, timeout=600):
    """Returns when `condition()` holds; fails where a process ends before."""
    deadline = time.monotonic() + timeout
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
