"""How fast is `deepen scale`, and with how much memory? Against `cp`, a bare `copy_file_range` loop, and mergekit.

A checkpoint with the shapes of Mistral-7B-v0.1 (or narrower ones) and random bits becomes 48 layers, as in SOLAR. `cp` and the
loop write the same number of bytes from the same files. Before each run the source leaves the page cache; after each run the
output is flushed to the disk, and the time taken before and after that (`deepen scale` flushes by itself). Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from deepen.units import format_bytes, parse_bytes
from mistral import make_source, mistral_config, weight_bytes

HERE = Path(__file__).resolve().parent
PLAN = (*range(24), *range(8, 32))
MERGEKIT = ("mergekit==0.1.5", "torch==2.13.0", "transformers==5.23.0")
MERGEKIT_BYTES = 3 * 10**9  # its virtual environment, with room for a larger build of torch
MERGEKIT_PLAN = """merge_method: passthrough
slices:
- sources: [{{model: {source}, layer_range: [0, 24]}}]
- sources: [{{model: {source}, layer_range: [8, 32]}}]
"""
KERNEL_COPY = """import os, sys
for number, name in enumerate(sys.argv[2:]):
    reading, writing = os.open(name, os.O_RDONLY), os.open(f"{sys.argv[1]}/{number}.safetensors", os.O_WRONLY | os.O_CREAT)
    left = os.fstat(reading).st_size
    while left:
        left -= os.copy_file_range(reading, writing, min(left, 32 << 20))
"""
CP, LOOP, DEEPEN, MERGE = "cp", "copy_file_range loop", "deepen scale", "mergekit 0.1.5"


def aside(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a fresh process: this one stays small, because a child's peak memory begins with what its parent holds."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def hash_tensors(folder: Path) -> dict[str, Any]:
    """The SHA-256 of each tensor of a checkpoint, with wall and processor seconds."""
    from deepen.checkpoint import open_checkpoint
    from deepen.checkpoint.copy import Span, hash_span

    tensors = open_checkpoint(folder).tensors
    start, cpu_start = time.perf_counter(), time.process_time()
    hashes = {name: hash_span(Span(tensor.file, tensor.offset, tensor.nbytes)) for name, tensor in tensors.items()}
    return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start, "hashes": hashes}


def planned_hashes(source: dict[str, str]) -> dict[str, str]:
    """What the deepened checkpoint must hold, worked out here from the source alone: the hash of each tensor."""
    planned = {name: digest for name, digest in source.items() if ".layers." not in name}
    layers = [name.removeprefix("model.layers.0.") for name in source if name.startswith("model.layers.0.")]
    for position, layer in enumerate(PLAN):
        planned |= {f"model.layers.{position}.{rest}": source[f"model.layers.{layer}.{rest}"] for rest in layers}
    return planned


def flush(folder: Path, *, forget: bool = False) -> None:
    """Wait until the files are on the disk; with `forget`, let them leave the page cache too."""
    for file in (path for path in folder.rglob("*") if path.is_file()):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        if forget:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measure(name: str, command: list[str], run: Path) -> dict[str, Any]:
    """Run a command that fills `run/out` from the cold `run/source`."""
    print(f"{name} …", file=sys.stderr)
    flush(run / "source", forget=True)
    load, peak = os.getloadavg()[0], {"VmHWM": 0, "RssAnon": 0}
    with (run / "log").open("wb") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if (key := line.partition(":")[0]) in peak:
                    peak[key] = max(peak[key], int(line.split()[1]) * 1024)
            time.sleep(0.01)
        seconds = time.perf_counter() - start
    _, status, usage = ended
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: {name} ended with exit code {process.returncode}:\n{(run / 'log').read_text()[-3000:]}")
    flush(run / "out")
    # the kernel's own peak is exact, but begins with the parent's pages; where those hide it, take the largest sample
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "name": name, "seconds": seconds, "flushed_seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime, "load_average": load,
        "peak_bytes": usage.ru_maxrss * 1024 if usage.ru_maxrss > own else peak["VmHWM"],
        "peak_anonymous_bytes": peak["RssAnon"],
        "written_bytes": sum(file.stat().st_size for file in (run / "out").rglob("*.safetensors")),
    }  # fmt: skip


def commands(work: Path, run: Path, skip_mergekit: bool) -> dict[str, list[str]]:
    """What is run, by name; each fills the existing, empty `run/out`."""
    source, out = run / "source", str(run / "out")
    first, repeated, last = sorted(source.glob("*.safetensors"))
    again = run / "again.safetensors"
    again.symlink_to(repeated)
    files = [str(file) for file in (first, repeated, again, last)]
    tools = {
        CP: ["cp", *files, out],
        DEEPEN: [sys.executable, "-m", "deepen", "scale", str(source), f"{out}/deeper", "--drop", "8", "--as", "llama"],
        LOOP: [sys.executable, "-c", KERNEL_COPY, out, *files],
    }
    if not skip_mergekit:
        (run / "plan.yaml").write_text(MERGEKIT_PLAN.format(source=json.dumps(str(source))))
        program = str(work / "mergekit" / "bin" / "mergekit-yaml")
        tools[MERGE] = [program, str(run / "plan.yaml"), out, "--no-copy-tokenizer", "--quiet"]
    return tools


def install_mergekit(work: Path) -> dict[str, str]:
    """Make mergekit's own virtual environment where it is missing; its versions."""
    programs = work / "mergekit" / "bin"
    if not (programs / "mergekit-yaml").exists():
        print("installing mergekit …", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(work / "mergekit")], check=True)
        subprocess.run([programs / "python", "-m", "pip", "install", "-qq", *MERGEKIT], check=True)
    # once before the measurement, so that its code is compiled and in the page cache, as deepen's is
    subprocess.run([programs / "mergekit-yaml", "--help"], check=True, stdout=subprocess.DEVNULL)
    code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    names = [requirement.partition("==")[0] for requirement in MERGEKIT]
    versions: dict[str, str] = json.loads(subprocess.check_output([programs / "python", "-c", code, *names]))
    return versions


