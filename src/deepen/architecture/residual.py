"""Which tensors of a decoder layer write into the residual stream, and the value that silences them.

A block is the identity when everything it adds to the residual stream is zero. That is so when its output projections
(and their biases) are zero, or, where a norm stands between the projection and the sum, when the scale of that norm is:
a zero projection in front of an RMSNorm would have a gradient of 1/sqrt(eps) and healing would explode.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from deepen.architecture.fields import Config, model_type, words
from deepen.errors import UnsupportedModelError

_WRITERS = words("o_proj out_proj dense dense_4h_to_h c_proj fc2 fc_out w2 wo down_proj output_linear")
_READERS = words(
    """q_proj k_proj v_proj qkv_proj query_key_value c_attn c_fc W_pack Wqkv wqkv q_a_proj q_b_proj kv_a_proj_with_mqa
    kv_b_proj gate_proj up_proj gate_up_proj dense_h_to_4h fc1 fc_in w1 w3 v1 gate router shared_expert_gate
    input_linear e_score_correction_bias expert_bias sinks in_proj in_proj_qkvz in_proj_ba in_proj_qkv in_proj_z
    in_proj_b in_proj_a conv conv1d q_conv1d k_conv1d v_conv1d A_log D dt_bias dt_proj x_proj g_proj f_a_proj f_b_proj
    b_proj g_a_proj g_b_proj indexer wq_b wk weights_proj rotary_emb per_expert_scale"""
)
# Causal masks and frequencies that old transformers saved beside the weights.
_BUFFERS = re.compile(r"(^|\.)(attn|attention)\.(bias|masked_bias)$|rotary_emb\.inv_freq$")
_NORM = re.compile(r"norm|^ln(_|$)|^ln\d|layernorm", re.IGNORECASE)
_PARAMETER = re.compile(r"\.(weight|bias)$")

# Norms whose output is added to the residual stream, by family, and the weight that makes them return zero:
# Gemma scales by (1 + w), the others by w. Read from transformers 5.23, models/*/modeling_*.py.
_POST_NORMS: dict[str, tuple[frozenset[str], float]] = {}
for _families, _names, _silent in (
    (("gemma2", "gemma3_text"), ("post_attention_layernorm", "post_feedforward_layernorm"), -1.0),
    (("olmo2", "olmo3", "exaone4", "flex_olmo"), ("post_attention_layernorm", "post_feedforward_layernorm"), 0.0),
    (("glm4", "kolibri1"), ("post_self_attn_layernorm", "post_mlp_layernorm"), 0.0),
    (("afmoe",), ("post_attention_layernorm", "post_mlp_layernorm"), 0.0),
    (("lfm3",), ("post_operator_norm", "post_ffn_norm"), 0.0),
):
    _POST_NORMS |= dict.fromkeys(_families, (frozenset(_names), _silent))
# Families in which the residual stream itself passes a norm, so that no weight makes a block the identity.
_NORMED_STREAM = frozenset({"openai-gpt", "xlm", "xlnet"})


def residual_writers(config: Config, rests: Collection[str], where: str | Path) -> dict[str, float]:
    """The tensors of a layer to overwrite, with the value that makes the layer the identity.

    Args:
        config: the raw `config.json`.
        rests: names of the tensors of one layer or of all, without prefix and index (`mlp.down_proj.weight`).
        where: the checkpoint, for messages.

    Returns:
        For each tensor that writes into the residual stream the number that all its elements get.

    Raises:
        UnsupportedModelError: a tensor has no known role, or the family's blocks cannot be the identity.
    """
    _refuse_normed_stream(config, where)
    post_norms, silent = _post_norms(config, rests, where)
    writers = {}
    for rest in sorted(rests):
        if _BUFFERS.search(rest):
            continue
        module = _PARAMETER.sub("", rest)
        owner, _, leaf = module.rpartition(".")
        if leaf in post_norms and not owner:
            writers[rest] = 0.0 if rest.endswith(".bias") else silent
        elif _NORM.search(leaf) or _reads(leaf, owner, rests):
            continue
        elif _writes(leaf):
            if not post_norms:
                writers[rest] = 0.0
        else:
            raise UnsupportedModelError(
                f"it is not known whether tensor {rest!r} writes into the residual stream",
                where=where,
                next="scale without identity initialisation (--identity-init, --expand)",
            )
    if not writers:
        raise UnsupportedModelError(
            "no tensor of its layers is known to write into the residual stream",
            where=where,
            next="scale without identity initialisation (--identity-init, --expand)",
        )
    return writers


def _writes(leaf: str) -> bool:
    return leaf.removesuffix("_bias") in _WRITERS


def _reads(leaf: str, owner: str, rests: Collection[str]) -> bool:
    if leaf == "w2" and any(rest.startswith(f"{owner}.c_proj.") for rest in rests):
        return True  # Qwen 1: w1 and w2 are gate and up, c_proj writes
    if "router" in owner.split("."):
        return True
    return leaf in _READERS or leaf.removesuffix("_bias") in _READERS


def _refuse_normed_stream(config: Config, where: str | Path) -> None:
    normed = (
        model_type(config) in _NORMED_STREAM
        or config.get("apply_residual_connection_post_layernorm") is True
        or config.get("do_layer_norm_before") is False
    )
    if normed:
        raise UnsupportedModelError(
            "the residual stream of this model passes a norm in every block, so no weights make a block the identity",
            where=where,
            next="scale without identity initialisation (--identity-init, --expand)",
        )


def _post_norms(config: Config, rests: Collection[str], where: str | Path) -> tuple[frozenset[str], float]:
    norms = {rest.partition(".")[0] for rest in rests if _NORM.search(rest.partition(".")[0])}
    known = _POST_NORMS.get(model_type(config))
    if known is not None:
        return known
    posts = {norm for norm in norms if norm.startswith("post_")}
    # In Llama's arrangement post_attention_layernorm comes before the MLP, not after the attention.
    llama_like = posts <= {"post_attention_layernorm"} and not any(norm.startswith("pre_") for norm in norms)
    if posts and not (llama_like and "input_layernorm" in norms):
        raise UnsupportedModelError(
            f"it is not known how {model_type(config)} scales its norms {', '.join(sorted(posts))}",
            where=where,
            next="scale without identity initialisation (--identity-init, --expand)",
        )
    return frozenset(), 0.0
