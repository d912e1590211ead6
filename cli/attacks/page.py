"""The protocol of scratch homes: trials run in about a second, with one epoch, a small model and a few knobs."""

PAGE = """\
# Scratch

| rule | value |
|---|---|
| `metric` | ndcg@10 |
| `max_trials` | 8 |
| `max_train_seconds` | 600 |
| `trial_seconds` | 300 |
| `patience` | 10 |
| `keep_z` | 1.0 |
| `require_reflection` | true |

## optimisation

| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| `batch_size` | 256 … 512 | 512 | 512 |
| `epochs` | 1 … 1 | 1 | 1 |

## capacity

| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| `hidden_dim` | 8 … 32 | 16 | 16 |

## scoring

| knob | range or choices | SASRec | HSTU |
|---|---|---|---|
| `transition_weight` | 0 … 20 | 0 | 0 |
"""
