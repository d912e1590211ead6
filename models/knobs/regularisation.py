"""The regularisation knobs: what keeps the model from overfitting."""

from typing import ClassVar

from .declaration import Dimension, KnobGroup, knob


class Regularisation(KnobGroup):
    """What keeps the model from overfitting."""

    dimension: ClassVar[Dimension] = "regularisation"

    dropout: float = knob(
        0.2,
        "dropout inside every block",
        high=0.8, ge=0, le=0.95, hstu=0.5, step="0.01",
        source="Srivastava et al. 2014",
        helps="measured: .3-.5 on Amazon Beauty",
        aliases=(
            "dropout_rate", "dropout_prob", "drop_rate", "drop", "hidden_dropout", "hidden_dropout_prob", "p_dropout",
        ),
    )
    embedding_dropout: float = knob(
        0.0,
        "dropout on the input embeddings",
        high=0.8, ge=0, le=0.95, step="0.01",
        source="Srivastava et al. 2014, on the input vectors",
        helps="measured: .3 on Beauty, the largest single gain after the loss",
        aliases=("emb_dropout", "emb_drop", "input_dropout", "embed_dropout", "embd_pdrop"),
    )
    attention_dropout: float = knob(
        0.0,
        "dropout on the attention weights",
        high=0.8, ge=0, le=0.95, step="0.01",
        source="Vaswani et al. 2017",
        helps="none known at nine events per user",
        cost="small",
        aliases=("attn_dropout", "attn_dropout_prob", "attn_drop", "attention_probs_dropout_prob", "attn_pdrop"),
    )
    token_dropout: float = knob(
        0.0,
        "share of input events whose whole embedding is zeroed",
        high=0.8, ge=0, le=0.95, step="0.01",
        source="word dropout (Iyyer et al. 2015)",
        helps="short histories that overfit",
        aliases=("item_dropout", "word_dropout"),
    )
    embedding_l2: float = knob(
        0.0,
        "L2 penalty on the item tables only, added to their gradient",
        high=0.1, ge=0, le=10,
        source="SASRec's code (`l2_emb`)",
        helps="small catalogues",
        cost="one pass over the tables",
        aliases=("l2_emb", "emb_l2", "embedding_reg", "emb_reg"),
    )
    max_norm: float = knob(
        0.0,
        "upper bound on the norm of an item vector, applied after every step; 0 = off",
        high=10, ge=0, le=1000,
        source="Srivastava et al. 2014",
        helps="where popular items rank high by their norm alone, with `scores = dot`",
        cost="one pass over the tables",
        note="changes little with `scores = cosine`",
        aliases=("embedding_max_norm",),
    )
