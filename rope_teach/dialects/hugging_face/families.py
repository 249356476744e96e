"""What a configuration of transformers does not say: facts by ``model_type``.

Each is what the code of transformers 5.23 does: ``tests/dialects/sweep.py`` runs that
code on every type, and a test compares. A type in no list is not known. Lesson 20.
"""

from __future__ import annotations

from typing import Any

# Pairs (0, 1)(2, 3)...
INTERLEAVED = frozenset(
    """
    axk2 bailing_hybrid blt blt_global_transformer blt_local_decoder blt_local_encoder
    blt_patcher codegen cohere cohere2 cohere2_moe deepseek_v2 deepseek_v32 deepseek_v4
    dots3_note_text ernie4_5 ernie4_5_moe ernie4_5_vl_moe_text glm glm4 glm4v_text
    glm_moe_dsa glm_ocr_text gptj helium kimi_k2 llama4_text longcat_flash
    mistral_large4_text moonshine moonshine_streaming openai_privacy_filter
    pe_audio_encoder pe_audio_video_encoder pe_video_encoder roformer
    """.split()
)

# The same, unless their field rope_interleave is false.
FLAGGED = frozenset("axk1 deepseek_v3 glm4_moe_lite mistral4 youtu".split())

# Pairs (0, r/2)(1, r/2 + 1)...
HALF = frozenset(
    """
    afmoe apertus arcee aria_text bamba beam bitnet chameleon cohere_compass_text
    cosmos3_edge_text csm csm_depth_decoder_model cwm dbrx deepseek_ocr2_encoder
    deepseek_ocr2_text dia_decoder dia_encoder diffllama diffusion_gemma_text doge dots1
    dots3_note_audio_encoder embedding_gemma2_text emu3_text_model esm esmc eurobert
    evolla exaone4 exaone_moe falcon falcon_h1 flex_olmo flint gemma gemma2 gemma3_text
    gemma3n_text gemma4_text gemma4_unified_text glm4_moe glm4v_moe_text glm_image_text
    glmasr_encoder gpt_neox gpt_neox_japanese gpt_oss gradium_phonon_tts granite
    granite4_vision_text granite_docling_text granite_swa granitemoe granitemoe_swa
    granitemoehybrid granitemoeshared gte higgs_audio_v2 hrm_text hunyuan_v1_dense
    hunyuan_v1_moe hy_v3 hy_v4 hyperclovax idefics internlm3 iquestcoder jais2 jetmoe
    jina_embeddings_v3 kolibri1 kyutai_speech_to_text laguna lasr_encoder lfm2 lfm2_moe
    lfm3 llama mellum mimi mimi_decoder mimi_encoder mimo_v2_flash minicpm3 minimax
    minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral mllama_text_model
    modernbert modernbert-decoder molmo2_text moshi muse_glimmer_assistant
    muse_glimmer_text muse_spark_text nanochat nemotron nemotron3_5_transcribe_asr_audio
    nemotron3_5_transcribe_word_timestamp nemotron3_diarization_audio neomme neucodec
    nomic_bert olmo olmo2 olmo3 olmo_hybrid olmoe paddleocr_vl_text persimmon phi phi3
    phi4_multimodal phimoe pocket_tts pocket_tts_audio_tokenizer
    pocket_tts_audio_tokenizer_decoder pocket_tts_audio_tokenizer_encoder qwen2
    qwen2_5_omni_dit qwen2_5_omni_talker qwen2_5_omni_text qwen2_5_vl_text qwen2_moe
    qwen2_vl_text qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next
    qwen3_omni_moe_talker_code_predictor qwen3_omni_moe_talker_text qwen3_omni_moe_text
    qwen3_vl_moe_text qwen3_vl_text qwen4_exp_text recurrent_gemma seed_oss smollm3
    solar_open stablelm starcoder2 step3p5 t5_gemma_module t5gemma2_decoder
    t5gemma2_text timesfm2_5 ultrabert unlimited_ocr_text vaultgemma
    voxtral_realtime_encoder voxtral_realtime_text xcodec2 zamba2 zaya
    """.split()
)

# By -θ.
CLOCKWISE = frozenset(["nanochat"])

# The last features of a head, not the first.
TRAILING = frozenset(["deepseek_v4"])

# Layers of this type do not rotate, though there are rope parameters; those of full
# attention, where others have a sliding_window.
UNROTATED = {
    **dict.fromkeys(
        """
        afmoe beam cohere2 cohere2_moe exaone4 exaone_moe flint kolibri1
        """.split(),
        "full_attention",
    ),
    **dict.fromkeys(
        "olmo_hybrid qwen3_5_moe_text qwen3_5_text qwen3_next qwen4_exp_text".split(),
        "linear_attention",
    ),
}

