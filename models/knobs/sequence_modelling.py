"""The sequence-modelling knobs: how a history becomes a state."""

from typing import ClassVar, Literal

from .declaration import Dimension, Inert, KnobGroup, knob


class SequenceModelling(KnobGroup):
    """Which events the model sees, how their order is encoded, and how the states are pooled."""

    dimension: ClassVar[Dimension] = "sequence_modelling"

    max_len: int = knob(
        50,
        "number of most recent events that the model sees",
        low=5, high=200, ge=2, le=4096,
        helps="long histories",
        cost="depends on the number of events that remain, not on the value itself",
        aliases=(
            "maxlen", "max_seq_len", "max_seq_length", "max_sequence_length", "max_length", "seq_len",
            "sequence_length", "max_item_list_length", "n_positions", "block_size", "history_length", "context_length",
        ),
    )
    position: Literal["absolute", "relative", "both", "rotary", "none"] = knob(
        "absolute",
        "positional encoding",
        hstu="both",
        source="absolute (Vaswani et al. 2017), relative (Raffel et al. 2020, HSTU), rotary (Su et al. 2021)",
        helps="relative: where the order of events matters and their absolute position does not",
        cost="relative and rotary: small",
        note="rotary needs an even width per head",
        aliases=(
            "positional_encoding", "pos_encoding", "position_encoding", "pos_emb", "positional_embedding",
            "position_embedding",
        ),
    )
    time_bias: bool = knob(
        False,
        "attention bias by the time between two events; useless where timestamps encode only an order",
        source="HSTU; on SASRec in the spirit of TiSASRec (Li et al. 2020)",
        helps="real timestamps with sessions and gaps",
        cost="one table look-up per pair",
        note="useless where timestamps encode only an order",
        aliases=("use_time", "temporal_bias", "time_embedding", "relative_time", "time_aware"),
    )
    ffn: Literal["relu", "gelu", "swiglu"] = knob(
        "gelu",
        "SASRec: activation of the feed-forward layer",
        only="sasrec",
        source="GELU (Hendrycks & Gimpel 2016), SwiGLU (Shazeer 2020)",
        cost="SwiGLU: 1.5 times the feed-forward layer",
        aliases=("activation", "hidden_act", "act", "ffn_activation"),
    )
    norm: Literal["layer", "rms"] = knob(
        "layer",
        "normalisation layer",
        source="Ba et al. 2016, RMS (Zhang & Sennrich 2019)",
        aliases=("normalization", "norm_type", "layer_norm", "layernorm"),
    )
    norm_placement: Literal["pre", "post"] = knob(
        "pre",
        "normalisation before each residual branch (pre) or after the residual sum (post)",
        source="Xiong et al. 2020",
        helps="pre trains without warm-up",
        aliases=("pre_norm", "norm_first", "post_norm", "prenorm", "norm_position"),
    )
    hstu_activation: Literal["all", "gate"] = knob(
        "all",
        "HSTU: SiLU on u, v, q and k, or on the gate u alone",
        only="hstu",
        source="gate: the authors' later production code",
        helps="none known",
    )
    hstu_gating: Literal["product", "concat"] = knob(
        "product",
        "HSTU: the output projection reads u·a, or the concatenation of u, a and u·a",
        only="hstu",
        source="the research code's `concat_ua`",
        cost="output projection three times as wide",
    )
    conv_kernel: int = knob(
        0,
        "kernel width of a causal depthwise convolution before attention; 0 = none",
        high=8, ge=0, le=64,
        source="Primer (So et al. 2021)",
        helps="where the order of neighbouring events matters",
        cost="small",
        note="causal even with `causal = false`",
        aliases=("kernel_size", "conv_width"),
    )
    frequency_filter: bool = knob(
        False,
        "a learned causal filter over the whole history before attention (FMLP)",
        source="FMLP-Rec (Zhou et al. 2022), here causal",
        helps="noisy histories, according to its paper",
        cost="at most that of an attention layer",
        note="causal even with `causal = false`",
        aliases=("filter", "fft_filter", "fmlp"),
    )
    frequency_rescaling: float = knob(
        0.0,
        "share of a causal frequency rescaling in each block's attention; 0 = attention alone (BSARec)",
        high=0.9, ge=0, le=1, step="0.05",
        source="BSARec (Shin et al. 2024), equations 4 to 6, here causal and before the residual sum",
        helps="measured: .7 on Office and Tools, both backbones, in eight of eight comparisons",
        cost="small",
        note="causal even with `causal = false`",
        aliases=("bsarec_alpha", "inductive_bias", "rescaling"),
    )
    frequency_cutoff: int = knob(
        5,
        "number of lowest frequencies that `frequency_rescaling` leaves as they are; it learns a gain for the others",
        low=1, high=13, ge=1, le=128,
        inert=Inert(lambda c: c.frequency_rescaling == 0, "it acts only with frequency_rescaling above 0"),
        source="BSARec's c",
        aliases=("bsarec_c", "cutoff"),
    )
    latent_steps: int = knob(
        0,
        "additional passes of the states through the blocks, averaged (ReaRec)",
        high=3, ge=0, le=16,
        source="ReaRec (Tang et al. 2025), here for every position",
        helps="long-tail users, according to its paper",
        cost="one more pass through the encoder per step",
        aliases=("reasoning_steps", "num_reasoning_steps"),
    )
    causal: bool = knob(
        True,
        "causal attention mask; `false` needs `supervision = last`",
        source="true: SASRec; false: BERT4Rec (Sun et al. 2019)",
        note="`false` needs `supervision = last`",
        aliases=("is_causal", "unidirectional", "causal_mask", "bidirectional"),
    )
    readout: Literal["last", "mean", "attention", "last_k"] = knob(
        "last",
        "how the states are pooled into the user vector",
        helps="`mean` where the last event is noisy",
        cost="small",
        aliases=("pooling", "pool", "pooler"),
    )
    readout_k: int = knob(
        3,
        "number of last states that `readout = last_k` averages",
        high=20, ge=1, le=64,
        inert=Inert(lambda c: c.readout != "last_k", "it acts only with readout='last_k'"),
        cost="small",
    )
