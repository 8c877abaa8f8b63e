"""Energy from the counters that the hardware itself keeps: NVIDIA's driver for GPUs, RAPL for processors and their memory."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from deepen.errors import OptionError

POWERCAP = Path("/sys/class/powercap")
_JOULES_PER_KWH = 3.6e6
_SAMPLE_SECONDS = 20.0  # the smallest RAPL ranges, of 65 kJ, run round in a few minutes under full load
_MOST_WATTS = 1000.0  # no processor package takes more for long
_NO_GPU = "no GPU in use"


@dataclass(frozen=True)
class Counter:
    """A counter of energy.

    Attributes:
        name: what it counts.
        read: microjoules since some moment; it raises OSError or ValueError when it cannot be read.
        range: the microjoules after which it starts from zero again, or None if it never does.
    """

    name: str
    read: Callable[[], int]
    range: int | None = None


class Meter:
    """Adds up counters; cheap enough to be asked in every step of a training.

    Attributes:
        method: how it measures, such as `NVML (1 GPU) + RAPL (package-0)`, or `not measured: ` and why.
    """

    def __init__(self, counters: Sequence[Counter] | None, method: str) -> None:
        self.method = method
        self._counters = list(counters or ())
        self._microjoules = None if counters is None else 0
        self._last: list[int | None] = [None] * len(self._counters)
        self._time = time.monotonic()
        self._lock = threading.Lock()
        self._add()

    def joules(self) -> float | None:
        """Joules since the meter was opened, of whatever ran on the hardware; None where they are not known."""
        with self._lock:
            self._add()
            return None if self._microjoules is None else self._microjoules / 1e6

    def close(self) -> None:
        """Read the counters for the last time; what was measured stays."""
        with self._lock:
            self._add()
            self._counters = []

    def _add(self) -> None:
        if self._microjoules is None:
            return
        now = time.monotonic()
        for place, counter in enumerate(self._counters):
            before = self._last[place]
            try:
                self._last[place] = value = counter.read()
                if before is not None:
                    self._microjoules += _difference(counter, before, value, now - self._time)
            except (OSError, ValueError) as error:
                self._microjoules, self.method = None, f"not measured: {counter.name} failed during the run ({error})"
                return
        self._time = now


@contextmanager
def open_meter(
    *,
    gpus: Sequence[str] | None = None,
    local_rank: int = 0,
    powercap: Path = POWERCAP,
    nvml: Any = None,
) -> Iterator[Meter]:
    """Measure the energy of the hardware that this process uses while the block runs.

    The counters belong to the hardware, so other programs on it are counted as well. RAPL gives each package (cores, caches,
    memory controller) and, where it is separate, its DRAM; nothing gives fans, disks and power supplies. In a run of several
    processes each names its own GPUs and local rank 0 has the processors, so that their sum is that of all nodes.

    Args:
        gpus: NVML indices or UUIDs, `()` for none; by default local rank 0 counts all that `CUDA_VISIBLE_DEVICES` shows.
        local_rank: of the process on its node.
        powercap: where Linux shows RAPL.
        nvml: the module that speaks to NVIDIA's driver; nvidia-ml-py unless given.

    Yields:
        The meter. It has no value, and its `method` says why, where a GPU in use cannot be counted, or nothing can. Processors
        that cannot be read beside GPUs that can are left out, and named.
    """
    driver, absent = (None, _NO_GPU) if gpus is not None and not gpus else _start(nvml)
    try:
        counters, method = _counters(gpus, local_rank, powercap, driver, absent)
        meter = Meter(counters, method)
        done = threading.Event()
        sampler = threading.Thread(target=_sample, args=(meter, done), name="energy", daemon=True)
        sampler.start()
        try:
            yield meter
        finally:
            done.set()
            sampler.join()
            meter.close()
    finally:
        if driver is not None:
            with suppress(driver.NVMLError):
                driver.nvmlShutdown()


def carbon_grams(joules: float | None, grid_factor: float | None) -> float | None:
    """Grams of CO2 for an amount of energy, or None where either is not known.

    Args:
        joules: energy.
        grid_factor: grams of CO2 per kilowatt-hour where the machine stands; times the building's overhead (PUE) if it counts.

    Raises:
        OptionError: the factor is negative or not finite.
    """
    if grid_factor is not None and not 0 <= grid_factor < math.inf:
        raise OptionError(
            f"{grid_factor:g} grams of CO2 per kWh is no grid factor", where="--grid-factor", next="give a number such as 400"
        )
    return None if joules is None or grid_factor is None else joules / _JOULES_PER_KWH * grid_factor


def _difference(counter: Counter, before: int, now: int, seconds: float) -> int:
    """What a counter rose by. One that starts anew is trusted only if it can have run round once, and no more than once."""
    if counter.range is None:
        if now < before:
            raise ValueError(f"it went back by {before - now} µJ")
        return now - before
    if seconds * _MOST_WATTS * 1e6 >= counter.range:
        raise ValueError(f"it was not read for {seconds:.0f} s, in which it may have run round unseen")
    difference = now - before + (counter.range if now < before else 0)
    if difference > (seconds + 1) * _MOST_WATTS * 1e6:
        raise ValueError(f"it jumped by {difference / 1e6:.0f} J within {seconds:.1f} s")
    return difference


def _sample(meter: Meter, done: threading.Event) -> None:
    while not done.wait(_SAMPLE_SECONDS):
        meter.joules()


def _counters(
    gpus: Sequence[str] | None, local_rank: int, powercap: Path, driver: Any, absent: str
) -> tuple[list[Counter] | None, str]:
    """What this process counts, and the sentence that says so."""
    try:
        names = _visible_gpus(driver) if gpus is None and local_rank == 0 else gpus or ()
        if names and driver is None:
            raise OSError(absent)
        cards = [_gpu(driver, name) for name in names]
    except OSError as error:
        return None, f"not measured: {error}"
    zones: list[Counter] = []
    unread = ""
    if local_rank == 0:
        try:
            zones = _rapl_zones(powercap)
        except (OSError, ValueError) as error:
            unread = str(error)
    parts = [f"NVML ({len(cards)} GPU{'s' * (len(cards) > 1)})"] if cards else []
    parts += [f"RAPL ({', '.join(zone.name for zone in zones)})"] if zones else []
    if parts:
        return cards + zones, " + ".join(parts) + (f", without processors ({unread})" if unread else "")
    if local_rank > 0:
        return [], "counted by the first process of the node"
    return None, f"not measured: no readable counter ({absent or _NO_GPU}; {unread})"


def _start(nvml: Any) -> tuple[Any, str]:
    """NVIDIA's driver, or None and why there is none."""
    if nvml is None:
        try:
            nvml = import_module("pynvml")
        except ImportError:
            return None, "nvidia-ml-py is not installed"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return None, f"no NVIDIA driver: {error}"
    return nvml, ""


