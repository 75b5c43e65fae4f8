"""The names that families of models give to what this package looks for, in one place.

A new architecture needs a row here where its config, its inputs or its modules are called otherwise
than all before it; everything that reads such names reads them from here.
"""

from __future__ import annotations

import re

# -- the config ------------------------------------------------------------------------------------

# Spellings found in the configs of transformers 4 and 5 and of models with code of their own. The
# start, end, bos, eos and newline ids that sit next to them are left out on purpose: text.
PLACEHOLDER_IDS = {
    "image": (
        "image_token_id",
        "image_token_index",
        "image_token_ids",
        "image_token_idx",
        "image_pad_token_id",
        "img_token_id",
        "img_context_token_id",
    ),
    "video": (
        "video_token_id",
        "video_token_index",
        "video_token_ids",
        "video_token_idx",
        "video_pad_token_id",
    ),
    "audio": (
        "audio_token_id",
        "audio_token_index",
        "audio_token_ids",
        "audio_token_idx",
        "speech_token_id",
        "speech_token_index",
    ),
}

VISION_TOWERS = ("vision_config", "image_config", "video_config", "vq_config", "mm_vision_tower")

AUDIO_TOWERS = (
    "audio_config",
    "speech_config",
    "codec_config",
    "audio_encoder_config",
    "mm_audio_tower",
)

TOWERS = {"image": VISION_TOWERS, "video": VISION_TOWERS, "audio": AUDIO_TOWERS}

# Nested configs that may carry the ids (the thinker of Qwen-Omni, the encoders of Phi-4). A talker,
# a vocoder or any other config is not the model that reads the prompt.
NESTED_CONFIGS = (
    "thinker_config",
    "text_config",
    "language_config",
    "llm_config",
    "vision_config",
    "audio_config",
    "speech_config",
)

# -- inputs ----------------------------------------------------------------------------------------

PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels")
"""Inputs [batch, sequence] that have one value a token; everything else belongs to media."""

# What a batch of text alone holds, also one with the placeholders of a picture that is missing.
TEXT_INPUTS = {
    "input_ids",
    "attention_mask",
    "position_ids",
    "cache_position",
    "labels",
    "loss_mask",
    "token_type_ids",
    "mm_token_type_ids",
}

# -- modules ---------------------------------------------------------------------------------------

# A softmax attention module owns a projection of the queries, alone or fused with keys and values.
# Keys and values of its own are not asked for: layers that share another layer's (Gemma3n, Gemma4)
# have none, and latent attention (DeepSeek) splits them in two.
QUERY_PROJECTIONS = (
    "q_proj",
    "q_a_proj",
    "q_b_proj",
    "wq",
    "qkv_proj",
    "query_key_value",
    "Wqkv",
    "W_pack",
    "c_attn",
)

# Token mixers without softmax weights. Some of them have a q_proj as well (Gated DeltaNet of
# Olmo-Hybrid, lightning attention of MiniMax), so a query projection alone does not decide.
RECURRENT_CLASS = re.compile(
    r"Delta|LinearAttention|Lightning|Mamba|SSM|R[Ww][Kk][Vv]|Retention|Recurrent|ShortConv|KDA"
)

RECURRENT_PARTS = ("A_log", "dt_bias", "conv1d", "q_conv1d", "short_conv")

# Never worth pruning and never meant by "Linear": the output head; routers, whose few rows decide
# which expert a token goes to; and the step size of Mamba (Jamba), whose weight is multiplied
# without calling the Linear, so that no sample is seen.
ALWAYS_IGNORED = (
    "re:.*lm_head$",
    r"re:.*\.dt_proj$",
    r"re:.*\.(gate|router|wg|shared_expert_gate|shared_experts_gate)(\..*)?$",
)

# What reads the free columns -> what gives them, in the names that transformers uses.
MLPS = (("down_proj", ("gate_proj", "up_proj")), ("down_proj", ("up_proj",)), ("fc2", ("fc1",)))

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}

# -- checkpoints -----------------------------------------------------------------------------------

# vLLM multiplies these with one weight, which is judged as a whole.
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

NEVER_PACKED = ("embed_tokens", "lm_head", "wte", "wpe", "word_embeddings")
