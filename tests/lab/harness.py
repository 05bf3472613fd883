"""Finds scenarios, runs them and counts what came of it.

A scenario is a module in `scenarios/`; each of its `test_*` functions takes a `Lab` and passes by
returning, fails by raising, and is skipped by raising `Skip` (through one of the `requires_*`
helpers, so that the reason is always printed). A test that is made of many steps, as one guest
boot is, reports each through `Lab.step`.
"""

import contextlib
import importlib
import os
import pathlib
import queue
import resource
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import traceback

TESTS = pathlib.Path(__file__).resolve().parent.parent
CHECKOUT = TESTS.parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vscsi"

# Tests that run at a time beside the others.
BESIDE_JOBS = 2
LAB = pathlib.Path(__file__).resolve().parent


class Skip(Exception):
    """The test cannot run here; the text says what is missing."""


class Failed(Exception):
    """The target did not do what the test expects."""


def check(condition, message):
    """Fails the running test with `message` unless `condition` holds."""
    if not condition:
        raise Failed(message)


def check_equal(got, expected, what):
    """Fails the running test unless `got` is `expected`."""
    check(got == expected, f"{what}: expected {expected!r}, got {got!r}")


def wait_until(condition, seconds, what):
    """Polls `condition` until it returns something true, which it returns."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        check(time.monotonic() < deadline, f"{what}: not within {seconds} s")
        time.sleep(0.02)


def free_port():
    """A TCP port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Lab:
    """What one test may use: scratch space, targets, external programs, and step reports."""

    def __init__(self, make_target, target_kind, test_name, report):
        self._make_target = make_target
        self._report = report
        self._stack = contextlib.ExitStack()
        self._targets = []
        self.target_kind = target_kind
        self.test_name = test_name
        self.steps = 0
        self.has_failed_step = False
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="vscsi-lab-"))

    def close(self, keep=False):
        """Stops whatever the test started; keeps its files for a look when it failed."""
        self._stack.close()
        if not keep:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def target(self, luns, make=None, **options):
        """Starts a target with `luns`; see `targets.py` for the options.

        `make` is for a test of what only one program has: a class of its own.
        """
        target = (make or self._make_target)(self, luns, **options)
        self._stack.callback(target.stop)
        self._targets.append(target)
        target.start()
        return target

    def finish(self):
        """Checks that every target still runs, unless the test ended it, and ends as it should."""
        for target in self._targets:
            target.finish()

    def image(self, name, size):
        """A new sparse file of `size` bytes in the scratch folder."""
        path = self.scratch / name
        with open(path, "wb") as file:
            file.truncate(size)
        return path

    def run(self, *command, timeout=120, ok=True, env=None, stdin=None):
        """Runs a program to its end; with `ok` a non-zero exit fails the test."""
        command = [str(word) for word in command]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=timeout,
                input=stdin, env=None if env is None else {**os.environ, **env},
            )
        except subprocess.TimeoutExpired as expired:
            raise Failed(f"{' '.join(command)}: no end within {timeout} s") from expired
        if ok:
            check(
                done.returncode == 0,
                f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}",
            )
        return done

    def step(self, name, outcome, reason=""):
        """Reports one step of a test; `outcome` is "ok", "FAIL" or "SKIP"."""
        self.steps += 1
        self.has_failed_step |= outcome == "FAIL"
        self._report(f"{self.test_name}/{name}", outcome, reason, None)

    def requires_program(self, *names):
        """Skips the test unless every named program is installed."""
        for name in names:
            if shutil.which(name) is None:
                raise Skip(f"{name} is not installed")

    def requires_root(self):
        """Skips the test unless it runs as root."""
        if os.geteuid() != 0:
            raise Skip("needs root")

    def requires_open_files(self, count):
        """Skips the test unless a process here may have `count` files open."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < count:
            raise Skip(f"a process may open {hard} files, not {count}")

    def requires_vscsi(self, what):
        """Skips the test when a stand-in target is under test."""
        if self.target_kind != "vscsi":
            raise Skip(f"{self.target_kind} has no {what}")


class Runner:
    """Runs tests, prints a line for each, and keeps the counts."""

    MARKS = {"ok": "passed", "FAIL": "failed", "SKIP": "skipped"}

    def __init__(self, make_target, target_kind, folder="scenarios", prefix="test_"):
        self._make_target = make_target
        self._target_kind = target_kind
        self._folder = folder
        self._prefix = prefix
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self._open = set()
        self._lock = threading.Lock()

    def run(self, patterns):
        """Runs each test whose `scenario::name` contains one of `patterns` (or all of them).

        Those of a scenario with `BESIDE` set spend their time asleep: they run beside the others.
        """
        tests = list(self._tests(patterns))
        beside = queue.SimpleQueue()
        for test in tests:
            if test[2]:
                beside.put(test)
        threads = [threading.Thread(target=self._drain, args=(beside,), daemon=True)
                   for _ in range(BESIDE_JOBS)]
        try:
            for thread in threads:
                thread.start()
            for name, function, is_beside in tests:
                if not is_beside:
                    self._run_one(name, function)
            for thread in threads:
                thread.join()
        finally:
            # Only when this was cut short is there one left.
            for lab in list(self._open):
                lab.close()

    def _drain(self, tests):
        while True:
            try:
                name, function, _ = tests.get_nowait()
            except queue.Empty:
                return
            self._run_one(name, function)

    def _tests(self, patterns):
        for scenario in sorted(path.stem for path in (LAB / self._folder).glob("*.py")):
            module = importlib.import_module(f"{self._folder}.{scenario}")
            for function in list(vars(module).values()):
                name = getattr(function, "__name__", "")
                if not name.startswith(self._prefix) or function.__module__ != module.__name__:
                    continue
                full = f"{scenario}::{name.removeprefix(self._prefix)}"
                if not patterns or any(pattern in full for pattern in patterns):
                    yield full, function, getattr(module, "BESIDE", False)

    def _run_one(self, name, function):
        lab = Lab(self._make_target, self._target_kind, name, self._report)
        self._open.add(lab)
        started = time.monotonic()
        failed = False
        try:
            function(lab)
            lab.finish()
            if lab.steps == 0:
                self._report(name, "ok", "", time.monotonic() - started)
        except Skip as skip:
            self._report(name, "SKIP", str(skip), None)
        except Exception as error:  # a broken test must not hide the ones after it
            failed = True
            trace = "" if isinstance(error, Failed) else traceback.format_exc()
            reason = f"{error}\n{trace}    files kept in {lab.scratch}"
            self._report(name, "FAIL", reason, time.monotonic() - started)
        finally:
            if lab.has_failed_step and not failed:
                print(f"     files of {name} kept in {lab.scratch}", flush=True)
            lab.close(keep=failed or lab.has_failed_step)
            self._open.discard(lab)

    def _report(self, name, outcome, reason, seconds):
        took = "" if seconds is None else f" ({seconds:.1f} s)"
        why = f": {reason}" if reason else ""
        with self._lock:
            self.counts[self.MARKS[outcome]] += 1
            print(f"{outcome:4} {name}{took}{why}", flush=True)
