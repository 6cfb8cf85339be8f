"""Autograd functions that recompute products in the backward pass: values and gradients match the formulas."""

import torch
from torch.nn.functional import linear

from sca_caption.attention.sca import ConditionedAttention, Modulate, ScaledKeys, scale_channels


def made(dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = ((2, 5, 3, 2), (2, 5), (4, 5), (4,))  # B 2, C 5, H 3, W 2, k 4
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


def test_gradients_by_finite_differences():
    assert torch.autograd.gradcheck(ScaledKeys.apply, made(torch.float64))


def test_scaled_keys_are_the_keys_of_the_scaled_map():
    features, scale, weight, bias = made(torch.float32)
    wanted = torch.stack([
        torch.stack([(features[b, :, y, x] * scale[b]) @ weight.T + bias for y in range(3) for x in range(2)])
        for b in range(2)
    ])  # fmt: skip
    torch.testing.assert_close(ScaledKeys.apply(features, scale, weight, bias), wanted)


def test_attention_is_the_same_with_and_without_gradients():
    torch.manual_seed(0)
    attention = ConditionedAttention(6, 7, 5, "C-S")
    features, hidden = torch.rand(3, 6, 4, 3), torch.randn(3, 7)
    found, beta, alpha = attention(features, hidden)
    with torch.no_grad():
        for one, other in zip(attention(features, hidden), (found, beta, alpha), strict=True):
            torch.testing.assert_close(one, other)
    scaled = scale_channels(features, beta).flatten(2).transpose(1, 2)
    keys = linear(scaled, attention.spatial.visual.weight, attention.spatial.visual.bias)
    torch.testing.assert_close(attention.spatial(keys, hidden), alpha)


def test_gradients_have_the_dtype_of_the_parameters_under_autocast():
    torch.manual_seed(0)
    attention = ConditionedAttention(6, 7, 5, "C-S")
    features, hidden = torch.rand(3, 6, 4, 3, requires_grad=True), torch.randn(3, 7)
    exact = torch.autograd.grad(
        attention(features, hidden)[0].square().sum(), [features, *attention.parameters()]
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss = attention(features, hidden)[0].square().sum()
    for one, other in zip(torch.autograd.grad(loss, [features, *attention.parameters()]), exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=0.05 * other.abs().max().item(), rtol=0.1)


def test_gradients_of_the_modulated_map_by_finite_differences():
    torch.manual_seed(0)
    shapes = ((2, 5, 3, 2), (2, 5), (2, 6))  # features (B, C, H, W), beta (B, C), alpha (B, m)
    inputs = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(Modulate.apply, inputs)
    features, beta, alpha = inputs
    wanted = torch.einsum("bchw,bc,bhw->bchw", features, beta, alpha.view(2, 3, 2))
    torch.testing.assert_close(Modulate.apply(*inputs), wanted)
