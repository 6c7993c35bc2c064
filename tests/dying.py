# Copyright 2026 The Latent Attention Authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
Processes that are killed in the middle of what they write, at a moment that has a number.

Python tells an audit hook before it opens, renames or removes a file, so the changes that a process makes to a folder
can be counted, and the process can kill itself before any of them. What it writes in between, also from C++ and Rust,
is cut by a limit on the size of files: the system kills a process at the byte behind it.
"""

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path


WRITES = os.O_WRONLY | os.O_RDWR
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
NEVER = sys.maxsize
# Kill at once; or cut the next file of more than so many bytes: any, or one with tensors.
WAYS = (None, 100, 100_000)
KILLED = {-signal.SIGKILL, -signal.SIGXFSZ}
# What takes seconds to import is imported once, in the process of which all others are copies.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["accelerate", "datasets", "matplotlib.figure", "transformers.trainer"])


def count_changes(folder: str, at_change: Callable[[int], None]) -> None:
    """Call `at_change(n)` before the n-th change, counted from 0, that this process makes below `folder`."""
    changes = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal changes
        if event in CHANGES or (event == "open" and arguments[2] & WRITES):
            if isinstance(arguments[0], str | Path) and str(arguments[0]).startswith(folder):
                at_change(changes)
                changes += 1

    sys.addaudithook(hook)


def die(limit: int | None) -> None:
    """Kill this process as `kill -9` does; or let the system kill it when a file grows beyond `limit` bytes."""
    if limit is None:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def run(function, arguments: tuple, folder: Path, moment: int, limit: int | None, pipe) -> None:
    """What a child does: it calls `function`, and dies of it, or lives and sends how many changes it made."""
    changes = 0

    def at_change(n: int) -> None:
        nonlocal changes
        changes = n + 1
        if n == moment:
            die(limit)

    count_changes(str(folder), at_change)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        function(*arguments)
    if moment != NEVER:
        os.kill(os.getpid(), signal.SIGKILL)  # no file has grown beyond the limit
    pipe.send(changes)


def start(function, arguments: tuple, folder: Path, moment: int = NEVER, limit: int | None = None):
    """A child that dies when it has changed `folder` so often, and where it sends how many changes it made."""
    receiver, sender = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=run, args=(function, arguments, folder, moment, limit, sender))
    process.start()
    sender.close()
    return process, receiver


def count(function, arguments: tuple, folder: Path) -> int:
    """How many changes `function(*arguments)` makes to the folder when nobody kills it."""
    process, receiver = start(function, arguments, folder)
    process.join()
    assert process.exitcode == 0
    return receiver.recv()


def kill(function, arguments: tuple, folder: Path, moment: int, limit: int | None) -> None:
    process, _ = start(function, arguments, folder, moment, limit)
    process.join()
    assert process.exitcode in KILLED, process.exitcode


def moments(changes: int, number: int) -> list[tuple[int, int | None]]:
    """`number` moments, spread over all changes, and the way to die there, by turns."""
    return [(index * changes // number, WAYS[index % len(WAYS)]) for index in range(number)]
