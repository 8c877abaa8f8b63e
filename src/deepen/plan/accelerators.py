"""What accelerators can do, by their makers' data sheets, and what an hour of one costs.

Peaks are dense (without sparsity) with bfloat16 inputs and float32 sums. Prices are ours: a usual one per hour on demand, in
US dollars, in 2025; they differ by a factor of three between providers, so give your own.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from deepen.errors import OptionError


@dataclass(frozen=True)
class Accelerator:
    """One kind of accelerator.

    Attributes:
        flops: peak of matrix products, FLOP/s: bfloat16 on a GPU, float32 on a processor's core.
        memory_bytes: of its own; None where it shares main memory.
        watts: of the whole board at full load.
        bandwidth: bytes per second from its memory.
        mfu: the share of the peak that training reaches (docs/estimates.md says whose).
        dollars: per hour.
        source: where the figures stand.
    """

    flops: float
    memory_bytes: int | None
    watts: float
    bandwidth: float
    dollars: float
    source: str
    mfu: float = 0.40

    @property
    def is_cpu(self) -> bool:
        """Whether it is a core of a processor."""
        return self.memory_bytes is None


_GB = 10**9
ACCELERATORS = {
    "a10": Accelerator(125e12, 24 * _GB, 150, 0.600e12, 0.75, "NVIDIA A10 Tensor Core GPU data sheet"),
    "a100": Accelerator(312e12, 80 * _GB, 400, 2.039e12, 1.80, "NVIDIA A100 80GB data sheet, SXM"),
    "a100-40gb": Accelerator(312e12, 40 * _GB, 400, 1.555e12, 1.30, "NVIDIA A100 data sheet, SXM 40 GB"),
    "b200": Accelerator(2250e12, 180 * _GB, 1000, 7.7e12, 5.50, "NVIDIA HGX B200 data sheet, an eighth of it"),
    "h100": Accelerator(989e12, 80 * _GB, 700, 3.35e12, 3.00, "NVIDIA H100 data sheet, SXM"),
    "h100-pcie": Accelerator(756e12, 80 * _GB, 350, 2.0e12, 2.50, "NVIDIA H100 data sheet, PCIe"),
    "h200": Accelerator(989e12, 141 * _GB, 700, 4.8e12, 3.60, "NVIDIA H200 data sheet, SXM"),
    "l4": Accelerator(121e12, 24 * _GB, 72, 0.300e12, 0.70, "NVIDIA L4 data sheet, half of the figure with sparsity"),
    "l40s": Accelerator(362e12, 48 * _GB, 350, 0.864e12, 1.60, "NVIDIA L40S data sheet"),
    "mi300x": Accelerator(1307e12, 192 * _GB, 750, 5.3e12, 3.00, "AMD Instinct MI300X data sheet"),
    "rtx3090": Accelerator(71e12, 24 * _GB, 350, 0.936e12, 0.30, "NVIDIA GA102 white paper, float32 sums"),
    "rtx4090": Accelerator(165e12, 24 * _GB, 450, 1.008e12, 0.50, "NVIDIA Ada white paper, float32 sums"),
    # A core: 2 vectors of 8 multiply-adds a cycle at 3 GHz. 138.8 tokens/s of SmolLM2-135M on two of them are 66 % of that
    "cpu": Accelerator(
        96e9, None, 4.5, 10e9, 0.04, "a core of an AMD EPYC (280 W for 64); MFU from benchmarks/results/train-base", mfu=0.66
    ),
}


def find_accelerator(name: str) -> Accelerator:
    """An accelerator by its name, however that is written: `h100`, `H100`, `A100 40GB`.

    Raises:
        OptionError: there is none of that name; the nearest is named.
    """
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    if key in ACCELERATORS:
        return ACCELERATORS[key]
    near = get_close_matches(key.removeprefix("nvidia-").removeprefix("amd-"), ACCELERATORS, n=1, cutoff=0.4)
    advice = f"did you mean {near[0]}? all: " if near else "use one of "
    raise OptionError(f"no accelerator is called {name!r}", where="--gpu", next=advice + ", ".join(ACCELERATORS))
