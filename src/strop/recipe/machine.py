"""What a run computes on, and the settings that make it repeat to the bit."""

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from strop.errors import StropError
from strop.recipe.config import Recipe


@dataclass(frozen=True)
class Machine:
    """Device, dtype and thread count: bits depend on each, so all are part of a stage's key."""

    device: str
    dtype: str
    threads: int

    @classmethod
    def of(cls, recipe: Recipe) -> "Machine":
        """What a recipe asks for, on this machine."""
        found = _has_cuda()
        if recipe.device == "cuda" and not found:
            raise StropError("device: cuda is asked for and there is none here; use cpu or auto")
        device = "cuda" if found and recipe.device != "cpu" else "cpu"
        return cls(device, recipe.dtype, recipe.threads or available_cores())

    def prepare(self) -> None:
        """Fix the thread count, ask for deterministic kernels, and keep freed memory in the process."""
        keep_freed_memory()
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS's own condition for determinism
        import torch

        torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(True)


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _has_cuda() -> bool:
    # Asking torch costs seconds; on a Linux without an NVIDIA (or WSL) device node there is nothing to ask.
    if sys.platform == "linux" and not any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/dxg")):
        return False
    import torch

    return torch.cuda.is_available()


def keep_freed_memory() -> None:
    """Tell glibc not to give freed memory back: regaining it cost a training step 7 to 29 % (measured)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    for setting, value in ((-3, 1 << 30), (-1, (1 << 31) - 1), (-2, 64 << 20)):  # mmap and trim thresholds, top pad
        mallopt(setting, value)
