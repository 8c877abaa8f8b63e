"""The model that is trained: how it is loaded, sharded, sped up, and written back."""

from __future__ import annotations

import ctypes
import gc
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from deepen.checkpoint import Checkpoint, open_checkpoint
from deepen.checkpoint.gguf import is_gguf
from deepen.checkpoint.writer import copy_side_files
from deepen.errors import CheckpointError, MissingDependencyError, UnsupportedModelError
from deepen.model import load
from deepen.progress import say
from deepen.train import ranks
from deepen.train.metrics import METRICS_FILE
from deepen.train.state import scratch

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_GAIN = 1.2  # how much faster bfloat16 has to be to be worth its rounding
_SHARD = "5GB"
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # options of mallopt, from malloc.h


def open_trainable(path: Path) -> Checkpoint:
    """Open a checkpoint whose weights can be trained.

    Raises:
        CheckpointError: it is broken.
        UnsupportedModelError: a GGUF file, or quantised weights.
    """
    if is_gguf(path):
        raise UnsupportedModelError(
            "a GGUF file cannot be trained",
            where=path,
            next="make a checkpoint folder of it first: deepen scale … --to hf",
        )
    checkpoint = open_checkpoint(path)
    if checkpoint.config.get("quantization_config"):
        raise UnsupportedModelError(
            "the weights are quantised and cannot be trained", where=path, next="use the unquantised model"
        )
    return checkpoint