def machine(work: Path) -> dict[str, Any]:
    """The hardware and the system, without names of the host, its users or its folders."""
    from deepen.doctor import doctor

    found = doctor()
    number = f"{os.major(work.stat().st_dev)}:{os.minor(work.stat().st_dev)}"
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    types = [fields[fields.index("-") + 1] for fields in mounts if fields[2] == number]
    disk = Path(f"/sys/dev/block/{number}")
    return {
        "cpu": found["cpu"]["model"], "cores": found["cpu"]["cores"], "memory_bytes": found["memory"]["total_bytes"],
        "file_system": types[0] if types else "unknown", "disk": disk.resolve().name if disk.exists() else "unknown",
        "kernel": platform.release(), "python": platform.python_version(), "deepen": found["versions"]["deepen"],
        "cp": subprocess.check_output(["cp", "--version"], text=True).splitlines()[0],
    }  # fmt: skip


def is_right(out: Path, planned: dict[str, str]) -> bool:
    """Whether each tensor of an output is the planned one; of deepen's, whether its manifest says so and holds."""
    if not (out / "deepen.json").exists():
        return bool(hash_tensors(out)["hashes"] == planned)
    from deepen.verify import verify

    records = json.loads((out / "deepen.json").read_text())["tensors"]
    return {record["name"]: record["sha256"] for record in records} == planned and verify(out).ok


