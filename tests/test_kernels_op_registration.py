"""Properties of registered ops, tested on all three of them."""

import subprocess
import sys

import pytest
import torch

from virtualmle.kernels.hstu.attention import hstu_attention
from virtualmle.kernels.losses.linear_cross_entropy import linear_cross_entropy
from virtualmle.kernels.losses.sampled_softmax import sampled_softmax_loss

OFFSETS = torch.tensor([0, 2, 5], dtype=torch.int32)
FORMS = {
    "attention": lambda x: hstu_attention(x, x, x, offsets=OFFSETS, max_len=3, scale=1.0).sum(),
    "cross-entropy": lambda x: linear_cross_entropy(x[:, 0], x[:, 0], torch.arange(5)),
    "sampled softmax": lambda x: sampled_softmax_loss(x[:, 0], x[:, 0], torch.arange(5), torch.tensor([3, 1])),
}
STEP = """
import sys
import torch
from virtualmle.kernels.hstu.attention import hstu_attention
from virtualmle.kernels.losses.linear_cross_entropy import linear_cross_entropy
from virtualmle.kernels.losses.sampled_softmax import sampled_softmax_loss
x = torch.ones(3, 1, 4, requires_grad=True)
out = hstu_attention(x, x, x, offsets=torch.tensor([0, 3], dtype=torch.int32), max_len=3, scale=1.0)[:, 0]
loss = linear_cross_entropy(out, x[:, 0], torch.arange(3))
loss = loss + sampled_softmax_loss(out, out, torch.arange(3), torch.arange(2))
loss.backward()
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.parametrize("form", FORMS)
def test_a_second_derivative_raises_an_error(form):
    x = torch.linspace(-1, 1, 40, dtype=torch.float64).view(5, 2, 4).requires_grad_()
    (first,) = torch.autograd.grad(FORMS[form](x) ** 2, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_a_step_through_the_ops_does_not_load_torchs_compiler():
    """Importing the compiler would take three seconds in every worker."""
    done = subprocess.run([sys.executable, "-P", "-c", STEP], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stdout + done.stderr
