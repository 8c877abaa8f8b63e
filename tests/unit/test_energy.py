"""Joules add up as the hardware's counters say, and nothing is guessed where they do not."""

# ruff: noqa: N802
import os
import shutil
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepen.energy import Counter, Meter, carbon_grams, open_meter
from deepen.errors import OptionError

RANGE = 262_143_328_850  # of Intel's packages, in microjoules


def zone(powercap: Path, folder: str, name: str, energy: int, span: int = RANGE) -> Path:
    (powercap / folder).mkdir(parents=True, exist_ok=True)
    (powercap / folder / "name").write_text(f"{name}\n")
    (powercap / folder / "max_energy_range_uj").write_text(f"{span}\n")
    return write(powercap / folder / "energy_uj", energy)


def write(file: Path, energy: int) -> Path:
    file.write_text(f"{energy}\n")
    return file


class Driver(types.ModuleType):
    """NVIDIA's driver, as nvidia-ml-py shows it, for GPUs that are not there: millijoules by UUID; None has no counter."""

    class NVMLError(Exception):
        pass

    def __init__(self, millijoules: dict[str, int | None], *, loaded: bool = True) -> None:
        super().__init__("pynvml")
        self.millijoules, self.loaded, self.users = millijoules, loaded, 0

    def nvmlInit(self) -> None:
        if not self.loaded:
            raise self.NVMLError("Driver Not Loaded")
        self.users += 1

    def nvmlShutdown(self) -> None:
        self.users -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.millijoules)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        try:
            return list(self.millijoules)[index]
        except IndexError:
            raise self.NVMLError("Invalid Argument") from None

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in self.millijoules:
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        value = self.millijoules[handle]
        if value is None:
            raise self.NVMLError("Not Supported")
        return value


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    """Two packages as a server shows them: cores and uncore inside, DRAM beside, all of it again elsewhere."""
    for number in (0, 1):
        zone(tmp_path, f"intel-rapl:{number}", f"package-{number}", 5_000_000)
        zone(tmp_path, f"intel-rapl:{number}:0", "core", 3_000_000)
        zone(tmp_path, f"intel-rapl:{number}:1", "uncore", 1_000_000)
        zone(tmp_path, f"intel-rapl:{number}:2", "dram", 2_000_000, 65_712_999_613)
        zone(tmp_path, f"intel-rapl-mmio:{number}", f"package-{number}", 5_000_000)
    zone(tmp_path, "intel-rapl:2", "psys", 9_000_000)
    (tmp_path / "intel-rapl").mkdir()
    return tmp_path


def add(powercap: Path, microjoules: int) -> None:
    for file in powercap.glob("*/energy_uj"):
        write(file, int(file.read_text()) + microjoules)


def test_packages_and_dram_are_counted_once(powercap: Path) -> None:
    with open_meter(gpus=(), powercap=powercap) as meter:
        assert meter.method == "RAPL (package-0, dram of package-0, package-1, dram of package-1)"
        assert meter.joules() == 0
        add(powercap, 1_500_000)
        assert meter.joules() == 4 * 1.5
        add(powercap, 500_000)
    assert meter.joules() == 4 * 2.0
    add(powercap, 500_000)
    assert meter.joules() == 4 * 2.0  # closed


@given(
    st.integers(10**11, RANGE),
    st.integers(0, 10**10),
    st.lists(st.integers(0, 10**9), min_size=1, max_size=20),
)
def test_a_counter_may_run_round_at_any_moment(span: int, left: int, rises: Sequence[int]) -> None:
    total = start = span - left
    meter = Meter([Counter("package-0", lambda: total % span, span)], "RAPL")
    for rise in rises:
        total += rise
        assert meter.joules() == (total - start) / 1e6


def test_running_round_is_seen_in_the_files(tmp_path: Path) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", RANGE - 2_000_000)
    with open_meter(gpus=(), powercap=tmp_path) as meter:
        write(file, 1_000_000)
        assert meter.joules() == 3.0


def test_what_may_have_run_round_unseen_is_not_measured(tmp_path: Path) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", 5, span=10)  # 10 µJ pass in 10 ns at 1 kW
    with open_meter(gpus=(), powercap=tmp_path) as meter:
        write(file, 7)
        assert meter.joules() is None
        assert "run round unseen" in meter.method


def test_a_counter_that_was_reset_is_not_measured(tmp_path: Path) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", 9_000_000)
    with open_meter(gpus=(), powercap=tmp_path) as meter:
        write(file, 0)
        assert meter.joules() is None
        assert "jumped" in meter.method


def test_a_counter_that_fails_in_the_middle_stays_failed(powercap: Path) -> None:
    with open_meter(gpus=(), powercap=powercap) as meter:
        add(powercap, 1_000_000)
        assert meter.joules() == 4.0
        content = (powercap / "intel-rapl:1:2/energy_uj").read_text()
        (powercap / "intel-rapl:1:2/energy_uj").unlink()
        assert meter.joules() is None
        assert meter.method.startswith("not measured: dram of package-1 failed during the run")
        (powercap / "intel-rapl:1:2/energy_uj").write_text(content)
        assert meter.joules() is None
    assert meter.joules() is None


