"""CSHAM against its authors' computation in loops, with TensorFlow's rules for padding and resizing."""

import math

import numpy as np
import pytest
import torch

from sca_caption.attention import build
from tests.helpers.lively_blocks import lively, picture

SIZES = [(4, 6), (8, 8), (5, 7), (7, 2), (3, 1), (1, 1)]


def convolve(x: np.ndarray, kernel: np.ndarray, stride: int = 1) -> np.ndarray:
    """x (C, H, W) with one filter (C, k, k), TensorFlow's padding="same": the smaller half of the zeros comes first."""
    _, H, W = x.shape
    k = kernel.shape[1]
    rows, columns = math.ceil(H / stride), math.ceil(W / stride)
    top = max((rows - 1) * stride + k - H, 0) // 2
    left = max((columns - 1) * stride + k - W, 0) // 2
    out = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            for a in range(k):
                for b in range(k):
                    y, z = i * stride - top + a, j * stride - left + b
                    if 0 <= y < H and 0 <= z < W:
                        out[i, j] += x[:, y, z] @ kernel[:, a, b]
    return out


def convolve_channels(x: np.ndarray, kernel: np.ndarray, bias: float) -> np.ndarray:
    """x (n, C) with a filter (n, 3) along C, zeros beyond its ends."""
    padded = np.pad(x, ((0, 0), (1, 1)))
    return np.array([(padded[:, c : c + 3] * kernel).sum() + bias for c in range(x.shape[1])])


def pool(x: np.ndarray) -> np.ndarray:
    """2 x 2 average pooling of (C, H, W); drops the last row and column of odd maps, keeps a side of one pixel."""
    down, right = min(2, x.shape[1]), min(2, x.shape[2])
    out = np.zeros((x.shape[0], x.shape[1] // down, x.shape[2] // right))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            out[:, i, j] = x[:, i * down : (i + 1) * down, j * right : (j + 1) * right].mean((1, 2))
    return out


def enlarge(x: np.ndarray, H: int, W: int) -> np.ndarray:
    """Nearest-neighbour resizing by pixel centres: pixel i has its centre at i + 1/2."""
    rows = [int((i + 0.5) * x.shape[0] / H) for i in range(H)]
    columns = [int((j + 0.5) * x.shape[1] / W) for j in range(W)]
    return x[rows][:, columns]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Reference:
    """The block in numpy for a batch (B, C, H, W), with the parameters of `block`. Updates the running statistics."""

    def __init__(self, block, relu: bool, training: bool):
        self.p = {name: value.detach().double().numpy().copy() for name, value in block.state_dict().items()}
        self.act = (lambda x: np.maximum(x, 0)) if relu else (lambda x: x)
        self.training = training

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        """Keras' batch norm of one channel: epsilon 0.001, momentum 0.99."""
        mean, variance = self.p[f"{name}.running_mean"], self.p[f"{name}.running_var"]
        if self.training:
            self.p[f"{name}.running_mean"] = 0.99 * mean + 0.01 * x.mean()
            self.p[f"{name}.running_var"] = 0.99 * variance + 0.01 * x.var(ddof=1)
            mean, variance = x.mean(), x.var()
        return (x - mean) / np.sqrt(variance + 0.001) * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def channel_weights(self, x: np.ndarray) -> np.ndarray:
        average, maximum, fuse = (
            (self.p[f"channel.{n}.weight"][0], self.p[f"channel.{n}.bias"][0])
            for n in ("average", "maximum", "fuse")
        )
        weights = []
        for image in x:
            joined = np.stack(
                [
                    self.act(convolve_channels(image.mean((1, 2))[None], *average)),
                    self.act(convolve_channels(image.max((1, 2))[None], *maximum)),
                ]
            )
            weights.append(sigmoid(self.act(convolve_channels(joined, *fuse))))
        return np.stack(weights)[:, :, None, None]

    def spatial_weights(self, x: np.ndarray, name: str) -> np.ndarray:
        H, W = x.shape[2:]
        summary = [np.stack([image.mean(0), image.max(0)]) for image in x]
        scores = np.stack([convolve(image, self.p[f"{name}.conv.weight"][0]) for image in summary])
        scores = self.act(self.norm(scores, f"{name}.norm"))
        down = np.stack([convolve(pool(image), self.p[f"{name}.down.weight"][0], stride=2) for image in x])
        up = np.stack([enlarge(image, H, W) for image in self.norm(down, f"{name}.down_norm")])
        return sigmoid(scores + up)[:, None]

    def plain(self, x: np.ndarray) -> np.ndarray:
        x = self.channel_weights(x) * x
        return self.spatial_weights(x, "spatial") * x

    def alternate(self, x: np.ndarray) -> np.ndarray:
        weights = self.channel_weights(x)
        first = weights * x
        first = self.spatial_weights(first, "spatial") * first
        second = weights * first  # the first weights again, not new weights of `first`
        return self.spatial_weights(second, "spatial2") * second


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("connection", ["plain", "alternate"])
@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
def test_it_agrees_with_the_authors_computation(relu, connection, size, training):
    block = lively(("csham", {"relu": relu, "connection": connection}), channels=5).double().train(training)
    x = picture(3, 5, *size).double()
    reference = Reference(block, relu, training)
    wanted = getattr(reference, connection)(x.numpy())
    np.testing.assert_allclose(block(x).detach().numpy(), wanted, rtol=1e-6, atol=1e-9)
    for name, value in block.state_dict().items():
        if "running" in name:
            np.testing.assert_allclose(value.numpy(), reference.p[name], rtol=1e-6, err_msg=name)


def test_the_reference_resizes_by_pixel_centres():
    assert enlarge(np.arange(3)[:, None], 7, 1)[:, 0].tolist() == [0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("channels", [1, 64, 200])
def test_parameter_counts(channels):
    def count(**options):
        return sum(p.numel() for p in build("csham", channels, **options).parameters())

    channel, spatial = 15, 9 * channels + 102
    assert count() == count(relu=True) == channel + spatial
    assert count(connection="alternate") == channel + 2 * spatial


def test_the_alternate_connection_computes_the_channel_weights_once():
    block = lively(("csham", {"connection": "alternate"}))
    calls, maps = [], []
    block.channel.register_forward_hook(lambda module, inputs, output: calls.append(output))
    for spatial in (block.spatial, block.spatial2):
        spatial.register_forward_hook(lambda module, inputs, output: maps.append((inputs[0], output)))
    x = picture(2, 32, 6, 5)
    output = block(x)
    assert len(calls) == 1
    (first, s1), (second, s2) = maps
    # Both spatial modules read a map times the same channel weights.
    torch.testing.assert_close(first / x, calls[0].expand_as(x), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(second / (s1 * first), calls[0].expand_as(x), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(output, s2 * second)


def test_channel_weights_are_at_least_one_half_with_relu():
    weights = lively(("csham", {"relu": True})).channel(picture(8, 32, 6, 5))
    assert weights.min() >= 0.5
