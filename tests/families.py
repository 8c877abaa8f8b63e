"""Tiny real checkpoints, one per family: random weights in the shapes that transformers gives them.

Sizes are small, but layers differ and matter: weights are wide, norms and biases are not trivial, sliding windows are 8
tokens so that a prompt of 40 exceeds them.
"""

from pathlib import Path
from typing import Any

WINDOW = 8
VOCABULARY = 96
TOKENIZER_VOCABULARY = 272
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}

# Family (the transformers model type) -> what its config needs besides the sizes; None: the family has no such field.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 3},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8},
    "phi3": {"sliding_window": WINDOW},
    "olmo2": {},
    "smollm3": {"use_sliding_window": True, "sliding_window": WINDOW, "no_rope_layer_interval": 2},
    "gpt_neox": {"use_parallel_residual": True, "num_key_value_heads": None},
    "granite": {"residual_multiplier": 0.3, "embedding_multiplier": 2.0, "attention_multiplier": 0.2},
    "cohere2": {"sliding_window": WINDOW},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "head_dim": 8, "decoder_sparse_step": 2, **_EXPERTS},
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 8,
        "sliding_window": WINDOW,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 32,
        },
    },
    "deepseek_v3": {
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
        **_EXPERTS,
    },
}
# These tie their embeddings unless told otherwise, here as in the released models.
TIED = frozenset({"llama", "qwen3", "gemma2", "gemma3_text", "smollm3", "cohere2"})


def make_config(family: str, *, num_hidden_layers: int = 6, **overrides: Any) -> Any:
    """The transformers config of a tiny model."""
    from transformers import AutoConfig

    settings = {**_SIZES, **FAMILIES[family], "num_hidden_layers": num_hidden_layers, **overrides}
    return AutoConfig.for_model(family, **{key: value for key, value in settings.items() if value is not None})


def make_checkpoint(family: str, folder: Path, *, num_hidden_layers: int = 6, seed: int = 0, **overrides: Any) -> Path:
    """Write a tiny checkpoint of a family and return its folder; `overrides` are config fields."""
    import torch
    from transformers import AutoModelForCausalLM

    config = make_config(family, num_hidden_layers=num_hidden_layers, **overrides)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, seed)
    model.save_pretrained(folder)
    return folder


def randomise(model: Any, seed: int = 0) -> None:
    """Weights under which every layer, bias and norm makes a difference that float32 shows."""
    import torch

    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        buffers = [(name, buffer) for name, buffer in model.named_buffers() if name.endswith("correction_bias")]
        for name, parameter in [*model.named_parameters(), *buffers]:
            if parameter.ndim > 1 and not name.endswith("bias"):
                parameter.normal_(0.0, 0.2, generator=random)
            elif "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5, generator=random)
            else:
                parameter.normal_(0.0, 0.2, generator=random)


def add_tokenizer(folder: Path) -> Path:
    """Write a byte-level BPE tokenizer with a chat template; the model needs `vocab_size=TOKENIZER_VOCABULARY`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["the deeper model of the layers repeats the layers of the base model and heals"] * 4, trainer
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=128
    )
    fast.chat_template = (
        "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )
    fast.save_pretrained(folder)
    return folder