class Words:
    """What a stage's data needs to know of a model before its weights are loaded.

    Attributes:
        tokenizer: its tokenizer.
        config: its transformers configuration.
        vocabulary: how many tokens it has embeddings for.
        ends: ids at which generation stops, as the checkpoint says.
    """

    def __init__(self, source: Checkpoint) -> None:
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(source.path, local_files_only=True)
        except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
            raise CheckpointError(
                "the checkpoint has no tokenizer that transformers can load",
                where=source.path,
                next="put its tokenizer files beside the weights",
            ) from error
        self.config: Any = AutoConfig.from_pretrained(source.path, local_files_only=True)
        self.vocabulary: int = self.config.get_text_config().vocab_size
        try:
            ends = GenerationConfig.from_pretrained(source.path, local_files_only=True).eos_token_id
        except OSError:
            ends = self.config.get_text_config().eos_token_id
        self.ends: list[int] = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def load_network(source: Checkpoint, device: str, *, precision: str, sharded: bool) -> Any:
    """The model in float32 on its device; sharded over all processes where there are several (FSDP2).

    Transformers loads each process its shards alone. Where it does not know how to (no plan for the architecture), or would
    let the halves of tied embeddings drift apart (a vocabulary that the processes do not divide, transformers 5.23), each
    process loads the whole model and keeps its part.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    if not sharded or ranks.world_size() == 1:
        return load(source.path, dtype="float32", device=device)[0]
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from transformers.distributed import DistributedConfig

    copies, low = ranks.replicas(), precision == "bfloat16"
    shards = ranks.world_size() // copies
    config = AutoConfig.from_pretrained(source.path, local_files_only=True)
    text = config.get_text_config()
    planned = bool(getattr(text, "base_model_fsdp_plan", None))
    if planned and not (text.tie_word_embeddings and text.vocab_size % shards):
        disable_progress_bar()
        sharding = DistributedConfig(fsdp_size=shards, dp_replicate_size=copies, fsdp_mixed_precision=low)
        return AutoModelForCausalLM.from_pretrained(
            source.path, dtype=torch.float32, local_files_only=True, distributed_config=sharding
        )
    network = load(source.path, dtype="float32", device=device)[0]
    kind = device.partition(":")[0]
    mesh = init_device_mesh(kind, (copies, shards), mesh_dim_names=("copies", "shards"))
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if low else MixedPrecisionPolicy()
    for part in (*_layers(network), network):
        fully_shard(part, mesh=mesh if copies > 1 else mesh["shards"], mp_policy=mixed)
    return network


def choose_precision(wanted: str, device: str) -> str:
    """What matrices are multiplied in; `auto` measures on the device and says what it chose."""
    if wanted != "auto":
        return wanted
    slow, fast = (_seconds(dtype, device) for dtype in (torch.float32, torch.bfloat16))
    chosen = "bfloat16" if slow > _GAIN * fast else "float32"
    ratio = f"{slow / fast:.1f}x faster" if slow > fast else f"{fast / slow:.1f}x slower"
    say(f"matrices are multiplied in {chosen}: bfloat16 is {ratio} on {device}")
    return chosen


def speed_up(network: Any, *, compile: bool, activation_checkpointing: bool) -> None:  # noqa: A002
    """Compile each layer by itself, keep only the layers' inputs for the backward pass; on a CPU, keep the memory of a step.

    Raises:
        MissingDependencyError: compiling for a CPU needs a C++ compiler.
    """
    if network.device.type == "cpu":
        _keep_memory()
    if activation_checkpointing:
        network.activation_checkpointing_enable()
    if not compile:
        return
    if network.device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise MissingDependencyError("--compile needs a C++ compiler", next="install one, such as g++, or leave it out")
    for layer in _layers(network):
        layer.compile()


def _keep_memory() -> None:
    """Have the C library keep large blocks that are freed, for the next step.

    Else it gives each one back, and the kernel has to clear as much again in every step.
    """
    if (library := _glibc()) is not None:
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def _glibc() -> ctypes.CDLL | None:
    """The C library, where it has glibc's ways to keep memory and to give it back."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def release(device: str) -> None:
    """Give memory back that a model held which nobody refers to any more."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    elif (library := _glibc()) is not None:
        library.malloc_trim(0)


def write_checkpoint(folder: Path, network: Any, source: Checkpoint) -> None:
    """Write the trained weights in the type that most of the source's have, all other files byte for byte.

    All processes call it; the first one writes.
    """
    sizes: Counter[str] = Counter()
    for tensor in source.tensors.values():
        sizes[tensor.dtype] += tensor.nbytes
    dtype = _DTYPES.get(sizes.most_common(1)[0][0], torch.float32)
    disable_progress_bar()
    if _is_sharded(network):
        network, weights = _gathered(network, dtype)
    else:
        weights = None
        network.to(dtype)
    if ranks.rank() == 0:
        saved = scratch(folder)
        network.save_pretrained(saved, state_dict=weights, max_shard_size=_SHARD)
        for file in saved.glob("model*.safetensors*"):
            shutil.copymode(folder / METRICS_FILE, file)  # safetensors lets nobody but the owner read what it writes
            file.replace(folder / file.name)
        copy_side_files(source.path, (Path("config.json"), *source.side_files), folder)
    ranks.wait()


def _layers(network: Any) -> torch.nn.ModuleList:
    return max((each for each in network.modules() if isinstance(each, torch.nn.ModuleList)), key=len)


def _is_sharded(network: Any) -> bool:
    return any(hasattr(parameter, "full_tensor") for parameter in network.parameters())


def _gathered(network: Any, dtype: torch.dtype) -> tuple[Any, dict[str, torch.Tensor]]:
    """An empty model of the same architecture, and all weights on the first process."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    weights = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    config = network.config
    if hasattr(config, "distributed_config"):
        config.distributed_config = None
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=dtype)
    whole = {name: weight.to(dtype) for name, weight in weights.items() if isinstance(weight, torch.Tensor)}
    for tied in plain.all_tied_weights_keys:  # gathered twice, they are no longer seen to be one
        whole.pop(tied, None)
    return plain, whole


@torch.no_grad()
def _seconds(dtype: torch.dtype, device: str) -> float:
    size = 256 if device == "cpu" else 4096  # enough to tell, and done at once
    one, other = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        float((one @ other)[0, 0])  # the value waits for the device
        best = min(best, time.perf_counter() - start)
    return best