def benchmark(work: Path, run: Path, config: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """All runs, interleaved, and whether the outputs are right."""
    print("making and hashing the source …", file=sys.stderr)
    aside(make_source, run / "source", config)
    flush(run / "source", forget=True)
    hashing = aside(hash_tensors, run / "source")
    planned = planned_hashes(hashing.pop("hashes"))
    tools = commands(work, run, options.skip_mergekit)
    runs: list[dict[str, Any]] = []
    right = {}
    for turn in range(options.repeat):
        for name, command in tools.items():
            (run / "out").mkdir()
            runs.append({"turn": turn, **measure(name, command, run)})
            if turn == 0 and name in {DEEPEN, MERGE}:
                right[name] = aside(is_right, run / "out" / ("deeper" if name == DEEPEN else ""), planned)
            shutil.rmtree(run / "out")
    numbers = [key for key in runs[0] if key not in {"name", "turn"}]
    medians = {name: {key: median(run[key] for run in runs if run["name"] == name) for key in numbers} for name in tools}
    ratios = {
        f"{upper} / {lower}{note}": medians[upper][key] / medians[lower][key]
        for upper, lower in ((DEEPEN, CP), (DEEPEN, LOOP), (MERGE, DEEPEN))
        if upper in tools
        for key, note in (("flushed_seconds", ""), ("seconds", ", not flushed"))
    }
    targets = {
        "time at most 1.2 of cp": ratios[f"{DEEPEN} / {CP}"] <= 1.2,
        "peak memory at most 100 MB": medians[DEEPEN]["peak_bytes"] <= 100 * 10**6,
        "at least twice as fast as mergekit": ratios[f"{MERGE} / {DEEPEN}"] >= 2 if MERGE in tools else None,
    }
    return {
        "hash_only": hashing, "every_tensor_right": right, "ratios": ratios, "targets": targets,
        "medians": medians, "runs": runs,
    }  # fmt: skip


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    host, model, hashing = result["machine"], result["model"], result["hash_only"]
    versions = "".join(f", {name} {version}" for name, version in result["mergekit_versions"].items())
    lines = [
        f"# Deepening {format_bytes(model['source_bytes'])} to {format_bytes(model['output_bytes'])}", "",
        f"{result['date']}, `{result['command']}`", "",
        f"- {host['cpu']}, {host['cores']} cores, {format_bytes(host['memory_bytes'])} of memory, Linux {host['kernel']},"
        f" {host['file_system']} on {host['disk']}",
        f"- deepen {host['deepen']}, Python {host['python']}, {host['cp']}{versions}",
        f"- structure of Mistral-7B-v0.1 with hidden size {model['hidden_size']}, bf16, 32 to 48 layers",
        "- medians of interleaved runs; the source was not in the page cache when a run began", "",
        "| | seconds | seconds, flushed | each run | CPU seconds | peak resident | of it anonymous | load average before |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in result["medians"].items():
        each = ", ".join(f"{run['flushed_seconds']:.1f}" for run in result["runs"] if run["name"] == name)
        lines.append(
            f"| {name} | {row['seconds']:.1f} | {row['flushed_seconds']:.1f} | {each} | {row['cpu_seconds']:.1f} |"
            f" {format_bytes(row['peak_bytes'])} | {format_bytes(row['peak_anonymous_bytes'])} | {row['load_average']:.1f} |"
        )
    verdicts = {True: "met", False: "missed", None: "not measured"}
    lines += ["", *(f"- {name}: {ratio:.2f}" for name, ratio in result["ratios"].items())]
    lines += [f"- hashing the source and nothing else: {hashing['seconds']:.1f} s, CPU {hashing['cpu_seconds']:.1f} s", ""]
    lines += [f"- {name}: **{verdicts[met]}**" for name, met in result["targets"].items()]
    lines += [
        f"- every tensor of {name} is right: {'yes' if ok else 'NO'}" for name, ok in result["every_tensor_right"].items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the benchmark as the options say; exit code 1 if an output is wrong, whatever the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1GB", help="bytes of the source, or full (14.5 GB, the real shapes)")
    parser.add_argument("--repeat", type=int, default=1, help="times that each tool runs, in turn")
    parser.add_argument("--skip-mergekit", action="store_true", help="neither install nor run mergekit")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="scratch folder; its disk is the one measured")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the result files go")
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of a table")
    options = parser.parse_args()
    config = mistral_config(None if options.size == "full" else parse_bytes(options.size))
    source_bytes, output_bytes = weight_bytes(config), weight_bytes(config, PLAN)
    work: Path = options.work.absolute()
    run = work / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    to_install = 0 if options.skip_mergekit or (work / "mergekit").exists() else MERGEKIT_BYTES
    needed, free = int(1.02 * (source_bytes + output_bytes)) + to_install, shutil.disk_usage(work).free
    print(f"needs {format_bytes(needed)} of disk; {format_bytes(free)} are free", file=sys.stderr)
    if needed > free:
        sys.exit("error: the disk is too small; choose another with --work, or a smaller --size")
    try:
        skip = " --skip-mergekit" if options.skip_mergekit else ""
        result = {
            "date": date.today().isoformat(),
            "command": f"python benchmarks/scale.py --size {options.size} --repeat {options.repeat}{skip}",
            "model": {"hidden_size": config["hidden_size"], "source_bytes": source_bytes, "output_bytes": output_bytes},
            "machine": aside(machine, work),
            "mergekit_versions": {} if options.skip_mergekit else install_mergekit(work),
            **benchmark(work, run, config, options),
        }
    finally:
        shutil.rmtree(run)
    options.results.mkdir(parents=True, exist_ok=True)
    for suffix, text in (("json", json.dumps(result, indent=2) + "\n"), ("md", report(result))):
        (options.results / f"scale-{options.size}-{result['date']}.{suffix}").write_text(text)
    print(json.dumps(result, indent=2) if options.json else report(result))
    sys.exit(0 if all(result["every_tensor_right"].values()) else 1)


if __name__ == "__main__":
    main()
