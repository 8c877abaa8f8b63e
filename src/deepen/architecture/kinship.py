"""Models that depth-wise scaling cannot treat, each with its reason."""

from __future__ import annotations

from pathlib import Path

from deepen.architecture.fields import Config, model_type, words
from deepen.errors import CheckpointError, UnsupportedModelError

ENCODERS = words(
    """albert bert big_bird camembert convbert data2vec-text deberta deberta-v2 distilbert electra ernie esm eurobert
    flaubert fnet funnel ibert layoutlm longformer luke megatron-bert mobilebert modernbert mpnet mra nomic_bert
    nystromformer perceiver reformer rembert roberta roberta-prelayernorm roc_bert roformer squeezebert tapas xlm
    xlm-roberta xlm-roberta-xl xmod yoso vit clip siglip dinov2 wav2vec2 hubert"""
)
ENCODER_DECODERS = words(
    """bart bigbird_pegasus blenderbot blenderbot-small encoder-decoder fsmt led longt5 m2m_100 marian mbart mt5 mvp
    nllb-moe pegasus pegasus_x plbart prophetnet seamless_m4t seamless_m4t_v2 switch_transformers t5 t5gemma t5gemma2
    umt5 trocr whisper"""
)
# Sub-configs of models that see or hear; a plain language model has none of them.
MODALITIES = ("vision_config", "text_config", "audio_config", "llm_config", "language_config", "thinker_config")

# Mathematics that depends on a layer's absolute index or on its neighbours, so a moved layer would compute
# something else. Found in transformers 5.23, models/*/modeling_*.py.
BOUND_TO_DEPTH = {
    "beam": "it scales each residual by the index of the layer",
    "blt": "its layers are split over several stacks",
    "deepseek_v4": "its schedule of hash-routed experts and compressed attention is not covered",
    "diffllama": "its attention computes lambda from the index of the layer",
    "dots3_note_text": "its attention has other sizes in some layers, in a form that is not covered",
    "gemma3n": "its last layers reuse the keys of earlier ones and its embeddings are sized by depth",
    "gemma3n_text": "its last layers reuse the keys of earlier ones and its embeddings are sized by depth",
    "gemma4_assistant": "its layers read the keys of another model",
    "gemma4_text": "its last layers reuse the keys of earlier ones and its last layer is special",
    "gemma4_unified_assistant": "its layers read the keys of another model",
    "gemma4_unified_text": "its last layers reuse the keys of earlier ones and its last layer is special",
    "gpt_neox_japanese": "only its last layer adds a bias",
    "hrm_text": "it runs one stack many times, so its depth is not its number of layers",
    "inkling2_text": "its layers read the residuals of earlier blocks",
    "inkling_text": "its layers keep convolution states in a form that is not covered",
    "longcat_flash": "each of its layers holds two attention sub-layers with indices of their own",
    "minimax": "its lightning attention decays by the index of the layer",
    "minimax_m1": "its lightning attention decays by the index of the layer",
    "minimax_text_01": "its lightning attention decays by the index of the layer",
    "mistral_large4": "its layers read the keys of earlier ones by index",
    "mllama_text_model": "some of its layers attend to an image instead",
    "modernbert-decoder": "only its first layer lacks a norm",
    "moshi": "it holds two decoders",
    "qwen4_exp_text": "its n-gram embeddings are hashed by the index of the layer",
    "rwkv": "only its first layer carries a norm",
    "xlstm": "its blocks are counted and placed in another way",
    "zamba": "its layers share one transformer block",
    "zamba2": "its layers share one transformer block, with adapters by position",
    "zaya": "its routers pass a state from layer to layer",
}


def refuse_kin(config: Config, where: str | Path) -> None:
    """Refuse what is not a decoder-only text model, or one whose mathematics is bound to its depth.

    Raises:
        CheckpointError: the config does not name a model type.
        UnsupportedModelError: the model cannot be deepened, with the reason.
    """
    if "_class_name" in config or "_diffusers_version" in config:
        raise UnsupportedModelError(
            "this is a diffusion model: it has no stack of decoder layers that text runs through",
            where=where,
            next="give a decoder-only language model",
        )
    family = model_type(config)
    if config.get("is_encoder_decoder") or family in ENCODER_DECODERS:
        raise UnsupportedModelError(
            f"{family or 'this model'} is an encoder-decoder: its two stacks attend to each other",
            where=where,
            next="give a decoder-only language model",
        )
    if family in ENCODERS:
        raise UnsupportedModelError(
            f"{family} is an encoder: it reads text in both directions and cannot generate it",
            where=where,
            next="give a decoder-only language model",
        )
    modalities = [key for key in MODALITIES if isinstance(config.get(key), dict)]
    if modalities:
        raise UnsupportedModelError(
            f"the model holds more than a language model (its config has {', '.join(modalities)}): "
            "which of its stacks should grow is not defined",
            where=where,
            next="extract the language model into a checkpoint of its own and scale that",
        )
    if not family:
        raise CheckpointError(
            f"config.json names no model_type (it is {config.get('model_type')!r})",
            where=where,
            next="add model_type to config.json, or take the checkpoint from its publisher again",
        )
    if family in BOUND_TO_DEPTH:
        raise UnsupportedModelError(
            f"{family} cannot be deepened by moving layers: {BOUND_TO_DEPTH[family]}",
            where=where,
            next="choose another base model",
        )