# The field that says whether the model rotates at all, and what it says then.
ROTATES_IF = {
    "esm": ("position_embedding_type", "rotary"),
    "granitemoehybrid": ("position_embedding_type", "rope"),
    "zamba2": ("use_mem_rope", True),
}

# What RotaryEmbedding is not for, and why.
ELSEWHERE = {
    **dict.fromkeys(
        """
        dinov3_vit edgetam_video efficientloftr eomt_dinov3 lightglue
        llama4_vision_model sam2_video sam3_tracker_video sapiens2 vjepa2
        """.split(),
        "rotates patches of an image, which are not counted as tokens are",
    ),
    "esmfold2": "rotates by the places of atoms",
    "hunyuan_vl_text": "turns the two features of a pair by different coordinates",
    "musicflamingo": "rotates by time stamps",
}

# Only these rotate a share of each head where nothing is scaled: the others do not read
# partial_rotary_factor there.
PARTIAL = frozenset(
    """
    bamba deepseek_v4 diffusion_gemma_text dots3_note_audio_encoder dots3_note_text glm
    glm4 glm4_moe glm4_moe_lite glm4v_moe_text glm4v_text glm_image_text glm_ocr_text
    glmasr_encoder gpt_neox gpt_neox_japanese laguna mellum mimo_v2_flash minimax_m2
    minimax_m3_vl_text moonshine moonshine_streaming nemotron
    nemotron3_5_transcribe_asr_audio nemotron3_5_transcribe_word_timestamp
    nemotron3_diarization_audio neomme persimmon phi phi3 phi4_multimodal
    qwen3_5_moe_text qwen3_5_text qwen3_next qwen4_exp_text recurrent_gemma solar_open
    stablelm step3p5 zaya
    """.split()
)
# And only these read rotary_emb_base, and not rope_theta.
NEOX = frozenset(["gpt_neox", "gpt_neox_japanese"])
# And only these read rotary_dim.
ROTARY_DIM = frozenset(["codegen", "gptj", "minimax_m2"])

# Positions of several coordinates: how pairs are dealt to them, and the sections where
# the configuration has none.
MULTIMODAL: dict[str, tuple[str, list[int]]] = {
    "cohere_compass_text": ("in turn", [24, 20, 20]),
    "cosmos3_edge_text": ("in turn", [24, 20, 20]),
    "ernie4_5_vl_moe_text": ("two in turn, then time", [22, 22, 20]),
    "glm4v_moe_text": ("blocks", [8, 12, 12]),
    "glm4v_text": ("blocks", [8, 12, 12]),
    "glm_image_text": ("blocks", [8, 12, 12]),
    "glm_ocr_text": ("blocks", [8, 12, 12]),
    "neomme": ("rows and columns", []),
    "paddleocr_vl_text": ("blocks", [16, 24, 24]),
    "qwen2_5_omni_talker": ("blocks", [16, 24, 24]),
    "qwen2_5_omni_text": ("blocks", [16, 24, 24]),
    "qwen2_5_vl_text": ("blocks", [16, 24, 24]),
    "qwen2_vl_text": ("blocks", [16, 24, 24]),
    "qwen3_5_moe_text": ("in turn", [11, 11, 10]),
    "qwen3_5_text": ("in turn", [11, 11, 10]),
    "qwen3_omni_moe_talker_text": ("in turn", [24, 20, 20]),
    "qwen3_omni_moe_text": ("in turn", [24, 20, 20]),
    "qwen3_vl_moe_text": ("in turn", [24, 20, 20]),
    "qwen3_vl_text": ("in turn", [24, 20, 20]),
    "qwen4_exp_text": ("in turn", [11, 11, 10]),
}

# Files from before rope_parameters was keyed by layer type. For each type of layer: the
# field that has the base, what transformers takes where it is missing, and whether
# rope_scaling is meant for it.
GEMMA_3 = {
    "full_attention": ("rope_theta", 1_000_000.0, True),
    "sliding_attention": ("rope_local_base_freq", 10_000.0, False),
}
MODERN_BERT = {
    "full_attention": ("global_rope_theta", 160_000.0, True),
    "sliding_attention": ("local_rope_theta", 10_000.0, True),
}
OLDER_LAYERS: dict[str, dict[str, tuple[str, float, bool]]] = {
    "deepseek_v4": {
        "compress": ("compress_rope_theta", 160_000.0, True),
        "main": ("rope_theta", 10_000.0, False),
    },
    "gemma3_text": GEMMA_3,
    "gemma3n_text": GEMMA_3,
    "t5gemma2_decoder": GEMMA_3,
    "t5gemma2_text": GEMMA_3,
    "modernbert": MODERN_BERT,
    "modernbert-decoder": MODERN_BERT,
    "olmo3": {
        "full_attention": ("rope_theta", 500_000.0, True),
        "sliding_attention": ("rope_theta", 500_000.0, False),
    },
}

