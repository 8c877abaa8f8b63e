"""What a GGUF says about the model as a whole: name, licence, size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from gguf import GGML_QUANT_VERSION, GGUFWriter, size_label

from deepen.errors import CheckpointError
from deepen.export.quantize import Quantization


def write_metadata(writer: GGUFWriter, folder: Path, name: str, parameters: int, quantization: Quantization) -> None:
    """Write the `general.*` keys; name, licence and languages come from the model card where it has them."""
    card = read_card(folder)
    writer.add_type("model")
    writer.add_name(str(card.get("model_name") or name))
    writer.add_size_label(size_label(parameters, parameters, 0, 0))
    for key, write in (
        ("license", writer.add_license),
        ("license_name", writer.add_license_name),
        ("license_link", writer.add_license_link),
    ):
        if isinstance(card.get(key), str):
            write(card[key])
    for key, write_all in (("language", writer.add_languages), ("tags", writer.add_tags)):
        values = [card[key]] if isinstance(card.get(key), str) else card.get(key)
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            write_all(values)
    writer.add_file_type(quantization.file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)


def read_card(folder: Path) -> dict[str, Any]:
    """The front matter of the folder's model card, empty if there is none.

    Raises:
        CheckpointError: it is there, but is no YAML mapping; a licence could be lost.
    """
    file = folder / "README.md"
    if not file.is_file():
        return {}
    head, _, rest = file.read_text(encoding="utf-8", errors="replace").partition("\n")
    matter, end, _ = rest.partition("\n---")
    if head.strip() != "---" or not end:
        return {}
    try:
        card = yaml.safe_load(matter) or {}
    except yaml.YAMLError as error:
        raise CheckpointError("the front matter is not valid YAML", where=file, next="correct it, or remove it") from error
    if not isinstance(card, dict):
        raise CheckpointError("the front matter is not a mapping", where=file, next="correct it, or remove it")
    return card
