"""A tiny random Llama as a GGUF, with a vocabulary of bytes and a chat template; made in a moment, without torch."""

from pathlib import Path

import gguf
import numpy as np

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def byte_alphabet() -> list[str]:
    """The character that byte-level BPE writes for each byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) if byte in visible else chr(256 + hidden.index(byte)) for byte in range(256)]


def write_tiny_gguf(path: Path, *, context: int = 512, layers: int = 2, hidden: int = 64, seed: int = 0) -> Path:
    """Write the model; `context` tokens, `layers` deep."""
    random = np.random.default_rng(seed)
    tokens = ["<s>", "</s>", *byte_alphabet(), "th"]
    normal, control = int(gguf.TokenType.NORMAL), int(gguf.TokenType.CONTROL)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(layers)
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(2 * hidden)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_rope_dimension_count(hidden // 4)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([control, control, *([normal] * 257)])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)

    def matrix(name: str, rows: int, columns: int, scale: float = 1.0) -> None:
        values = random.standard_normal((rows, columns)) * scale / np.sqrt(columns)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))

    matrix("token_embd", len(tokens), hidden, 4.0)
    norm("output_norm")
    # letters are likelier than other bytes, and the end is unlikely
    head = random.standard_normal((len(tokens), hidden)) * 4 / np.sqrt(hidden)
    head[[index for index, token in enumerate(tokens) if not (token.isascii() and token.isalpha())]] *= 0.2
    writer.add_tensor("output.weight", head.astype(np.float32))
    for layer in range(layers):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm")
        norm(f"{block}.ffn_norm")
        matrix(f"{block}.attn_q", hidden, hidden)
        matrix(f"{block}.attn_k", hidden // 2, hidden)
        matrix(f"{block}.attn_v", hidden // 2, hidden)
        matrix(f"{block}.attn_output", hidden, hidden)
        matrix(f"{block}.ffn_gate", 2 * hidden, hidden)
        matrix(f"{block}.ffn_up", 2 * hidden, hidden)
        matrix(f"{block}.ffn_down", hidden, 2 * hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
