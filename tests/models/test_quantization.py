"""Weight quantization: the error of each weight, and which tensors are int8."""

import pytest
import torch

from sca_caption.models.quantization import MIN_INT8_SIZE, dequantize, quantize

MADE = {
    "matrix": torch.randn(64, 80, generator=torch.Generator().manual_seed(0))
    * torch.logspace(-6, 3, 64)[:, None],
    "convolution": torch.randn(70, 20, 3, 3, generator=torch.Generator().manual_seed(1)),
    "bias": torch.randn(MIN_INT8_SIZE * 2, generator=torch.Generator().manual_seed(2)),
    "small": torch.randn(4, 4, generator=torch.Generator().manual_seed(3)),
    "count": torch.tensor([300, -7]),
}


def test_the_int8_error_is_at_most_half_a_step():
    found = dequantize(quantize(MADE, "int8"))["matrix"]
    wanted = MADE["matrix"]
    step = wanted.abs().amax(1) / 127
    error = (found - wanted).abs().amax(1)
    assert found.dtype == torch.float32 and found.shape == wanted.shape
    assert (error <= step * 0.5001).all() and (error > step * 0.3).all()  # the error is that of int8


def test_int8_keeps_the_largest_weight_of_each_row():
    found = dequantize(quantize(MADE, "int8"))["matrix"]
    largest = MADE["matrix"].abs().argmax(1, keepdim=True)
    assert torch.allclose(found.gather(1, largest), MADE["matrix"].gather(1, largest), rtol=1e-6, atol=0)


def test_quantization_is_idempotent():
    once = dequantize(quantize(MADE, "int8"))
    twice = dequantize(quantize(once, "int8"))
    for name, value in once.items():
        assert torch.allclose(twice[name], value, rtol=1e-6, atol=0), name


def test_rows_of_zeros():
    made = {"matrix": torch.zeros(2, MIN_INT8_SIZE)}
    made["matrix"][0, 0] = 3.0
    assert torch.equal(dequantize(quantize(made, "int8"))["matrix"], made["matrix"])


def test_tensors_other_than_large_matrices_are_float16():
    found = quantize(MADE, "int8")
    types = {name: found[name].dtype for name in MADE}
    int8, half = torch.int8, torch.float16
    assert types == {"matrix": int8, "convolution": half, "bias": half, "small": half, "count": torch.int64}
    assert set(found) - set(MADE) == {"scale.matrix"}
    assert torch.equal(dequantize(found)["count"], MADE["count"])


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 32), ("float16", 16)])
def test_floats(dtype, bits):
    found = dequantize(quantize(MADE, dtype))
    for name, value in MADE.items():
        kept = value.to(getattr(torch, dtype)) if value.is_floating_point() else value
        assert torch.equal(found[name], kept), name
        assert found[name].element_size() * 8 == (bits if value.is_floating_point() else 64)
