"""What machines can do, as their makers state it: figures that a plan multiplies, not measurements.

GPUs: dense operations per second (no sparsity) and bytes of memory, from NVIDIA's data sheets of
T4, A10 (A10G: AWS), L4, A100 40 GB SXM and H100 SXM. Instances: GPUs, vCPUs and network of the
clouds' own pages. Anything else is given by --gpu and --gbit.
"""

from __future__ import annotations

from dataclasses import dataclass

from uml_core.errors import UserError, near

T, G = 1e12, 1e9


@dataclass(frozen=True)
class Gpu:
    """Peak operations per second in both precisions, and memory in bytes."""

    fp32: float
    bf16: float
    memory: float

    def peak(self, precision: str) -> float:
        """Operations per second at best."""
        return self.bf16 if precision == "bf16" else self.fp32


GPUS = {
    "T4": Gpu(8.1 * T, 8.1 * T, 16 * G),  # no bf16 units: it computes bf16 as fp32
    "A10G": Gpu(31.2 * T, 70 * T, 24 * G),
    "L4": Gpu(30.3 * T, 121 * T, 24 * G),
    "A100": Gpu(19.5 * T, 312 * T, 40 * G),
    "H100": Gpu(66.9 * T, 989 * T, 80 * G),
}


@dataclass(frozen=True)
class Machine:
    """One instance type: logical CPUs, GPUs, bits per second of its network."""

    cpus: int
    gbit: float
    gpu: str | None = None
    gpus: int = 0


MACHINES = {
    "m6i.xlarge": Machine(4, 12.5),
    "c6i.2xlarge": Machine(8, 12.5),
    "c6i.4xlarge": Machine(16, 12.5),
    "g4dn.2xlarge": Machine(8, 25, "T4", 1),
    "g5.2xlarge": Machine(8, 10, "A10G", 1),
    "g6.2xlarge": Machine(8, 10, "L4", 1),
    "p4d.24xlarge": Machine(96, 400, "A100", 8),
    "p5.48xlarge": Machine(192, 3200, "H100", 8),
    "n2-standard-4": Machine(4, 10),
    "n2-standard-8": Machine(8, 16),
    "g2-standard-8": Machine(8, 16, "L4", 1),
    "a2-highgpu-1g": Machine(12, 24, "A100", 1),
    "a3-highgpu-8g": Machine(208, 1000, "H100", 8),
}


def gpu_named(name: str) -> Gpu:
    """Raises UserError with the known names."""
    if name not in GPUS:
        raise UserError(f"--gpu {name}: not one of {', '.join(GPUS)}{near(name, GPUS)}")
    return GPUS[name]
