"""Where a model is computed and how exactly: what is there, what it cannot do, and how PyTorch is set meanwhile."""

import contextlib
import platform
from collections.abc import Iterator
from typing import Literal, get_args

import torch

from pezoo.errors import UserError

TestPrecision = Literal["float32", "tf32", "bf16"]
"""How matrices are multiplied in testing: as float32; as float32 rounded to 10 bits, on tensor cores; as bfloat16."""


def find_device(name: str) -> torch.device:
    """The device of a name: auto (a CUDA GPU if there is one, else the CPU), cpu, cuda, cuda:1 or mps.

    Raises:
        UserError: if it is not there.
    """
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if n else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not n:
        raise UserError(f"device={name}, but PyTorch finds no CUDA GPU here; type device=cpu")
    if device.type == "cuda" and (device.index or 0) >= n:
        known = ", ".join(f"cuda:{i}" for i in range(n))
        raise UserError(f"device={name} is not among the GPUs here: {known}; type device=cuda:{n - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device=mps, but PyTorch finds no Metal GPU here; type device=cpu")
    return device


def is_here(kind: str) -> bool:
    """Whether this machine has a device of a kind: cpu, cuda or mps."""
    try:
        find_device(kind)
    except UserError:
        return False
    return True


def gpus() -> list[str]:
    """Names of the CUDA GPUs that PyTorch sees."""
    return [f"cuda:{i}" for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]


def check_devices(wanted: int, there: int) -> None:
    """Refuse a training with more processes in a machine than there are GPUs.

    Args:
        wanted: processes.
        there: GPUs.

    Raises:
        UserError: if they are too few.
    """
    if wanted > there:
        has = "is 1" if there == 1 else f"are {there}"
        raise UserError(f"train.devices={wanted} needs so many GPUs here, and there {has}; type train.devices={there}")


def check_training(device: torch.device, precision: str, key: str = "train.precision") -> None:
    """Refuse a precision that a device cannot train in.

    Args:
        device: any.
        precision: of Lightning, such as "bf16-mixed".
        key: of the recipe, for messages.

    Raises:
        UserError: if it cannot.
    """
    if device.type == "cpu" and precision.startswith("16"):
        raise UserError(f"{key}={precision} needs a GPU; type {key}=bf16-mixed")
    if device.type == "mps" and precision in ("16-mixed", "64-true"):
        raise UserError(
            f"{key}={precision} computes in float64, which device=mps does not have; type {key}=32-true, or device=cpu"
        )


def check_testing(device: torch.device, precision: str) -> None:
    """Refuse a precision that a device cannot test in.

    Args:
        device: any.
        precision: one of `TestPrecision`.

    Raises:
        UserError: if it cannot, or there is no such precision.
    """
    if precision not in get_args(TestPrecision):
        raise UserError(f"test.precision is one of {', '.join(get_args(TestPrecision))}, not {precision!r}")
    if precision == "tf32" and device.type != "cuda":
        raise UserError(f"test.precision=tf32 needs a CUDA GPU, and this is device={device.type}; type float32 or bf16")


def device_name(device: torch.device | str) -> str:
    """What people call a device: the model of a GPU, or its kind."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_available():  # it may be another machine's
        return torch.cuda.get_device_name(device)
    return f"mps ({platform.machine()})" if device.type == "mps" else device.type


@contextlib.contextmanager
def without_subnormals(device: torch.device) -> Iterator[None]:
    """On a CPU, numbers below 1.2e-38 count as zero while this holds: they would make it many times slower."""
    before = bool(torch.tensor([1e-39]) * 1 == 0)
    if device.type == "cpu":
        torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@contextlib.contextmanager
def testing_in(device: torch.device, precision: str) -> Iterator[None]:
    """Compute in a precision while this holds; whatever PyTorch was set to comes back.

    Args:
        device: where.
        precision: one of `TestPrecision`.

    Raises:
        UserError: if the device cannot.
    """
    check_testing(device, precision)
    with contextlib.ExitStack() as stack:
        stack.enter_context(without_subnormals(device))
        if device.type == "cuda":
            stack.enter_context(_tf32(precision == "tf32"))
        stack.enter_context(torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"))
        yield


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Whether matrices and convolutions of float32 may be multiplied as TF32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
