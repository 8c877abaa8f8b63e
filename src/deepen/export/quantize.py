"""The formats a GGUF is written in, and which one each tensor gets: llama.cpp's own policy (`src/llama-quant.cpp`)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from deepen.errors import OptionError

_BLOCK = re.compile(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight")
# what takes the place of a type whose blocks do not divide a row
_NARROWER = {
    GGMLQuantizationType.Q4_K: GGMLQuantizationType.Q5_0,
    GGMLQuantizationType.Q5_K: GGMLQuantizationType.Q5_1,
    GGMLQuantizationType.Q6_K: GGMLQuantizationType.Q8_0,
}


@dataclass(frozen=True)
class Quantization:
    """A format that a whole file is written in.

    Attributes:
        name: as the user types it.
        type: the format of the matrices; vectors are always float32.
        file_type: what `general.file_type` says.
        mixed: some layers' `attn_v` and `ffn_down` are written as Q6_K (the M of Q4_K_M).
    """

    name: str
    type: GGMLQuantizationType
    file_type: LlamaFileType
    mixed: bool = False


QUANTIZATIONS = {
    quantization.name: quantization
    for quantization in (
        Quantization("F32", GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
        Quantization("F16", GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
        Quantization("BF16", GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
        Quantization("Q8_0", GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
        Quantization("Q6_K", GGMLQuantizationType.Q6_K, LlamaFileType.MOSTLY_Q6_K),
        Quantization("Q5_K_M", GGMLQuantizationType.Q5_K, LlamaFileType.MOSTLY_Q5_K_M, mixed=True),
        Quantization("Q4_K_M", GGMLQuantizationType.Q4_K, LlamaFileType.MOSTLY_Q4_K_M, mixed=True),
        Quantization("Q4_0", GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    )
}


@dataclass(frozen=True)
class Policy:
    """What decides over the format of a tensor besides its name and shape.

    Attributes:
        quantization: the format of the file.
        layers: depth of the model.
        tied: there is no output matrix, so the embedding is one.
        grouped: several query heads share a key and value head.
    """

    quantization: Quantization
    layers: int
    tied: bool
    grouped: bool

    def type(self, name: str, shape: tuple[int, ...]) -> GGMLQuantizationType:
        """The format of one tensor of the GGUF; a row that no block divides becomes float16."""
        if len(shape) == 1:
            return GGMLQuantizationType.F32
        chosen = self.quantization.type
        if chosen not in _FLOATS:
            chosen = self._mixture(name, shape[-1])
        if not _divides(chosen, shape[-1]):
            chosen = _NARROWER.get(chosen, GGMLQuantizationType.F16)
        return chosen if _divides(chosen, shape[-1]) else GGMLQuantizationType.F16

    def _mixture(self, name: str, columns: int) -> GGMLQuantizationType:
        usual = self.quantization.type
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            even = _divides(usual, columns) and usual != GGMLQuantizationType.Q8_0
            return GGMLQuantizationType.Q6_K if even else GGMLQuantizationType.Q8_0
        found = _BLOCK.fullmatch(name)
        if found is None:
            return usual
        if self.quantization.mixed and _more_bits(int(found[1]), self.layers):
            return GGMLQuantizationType.Q6_K
        # llama.cpp takes 80 layers with grouped heads for Llama-70B, where attn_v is small and worth a bit more
        wide = found[2] == "attn_v" and self.layers == 80 and self.grouped and usual == GGMLQuantizationType.Q4_K
        return GGMLQuantizationType.Q5_K if wide else usual


_FLOATS = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16}


def parse_quantization(name: str) -> Quantization:
    """The format of that name, in any case.

    Raises:
        OptionError: it is none that can be written.
    """
    try:
        return QUANTIZATIONS[name.upper()]
    except KeyError:
        raise OptionError(
            f"{name!r} is no format that can be written", where="--quantize", next=f"choose one of {', '.join(QUANTIZATIONS)}"
        ) from None


def _more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third between them."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _divides(kind: GGMLQuantizationType, columns: int) -> bool:
    block: int = GGML_QUANT_SIZES[kind][0]
    return columns % block == 0
