"""The capacity knobs: how much the model can represent."""

from typing import ClassVar

from .declaration import Dimension, Inert, KnobGroup, knob


class Capacity(KnobGroup):
    """How much the model can represent."""

    dimension: ClassVar[Dimension] = "capacity"

    hidden_dim: int = knob(
        128,
        "width of item vectors and of every block",
        low=16, high=256, log=True, ge=8, le=1024, step="8",
        helps="measured: 128 instead of 64, on Beauty with a full softmax",
        cost="linear in the loss and the tables, quadratic in the blocks",
        note="SASRec: a multiple of `num_heads`",
        aliases=(
            "emb_dim", "embedding_dim", "embedding_size", "embed_dim", "emb_size", "d_model", "dim", "hidden",
            "hidden_size", "hidden_units", "model_dim", "latent_dim", "width", "item_embedding_dim",
        ),
    )
    num_blocks: int = knob(
        1,
        "number of blocks",
        high=4, ge=1, le=16,
        helps="longer sequences",
        cost="linear in the encoder",
        aliases=("n_layers", "num_layers", "n_blocks", "layers", "blocks", "depth", "num_hidden_layers", "n_layer"),
    )
    shared_blocks: bool = knob(
        False,
        "all blocks share one set of weights",
        inert=Inert(lambda c: c.num_blocks == 1, "there is only one block"),
        source="ALBERT (Lan et al. 2020)",
        helps="none known",
        cost="none; fewer parameters",
        aliases=("share_blocks", "share_layers", "weight_sharing", "tie_layers"),
    )
    num_heads: int = knob(
        1,
        "attention heads; on SASRec a divisor of `hidden_dim`",
        high=8, ge=1, le=16,
        source="Vaswani et al. 2017",
        cost="small",
        aliases=("n_heads", "nhead", "heads", "n_head", "num_attention_heads", "attention_heads"),
    )
    linear_dim: int = knob(
        16,
        "HSTU: width per head of the gate u and the value v",
        low=8, high=128, log=True, ge=4, le=512, only="hstu", step="4",
        source="HSTU (Zhai et al. 2024)",
        cost="linear in the block",
        aliases=("linear_hidden_dim", "dv", "value_dim"),
    )
    attention_dim: int = knob(
        16,
        "HSTU: width per head of query and key",
        low=8, high=128, log=True, ge=4, le=512, only="hstu", step="4",
        source="HSTU (Zhai et al. 2024)",
        cost="linear in the block",
        aliases=("dqk", "qk_dim", "attn_dim", "key_dim", "head_dim"),
    )
    ffn_multiplier: int = knob(
        1,
        "SASRec: inner width of the feed-forward layer as a multiple of `hidden_dim`",
        high=4, ge=1, le=16, only="sasrec",
        source="Vaswani et al. 2017 (4; SASRec has 1)",
        cost="linear in the feed-forward layer",
        aliases=("ffn_dim", "inner_size", "d_ff", "dim_feedforward", "ff_mult", "intermediate_size"),
    )
    tie_embeddings: bool = knob(
        False,
        "input and output share one item table",
        hstu=True,
        source="Press & Wolf 2017",
        helps="rare items: one vector to learn instead of two",
        cost="halves the memory of the tables",
        aliases=("tie_weights", "tied_embeddings", "weight_tying", "share_embeddings", "tie_word_embeddings"),
    )
