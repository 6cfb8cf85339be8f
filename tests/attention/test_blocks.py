"""The contract of attention blocks, tested on every registered block and on the variants of `lively_blocks.VARIANTS`."""

import copy
import pickle
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sca_caption.attention import BLOCKS, build, build_spec, options_of, parse
from sca_caption.runtime.errors import UserError
from tests.helpers.lively_blocks import CASES, CHANNELS, DEFAULTS, case_name, lively, picture

every_case = pytest.mark.parametrize("case", CASES, ids=case_name)
every_block = pytest.mark.parametrize("case", DEFAULTS, ids=case_name)
every_name = pytest.mark.parametrize("name", BLOCKS)

# out / x with all parameters zero: gates of 1/2, uniform weights, no residual branch.
AT_ZERO = {
    "se": 1 / 2,
    "sk": 0,  # the outputs of its batch norms are zero
    "bam": 1 + 1 / 2,
    "cbam": 1 / 2 * 1 / 2,
    "cbam spatial=False": 1 / 2,
    "coord": 1 / 2 * 1 / 2,
    "csham": 1 / 2 * 1 / 2,
    "csham connection=alternate": (1 / 2) ** 4,
    "ccwh": (1 / 2 + 1 / 2) / 2 + 1 / 2,
    "self_attention": 1,
    "nonlocal": 1,
    "danet_position": 1,
    "danet_channel": 1,
    "danet": 0,
    "sca": 1,
}
IDENTITY_AT_START = ("self_attention", "nonlocal", "danet_position", "danet_channel")


class Pass(NamedTuple):
    """Results of a forward and backward pass, where the loss is a random linear function of the output."""

    output: Tensor
    input_gradient: Tensor
    gradients: dict[str, Tensor | None]  # of the parameters, by name


def run(block: nn.Module, x: Tensor) -> Pass:
    block.zero_grad()
    x = x.clone().requires_grad_()
    output = block(x)
    (output * picture(*output.shape, seed=9).to(output)).sum().backward()
    return Pass(
        output.detach(), x.grad, {name: parameter.grad for name, parameter in block.named_parameters()}
    )


# ---- shapes ----------------------------------------------------------------------------------------------------------


@every_case
def test_the_shape_is_kept_for_any_size(case):
    for size in ((8, 8), (5, 9), (6, 3), (1, 1), (1, 4), (2, 1)):
        block, x = lively(case), picture(2, CHANNELS, *size)
        for mode in (block.eval(), block.train()):
            output = mode(x)
            assert (output.shape, output.dtype) == (x.shape, x.dtype)
            assert output.isfinite().all(), size


@every_case
def test_any_number_of_channels(case):
    name, options = case
    if name == "sk" or "heads" in options:  # these options must divide the channels
        options = options | ({"groups": 1} if name == "sk" else {"heads": 1})
    for channels in (1, 3, 20, 130):
        x = picture(2, channels, 4, 3)
        assert lively((name, options), channels)(x).shape == x.shape


@every_case
def test_images_are_independent_in_evaluation_mode(case):
    block, x = lively(case), picture(3, CHANNELS, 6, 5)
    together = block(x)
    for i in range(len(x)):
        assert_close(together[i : i + 1], block(x[i : i + 1]), rtol=1e-4, atol=1e-5)


@every_case
def test_the_input_is_not_modified(case):
    x = picture(2, CHANNELS, 4, 4)
    kept = x.clone()
    lively(case).train()(x)
    assert torch.equal(x, kept)


# ---- training --------------------------------------------------------------------------------------------------------


@every_case
def test_every_parameter_and_the_input_get_a_gradient(case):
    missing = set(dict(lively(case).named_parameters())) | {"the input"}
    for seed in range(4):  # with some weights, all ReLUs after a narrow layer are inactive
        _, of_input, of_parameters = run(lively(case, seed=seed), picture(4, CHANNELS, 6, 5))
        for name, gradient in [("the input", of_input), *of_parameters.items()]:
            assert gradient is None or gradient.isfinite().all(), f"gradient of {name}"
            if gradient is not None and gradient.any():
                missing.discard(name)
    assert not missing, f"no gradient for {', '.join(sorted(missing))}"


@every_case
def test_gradcheck(case):
    name, options = case
    if name == "sk":
        options = {"groups": 2, "least": 2}
    block = lively((name, options), channels=4).double()
    x = picture(2, 4, 3, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(block, x)
    assert torch.autograd.gradcheck(block.train(), x, nondet_tol=1e-9)


@every_case
def test_training_mode_uses_and_updates_batch_statistics(case):
    """With batch norm, training mode changes the output and all running statistics; without, it changes nothing."""
    block, x = lively(case), picture(4, CHANNELS, 6, 5)
    before = {name: buffer.clone() for name, buffer in block.named_buffers()}
    evaluated = block(x)
    assert all(torch.equal(buffer, before[name]) for name, buffer in block.named_buffers())
    trained = block.train()(x)
    for name, buffer in block.named_buffers():
        assert not torch.equal(buffer, before[name]), f"{name} did not change"
    assert torch.equal(evaluated, trained) == (not before)


@every_case
def test_it_trains_on_one_image_of_one_pixel(case):
    done = run(lively(case).train(), picture(1, CHANNELS, 1, 1))
    assert done.output.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in done.gradients.values())


