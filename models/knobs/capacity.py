"""The capacity knobs: how much the model can represent."""

from typing import ClassVar

from .declaration import Dimension, Inert, KnobGroup, knob


class Capacity(KnobGroup):
    """How much the model can represent."""

    dimension: ClassVar[Dimension] = "capacity"

    hidden_dim: int = knob(
        128,
        "width of item vectors and of every block",
        low=16, high=256, log=True, ge=8, le=1024,
        helps="measured: 128 instead of 64, on Beauty with a full softmax",
        cost="linear in the loss and the tables, quadratic in the blocks",
        note="SASRec: a multiple of `num_heads`",
    )
    num_blocks: int = knob(
        1,
        "number of blocks",
        high=4, ge=1, le=16,
        helps="longer sequences",
        cost="linear in the encoder",
    )
    shared_blocks: bool = knob(
        False,
        "all blocks share one set of weights",
        inert=Inert(lambda c: c.num_blocks == 1, "there is only one block"),
        source="ALBERT (Lan et al. 2020)",
        helps="none known",
        cost="none; fewer parameters",
    )
    num_heads: int = knob(
        1,
        "attention heads; on SASRec a divisor of `hidden_dim`",
        high=8, ge=1, le=16,
        source="Vaswani et al. 2017",
        cost="small",
    )
    linear_dim: int = knob(
        16,
        "HSTU: width per head of the gate u and the value v",
        low=8, high=128, log=True, ge=4, le=512, only="hstu",
        source="HSTU (Zhai et al. 2024)",
        cost="linear in the block",
    )
    attention_dim: int = knob(
        16,
        "HSTU: width per head of query and key",
        low=8, high=128, log=True, ge=4, le=512, only="hstu",
        source="HSTU (Zhai et al. 2024)",
        cost="linear in the block",
    )
    ffn_multiplier: int = knob(
        1,
        "SASRec: inner width of the feed-forward layer as a multiple of `hidden_dim`",
        high=4, ge=1, le=16, only="sasrec",
        source="Vaswani et al. 2017 (4; SASRec has 1)",
        cost="linear in the feed-forward layer",
    )
    tie_embeddings: bool = knob(
        False,
        "input and output share one item table",
        hstu=True,
        source="Press & Wolf 2017",
        helps="rare items: one vector to learn instead of two",
        cost="halves the memory of the tables",
    )
