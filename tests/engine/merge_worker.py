"""What the child processes of the tests of merging do; some are killed. Without Lightning."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sta_lightning.arithmetic import FUSION_METHODS, make_method, states
from sta_lightning.arithmetic import run as run_module
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.cli.main import main
from sta_lightning.engine import FusionJob, Pretrained, TaskSource
from sta_lightning.engine.comparison import compare_files
from sta_lightning.engine.part import Part
from sta_lightning.kernels import Loops, build, fused, loops
from sta_lightning.weights import TensorFile
from sta_lightning.weights.leased import LeasedMap
from sta_lightning.weights.tensor_file import FileTensor


def light(*words: str) -> int:
    """Run a command, and print which heavy libraries that has imported."""
    status = main(words)
    heavy = {
        "lightning",
        "pytorch_lightning",
        "open_clip",
        "timm",
        "torchvision",
        "matplotlib",
        "tensorboard",
    }
    print("imported:", *sorted(heavy & set(sys.modules)))
    return status


def _compile() -> bool:
    """For models as small as these, loops are used only if they are there already."""
    return loops() is not None and fused(3, 2) is not None


def _before(owner: Any, name: str, act: Callable[..., None]) -> None:
    """Do something before a method is called."""
    method = getattr(owner, name)

    def both(self: Any, *words: Any) -> Any:
        act(self, *words)
        return method(self, *words)

    setattr(owner, name, both)


def shrinks_under_a_loop(victim: str, *words: str) -> int:
    """Cut a file short when pieces of its large tensor have been read for a compiled loop.

    As where the kernel gives no lease: no map, and nobody waits.
    """
    assert _compile()
    states._PIECE_ON_CPU = 10_000
    LeasedMap.address = lambda _: None  # type: ignore[method-assign]

    def shrink(tensor: FileTensor, piece: slice, *_: torch.Tensor) -> None:
        if str(tensor.file.path) == victim and piece.start >= 20_000:
            os.truncate(victim, 8192)

    _before(FileTensor, "in_file", shrink)
    _before(FileTensor, "read_float32", shrink)
    return main(words)


def cut_while_mapped(victim: str, *words: str) -> int:
    """Let another program cut a file whose map loops read; status 99 if it did not have to wait."""
    assert _compile()
    states._PIECE_ON_CPU = 10_000
    others: list[subprocess.Popen[bytes]] = []

    def cut(tensor: FileTensor, piece: slice) -> None:
        if str(tensor.file.path) == victim and piece.start >= 20_000 and not others:
            assert tensor.file.mapped.address() is not None
            script = f"import os; os.truncate({victim!r}, 8192)"
            others.append(subprocess.Popen([sys.executable, "-c", script]))
            while tensor.file.mapped.address() is not None:  # until the kernel tells
                time.sleep(0.01)

    _before(FileTensor, "address", cut)
    size = os.path.getsize(victim)
    status = main(words)
    (other,) = others
    other.wait(60)
    return status if os.path.getsize(victim) == 8192 < size else 99


def cut_off_compiled_reads(victim: str, *words: str) -> int:
    """The same; status 2 only if it was the compiled read that met with the file's end."""
    read, whole = Loops.read, []

    def seen(self: Loops, reads: Any, size: int) -> bool:
        whole.append(read(self, reads, size))
        return whole[-1]

    Loops.read = seen  # type: ignore[method-assign]
    status = shrinks_under_a_loop(victim, *words)
    return status if True in whole and False in whole else 99


def shrinks_when_opened(victim: str, *words: str) -> int:
    """Cut a file short between opening it and reading its tensors."""
    _compile()
    _before(Problem, "check_names", lambda _: os.truncate(victim, 8192))
    return main(words)


def shrinks_when_read(victim: str, *words: str) -> int:
    """Cut a file short while the eager form reads it."""
    run_module._native = lambda *_: (None, None)  # type: ignore[assignment]

    def shrink(tensor: Any, piece: slice) -> None:
        if tensor.entries.numel > 10_000:
            os.truncate(victim, 8192)

    _before(run_module._Tensor, "_eager", shrink)
    return main(words)