@every_block
def test_training_changes_every_parameter(case):
    """Parameters before a layer that is initially zero have no gradient in the first step, but in later steps."""
    torch.manual_seed(0)
    name, options = case
    block = build(name, CHANNELS, **options).train()
    start = {name: parameter.clone() for name, parameter in block.named_parameters()}
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    for step in range(3):
        run(block, picture(4, CHANNELS, 6, 5, seed=step))
        optimizer.step()
    for name, parameter in block.named_parameters():
        assert not torch.equal(parameter, start[name]), f"{name} did not change"


# ---- initialisation --------------------------------------------------------------------------------------------------


@every_case
def test_closed_form_with_all_parameters_zero(case):
    block, x = lively(case), picture(2, CHANNELS, 6, 5)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
    factor = AT_ZERO.get(case_name(case), AT_ZERO[case[0]])
    for mode in (block.eval(), block.train()):
        assert_close(mode(x), factor * x)


@every_case
def test_identity_at_initialisation(case):
    name, options = case
    torch.manual_seed(0)
    block, x = build(name, CHANNELS, **options), picture(2, CHANNELS, 6, 5)
    for mode in (block.eval(), block.train()):
        assert torch.equal(mode(x), x) == (name in IDENTITY_AT_START)


@pytest.mark.parametrize("mode", ["C-S", "S-C", "C", "S"])
def test_sca_starts_near_the_identity(mode):
    torch.manual_seed(0)
    x = picture(2, CHANNELS, 6, 5)
    ratio = build("sca", CHANNELS, mode=mode)(x) / x
    assert 0.5 < ratio.min() < ratio.max() < 2
    assert ratio.mean().item() == pytest.approx(1, abs=0.02)


# ---- precision, compilation, storage ---------------------------------------------------------------------------------


@every_case
def test_mixed_precision_is_close(case):
    for dtype in (torch.float32, torch.bfloat16):
        block, x = lively(case), picture(2, CHANNELS, 6, 5).to(dtype)
        exact = block(x.float())
        with torch.autocast("cpu", torch.bfloat16):
            output, _, of_parameters = run(block, x)
        assert output.dtype in (torch.float32, torch.bfloat16)
        assert (output - exact).norm() < 0.03 * exact.norm(), dtype
        for name, gradient in of_parameters.items():
            assert gradient.dtype == torch.float32 and gradient.isfinite().all(), f"gradient of {name}"


def assert_same(found: Pass, wanted: Pass) -> None:
    assert_close(found.output, wanted.output, rtol=1e-4, atol=1e-5)
    assert_close(found.input_gradient, wanted.input_gradient, rtol=1e-3, atol=1e-4)
    for name, gradient in wanted.gradients.items():
        assert_close(found.gradients[name], gradient, rtol=1e-3, atol=1e-3)


@every_case
def test_it_compiles_as_one_graph(case):
    block, x = lively(case), picture(2, CHANNELS, 6, 5)
    eager = run(block, x)
    torch.compiler.reset()
    block.compile(fullgraph=True, backend="aot_eager")
    assert_same(run(block, x), eager)


@every_case
def test_channels_last_gives_the_same_result(case):
    block, x = lively(case), picture(2, CHANNELS, 6, 5)
    contiguous = run(block, x)
    block, x = block.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    assert_same(run(block, x), contiguous)


@every_case
def test_double_precision_agrees(case):
    block, x = lively(case), picture(2, CHANNELS, 6, 5)
    single = block(x)
    double = block.double()(x.double())
    assert double.dtype == torch.float64
    assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


@every_case
def test_state_dict_copy_and_pickle_keep_the_block(case):
    name, options = case
    block, x = lively(case), picture(2, CHANNELS, 6, 5)
    loaded = build(name, CHANNELS, **options).eval()
    loaded.load_state_dict(block.state_dict())
    for same in (loaded, copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(same(x), block(x))


# ---- errors ----------------------------------------------------------------------------------------------------------


@every_name
def test_an_unknown_option_lists_the_valid_ones(name):
    valid = ", ".join(sorted(options_of(name))) or "none"
    with pytest.raises(UserError, match=f"unknown option 'redaction' of {name}; one of: {valid}$"):
        build(name, CHANNELS, redaction=4)
    with pytest.raises(UserError, match=f"unknown option 'redaction' of {name}; .* one of: {valid}$"):
        parse(f"{name}:redaction=4")


@every_name
def test_invalid_values_are_named(name):
    for option, default in options_of(name).items():
        if type(default) is str:
            with pytest.raises(UserError, match=r"unknown .*'sideways'; one of: "):
                build(name, CHANNELS, **{option: "sideways"})
        elif type(default) is int:
            with pytest.raises(UserError, match=f"{option}=0"):
                build(name, CHANNELS, **{option: 0})


def test_an_unknown_block_lists_the_valid_ones():
    with pytest.raises(UserError, match=r"unknown attention 'cbma'; one of: .*cbam.*self_attention"):
        build("cbma", CHANNELS)


@every_case
def test_every_block_has_a_specification(case):
    name, options = case
    texts = []
    for option, value in options.items():
        text = "+".join(value) if isinstance(value, tuple) else str(value)
        texts.append(f"{option}={text.lower() if isinstance(value, bool) else text}")
    spec = name + (":" if texts else "") + ",".join(texts)
    assert parse(spec) == (name, options)
    wanted = build(name, CHANNELS, **options)
    assert str(build_spec(spec, CHANNELS)) == str(wanted)


@every_name
def test_options_are_keywords(name):
    """Options cannot be given by position."""
    with pytest.raises(TypeError):
        BLOCKS[name](CHANNELS, 4)
