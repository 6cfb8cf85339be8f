"""SCA-CNN's attention against loops over its equations, and interpolated channel scores against the plain formula."""

import math

import numpy as np
import pytest
import torch

from sca_caption.attention import sca
from sca_caption.attention.sca import (
    ConditionedAttention,
    channel_scores,
    chebyshev_nodes_needed,
    clenshaw,
    modulate,
    plain_channel_scores,
    pool_modulated,
    pool_shared,
)
from sca_caption.runtime.errors import UserError

MODES = ("S", "C", "S-C", "C-S")


def made(
    mode: str, channels: int = 6, hidden_size: int = 5, width: int = 4, seed: int = 0
) -> ConditionedAttention:
    """An attention in float64 with random parameters, so that its weights are far from uniform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        attention = ConditionedAttention(channels, hidden_size, width, mode).double()
        with torch.no_grad():
            for parameter in attention.parameters():
                parameter.normal_()
    return attention


def example(
    channels: int = 6, hidden_size: int = 5, rows: int = 3, height: int = 3, width: int = 2, seed: int = 1
):
    """Features (B, C, H, W) and hidden states (B, d), float64."""
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, channels, height, width, generator=rng, dtype=torch.float64)
    return features, torch.randn(rows, hidden_size, generator=rng, dtype=torch.float64)


# ---- the equations of the paper in loops, for one row ----------------------------------------------------------------


def softmax(scores: list[float]) -> list[float]:
    exponentials = [math.exp(score) for score in scores]
    return [e / sum(exponentials) for e in exponentials]


def paper_beta(V, h, p) -> list[float]:
    """Equation 7: one weight per channel of V (C, H, W)."""
    W_c, W_hc, b_c, W_i = (p[f"channel.{n}"] for n in ("visual", "hidden.weight", "hidden.bias", "score"))
    scores = []
    for channel in V:
        v, score = sum(x for row in channel for x in row) / channel.size, 0.0
        for j in range(len(W_c)):
            score += W_i[j] * math.tanh(W_c[j] * v + b_c[j] + sum(W_hc[j, d] * h[d] for d in range(len(h))))
        scores.append(score)
    return softmax(scores)


def paper_alpha(V, h, p) -> list[float]:
    """Equation 5: one weight per position of V, row by row."""
    W_s, b_s, W_hs, W_i = (
        p[f"spatial.{n}"] for n in ("visual.weight", "visual.bias", "hidden.weight", "score")
    )
    scores = []
    for y in range(V.shape[1]):
        for x in range(V.shape[2]):
            score = 0.0
            for j in range(len(W_i)):
                visual = b_s[j] + sum(W_s[j, c] * V[c, y, x] for c in range(len(V)))
                score += W_i[j] * math.tanh(visual + sum(W_hs[j, d] * h[d] for d in range(len(h))))
            scores.append(score)
    return softmax(scores)


def paper_scale(V, beta, alpha):
    """V * beta * C * alpha * m, rescaled as in the authors' code."""
    X = V.copy()
    channels, height, width = V.shape
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                X[c, y, x] *= beta[c] * channels if beta else 1
                X[c, y, x] *= alpha[y * width + x] * height * width if alpha else 1
    return X


def paper(mode: str, V, h, p):
    """X, beta and alpha of one row (section 3.4)."""
    beta = alpha = None
    if mode == "C-S":
        beta = paper_beta(V, h, p)
        alpha = paper_alpha(paper_scale(V, beta, None), h, p)
    elif mode == "S-C":
        alpha = paper_alpha(V, h, p)
        beta = paper_beta(paper_scale(V, None, alpha), h, p)
    elif mode == "C":
        beta = paper_beta(V, h, p)
    else:
        alpha = paper_alpha(V, h, p)
    return paper_scale(V, beta, alpha), beta, alpha


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("channels", "height", "width"), [(6, 3, 2), (40, 2, 2), (1, 1, 1)])
def test_it_agrees_with_the_paper(mode, channels, height, width):
    attention = made(mode, channels)
    features, hidden = example(channels, height=height, width=width)
    with torch.no_grad():
        attended, beta, alpha = attention(features, hidden)
    parameters = {name: value.detach().numpy() for name, value in attention.named_parameters()}
    for row in range(len(features)):
        wanted = paper(mode, features[row].numpy(), hidden[row].numpy(), parameters)
        for found, value in zip((attended, beta, alpha), wanted, strict=True):
            if value is None:
                assert found is None
            else:
                np.testing.assert_allclose(found[row].numpy(), value, rtol=1e-5, atol=1e-9)