def _visible_gpus(driver: Any) -> list[str]:
    if driver is None:
        return []
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return [str(number) for number in range(driver.nvmlDeviceGetCount())]
    names = [name.strip() for name in shown.split(",")]
    end = next((place for place, name in enumerate(names) if name in {"", "-1", "NoDevFiles"}), len(names))
    return names[:end]  # CUDA, too, stops at the first that it cannot read


def _gpu(driver: Any, name: str) -> Counter:
    """The energy of one GPU since its driver was loaded (`nvmlDeviceGetTotalEnergyConsumption`, Volta or newer)."""

    def read() -> int:
        try:
            return 1000 * int(driver.nvmlDeviceGetTotalEnergyConsumption(handle))
        except driver.NVMLError as error:
            raise OSError(f"GPU {name}: {error}") from error

    try:
        handle = driver.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else driver.nvmlDeviceGetHandleByUUID(name)
    except driver.NVMLError as error:
        raise OSError(f"GPU {name}: {error}") from error
    read()  # an old GPU says now that it has no such counter
    return Counter(f"GPU {name}", read)


def _rapl_zones(powercap: Path) -> list[Counter]:
    """Packages and their DRAM. Cores and uncore are parts of a package, `psys` holds it, and `intel-rapl-mmio` counts it twice.

    Raises:
        OSError, ValueError: there is none, or one of them cannot be read: part of them would be a wrong sum.
    """
    zones = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        name = (folder / "name").read_text().strip()
        if name.startswith("package"):
            zones.append(_zone(folder, name))
        elif name == "dram" and folder.name.count(":") == 2:
            zones.append(
                _zone(folder, f"dram of {(folder.with_name(folder.name.rpartition(':')[0]) / 'name').read_text().strip()}")
            )
    if not zones:
        raise OSError(f"no RAPL in {powercap}")
    return zones


def _zone(folder: Path, name: str) -> Counter:
    file = folder / "energy_uj"
    counter = Counter(name, lambda: int(file.read_text()), int((folder / "max_energy_range_uj").read_text()))
    try:
        counter.read()
    except PermissionError as error:  # since 2020 root alone may read it (CVE-2020-8694)
        raise OSError(f"{file} is readable for root only") from error
    return counter
