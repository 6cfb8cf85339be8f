"""Non-local, DANet, self-attention, CCWH and SCA blocks against the equations of their papers."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from sca_caption.attention import build
from sca_caption.attention.sca import channel_scores, plain_channel_scores
from sca_caption.runtime.errors import UserError
from tests.helpers.lively_blocks import lively, picture

C, H, W = 12, 5, 4
TRAINING = pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])


def double(name: str, channels: int = C, **options) -> nn.Module:
    return lively((name, options), channels).double()


def features() -> Tensor:
    return picture(3, C, H, W).double()


def project(conv: nn.Conv2d, image: Tensor) -> Tensor:
    """A 1x1 convolution of an image (C, H, W): (N, C')."""
    return image.flatten(1).T @ conv.weight[:, :, 0, 0].T + conv.bias


def normalise(x: Tensor, norm: nn.BatchNorm2d, training: bool) -> Tensor:
    """Batch norm by its formula: statistics of the batch in training, running statistics in evaluation."""
    mean = x.mean((0, 2, 3)) if training else norm.running_mean
    variance = x.var((0, 2, 3), correction=0) if training else norm.running_var
    mean, variance, weight, bias = (v[:, None, None] for v in (mean, variance, norm.weight, norm.bias))
    return (x - mean) / (variance + norm.eps).sqrt() * weight + bias


def updated_statistics(norm: nn.BatchNorm2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The running statistics after a training step on x (B, C, H, W)."""
    m = norm.momentum
    return (
        (1 - m) * norm.running_mean + m * x.mean((0, 2, 3)),
        (1 - m) * norm.running_var + m * x.var((0, 2, 3), correction=1),
    )


# ---- non-local -------------------------------------------------------------------------------------------------------


def nonlocal_response(block: nn.Module, image: Tensor, mode: str, scale: bool, sub_sample: bool) -> Tensor:
    """y_i of equation 1 for an image (C, H, W), in a loop over positions: (inner, H, W)."""
    small = image
    if sub_sample:
        small = torch.stack(
            [
                torch.stack([image[:, i : i + 2, j : j + 2].amax((1, 2)) for j in range(0, W - 1, 2)], 1)
                for i in range(0, H - 1, 2)
            ],
            1,
        )
    if mode == "gaussian":
        theta, phi = image.flatten(1).T, small.flatten(1).T
    else:
        theta, phi = project(block.theta, image), project(block.phi, small)
    g = project(block.g, small)
    y = []
    for theta_i in theta:
        if mode in ("gaussian", "embedded_gaussian"):
            f = torch.stack(
                [torch.exp(theta_i @ p / math.sqrt(len(p)) if scale else theta_i @ p) for p in phi]
            )
            normaliser = f.sum()
        elif mode == "dot_product":
            f, normaliser = torch.stack([theta_i @ p for p in phi]), len(phi)
        else:
            w_f = block.joint.flatten()
            f = torch.stack([F.relu(w_f @ torch.cat([theta_i, p])) for p in phi])
            normaliser = len(phi)
        y.append(sum(f_ij * g_j for f_ij, g_j in zip(f, g, strict=True)) / normaliser)
    return torch.stack(y, 1).view(-1, H, W)


@TRAINING
@pytest.mark.parametrize("sub_sample", [False, True], ids=["all", "sub_sample"])
@pytest.mark.parametrize("scale", [False, True], ids=["unscaled", "scaled"])
@pytest.mark.parametrize("mode", ["embedded_gaussian", "gaussian", "dot_product", "concatenation"])
def test_nonlocal_agrees_with_the_paper(mode, scale, sub_sample, training):
    options = {"mode": mode, "scale": scale, "sub_sample": sub_sample}
    block, x = double("nonlocal", **options).train(training), features()
    y = torch.stack([nonlocal_response(block, image, *options.values()) for image in x])
    projected = torch.stack([project(block.out, image).T.view(C, H, W) for image in y])
    wanted = normalise(projected, block.norm, training) + x
    after = updated_statistics(block.norm, projected)
    assert_close(block(x), wanted)
    if training:
        assert_close((block.norm.running_mean, block.norm.running_var), after)


def test_nonlocal_parameter_count():
    """theta, phi and g to half the channels and W back, all with biases; batch norm's two."""
    half = C // 2
    convolutions = 3 * (C * half + half) + half * C + C
    for mode, count in {
        "embedded_gaussian": convolutions,
        "dot_product": convolutions,
        "concatenation": convolutions + C,
        "gaussian": convolutions - 2 * (C * half + half),
    }.items():
        assert sum(p.numel() for p in build("nonlocal", C, mode=mode).parameters()) == count + 2 * C


# ---- dual attention --------------------------------------------------------------------------------------------------


def position_attention(block: nn.Module, image: Tensor) -> Tensor:
    query, key, value = (project(conv, image) for conv in (block.query, block.key, block.value))
    out = torch.zeros_like(image.flatten(1))
    for i in range(len(query)):
        weights = torch.exp(torch.stack([query[i] @ k for k in key]))
        out[:, i] = sum(w * v for w, v in zip(weights, value, strict=True)) / weights.sum()
    return block.gamma * out.view_as(image) + image


def channel_attention(block: nn.Module, image: Tensor) -> Tensor:
    flat = image.flatten(1)
    out = []
    for row in flat:
        energy = torch.stack([row @ other for other in flat])
        inverted = energy.max() - energy  # the least similar channel has the largest weight
        weights = torch.exp(inverted - inverted.max())
        out.append(sum(w * other for w, other in zip(weights / weights.sum(), flat, strict=True)))
    return block.gamma * torch.stack(out).view_as(image) + image


def test_position_attention_agrees_with_the_paper():
    block, x = double("danet_position", reduction=3), features()
    assert_close(block(x), torch.stack([position_attention(block, image) for image in x]))


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_channel_attention_agrees_with_the_authors_code(scale):
    block, x = double("danet_channel"), scale * features()
    assert_close(block(x), torch.stack([channel_attention(block, image) for image in x]))


def test_channel_attention_weights_the_least_similar_channels():
    """For channels a, a, b with b orthogonal to a and large norms, each a attends to b, and b to the mean of both a."""
    block = build("danet_channel", 3).double()
    block.gamma.data.fill_(1)
    a, b = torch.tensor([[40.0, 0, 0, 0]]).double(), torch.tensor([[0, 40.0, 0, 0]]).double()
    out = block(torch.cat([a, a, b]).view(1, 3, 2, 2)).view(3, 4)
    assert_close(out, torch.cat([a + b, a + b, b + a]))


@TRAINING
def test_the_head_agrees_with_the_authors_code(training):
    block, x = double("danet").train(training), features()

    def branch(modules: nn.Sequential, attend) -> Tensor:
        before, norm, _, attention, after, norm_after, _ = modules
        narrow = F.relu(normalise(F.conv2d(x, before.weight, padding=1), norm, training))
        attended = torch.stack([attend(attention, image) for image in narrow])
        return F.relu(normalise(F.conv2d(attended, after.weight, padding=1), norm_after, training))

    total = branch(block.position, position_attention) + branch(block.channel, channel_attention)
    wanted = torch.stack([project(block.out, image).T.view(C, H, W) for image in total])
    assert_close(block(x), wanted)


def test_dual_attention_parameter_counts():
    def count(name, channels):
        return sum(p.numel() for p in build(name, channels).parameters())

    assert count("danet_position", 64) == 5201
    assert count("danet_channel", 64) == 1
    # Two branches of two 3x3 convolutions with batch norm, both attentions on 16 channels, and the last 1x1 convolution.
    position = 2 * (16 * 2 + 2) + 16 * 16 + 16 + 1
    assert count("danet", 64) == 2 * (9 * 64 * 16 + 32 + 9 * 16 * 16 + 32) + position + 1 + 16 * 64 + 64


# ---- self-attention --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 2, 3, 12])
def test_self_attention_agrees_with_pytorch_on_a_sequence_of_positions(heads):
    block, x = double("self_attention", heads=heads), features()
    theirs = nn.MultiheadAttention(C, heads, batch_first=True).double()
    theirs.load_state_dict(
        {
            "in_proj_weight": block.qkv.weight[:, :, 0, 0],
            "in_proj_bias": block.qkv.bias,
            "out_proj.weight": block.out.weight[:, :, 0, 0],
            "out_proj.bias": block.out.bias,
        }
    )
    sequence = x.flatten(2).transpose(1, 2)  # (B, N, C)
    wanted = theirs(sequence, sequence, sequence, need_weights=False)[0]
    assert_close(block(x), x + wanted.transpose(1, 2).view_as(x))


@pytest.mark.parametrize("name", ["self_attention", "danet_position", "danet_channel"])
def test_permuting_the_positions_permutes_the_output(name):
    block, x = double(name), features()
    order = torch.randperm(H * W, generator=torch.Generator().manual_seed(0))

    def permuted(x: Tensor) -> Tensor:
        return x.flatten(2)[:, :, order].view_as(x)

    assert_close(block(permuted(x)), permuted(block(x)))


@pytest.mark.parametrize(("channels", "heads"), [(1, 1), (64, 1), (130, 2), (200, 2), (320, 5), (512, 8)])
def test_heads_have_about_64_channels(channels, heads):
    assert build("self_attention", channels).heads == heads


@pytest.mark.parametrize("heads", [5, 0, -3, 24])
def test_heads_must_divide_the_channels(heads):
    with pytest.raises(UserError, match=f"heads={heads} with 12 channels; .*divisor"):
        build("self_attention", C, heads=heads)


# ---- CCWH ------------------------------------------------------------------------------------------------------------


def test_ccwh_agrees_with_the_three_branches_of_its_authors():
    block, x = double("ccwh"), features()

    def seen_along(swapped: Tensor, conv: nn.Conv2d) -> Tensor:
        """Scale a map whose first axis was swapped with another one, by the maximum and mean over the first axis."""
        pooled = torch.cat([swapped.max(1, keepdim=True)[0], swapped.mean(1, keepdim=True)], 1)
        return swapped * torch.sigmoid(F.conv2d(pooled, conv.weight, conv.bias, padding=1))

    g1 = seen_along(x.permute(0, 2, 1, 3), block.along_height).permute(0, 2, 1, 3)
    g2 = seen_along(x.permute(0, 3, 2, 1), block.along_width).permute(0, 3, 2, 1)
    kernel, g3 = block.channel.weight.flatten(), []
    for image in x:
        mean = [0, *image.mean((1, 2)), 0]
        scores = [sum(kernel[k] * mean[c + k] for k in range(3)) for c in range(C)]
        g3.append(image * torch.sigmoid(torch.stack(scores))[:, None, None])
    assert_close(block(x), (g1 + g2) / 2 + torch.stack(g3))


@pytest.mark.parametrize("channels", [1, 64, 512])
def test_ccwh_has_41_parameters(channels):
    assert sum(p.numel() for p in build("ccwh", channels).parameters()) == 41


# ---- SCA -------------------------------------------------------------------------------------------------------------


def test_sca_is_conditioned_on_the_pooled_map():
    """Equations 5-8 of the paper, where h is the mean of V. test_sca.py tests the attention itself against loops."""
    block, x = double("sca", width=7), features()
    channel, spatial = block.attention.channel, block.attention.spatial
    m, out = H * W, []
    for V in x.flatten(2):  # (C, m)
        h = V.mean(1)
        b = torch.tanh(
            torch.outer(V.mean(1), channel.visual) + channel.hidden.bias + channel.hidden.weight @ h
        )
        beta = (b @ channel.score).softmax(0)
        V = V * beta[:, None] * C
        keys = V.T @ spatial.visual.weight.T + spatial.visual.bias
        alpha = (torch.tanh(keys + spatial.hidden.weight @ h) @ spatial.score).softmax(0)
        out.append((V * alpha * m).view(C, H, W))
    assert_close(block(x), torch.stack(out), rtol=1e-5, atol=1e-6)


def test_compiled_channel_scores_use_the_plain_formula():
    """The number of interpolation nodes depends on the values, which a compiled graph does not know."""
    rng = torch.Generator().manual_seed(0)
    means, visual, score = (torch.randn(n, generator=rng) for n in ((2, 256), (6,), (6,)))
    hidden = torch.randn(2, 6, generator=rng)
    compiled = torch.compile(channel_scores, fullgraph=True, backend="eager")
    plain = plain_channel_scores(means, visual, hidden, score)
    assert_close(compiled(means, visual, hidden, score), plain)
    assert_close(channel_scores(means, visual, hidden, score), plain, rtol=1e-4, atol=1e-5)