def waves(*shape: int, phase: float) -> torch.Tensor:
    """Reproducible numbers without a random generator."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 1.7 + phase).view(shape)


def test_recorded_results():
    """The numbers were recorded when they agreed within 7e-7 with the authors' code (sca_resnet_branch2b.py)."""
    attention = ConditionedAttention(3, 2, 2, "C-S").double()
    with torch.no_grad():
        for i, parameter in enumerate(attention.parameters()):
            parameter.copy_(waves(*parameter.shape, phase=i))
        attended, beta, alpha = attention(waves(1, 3, 2, 2, phase=0.5), waves(1, 2, phase=0.3))
    recorded = [0.3290927, 0.3335945, 0.3373128]
    np.testing.assert_allclose(beta[0], recorded, atol=1e-6)
    recorded = [0.1502807, 0.4856267, 0.2547049, 0.1093877]
    np.testing.assert_allclose(alpha[0], recorded, atol=1e-6)
    recorded = [0.2845272, 1.5505299, -0.6917952, -0.2726974, 0.5116173, 0.8011701, -0.975402, -0.072517]
    recorded += [0.6078792, -0.1806611, -1.0058535, 0.1520111]
    np.testing.assert_allclose(attended.flatten(), recorded, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_weights_sum_to_one_over_channels_and_over_positions(mode):
    features, hidden = example(channels=6, rows=3, height=4, width=5)
    beta, alpha = made(mode).weights(features, hidden)
    if "C" in mode:
        assert beta.shape == (3, 6)
        torch.testing.assert_close(beta.sum(1), torch.ones(3, dtype=torch.float64))
        assert (beta > 0).all() and beta.std(1).max() > 0.01  # the weights are not uniform
    if "S" in mode:
        assert alpha.shape == (3, 20)
        torch.testing.assert_close(alpha.sum(1), torch.ones(3, dtype=torch.float64))
        assert (alpha > 0).all() and alpha.std(1).max() > 0.01


@pytest.mark.parametrize("mode", MODES)
def test_uniform_weights_do_not_change_the_map(mode):
    attention = made(mode)
    with torch.no_grad():
        for part in (attention.channel, attention.spatial):
            if part is not None:
                part.score.zero_()
    features, hidden = example()
    torch.testing.assert_close(attention(features, hidden)[0], features)


@pytest.mark.parametrize("mode", MODES)
def test_initial_weights_are_near_uniform(mode):
    """Then the layers above initially receive the maps that they were trained on."""
    torch.manual_seed(0)
    features, hidden = torch.randn(4, 32, 7, 7), torch.randn(4, 16)
    beta, alpha = ConditionedAttention(32, 16, 64, mode).weights(features, hidden)
    for weights in (beta, alpha):
        if weights is not None:
            assert (weights * weights.shape[1] - 1).abs().max() < 0.7


@pytest.mark.parametrize("mode", MODES)
def test_pool_modulated_is_the_mean_of_the_modulated_map(mode):
    attention = made(mode)
    features, hidden = example()
    beta, alpha = attention.weights(features, hidden)
    wanted = modulate(features, beta, alpha).mean((2, 3))
    torch.testing.assert_close(pool_modulated(features, beta, alpha), wanted)


def test_pool_shared_agrees_with_pooling_copies_of_the_maps():
    features, _ = example(rows=3)
    image = torch.tensor([2, 0, 0, 2, 2])
    alpha = torch.rand(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = pool_modulated(features[image], None, alpha)
    torch.testing.assert_close(pool_shared(features, alpha, image), wanted)


@pytest.mark.parametrize("mode", MODES)
def test_precomputed_keys_do_not_change_the_result(mode):
    attention = made(mode)
    features, hidden = example()
    keys = attention.prepare(features)
    assert (keys is not None) == (mode in ("S", "S-C"))
    for found, wanted in zip(attention(features, hidden, keys), attention(features, hidden), strict=True):
        assert found is wanted is None or torch.equal(found, wanted)


@pytest.mark.parametrize("mode", MODES)
def test_rows_are_independent(mode):
    attention = made(mode)
    features, hidden = example(rows=4)
    wanted = attention(features, hidden)[0]
    features[2], hidden[2] = 50.0, -50.0
    found = attention(features, hidden)[0]
    torch.testing.assert_close(found[[0, 1, 3]], wanted[[0, 1, 3]], rtol=1e-6, atol=1e-7)
    assert not torch.allclose(found[2], wanted[2])


@pytest.mark.parametrize("mode", MODES)
def test_gradients_by_finite_differences(mode):
    attention = made(mode, channels=3, hidden_size=2, width=2)
    features, hidden = example(channels=3, hidden_size=2, rows=2, height=2, width=2)
    inputs = [features.requires_grad_(), hidden.requires_grad_(), *attention.parameters()]
    names = [name for name, _ in attention.named_parameters()]

    def attended(features, hidden, *parameters):
        values = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(attention, values, (features, hidden))[0]

    assert torch.autograd.gradcheck(attended, inputs, fast_mode=True)


def test_an_unknown_mode_lists_the_modes():
    with pytest.raises(UserError, match=r"^unknown attention 'SC'; one of: C, C-S, S, S-C"):
        ConditionedAttention(3, 2, 2, "SC")


# ---- channel scores by interpolation ---------------------------------------------------------------------------------


def draw(
    seed: int,
    rows: int = 3,
    channels: int = 400,
    width: int = 16,
    steepness: float = 1.0,
    dtype=torch.float64,
):
    """means (B, C), visual (k,), hidden (B, k), score (k,) with max|visual| * half-range = steepness."""
    rng = torch.Generator().manual_seed(seed)
    means = torch.randn(rows, channels, generator=rng, dtype=torch.float64) + 0.7
    visual, score = torch.randn(2, width, generator=rng, dtype=torch.float64)
    hidden = 2 * torch.randn(rows, width, generator=rng, dtype=torch.float64)
    half = (means.amax(1) - means.amin(1)).max() / 2
    visual *= steepness / (half * visual.abs().max())
    return tuple(x.to(dtype).requires_grad_() for x in (means, visual, hidden, score))


def counted(monkeypatch) -> list[int]:
    """Record the numbers of tanh evaluations per row and unit in calls of `channel_scores`."""
    widths, plain = [], plain_channel_scores

    def counting(means, *others):
        widths.append(means.shape[1])
        return plain(means, *others)

    monkeypatch.setattr(sca, "plain_channel_scores", counting)
    return widths


def series_bound(steepness: float, nodes: int) -> float:
    """Bound of the interpolation error of one unit's tanh by Trefethen's theorem 8.2, on the ellipse rho^(3/4).

    On this ellipse |tanh| is at most max(1, tan(y)), where y is its half-height.
    """
    ratio = math.pi / 2 / steepness
    r = (ratio + math.sqrt(1 + ratio * ratio)) ** 0.75
    height = steepness * (r - 1 / r) / 2
    largest = max(1.0, math.tan(height)) if height < math.pi / 2 else math.inf
    return 4 * largest * r ** (1 - nodes) / (r - 1)


@pytest.mark.parametrize("steepness", [1e-3, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
def test_the_number_of_nodes_bounds_the_error(steepness, tolerance, monkeypatch):
    widths = counted(monkeypatch)
    for seed in range(4):
        means, visual, hidden, score = draw(seed, channels=1000, steepness=steepness)
        with torch.no_grad():
            found = channel_scores(means, visual, hidden, score, tolerance)
            wanted = plain_channel_scores(means, visual, hidden, score)
        nodes = widths[-1]
        assert chebyshev_nodes_needed(steepness, tolerance) <= nodes < 500  # the interpolation was used
        error = ((found - wanted).abs().max() / score.abs().sum()).item()
        assert error <= series_bound(steepness, nodes) + 1e-12
        assert error <= tolerance  # in practice the error is far below the bound


@pytest.mark.parametrize("steepness", [0.5, 2.0, 8.0])
def test_a_single_steep_unit_is_within_the_tolerance(steepness):
    """The bend of the unit is at different positions of the range; the nearest pole is above the bend."""
    means = torch.linspace(-1, 1, 2001, dtype=torch.float64)[None]
    for bend in torch.linspace(-1.2, 1.2, 25, dtype=torch.float64):
        visual, hidden, score = (
            means.new_tensor([steepness]),
            means.new_tensor([[bend * steepness]]),
            means.new_ones(1),
        )
        found = channel_scores(means, visual, hidden, score, 1e-6)
        wanted = torch.tanh(steepness * (means + bend))
        assert (found - wanted).abs().max() < 2e-6


@pytest.mark.parametrize("steepness", [0.01, 1.0, 4.0])
def test_gradients_agree_with_the_plain_formula(steepness, monkeypatch):
    """Up to the interpolation error: the derivative of an error e with N terms is at most N^2 e (Markov)."""
    widths, tolerance = counted(monkeypatch), 1e-12
    inputs = draw(0, channels=1000, steepness=steepness)
    weights = torch.randn(3, 1000, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    found = torch.autograd.grad((channel_scores(*inputs, tolerance) * weights).sum(), inputs)
    assert widths[-1] < 500
    wanted = torch.autograd.grad((plain_channel_scores(*inputs) * weights).sum(), inputs)
    limit = 10 * tolerance * widths[-1] ** 2
    for name, a, b in zip(("means", "visual", "hidden", "score"), found, wanted, strict=True):
        assert ((a - b).abs().max() / b.abs().max()).item() < limit, name


def test_gradients_with_the_tolerance_of_training():
    inputs = draw(3, channels=320, steepness=1.5, dtype=torch.float32)
    exact = tuple(x.detach().double().requires_grad_() for x in inputs)
    weights = torch.randn(3, 320, generator=torch.Generator().manual_seed(9))
    found = torch.autograd.grad((channel_scores(*inputs).softmax(1) * weights).sum(), inputs)
    wanted = torch.autograd.grad((plain_channel_scores(*exact).softmax(1) * weights).sum(), exact)
    for name, a, b in zip(("means", "visual", "hidden", "score"), found, wanted, strict=True):
        assert ((a - b).abs().max() / b.abs().max()).item() < 1e-4, name


@pytest.mark.parametrize("seed", range(8))
def test_gradients_of_the_smallest_and_the_largest_mean(seed):
    """They are at the ends of the interpolated range, and rounding may put them outside."""
    inputs = draw(seed, rows=64, channels=64, steepness=1.0, dtype=torch.float32)
    found = torch.autograd.grad(channel_scores(*inputs).sum(), inputs[0])[0]
    wanted = torch.autograd.grad(plain_channel_scores(*inputs).sum(), inputs[0])[0]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())


@pytest.mark.parametrize("visual_std", [0.1, 1.0])
@pytest.mark.parametrize("spread", [0.0, 1e-3, 1e-2, 0.1, 1.0])
@pytest.mark.parametrize("centre", [0.0, 1.0, 10.0, 100.0])
def test_gradients_of_means_that_nearly_agree(centre, spread, visual_std):
    """Against the plain formula in float64, where the slope is a small difference or tanh is saturated."""
    rng = torch.Generator().manual_seed(0)
    means = centre + spread * torch.randn(3, 512, generator=rng)
    means[0] = centre + torch.randn(512, generator=rng)  # one wide row does not decide for the others
    visual = visual_std * torch.randn(64, generator=rng)
    inputs = (means, visual, torch.randn(3, 64, generator=rng), torch.randn(64, generator=rng) / 8)
    inputs = [x.requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    weights = torch.linspace(-1, 1, 512)
    found = torch.autograd.grad((channel_scores(*inputs) * weights).sum(), inputs)
    wanted = torch.autograd.grad((plain_channel_scores(*exact) * weights).sum(), exact)
    for row in range(3):
        error = (found[0][row] - wanted[0][row]).norm() / wanted[0][row].norm()
        assert error < 1e-3, f"row {row}"


@pytest.mark.parametrize("steepness", [0.5, 3.0])
def test_mixed_precision_interpolates_in_float32(steepness):
    """Slopes are differences of close values. In bfloat16 the gradient of the means had errors of up to 70 %."""
    inputs = draw(3, channels=960, steepness=steepness, dtype=torch.float32)
    weights = torch.randn(3, 960, generator=torch.Generator().manual_seed(9))
    wanted = torch.autograd.grad((plain_channel_scores(*inputs).softmax(1) * weights).sum(), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        scores = channel_scores(inputs[0].bfloat16(), inputs[1], inputs[2].bfloat16(), inputs[3])
    assert scores.dtype == torch.float32
    found = torch.autograd.grad((scores.softmax(1) * weights).sum(), inputs)
    for name, a, b in zip(("means", "visual", "hidden", "score"), found, wanted, strict=True):
        assert ((a - b).norm() / b.norm()).item() < 0.03, name


def test_gradcheck_of_the_chebyshev_series():
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(2, 5, generator=rng, dtype=torch.float64) * 2 - 1
    coefficients = torch.randn(2, 7, generator=rng, dtype=torch.float64)
    inputs = (x.requires_grad_(), coefficients.requires_grad_())
    assert torch.autograd.gradcheck(sca.ChebyshevSeries.apply, inputs)


@pytest.mark.parametrize("terms", [1, 2, 3, 12])
def test_clenshaw_agrees_with_the_sum_of_cosines(terms):
    rng = torch.Generator().manual_seed(terms)
    x = torch.rand(2, 9, generator=rng, dtype=torch.float64) * 2 - 1
    coefficients = torch.randn(2, terms, generator=rng, dtype=torch.float64)
    wanted = sum(coefficients[:, n, None] * torch.cos(n * torch.acos(x)) for n in range(terms))
    torch.testing.assert_close(clenshaw(x, coefficients), wanted)


def test_units_that_are_too_steep_use_the_plain_formula(monkeypatch):
    widths = counted(monkeypatch)
    for steepness in (1e3, 1e9):
        means, visual, hidden, score = draw(0, steepness=steepness)
        assert torch.equal(
            channel_scores(means, visual, hidden, score), plain_channel_scores(means, visual, hidden, score)
        )
        assert widths[-1] == means.shape[1]


def test_accuracy_around_the_switch_to_the_plain_formula(monkeypatch):
    """The switch is where the number of nodes reaches half of the channels."""
    widths, channels, used = counted(monkeypatch), 64, set()
    for steepness in torch.linspace(1, 6, 26).tolist():
        means, visual, hidden, score = draw(5, channels=channels, steepness=steepness)
        found = channel_scores(means, visual, hidden, score)
        used.add(widths[-1] == channels)
        torch.testing.assert_close(
            found,
            plain_channel_scores(means, visual, hidden, score),
            rtol=0,
            atol=1e-6 * score.abs().sum().item(),
        )
    assert used == {True, False}


@pytest.mark.parametrize("value", [0.0, 3.0, -1e4])
@pytest.mark.parametrize("channels", [1, 64])
def test_equal_means(value, channels):
    """A range of zero width, e.g. of maps with zeros only: equal scores, and the gradients of the plain formula."""
    inputs = [x.detach() for x in draw(1, channels=64, dtype=torch.float32)]
    inputs[0] = torch.full((3, channels), value)
    inputs = [x.requires_grad_() for x in inputs]
    found, wanted = channel_scores(*inputs), plain_channel_scores(*inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    weights = torch.linspace(-1, 2, channels).expand(3, -1)
    found = torch.autograd.grad((found * weights).sum(), inputs)
    wanted = torch.autograd.grad((wanted * weights).sum(), inputs)
    for name, a, b in zip(("means", "visual", "hidden", "score"), found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * (1 + b.abs().max().item()), msg=name)


def test_zero_weights_and_large_hidden_states():
    means, visual, hidden, score = draw(2)
    for visual_, hidden_ in ((0 * visual, hidden), (visual, 1e6 * hidden), (0 * visual, 0 * hidden)):
        found = channel_scores(means, visual_, hidden_, score)
        torch.testing.assert_close(
            found,
            plain_channel_scores(means, visual_, hidden_, score),
            rtol=0,
            atol=1e-6 * score.abs().sum().item(),
        )