# What transformers takes where a config.json is silent: features of a head...
HEAD_DIMS = {
    64: """gpt_oss muse_spark_text neucodec openai_privacy_filter qwen2_5_omni_dit
        voxtral_realtime_encoder xcodec2""",
    80: "timesfm2_5",
    128: """afmoe beam cohere2_moe cosmos3_edge_text cwm dia_decoder dia_encoder
        ernie4_5 flint glm glm4 helium higgs_audio_v2 hrm_text hy_v3 internlm3
        iquestcoder jetmoe kolibri1 laguna llama4_text mellum minimax_m2
        minimax_m3_vl_text ministral3 molmo2_text muse_glimmer_assistant
        muse_glimmer_text
        paddleocr_vl_text pe_audio_encoder pe_audio_video_encoder pe_video_encoder
        qwen2_5_omni_talker qwen3 qwen3_omni_moe_talker_code_predictor qwen3_vl_text
        seed_oss solar_open step3p5 zaya""",
    192: "mimo_v2_flash",
    256: """diffusion_gemma_text embedding_gemma2_text gemma gemma2 gemma3_text
        gemma4_text gemma4_unified_text qwen3_5_moe_text qwen3_5_text qwen3_next
        qwen4_exp_text t5_gemma_module t5gemma2_decoder t5gemma2_text vaultgemma""",
    512: "deepseek_v4",
}
# ... those that are rotated in latent attention, and in GPT-J...
LATENT = {
    32: "axk2 minicpm3",
    64: """axk1 bailing_hybrid deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4
        dots3_note_text glm4_moe_lite glm_moe_dsa hy_v4 longcat_flash mistral4
        mistral_large4_text youtu""",
}
ROTARY_DIMS = {64: "codegen gptj"}
# ... and the share of them that is rotated.
SHARES = {
    0.25: "qwen3_5_moe_text qwen3_5_text qwen3_next stablelm",
    0.5: """bamba dots3_note_audio_encoder glm glm4 glm4_moe glm4v_moe_text
        glmasr_encoder nemotron nemotron3_5_transcribe_asr_audio
        nemotron3_5_transcribe_word_timestamp persimmon phi recurrent_gemma""",
    0.8: "moonshine_streaming",
    0.9: "moonshine",
}
WHERE_SILENT: dict[str, dict[Any, str]] = {
    "head_dim": HEAD_DIMS,
    "qk_rope_head_dim": LATENT,
    "rotary_dim": ROTARY_DIMS,
    "partial_rotary_factor": SHARES,
}
DEFAULTS: dict[tuple[str, str], Any] = {
    (model_type, name): value
    for name, table in WHERE_SILENT.items()
    for value, types in table.items()
    for model_type in types.split()
}
DEFAULTS["gpt_neox", "rotary_pct"] = 0.25
DEFAULTS |= {(neox, "rotary_emb_base"): 10_000.0 for neox in NEOX}
# The class scales where the file has no rope parameters: by what, only it knows.
SCALED = frozenset(
    """
    apertus cwm gpt_oss higgs_audio_v2 ministral3 mistral4 mistral_large4_text
    openai_privacy_filter
    """.split()
)
# A head is not hidden_size / num_attention_heads wide.
HEAD_DIM_NEEDED = {"zamba2": "attention_head_dim"}

# Fields that mean the same, the usual name first.
WIDTHS = ("hidden_size", "n_embd", "d_model", "embed_dim")
HEADS = ("num_attention_heads", "n_head", "n_heads", "decoder_num_attention_heads")
HEAD_WIDTHS = ("head_dim", "attention_head_dim", "kv_channels")

# Their "yarn" and "su" are longrope.
PHI = frozenset(["phi3", "phi4_multimodal"])


def known(model_type: str | None) -> bool:
    """Whether we know how models of this type rotate."""
    return model_type in INTERLEAVED | FLAGGED | HALF


def interleaved(model_type: str | None, flag: bool | None) -> bool:
    """Whether this type rotates (0, 1)(2, 3)...; ``flag``: its rope_interleave."""
    if model_type in FLAGGED or flag is not None:
        return flag is not False
    return model_type in INTERLEAVED
