"""SE, SK, BAM, CBAM and coordinate attention against the formulas of their papers, in training and evaluation mode.

A formula takes the input, the state dict of the block and a `Norm`, which computes batch normalisation and the expected
running statistics.
"""

import math
from functools import partial

import pytest
import torch
from torch.nn.functional import conv2d, linear

from sca_caption.attention import build
from sca_caption.attention.common import BatchNorm
from sca_caption.runtime.errors import UserError

B, C, H, W = 3, 16, 5, 4


class Norm:
    """Batch normalisation by explicit formulas; `after` holds the running statistics after a training step."""

    def __init__(self, state, training):
        self.state, self.training, self.after = state, training, {}

    def __call__(self, x, name, momentum=0.1):
        axes = [axis for axis in range(x.dim()) if axis != 1]
        along = [1, -1] + [1] * (x.dim() - 2)
        mean, variance = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        if self.training:
            count = x.numel() / x.shape[1]
            new_mean = x.mean(axes)
            new_variance = ((x - new_mean.view(along)) ** 2).mean(axes)
            self.after[f"{name}.running_mean"] = (1 - momentum) * mean + momentum * new_mean
            unbiased = new_variance * count / (count - 1)
            self.after[f"{name}.running_var"] = (1 - momentum) * variance + momentum * unbiased
            mean, variance = new_mean, new_variance
        x = (x - mean.view(along)) / torch.sqrt(variance.view(along) + 1e-5)
        return x * self.state[f"{name}.weight"].view(along) + self.state[f"{name}.bias"].view(along)


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def relu(x):
    return x.clamp(min=0)


def se(x, state, norm):
    z = x.sum((2, 3)) / (H * W)
    hidden = relu(linear(z, state["reduce.weight"], state.get("reduce.bias")))
    s = sigmoid(linear(hidden, state["expand.weight"], state.get("expand.bias")))
    return torch.einsum("bchw,bc->bchw", x, s)


def sk(x, state, norm, stride=1, groups=4):
    near, far = (
        relu(norm(conv2d(x, state[f"branches.{i}.0.weight"], None, stride, d, d, groups), f"branches.{i}.1"))
        for i, d in ((0, 1), (1, 2))
    )
    s = (near + far).mean((2, 3))
    z = relu(norm(linear(s, state["reduce.0.weight"]), "reduce.1"))
    first, second = state["score.weight"].chunk(2)
    a = 1 / (1 + torch.exp(z @ second.T - z @ first.T))  # softmax over two
    return torch.einsum("bchw,bc->bchw", near, a) + torch.einsum("bchw,bc->bchw", far, 1 - a)


def bam(x, state, norm, combine="mul", dilation=4):
    hidden = linear(x.mean((2, 3)), state["channel.0.weight"], state["channel.0.bias"])
    m_c = linear(relu(norm(hidden, "channel.1")), state["channel.3.weight"], state["channel.3.bias"])
    m_s = relu(norm(conv2d(x, state["spatial.0.weight"], state["spatial.0.bias"]), "spatial.1"))
    for i in (3, 6):
        m_s = conv2d(m_s, state[f"spatial.{i}.weight"], state[f"spatial.{i}.bias"], 1, dilation, dilation)
        m_s = relu(norm(m_s, f"spatial.{i + 1}"))
    m_s = conv2d(m_s, state["spatial.9.weight"], state["spatial.9.bias"])[:, 0]
    m_c, m_s = m_c[:, :, None, None], m_s[:, None]
    return x + x * sigmoid(m_c * m_s if combine == "mul" else m_c + m_s)


FORMULA_OF_POOL = {
    "avg": lambda x: sum(x.flatten(2).unbind(2)) / (H * W),
    "max": lambda x: x.flatten(2).sort(2).values[..., -1],
    "lp": lambda x: (x**2).sum((2, 3)) ** 0.5,
    "lse": lambda x: torch.log(torch.exp(x).sum((2, 3))),
}


def cbam(x, state, norm, pools=("avg", "max"), spatial=True):
    scores = 0
    for pool in pools:
        hidden = relu(linear(FORMULA_OF_POOL[pool](x), state["mlp.0.weight"], state["mlp.0.bias"]))
        scores = scores + linear(hidden, state["mlp.2.weight"], state["mlp.2.bias"])
    x = torch.einsum("bchw,bc->bchw", x, sigmoid(scores))
    if not spatial:
        return x
    kernel = state["spatial.conv.weight"]
    scores = conv2d(x.max(1, keepdim=True).values, kernel[:, :1], padding=3)
    scores = scores + conv2d(x.sum(1, keepdim=True) / C, kernel[:, 1:], padding=3)
    return x * sigmoid(norm(scores, "spatial.bn", momentum=0.01))