def rewritten(victim: str, *words: str) -> int:
    """Write the same bytes again."""
    content = Path(victim).read_bytes()
    os.utime(victim, ns=(1, 1))

    def write(_: Any) -> None:
        Path(victim).write_bytes(content)

    _before(Problem, "check_names", write)
    return main(words)


def replaced(victim: str, *words: str) -> int:
    """Put another file in the place."""
    other = Path(victim).with_suffix(".other")
    other.write_bytes(Path(victim).read_bytes())
    os.utime(other, ns=(1, 1))
    _before(Problem, "check_names", lambda _: os.replace(other, victim))
    return main(words)


def full_disk(victim: str, *words: str) -> int:
    """No file may be longer than a part of the output."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    return main(words)


def _job(tasks: dict[str, TaskSource], method: str, **settings: Any) -> FusionJob:
    return FusionJob(tasks, method, make_method(method, FUSION_METHODS, **settings))


def _pretrained(file: TensorFile) -> Pretrained:
    tensors = {name.removeprefix("visual."): file[name] for name in file}
    return Pretrained("miniature", tensors, "visual.", file.path)


def killed(folder: str, times: str, output: str) -> None:
    """Merge in a loop, be killed, and print what is there afterwards."""
    tasks = {
        f"task{i}": TaskSource(f"{folder}/task{i}.safetensors", f"{folder}/task{i}-importance.safetensors")
        for i in range(3)
    }
    jobs = [_job(tasks, "sta"), _job(tasks, "average")]
    place, drawn = Path(output), random.Random(0)
    with TensorFile(f"{folder}/pretrained.safetensors") as file:
        pretrained = _pretrained(file)
        valid = {}
        for name, job in zip(("sta", "average"), jobs, strict=True):
            job.write(pretrained, place)
            valid[hashlib.sha256(place.read_bytes()).hexdigest()] = name
        began = time.monotonic()
        for job in jobs:
            job.write(pretrained, place)
        both = time.monotonic() - began
        seen, left = [], 0
        for number in range(int(times)):
            if number % 3 == 0:
                place.unlink(missing_ok=True)
            child = os.fork()
            if child == 0:
                for job in itertools.cycle(jobs):
                    job.write(pretrained, place)
            time.sleep(drawn.uniform(0, 3 * both))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            left += len(list(place.parent.glob(".merged.*.tmp.safetensors")))
            content = place.read_bytes() if place.exists() else None
            seen.append(
                "absent" if content is None else valid.get(hashlib.sha256(content).hexdigest(), "broken")
            )
        jobs[0].write(pretrained, place)
        last = valid[hashlib.sha256(place.read_bytes()).hexdigest()]
    after = sorted(os.listdir(place.parent))
    print(json.dumps({"seen": seen, "last": last, "left": left, "after": after}))


def _private() -> int:
    """Bytes of this process's memory that no file stands behind."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def memory(folder: str, method: str, count: str, way: str, output: str) -> None:
    """Merge, or compare, and print by how many megabytes this process has grown at most."""
    if way == "eager":
        run_module._native = lambda *_: (None, None)  # type: ignore[assignment]
    else:
        build.PAYS = 0
        torch.set_num_threads(2)
    sources = [
        TaskSource(f"{folder}/task{i % 2}.safetensors", f"{folder}/task{i % 2}-importance.safetensors")
        for i in range(int(count))
    ]
    # Half of the importances are equal: p < 0.5 keeps the larger half, p > 0.5 nothing.
    settings = {"p": 0.3} if method == "sta" else {}
    tasks = {f"task{i:02}": source for i, source in enumerate(sources)}
    job = _job(tasks, "average" if method == "compare" else method, **settings)
    if method == "compare":
        torch.ones(1500, 1500) @ torch.ones(1500, 1500)  # PyTorch's own memory for products
    most, stop = _private(), threading.Event()
    start = most

    def watch() -> None:
        nonlocal most
        while not stop.is_set():
            most = max(most, _private())
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with TensorFile(f"{folder}/pretrained.safetensors") as file:
        if method == "compare":
            models = {task: str(files.finetuned) for task, files in job.tasks.items()}
            assert len(compare_files(_pretrained(file), models, Part()).comparison.models) == int(count)
        else:
            job.write(_pretrained(file), output)
    stop.set()
    watcher.join()
    print((most - start) / 2**20)
