"""Find a model by what the user typed: a local path, or `org/name[@revision]` on the Hub."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepen.checkpoint.reader import Checkpoint, Tensor, open_checkpoint
from deepen.errors import CheckpointError, NetworkError

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?$")
# Never fetched: pickles are not read here, and copies in other formats would only cost time
_NOT_NEEDED = [
    "*.bin",
    "*.pth",
    "*.pt",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.onnx_data",
    "*.gguf",
    "*.tflite",
    "original/*",
]


def is_hub_id(model: str | Path) -> bool:
    """Whether a model name means a repository on the Hub: it looks like one and no such path exists here."""
    looks_like_one = isinstance(model, str) and not model.endswith(".gguf") and _HUB_ID.match(model) is not None
    return looks_like_one and not Path(model).exists()


def resolve(model: str | Path) -> Path:
    """The local path of a model; a Hub id is downloaded (safetensors and side files) or taken from the cache.

    Raises:
        CheckpointError: there is no such path, no such repository, or it cannot be reached.
        NetworkError: the connection broke, or the Hub failed, on the way.
    """
    if is_hub_id(model):
        from huggingface_hub import snapshot_download

        name, revision = _split(str(model))
        with _hub(str(model)) as online:
            return Path(snapshot_download(name, revision=revision, ignore_patterns=_NOT_NEEDED, local_files_only=not online))
    path = Path(model)
    if not path.exists():
        raise CheckpointError(
            "no such file or folder, nor a Hub id",
            where=model,
            next="give a checkpoint folder, a .gguf file or a Hub id such as org/name",
        )
    return path


def open_headers(model: str | Path) -> Checkpoint:
    """Read config and tensor headers only; of a Hub id too, without downloading weights.

    Raises:
        CheckpointError, NetworkError: as `resolve` and `open_checkpoint`.
    """
    if not is_hub_id(model):
        return open_checkpoint(resolve(model))
    from huggingface_hub import get_safetensors_metadata, hf_hub_download, snapshot_download

    name, revision = _split(str(model))
    with _hub(str(model)) as online:
        if not online:
            return open_checkpoint(Path(snapshot_download(name, revision=revision, local_files_only=True)))
        config = json.loads(Path(hf_hub_download(name, "config.json", revision=revision)).read_text(encoding="utf-8"))
        metadata = get_safetensors_metadata(name, revision=revision)
    if not isinstance(config, dict):
        raise CheckpointError("config.json does not hold a JSON object", where=model, next="choose another model")
    tensors = {
        tensor_name: Tensor(tensor_name, info.dtype, tuple(info.shape), Path(file), begin, end - begin)
        for file, part in metadata.files_metadata.items()
        for tensor_name, info in part.tensors.items()
        for begin, end in [info.data_offsets]
    }
    return Checkpoint(Path(str(model)), config, tensors, ())


def read_card(model: str) -> str | None:
    """The model card of a Hub id; None if it has none, or cannot be asked."""
    from huggingface_hub import errors, hf_hub_download

    name, revision = _split(model)
    try:
        with _hub(model) as online:
            card = hf_hub_download(name, "README.md", revision=revision, local_files_only=not online)
    except (CheckpointError, NetworkError, errors.EntryNotFoundError):
        return None
    return Path(card).read_text(encoding="utf-8", errors="replace")


def reachable() -> bool:
    """Whether the Hub can be asked: by one short attempt, since the library retries for half a minute before it gives up."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:
        if is_connection_error(error):
            return False
        raise
    return True


def is_connection_error(error: Exception) -> bool:
    """Whether an error came from the network or from the Hub."""
    # the HTTP client below huggingface_hub has error classes of its own, and changes with its version
    from huggingface_hub.errors import HfHubHTTPError

    clients = {"httpx", "httpx2", "httpcore", "httpcore2", "requests"}
    network = ConnectionError | TimeoutError | socket.gaierror | HfHubHTTPError  # not every OSError: the disk may be full
    return isinstance(error, network) or type(error).__module__.split(".")[0] in clients


def _split(model: str) -> tuple[str, str | None]:
    name, _, revision = model.partition("@")
    return name, revision or None


@contextmanager
def _hub(model: str) -> Iterator[bool]:
    """Whether the Hub can be reached; what goes wrong with it inside the block becomes deepen's errors."""
    from huggingface_hub import errors

    online = reachable()
    try:
        yield online
    except errors.GatedRepoError as error:
        raise CheckpointError(
            "the repository is gated", where=model, next="accept its terms on the Hub and log in (hf auth login)"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise CheckpointError(
            "no such file or folder here, and no such repository or revision on the Hub",
            where=model,
            next="check the name",
        ) from error
    except errors.NotASafetensorsRepoError as error:
        raise CheckpointError(
            "the repository has no safetensors weights",
            where=model,
            next="choose one that has; pickles are never opened",
        ) from error
    except (errors.SafetensorsParsingError, json.JSONDecodeError) as error:
        raise CheckpointError("the repository's files cannot be parsed", where=model, next="choose another revision") from error
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise _broken_off(model, online) from error
        raise CheckpointError("the repository has no config.json", where=model, next="choose a language model") from error
    except Exception as error:
        if is_connection_error(error):
            raise _broken_off(model, online) from error
        raise


def _broken_off(model: str, online: bool) -> CheckpointError | NetworkError:
    if online:
        return NetworkError("the Hub failed or the connection broke on the way", where=model, next="run again")
    # The user can act (a local folder, a network), so this is exit code 2 and not a failure of the machine
    return CheckpointError(
        "no such file or folder here, and the Hub cannot be reached (no network, or HF_HUB_OFFLINE is set)",
        where=model,
        next="give a local folder, or connect and run again",
    )