def coord(x, state, norm):
    z = torch.cat([x.sum(3) / W, x.sum(2) / H], 2)  # (B, C, H + W)
    f = torch.einsum("oc,bcl->bol", state["reduce.weight"][:, :, 0, 0], z) + state["reduce.bias"][:, None]
    f = norm(f, "bn")
    f = f * (f + 3).clamp(0, 6) / 6
    a = {}
    for name, part in (("rows", f[:, :, :H]), ("columns", f[:, :, H:])):
        scores = torch.einsum("co,bol->bcl", state[f"{name}.weight"][:, :, 0, 0], part)
        a[name] = sigmoid(scores + state[f"{name}.bias"][:, None])
    return torch.einsum("bchw,bch,bcw->bchw", x, a["rows"], a["columns"])


FORMULAS = {
    "se": (se, {"reduction": 4}),
    "se, no biases": (se, {"reduction": 4, "bias": False}),
    "sk": (sk, {"groups": 4, "least": 6}),
    "sk, stride 2": (partial(sk, stride=2, groups=8), {"groups": 8, "stride": 2, "out_channels": 24}),
    "bam": (bam, {"reduction": 4}),
    "bam, sum": (
        partial(bam, combine="add", dilation=2),
        {"reduction": 4, "combine": "add", "dilation": 2},
    ),
    "cbam": (cbam, {"reduction": 4}),
    "cbam, every pool": (
        partial(cbam, pools=tuple(FORMULA_OF_POOL)),
        {"reduction": 4, "pools": tuple(FORMULA_OF_POOL)},
    ),
    "cbam, channels only": (partial(cbam, spatial=False), {"reduction": 4, "spatial": False}),
    "coord": (coord, {"reduction": 2}),
}


def randomised(name, channels=C, **options):
    """A block in double precision with random parameters and running statistics."""
    block = build(name, channels, **options).double()
    for key, tensor in block.state_dict().items():
        if tensor.is_floating_point():
            torch.nn.init.normal_(tensor, std=0.4)
            if key.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return block


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", FORMULAS)
def test_a_block_computes_its_formula(name, training):
    torch.manual_seed(len(name))
    formula, options = FORMULAS[name]
    block = randomised(name.split(",")[0], **options).train(training)
    x = torch.randn(B, C, H, W, dtype=torch.float64)
    before = {key: tensor.clone() for key, tensor in block.state_dict().items()}
    norm = Norm(before, training)

    torch.testing.assert_close(block(x), formula(x, before, norm))

    expected = before | norm.after
    for key, tensor in block.state_dict().items():
        if key.endswith("num_batches_tracked"):
            assert tensor == int(training)
        else:
            torch.testing.assert_close(tensor, expected[key])


# ---- parameter counts ------------------------------------------------------------------------------------------------

RESNET18 = [64, 64, 128, 128, 256, 256, 512, 512]
EXPANDED_IN_MOBILENET_V2 = [96] + 2 * [144] + 3 * [192] + 4 * [384] + 3 * [576] + 3 * [960]


@pytest.mark.parametrize(
    ("name", "options", "channels", "count"),
    [
        ("se", {"bias": False}, RESNET18, 87_040),
        ("se", {}, RESNET18, 89_080),
        ("cbam", {}, RESNET18, 11_310_012 - 11_220_132),
        ("bam", {}, [64, 128, 256], 11_243_123 - 11_220_132),
        ("bam", {}, [256, 512, 1024], 25_915_099 - 25_557_032),
        ("coord", {}, EXPANDED_IN_MOBILENET_V2, 3_950_648 - 3_504_872),
        ("sk", {}, [64], 2 * (64 * 2 * 9 + 128) + 64 * 32 + 64 + 32 * 128),
    ],
)
def test_parameter_counts_in_networks_are_the_published_ones(name, options, channels, count):
    blocks = [build(name, c, **options) for c in channels]
    assert sum(p.numel() for block in blocks for p in block.parameters()) == count


@pytest.mark.parametrize(("channels", "width"), [(3, 1), (16, 1), (40, 2), (64, 4)])
def test_a_bottleneck_has_at_least_one_channel(channels, width):
    assert build("se", channels).reduce.out_features == width
    assert build("bam", channels).channel[0].out_features == width
    assert build("cbam", channels).mlp[0].out_features == width
    assert build("coord", channels).reduce.out_channels == 8
    assert build("sk", channels, groups=1, least=1).score.in_features == width


def test_sk_takes_stride_and_channels():
    block = build("sk", 8, out_channels=12, stride=2, groups=4)
    assert block(torch.randn(2, 8, 7, 5)).shape == (2, 12, 4, 3)


# ---- initialisation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "channels"), [("se", 64), ("bam", 64), ("cbam", 64), ("coord", 64)])
def test_biases_are_initially_zero(name, channels):
    biases = [p for key, p in build(name, channels).named_parameters() if key.endswith("bias")]
    assert biases and not any(p.any() for p in biases)