def test_one_unreadable_package_makes_no_sum(powercap: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others, and root may read everything
        shutil.copytree(powercap, folder, dirs_exist_ok=True)
        Path(folder).chmod(0o755)
        private = Path(folder, "intel-rapl:1/energy_uj")
        private.chmod(0)
        user = os.geteuid()
        os.seteuid(65534 if user == 0 else user)
        try:
            with open_meter(gpus=(), powercap=Path(folder)) as meter:
                assert meter.joules() is None
        finally:
            os.seteuid(user)
        assert meter.method == f"not measured: no readable counter (no GPU in use; {private} is readable for root only)"


def test_no_counter_at_all(tmp_path: Path) -> None:
    with open_meter(gpus=(), powercap=tmp_path / "none") as meter:
        assert meter.joules() is None
        assert meter.method == f"not measured: no readable counter (no GPU in use; no RAPL in {tmp_path / 'none'})"


def test_gpus_and_processors_add_up(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver = Driver({"GPU-a": 7_000, "GPU-b": 11_000})
    shutil.rmtree(powercap / "intel-rapl:1")
    for folder in powercap.glob("intel-rapl:1:*"):
        shutil.rmtree(folder)
    with open_meter(powercap=powercap, nvml=driver) as meter:
        assert meter.method == "NVML (2 GPUs) + RAPL (package-0, dram of package-0)"
        driver.millijoules["GPU-a"] = 9_500
        add(powercap, 1_000_000)
        assert meter.joules() == 2.5 + 2 * 1.0
        assert driver.users == 1
    assert driver.users == 0


@pytest.mark.parametrize(
    ("shown", "counted"), [("1", 1), ("0,1,2", 3), ("GPU-c", 1), ("2,-1,0", 1), ("", 0), ("NoDevFiles", 0), (None, 3)]
)
def test_only_visible_gpus_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str | None, counted: int
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    driver = Driver({"GPU-a": 0, "GPU-b": 0, "GPU-c": 0})
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with open_meter(powercap=tmp_path, nvml=driver) as meter:
        driver.millijoules = dict.fromkeys(driver.millijoules, 1000)
        assert meter.joules() == counted


def test_every_process_counts_its_own_gpu_and_the_first_the_processors(tmp_path: Path) -> None:
    driver = Driver({"GPU-a": 0, "GPU-b": 0})
    file = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with (
        open_meter(gpus=["GPU-a"], local_rank=0, powercap=tmp_path, nvml=driver) as first,
        open_meter(gpus=["GPU-b"], local_rank=1, powercap=tmp_path, nvml=driver) as second,
        open_meter(local_rank=1, powercap=tmp_path, nvml=driver) as silent,
    ):
        driver.millijoules |= {"GPU-a": 3_000, "GPU-b": 4_000}
        write(file, 5_000_000)
        assert (first.joules(), second.joules(), silent.joules()) == (8.0, 4.0, 0.0)
        assert silent.method == "counted by the first process of the node"


@pytest.mark.parametrize(
    ("driver", "gpus", "reason"),
    [
        (Driver({"GPU-a": None}), ["0"], "GPU 0: Not Supported"),
        (Driver({"GPU-a": 0, "GPU-b": None}), ["0", "GPU-b"], "GPU GPU-b: Not Supported"),
        (Driver({"GPU-a": 0}), ["1"], "GPU 1: Invalid Argument"),
        (Driver({"GPU-a": 0}), ["MIG-a"], "GPU MIG-a: Not Found"),
        (Driver({}, loaded=False), ["0"], "no NVIDIA driver: Driver Not Loaded"),
    ],
)
def test_a_gpu_in_use_without_a_counter_makes_no_sum(powercap: Path, driver: Driver, gpus: list[str], reason: str) -> None:
    with open_meter(gpus=gpus, powercap=powercap, nvml=driver) as meter:
        assert meter.joules() is None
        assert meter.method == f"not measured: {reason}"
    assert driver.users == 0


def test_processors_that_cannot_be_read_are_left_out_by_name(tmp_path: Path) -> None:
    driver = Driver({"GPU-a": 0})
    with open_meter(gpus=["0"], powercap=tmp_path, nvml=driver) as meter:
        assert meter.method == f"NVML (1 GPU), without processors (no RAPL in {tmp_path})"
        driver.millijoules["GPU-a"] = 1_000
        assert meter.joules() == 1.0
        driver.millijoules["GPU-a"] = 500  # the driver was loaded again
        assert meter.joules() is None
        assert "GPU 0 failed during the run (it went back" in meter.method


def test_the_real_driver_or_none() -> None:
    with open_meter() as meter:
        assert (meter.joules() is None) == meter.method.startswith("not measured: ")


def test_carbon() -> None:
    assert carbon_grams(3.6e6, 400) == 400
    assert carbon_grams(1.8e6, 0) == 0
    assert carbon_grams(None, 400) is None
    assert carbon_grams(1.0, None) is None
    for factor in (-1, float("nan"), float("inf")):
        with pytest.raises(OptionError, match="grid factor"):
            carbon_grams(1.0, factor)
