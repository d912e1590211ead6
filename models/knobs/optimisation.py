"""The optimisation knobs: how the weights are trained."""

from typing import ClassVar, Literal

from .declaration import Dimension, Inert, KnobGroup, knob


class Optimisation(KnobGroup):
    """How the weights are trained."""

    dimension: ClassVar[Dimension] = "optimisation"

    optimizer: Literal["adam", "adamw"] = knob(
        "adam",
        "how `weight_decay` is applied; without weight decay the two are identical",
        hstu="adamw",
        inert=Inert(lambda c: c.weight_decay == 0, "adam and adamw differ only in how they apply weight_decay, here 0"),
        source="Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019)",
        helps="AdamW with a large `weight_decay`",
        aliases=("optim", "optimiser", "opt"),
    )
    lr: float = knob(
        3e-4,
        "learning rate",
        low=1e-5, high=1e-2, log=True, gt=0, le=1,
        helps="measured: 1e-3 instead of 3e-4, where 20 epochs are too few for the latter",
        aliases=("learning_rate", "alpha", "eta", "init_lr", "base_lr", "max_lr", "peak_lr"),
    )
    schedule: Literal["constant", "cosine", "linear"] = knob(
        "constant",
        "learning rate after warm-up: constant, or decaying to 0 at the end of `epochs`",
        source="SGDR without restarts (Loshchilov & Hutter 2017)",
        helps="long training without early stopping",
        note="decays over `epochs`, even if early stopping ends training sooner",
        aliases=("lr_schedule", "lr_scheduler", "scheduler", "lr_decay"),
    )
    warmup_epochs: float = knob(
        0.0,
        "epochs of linear warm-up to `lr`; at most `epochs`",
        high=10, ge=0, le=100, step="0.1",
        source="Goyal et al. 2017",
        helps="large batches, post-norm",
        note="at most `epochs`",
        aliases=("warmup", "warm_up", "num_warmup_epochs", "warmup_steps", "num_warmup_steps"),
    )
    beta1: float = knob(
        0.9,
        "first-moment decay of Adam",
        high=0.99, ge=0, lt=1, near_one=True,
        source="Kingma & Ba 2015",
        helps="none known",
        aliases=("adam_beta1", "momentum"),
    )
    beta2: float = knob(
        0.999,
        "second-moment decay of Adam",
        low=0.9, high=0.9999, ge=0, lt=1, near_one=True,
        source="Kingma & Ba 2015",
        helps="none known; a lower value should suit the spiky gradients of rare items",
        aliases=("adam_beta2",),
    )
    weight_decay: float = knob(
        0.0,
        "weight decay: added to the gradient (adam) or decoupled from it (adamw)",
        high=0.2, ge=0, le=1,
        source="see `optimizer`",
        helps="small catalogues that overfit",
        aliases=("wd", "l2", "l2_reg", "l2_regularization", "reg", "reg_weight"),
    )
    grad_clip: float = knob(
        0.0,
        "global gradient-norm clip; 0 = off",
        high=10, ge=0, le=1e6,
        source="Pascanu et al. 2013",
        helps="high `lr`, low `temperature`",
        cost="one pass over the gradients",
        aliases=(
            "clip", "clip_norm", "clip_grad", "clip_grad_norm", "grad_clip_norm", "gradient_clip", "gradient_clipping",
            "max_grad_norm", "gradient_clip_val",
        ),
    )
    ema_decay: float = knob(
        0.0,
        "decay of the exponential moving average of the weights; the average is evaluated and saved; 0 = off",
        high=0.9999, ge=0, lt=1, near_one=True,
        source="Polyak & Juditsky 1992",
        helps="where validation NDCG@10 fluctuates in the last epochs",
        cost="one pass over the weights per step, and a copy of them in memory",
        aliases=("ema", "ema_rate", "weight_averaging", "polyak"),
    )
    batch_size: int = knob(
        256,
        "users per step",
        low=32, high=2048, log=True, ge=8, le=16384,
        helps="smaller batches give more steps per epoch",
        cost="smaller batches are slower",
        aliases=("batchsize", "bs", "batch", "train_batch_size"),
    )
    epochs: int = knob(
        20,
        "maximum number of epochs",
        high=300, ge=1, le=1000,
        helps="where the loss still falls in the last epoch",
        cost="proportional to the epochs that run",
        aliases=(
            "num_epochs", "n_epochs", "max_epochs", "max_epoch", "epoch", "train_epochs", "num_train_epochs",
            "iterations",
        ),
    )
    patience: int = knob(
        3,
        "early stopping: training stops once an evaluated epoch is this many epochs after the best NDCG@10",
        high=60, ge=1, le=1000,
        helps="where the validation curve has plateaus",
        cost="this many epochs after the best one, or one more",
        note="every epoch is evaluated until 8, then every second one and the last",
        aliases=("early_stopping", "early_stop", "early_stopping_patience", "stopping_step"),
    )
