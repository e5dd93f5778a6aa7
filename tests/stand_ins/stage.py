"""A stage for the launch scripts: stand-ins on PATH, and what they are told and were asked."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import shutil
import signal
import subprocess
import time

HERE = pathlib.Path(__file__).parent
PROJECT = HERE.parent.parent
SENT = ("coin_jax", "configs", "suites", "requirements.txt", "pyproject.toml", "README.md")
OTHERS = ["docker", "gcsfuse", "nvidia-smi", "python3", "sbatch", "scancel", "scontrol", "sky"]
OTHERS += ["squeue", "srun", "sudo", "mount", "apt-get", "curl"]


class Stage:
    """One test's folder of stand-ins; call it with a script and its arguments."""

    def __init__(self, folder: pathlib.Path, settings: str = ""):
        self.folder = folder
        self.project = folder / "project"  # the scripts write beside themselves
        shutil.copytree(PROJECT / "launch", self.project / "launch")
        for name in SENT:
            (self.project / name).write_text("")
        self.programs = folder / "bin"
        self.programs.mkdir()
        for name in ("gcloud", "kubectl"):
            (self.programs / name).symlink_to(HERE / name)
        for name in OTHERS:
            (self.programs / name).symlink_to(HERE / "others")
        self.environment = {
            "PATH": f"{self.programs}:/usr/bin:/bin",
            "HOME": str(folder),
            "STAND_IN": str(folder),
            "COIN_JAX_POLL_SECONDS": "0.02",
        }
        self.settings = folder / "my.env"
        example = (PROJECT / "launch" / "example.env").read_text()
        self.settings.write_text(settings or example.replace("COIN_JAX_POLL_SECONDS=30", ""))

    def tell(self, **answers: str) -> None:
        """Writes what the stand-ins go by: a file an answer, a line a time."""
        for name, text in answers.items():
            (self.folder / name).write_text(text + "\n")

    def __call__(self, script: str, *arguments: object, **environment: str):
        return subprocess.run(
            self.command(script, *arguments),
            capture_output=True,
            text=True,
            timeout=30,
            stdin=subprocess.DEVNULL,
            env=self.environment | environment,
            cwd=self.folder,
        )

    def command(self, script: str, *arguments: object) -> list[str]:
        return ["bash", str(self.project / "launch" / script), *map(str, arguments)]

    def begin(self, script: str, *arguments: object) -> subprocess.Popen:
        """Starts it as a terminal would: in a process group that Ctrl-C reaches."""
        # Where the tests run in the background of a shell, Ctrl-C is ignored, and programs hand
        # that on; a handler of ours they do not.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return subprocess.Popen(
                self.command(script, *arguments),
                stdout=(self.folder / "shown").open("w"),
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self.environment,
                cwd=self.folder,
                start_new_session=True,
            )
        finally:
            signal.signal(signal.SIGINT, before)

    def wait_for(self, text: str, seconds: float = 20) -> None:
        """Until what `begin` shows holds `text`."""
        end = time.monotonic() + seconds
        while text not in self.shown():
            assert time.monotonic() < end, f"{text!r} is not in: {self.shown()}"
            time.sleep(0.02)

    def shown(self) -> str:
        return (self.folder / "shown").read_text()

    def calls(self, *words: str) -> list[list[str]]:
        """What the stand-ins were asked, in order; with words, the calls that hold them all."""
        path = self.folder / "calls"
        lines = path.read_text().split("\x1e")[:-1] if path.exists() else []
        calls = [line.split("\x1f") for line in lines]
        return [call for call in calls if set(words) <= set(call)]

    def close(self) -> None:
        """Ends every training that a test left running."""
        for lock in self.folder.glob("**/lock"):
            with lock.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:  # it runs, so the group is still its own
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(int((lock.parent / "group").read_text()), signal.SIGKILL)
