"""The supervision knobs: the training objective, and how scores are formed."""

from typing import Any, ClassVar, Literal

from pydantic import field_validator

from .declaration import Dimension, Inert, KnobGroup, knob
from .trial_names import NAMING, TEACHERS

_NO_NEGATIVES = Inert(lambda c: c.loss == "full_softmax", "full_softmax draws no negatives")

_NEEDS_FULL_SOFTMAX = Inert(lambda c: c.loss != "full_softmax", "it acts only with loss='full_softmax'")


def _has_targets(config: Any) -> bool:
    return bool(config.loss != "full_softmax" or config.teachers)


def _changes_no_sequence(config: Any) -> bool:
    return bool(config.augmentation == "none" or config.augmentation_share == config.contrastive_weight == 0)


class Supervision(KnobGroup):
    """The training objective, and how scores are formed."""

    dimension: ClassVar[Dimension] = "supervision"

    loss: Literal["full_softmax", "sampled_softmax", "bce", "gbce"] = knob(
        "sampled_softmax",
        "cross-entropy over the catalogue (full) or over the target and sampled negatives (sampled), "
        "binary cross-entropy, or its calibrated form gBCE",
        source="full softmax for SASRec: Klenitskiy & Vasilev 2023; gBCE: Petrov & Macdonald 2023",
        helps="measured: full softmax, the largest gain of all",
        cost="full softmax grows with the catalogue: about three times a sampled epoch at 12,000 items",
        aliases=("loss_type", "loss_fn", "objective", "criterion"),
    )
    num_negatives: int = knob(
        500,
        "negatives per batch or per position; unused by `full_softmax`",
        high=8192, log=True, ge=1, le=65536,
        inert=_NO_NEGATIVES,
        helps="more negatives approximate the full softmax better",
        cost="linear",
        aliases=(
            "num_neg", "n_neg", "neg_samples", "num_neg_samples", "n_negatives", "num_negative_samples",
            "neg_sample_num", "negative_samples", "negatives", "train_neg_sample_num", "num_sampled",
        ),
    )
    negative_sharing: Literal["batch", "position"] = knob(
        "batch",
        "one set of negatives per batch, or one per position (slow)",
        inert=_NO_NEGATIVES,
        source="`position`: as in most libraries",
        helps="measured: faster learning in the first epoch, which costs several times as much",
        cost="3-5 times the step",
        aliases=("share_negatives", "shared_negatives", "in_batch_negatives"),
    )
    negative_power: float = knob(
        0.0,
        "negatives are drawn in proportion to popularity to this power; 0 = uniformly",
        high=1, ge=0, le=2, step="0.01",
        inert=_NO_NEGATIVES,
        source="word2vec (Mikolov et al. 2013)",
        helps="measured: faster learning in the first epoch, together with `logq_correction`",
        aliases=("popularity_power", "neg_power", "sampling_power"),
    )
    logq_correction: bool = knob(
        False,
        "correct the logits of sampled negatives by their log-probability of being drawn (logQ)",
        inert=Inert(lambda c: c.loss != "sampled_softmax", "it acts only with loss='sampled_softmax'"),
        source="Bengio & Senecal 2008; Yi et al. 2019",
        helps="negatives drawn by popularity",
        aliases=("logq", "log_q", "use_logq"),
    )
    gbce_calibration: float = knob(
        0.75,
        "calibration t of gBCE: 0 = plain BCE, 1 = full correction of the overconfidence that few negatives cause",
        ge=0, le=1, step="0.01",
        inert=Inert(lambda c: c.loss != "gbce", "it acts only with loss='gbce'"),
        source="Petrov & Macdonald 2023",
        helps="few negatives",
        aliases=("gbce_t", "calibration"),
    )
    temperature: float = knob(
        1.0,
        "softmax temperature: logits are divided by it",
        low=1e-2, high=2, log=True, gt=0, le=100, hstu=0.05,
        source="HSTU's research configurations: a low temperature with cosine scores",
        helps="measured: .07-.1 with cosine scores",
        aliases=("temp", "tau", "softmax_temperature"),
    )
    scores: Literal["dot", "cosine"] = knob(
        "dot",
        "similarity of user and item vectors; cosine needs a temperature well below 1",
        hstu="cosine",
        source="HSTU's research configurations",
        helps="measured: cosine with `temperature` .07-.1",
        note="cosine needs a temperature well below 1",
        aliases=("similarity", "score_function", "dot_product", "normalize", "l2_normalize"),
    )
    label_smoothing: float = knob(
        0.0,
        "label smoothing over all candidates; softmax losses only",
        high=0.5, ge=0, lt=1, step="0.01",
        inert=Inert(lambda c: c.loss in ("bce", "gbce"), "only the softmax losses are smoothed"),
        source="Szegedy et al. 2016",
        helps="measured: .1 at width 64",
        aliases=("smoothing", "label_smooth"),
    )
    teachers: str = knob(
        "",
        "trials whose trained models give the softmax its targets, by the mean of their predictions (distillation)",
        inert=_NEEDS_FULL_SOFTMAX,
        source="knowledge distillation (Hinton et al. 2015) from an ensemble of models",
        helps="measured: three or four models, with less dropout than theirs and half of their epochs, on Beauty",
        cost="one pass of each teacher over the train split, and 33 more scores per position",
        note="a list of 1 to 4 trials; four fifths of the targets are theirs",
        aliases=("teacher", "distill", "distill_from", "distillation", "knowledge_distillation", "born_again"),
    )
    prior_distillation: float = knob(
        0.0,
        "share of the target distribution that goes to what followed the latest item in the train split",
        ge=0, le=1, step="0.01",
        inert=Inert(_has_targets, "it acts only with loss='full_softmax' and without teachers"),
        source="knowledge distillation (Hinton et al. 2015) from item transitions",
        helps="measured: .1 on Office, the bare model more than with score priors",
        cost="33 more scores per position: about 15 % of the time of a training",
        note="the strongest 32 successors of an item, without the position's own transition",
        aliases=("distillation_weight", "prior_targets", "soft_targets", "markov_smoothing"),
    )
    supervision: Literal["all", "last"] = knob(
        "all",
        "training targets: every position of a sequence, or the last one only",
        source="all: SASRec; last: the evaluation task of BERT4Rec",
        helps="`all`",
        cost="`last` makes the loss cheaper",
    )
    window_stride: int = knob(
        0,
        "sliding training windows: each ends this many events before the next; 0 = the last window only",
        high=50, ge=0, le=4096,
        source="sliding windows (Tang & Wang 2018, Caser)",
        helps="histories longer than `max_len`; prefixes with `supervision = last`",
        cost="one example per window",
        note="adds nothing with `supervision = all` where histories fit into `max_len`",
        aliases=("stride", "sliding_window"),
    )
    augmentation: Literal["none", "crop", "mask", "reorder", "mixed"] = knob(
        "none",
        "augmentation of training sequences",
        source="CL4SRec (Xie et al. 2022)",
        helps="none known for the main loss",
        cost="small",
        aliases=("augment", "data_augmentation", "aug"),
    )
    augmentation_share: float = knob(
        0.5,
        "share of the sequences of a batch that are augmented",
        ge=0, le=1, step="0.01",
        inert=Inert(lambda c: c.augmentation == "none", "augmentation is 'none'"),
        source="CL4SRec (Xie et al. 2022)",
        aliases=("augmentation_prob", "augment_prob", "aug_prob"),
    )
    augmentation_ratio: float = knob(
        0.3,
        "share of the events of an augmented sequence that are changed",
        low=0.05, high=0.9, gt=0, lt=1, step="0.01",
        inert=Inert(_changes_no_sequence, "no sequence is changed"),
        source="CL4SRec (Xie et al. 2022)",
        aliases=("mask_ratio", "mask_prob", "mlm_probability", "crop_ratio", "aug_ratio"),
    )
    contrastive_weight: float = knob(
        0.0,
        "weight of a contrastive loss between two views of each sequence",
        high=1, ge=0, le=10,
        source="CL4SRec; DuoRec (Qiu et al. 2022) with `augmentation = none`",
        helps="sparse data, according to their papers",
        cost="two more passes through the encoder",
        aliases=("cl_weight", "lambda_cl", "ssl_weight", "contrastive", "lmd", "lmd_sem"),
    )
    contrastive_temperature: float = knob(
        0.1,
        "temperature of the contrastive loss",
        low=0.02, high=1, log=True, gt=0, le=100,
        inert=Inert(lambda c: c.contrastive_weight == 0, "contrastive_weight is 0"),
        source="CL4SRec; DuoRec (Qiu et al. 2022)",
        aliases=("cl_temperature", "cl_temp", "ssl_temp", "contrastive_tau"),
    )

    @field_validator(TEACHERS, mode="before")
    @classmethod
    def _canonical_teachers(cls, given: object) -> str:
        return NAMING[TEACHERS].canonical(given)