def test_the_spatial_gate_of_cbam_is_initially_one_half():
    torch.manual_seed(0)
    block, x = build("cbam", C).eval(), torch.randn(2, C, 3, 4)
    channel_only = build("cbam", C, spatial=False).eval()
    channel_only.load_state_dict(block.state_dict(), strict=False)
    torch.testing.assert_close(block(x), channel_only(x) / 2)


@pytest.mark.parametrize(
    ("layer", "deviation"),
    [
        (lambda: build("se", 512).expand, math.sqrt(2 / 32)),  # fan-in, as in the paper
        (lambda: build("coord", 512).rows, math.sqrt(2 / 512)),  # fan-out, as in the authors' code
        (lambda: build("bam", 512).spatial[3], math.sqrt(2 / (32 * 9))),
    ],
)
def test_weights_are_initialised_by_he_et_al(layer, deviation):
    torch.manual_seed(0)
    assert layer().weight.std().item() == pytest.approx(deviation, rel=0.05)


# ---- edge cases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooled", [False, True])
def test_one_value_per_channel_is_normalised_by_the_running_statistics(pooled):
    torch.manual_seed(0)
    norm = BatchNorm(4)
    torch.nn.init.normal_(norm.running_mean)
    norm.running_var.uniform_(0.5, 2)
    before = {key: tensor.clone() for key, tensor in norm.state_dict().items()}
    x = torch.randn(1, 4) if pooled else torch.randn(1, 4, 1, 1)
    out = norm.train()(x)
    torch.testing.assert_close(out, norm.eval()(x))
    assert all(torch.equal(tensor, before[key]) for key, tensor in norm.state_dict().items())


@pytest.mark.parametrize("shape", [(5, 4), (2, 4, 3, 1)])
def test_more_values_agree_with_pytorchs_batch_norm(shape):
    torch.manual_seed(0)
    ours, plain = BatchNorm(4), (torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d)(4)
    x = torch.randn(shape)
    torch.testing.assert_close(ours(x), plain(x))
    torch.testing.assert_close(dict(ours.state_dict()), dict(plain.state_dict()))


@pytest.mark.parametrize("name", ["sk", "bam", "cbam", "coord"])
def test_a_last_batch_of_one_image_can_be_trained_on(name):
    block = randomised(name, 32).train()
    for size in ((1, 1), (3, 2)):
        x = torch.randn(1, 32, *size, dtype=torch.float64, requires_grad=True)
        block(x).sum().backward()
        assert x.grad.isfinite().all() and x.grad.any()
    assert all(tensor.isfinite().all() for tensor in block.state_dict().values())


def test_lse_pool_does_not_overflow():
    block = randomised("cbam", pools=("lse",), spatial=False)
    x = 1000 + torch.randn(1, C, 3, 3, dtype=torch.float64)
    pooled = 1000 + torch.log(torch.exp(x - 1000).sum((2, 3)))
    hidden = relu(linear(pooled, block.mlp[0].weight, block.mlp[0].bias))
    scores = linear(hidden, block.mlp[2].weight, block.mlp[2].bias)
    torch.testing.assert_close(block(x), x * sigmoid(scores)[:, :, None, None])


def test_lp_pool_has_a_gradient_at_zero():
    x = torch.zeros(1, C, 3, 3, requires_grad=True)
    build("cbam", C, pools=("lp",))(x).sum().backward()
    assert x.grad.isfinite().all()


def test_sk_weights_of_both_kernels_sum_to_one():
    block = randomised("sk", groups=4).eval()
    block.branches[1].load_state_dict(block.branches[0].state_dict())
    block.branches[1][0].dilation = block.branches[1][0].padding = (1, 1)  # now two equal branches
    x = torch.randn(2, C, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(block(x), block.branches[0](x))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("se", {"reduction": 0}, "reduction=0: .*at least 1"),
        ("sk", {"groups": 5}, "groups=5 .*16 .*16 .*divisor"),
        ("sk", {"stride": 0, "groups": 4}, "stride=0: .*at least 1"),
        ("sk", {"out_channels": 0}, "out_channels=0: .*at least 1"),
        ("sk", {"least": 0, "groups": 4}, "least=0: .*at least 1"),
        ("sk", {"groups": 16, "out_channels": 24}, "groups=16 .*16 .*24 .*divisor"),
        ("bam", {"combine": "max"}, "combine of bam 'max'; one of: add, mul"),
        ("bam", {"dilation": 0}, "dilation=0: .*at least 1"),
        ("cbam", {"pools": ("avg", "min")}, "pool of cbam 'min'; one of: avg, lp, lse, max"),
        ("cbam", {"pools": ()}, "pools is empty; .*: avg, lp, lse, max"),
        ("coord", {"reduction": -1}, "reduction=-1: .*at least 1"),
    ],
)
def test_invalid_options_are_refused(name, options, message):
    with pytest.raises(UserError, match=message) as error:
        build(name, C, **options)
    assert "\n" not in str(error.value)
