"""Published weights: random state dicts with the authors' names are converted and compute the same."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn.functional import batch_norm, conv2d, linear, relu

from sca_caption.models.networks import build_network, load_pretrained
from sca_caption.models.published_weights import layout_of, load_published, rename
from sca_caption.runtime.errors import UserError

CLASSES = 3
# Authors' name, ours, shape.
Listing = Iterator[tuple[str, str, tuple[int, ...]]]


def layer(theirs: str, ours: str, *shape: int, bias: bool = False) -> Listing:
    yield f"{theirs}.weight", f"{ours}.weight", shape
    if bias:
        yield f"{theirs}.bias", f"{ours}.bias", shape[:1]


def norm(theirs: str, ours: str, channels: int) -> Listing:
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield f"{theirs}.{name}", f"{ours}.{name}", (channels,)
    yield f"{theirs}.num_batches_tracked", f"{ours}.num_batches_tracked", ()


def conv_norm(theirs: tuple[str, str], ours: tuple[str, str], *shape: int) -> Listing:
    yield from layer(theirs[0], ours[0], *shape)
    yield from norm(theirs[1], ours[1], shape[0])


def resnet(units: tuple[int, ...], block, stage=None, deep=False, stem="", head="fc") -> Listing:
    """`block(theirs, ours, channels)` yields the tensors of a block in a residual unit, `stage` of one after a stage."""
    yield from conv_norm((f"{stem}conv1", f"{stem}bn1"), ("conv1", "bn1"), 64, 3, 7, 7)
    before = 64
    for number, count in enumerate(units, 1):
        width = 32 * 2**number
        channels = width * 4 if deep else width
        for index in range(count):
            unit = f"layer{number}.{index}"
            kernels = [(width, before, 1), (width, width, 3), (channels, width, 1)]
            for i, (to, of, k) in enumerate(kernels if deep else [(width, before, 3), (width, width, 3)], 1):
                names = f"{unit}.conv{i}", f"{unit}.bn{i}"
                yield from conv_norm(names, names, to, of, k, k)
            if block:
                yield from block(unit, f"{unit}.attention", channels)
            if index == 0 and before != channels:
                names = f"{unit}.downsample.0", f"{unit}.downsample.1"
                yield from conv_norm(names, names, channels, before, 1, 1)
            before = channels
        if stage and number < 4:
            yield from stage(f"bam{number}", f"layer{number}.attention", channels)
    yield from layer(head, "fc", CLASSES, before, bias=True)


def cbam(theirs: str, ours: str, c: int) -> Listing:
    yield from layer(f"{theirs}.cbam.ChannelGate.mlp.1", f"{ours}.mlp.0", c // 16, c, bias=True)
    yield from layer(f"{theirs}.cbam.ChannelGate.mlp.3", f"{ours}.mlp.2", c, c // 16, bias=True)
    names = [f"{theirs}.cbam.SpatialGate.spatial.{part}" for part in ("conv", "bn")]
    yield from conv_norm(names, (f"{ours}.spatial.conv", f"{ours}.spatial.bn"), 1, 2, 7, 7)


def bam(theirs: str, ours: str, c: int) -> Listing:
    r, channel, spatial = (
        c // 16,
        f"{theirs}.channel_att.gate_c.gate_c",
        f"{theirs}.spatial_att.gate_s.gate_s",
    )
    yield from layer(f"{channel}_fc_0", f"{ours}.channel.0", r, c, bias=True)
    yield from norm(f"{channel}_bn_1", f"{ours}.channel.1", r)
    yield from layer(f"{channel}_fc_final", f"{ours}.channel.3", c, r, bias=True)
    for i, (name, of, k) in enumerate((("reduce0", c, 1), ("di_0", r, 3), ("di_1", r, 3))):
        yield from layer(f"{spatial}_conv_{name}", f"{ours}.spatial.{3 * i}", r, of, k, k, bias=True)
        yield from norm(f"{spatial}_bn_{name}", f"{ours}.spatial.{3 * i + 1}", r)
    yield from layer(f"{spatial}_conv_final", f"{ours}.spatial.9", 1, r, 1, 1, bias=True)


def se_linear(theirs: str, ours: str, c: int) -> Listing:
    yield from layer(f"{theirs}.se.fc.0", f"{ours}.reduce", c // 16, c)
    yield from layer(f"{theirs}.se.fc.2", f"{ours}.expand", c, c // 16)


def se_pointwise(theirs: str, ours: str, c: int) -> Listing:
    yield from layer(f"{theirs}.se_module.fc1", f"{ours}.reduce", c // 16, c, 1, 1, bias=True)
    yield from layer(f"{theirs}.se_module.fc2", f"{ours}.expand", c, c // 16, 1, 1, bias=True)


def mobilenet_ca() -> Listing:
    names = "features.0.0", "features.0.1"
    yield from conv_norm(names, names, 32, 3, 3, 3)
    widths = [16] + 2 * [24] + 3 * [32] + 4 * [64] + 3 * [96] + 3 * [160] + [320]
    for i, (of, to) in enumerate(zip([32, *widths], widths, strict=False), 1):
        at = f"features.{i}.conv"
        if i == 1:
            yield from conv_norm((f"{at}.0", f"{at}.1"), (f"{at}.0.0", f"{at}.0.1"), of, 1, 3, 3)
            yield from conv_norm((f"{at}.3", f"{at}.4"), (f"{at}.1", f"{at}.2"), to, of, 1, 1)
            continue
        c = 6 * of
        yield from conv_norm((f"{at}.0", f"{at}.1"), (f"{at}.0.0", f"{at}.0.1"), c, of, 1, 1)
        yield from conv_norm((f"{at}.3", f"{at}.4"), (f"{at}.1.0", f"{at}.1.1"), c, 1, 3, 3)
        ca, ours, r = f"{at}.6", f"{at}.1.attention", max(8, c // 32)
        yield from layer(f"{ca}.conv1", f"{ours}.reduce", r, c, 1, 1, bias=True)
        yield from norm(f"{ca}.bn1", f"{ours}.bn", r)
        yield from layer(f"{ca}.conv2", f"{ours}.rows", c, r, 1, 1, bias=True)
        yield from layer(f"{ca}.conv3", f"{ours}.columns", c, r, 1, 1, bias=True)
        yield from conv_norm((f"{at}.7", f"{at}.8"), (f"{at}.2", f"{at}.3"), to, c, 1, 1)
    yield from conv_norm(("conv.0", "conv.1"), ("features.18.0", "features.18.1"), 1280, 320, 1, 1)
    yield from layer("classifier.1", "classifier.1", CLASSES, 1280, bias=True)


RESNET18, RESNET50 = (2, 2, 2, 2), (3, 4, 6, 3)
PUBLISHED = {
    "cbam": ("resnet18", "cbam", lambda: resnet(RESNET18, cbam)),
    "bam": ("resnet18", "bam", lambda: resnet(RESNET18, None, bam)),
    "coord": ("mobilenet_v2", "coord", mobilenet_ca),
    "se, linear": ("resnet18", "se:bias=false", lambda: resnet(RESNET18, se_linear)),
    "se, from Caffe": (
        "resnet50",
        "se",
        lambda: resnet(RESNET50, se_pointwise, deep=True, stem="layer0.", head="last_linear"),
    ),
}


def weights_of(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Random weights under the authors' names, and the same tensors under ours."""
    torch.manual_seed(0)
    theirs, ours = {}, {}
    for their_name, our_name, shape in PUBLISHED[name][2]():
        tensor = torch.randn(shape) / max(1, torch.Size(shape[1:]).numel()) ** 0.5
        if their_name.endswith("running_var"):
            tensor = 1 + tensor.abs()
        if their_name.endswith("num_batches_tracked"):
            tensor = torch.tensor(7)
        theirs[their_name] = ours[our_name] = tensor
    return theirs, ours


def loaded(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    network, attention, _ = PUBLISHED[name]
    theirs, _ = weights_of(name)
    model = build_network(network, CLASSES, attention=attention)
    load_published(model, theirs, network)
    return model.eval(), theirs


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_is_converted(name):
    network, attention, _ = PUBLISHED[name]
    theirs, expected = weights_of(name)
    assert len(theirs) == len(expected)
    assert layout_of(theirs).attention == attention
    renamed = rename(theirs, network)
    assert renamed.keys() == expected.keys()
    model = build_network(network, CLASSES, attention=attention)
    load_published(model, theirs, network)
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(renamed[key].flatten(), tensor.flatten())
        assert torch.equal(state[key], renamed[key])


def pick(state: dict[str, torch.Tensor], prefix: str):
    """Functions that apply a layer and a norm below a prefix of the authors' state dict."""

    def apply(function, x, name, **options):
        return function(x, state[f"{prefix}{name}.weight"], state.get(f"{prefix}{name}.bias"), **options)

    def normalise(x, name):
        statistics = [state[f"{prefix}{name}.{s}"] for s in ("running_mean", "running_var", "weight", "bias")]
        return batch_norm(x, *statistics)

    return apply, normalise


@torch.no_grad()
def test_cbam_computes_the_authors_function():
    model, state = loaded("cbam")
    apply, normalise = pick(state, "layer2.1.cbam.")
    x = torch.randn(2, 128, 5, 4)

    def mlp(pooled):
        hidden = relu(apply(linear, pooled, "ChannelGate.mlp.1"))
        return apply(linear, hidden, "ChannelGate.mlp.3")

    gated = x * (mlp(x.mean((2, 3))) + mlp(x.amax((2, 3)))).sigmoid()[:, :, None, None]
    pooled = torch.stack([gated.amax(1), gated.mean(1)], 1)
    scores = normalise(apply(conv2d, pooled, "SpatialGate.spatial.conv", padding=3), "SpatialGate.spatial.bn")
    torch.testing.assert_close(model.layer2[1].attention(x), gated * scores.sigmoid())


@torch.no_grad()
def test_bam_computes_the_authors_function():
    model, state = loaded("bam")
    apply, normalise = pick(state, "bam2.")
    x = torch.randn(2, 128, 5, 4)
    c, s = "channel_att.gate_c.gate_c", "spatial_att.gate_s.gate_s"
    channel = relu(normalise(apply(linear, x.mean((2, 3)), f"{c}_fc_0"), f"{c}_bn_1"))
    channel = apply(linear, channel, f"{c}_fc_final")[:, :, None, None]
    spatial = relu(normalise(apply(conv2d, x, f"{s}_conv_reduce0"), f"{s}_bn_reduce0"))
    for i in (0, 1):
        spatial = apply(conv2d, spatial, f"{s}_conv_di_{i}", padding=4, dilation=4)
        spatial = relu(normalise(spatial, f"{s}_bn_di_{i}"))
    spatial = apply(conv2d, spatial, f"{s}_conv_final")
    torch.testing.assert_close(model.layer2.attention(x), x * (1 + (channel * spatial).sigmoid()))


@torch.no_grad()
def test_coordinate_attention_in_an_inverted_residual_computes_the_authors_function():
    model, state = loaded("coord")
    apply, normalise = pick(state, "features.3.conv.")
    x = torch.randn(2, 24, 6, 5)
    out = normalise(apply(conv2d, x, "0"), "1").clamp(0, 6)
    out = normalise(apply(conv2d, out, "3", padding=1, groups=144), "4").clamp(0, 6)
    joint = torch.cat([out.mean(3), out.mean(2)], 2)[..., None]
    joint = normalise(apply(conv2d, joint, "6.conv1"), "6.bn1")
    joint = joint * (joint + 3).clamp(0, 6) / 6
    rows = apply(conv2d, joint[:, :, :6], "6.conv2").sigmoid()
    columns = apply(conv2d, joint[:, :, 6:], "6.conv3").sigmoid()
    out = out * rows * columns.transpose(2, 3)
    out = x + normalise(apply(conv2d, out, "7"), "8")
    torch.testing.assert_close(model.features[3](x), out)


@torch.no_grad()
def test_se_without_biases_computes_the_authors_function():
    model, state = loaded("se, linear")
    apply, _ = pick(state, "layer3.0.se.")
    x = torch.randn(2, 256, 3, 4)
    weights = apply(linear, relu(apply(linear, x.mean((2, 3)), "fc.0")), "fc.2").sigmoid()
    torch.testing.assert_close(model.layer3[0].attention(x), x * weights[:, :, None, None])


@torch.no_grad()
def test_strides_and_pooling_of_networks_from_caffe():
    model, state = loaded("se, from Caffe")
    apply, normalise = pick(state, "layer2.0.")
    x = torch.randn(1, 256, 6, 5)
    out = relu(normalise(apply(conv2d, x, "conv1", stride=2), "bn1"))
    out = relu(normalise(apply(conv2d, out, "conv2", padding=1), "bn2"))
    out = normalise(apply(conv2d, out, "conv3"), "bn3")
    squeezed = out.mean((2, 3), keepdim=True)
    weights = apply(conv2d, relu(apply(conv2d, squeezed, "se_module.fc1")), "se_module.fc2").sigmoid()
    shortcut = normalise(apply(conv2d, x, "downsample.0", stride=2), "downsample.1")
    torch.testing.assert_close(model.layer2[0](x), relu(out * weights + shortcut))
    ramp = torch.arange(36.0).reshape(1, 1, 6, 6)
    assert model.maxpool(ramp).flatten().tolist() == [14, 16, 17, 26, 28, 29, 32, 34, 35]


def test_resnext_from_caffe_keeps_its_stride_in_the_3x3():
    # Widths of a bottleneck: ResNet-50 -> ResNeXt-50, with 32 groups of 4.
    width = {64: 128, 128: 256, 256: 512, 512: 1024}
    theirs, _ = weights_of("se, from Caffe")
    for name, tensor in theirs.items():
        if ".se_module." in name or ".downsample." in name or not name.startswith("layer"):
            continue
        shape = list(tensor.shape)
        if name.split(".")[2] in ("conv1", "conv2", "bn1", "bn2") and not name.startswith("layer0") and shape:
            shape[0] = width[shape[0]]
        if ".conv2." in name:
            shape[1] = shape[0] // 32
        if ".conv3." in name:
            shape[1] = width[shape[1]]
        theirs[name] = torch.ones(shape, dtype=tensor.dtype)
    model = build_network("resnext50_32x4d", CLASSES, attention="se")
    load_published(model, theirs, "resnext50_32x4d")
    assert model.layer3[0].conv1.stride == (1, 1) and model.layer3[0].conv2.stride == (2, 2)
    assert model.maxpool.padding == 0 and model.maxpool.ceil_mode


def test_checkpoints_of_data_parallel_training_and_old_files_load():
    theirs, expected = weights_of("cbam")
    old = {k: t for k, t in theirs.items() if not k.endswith("num_batches_tracked")}
    checkpoint = {"epoch": 90, "state_dict": {f"module.{k}": t for k, t in old.items()}, "optimizer": {}}
    model = build_network("resnet18", CLASSES, attention="cbam")
    load_published(model, checkpoint, "resnet18")
    state = model.state_dict()
    assert all(torch.equal(state[k], expected[k]) for k in rename(checkpoint, "resnet18"))


def test_another_head_loads_through_load_pretrained():
    model = build_network("resnet18", CLASSES + 1, attention="cbam")
    theirs, expected = weights_of("cbam")
    assert load_pretrained(model, rename(theirs, "resnet18"), "resnet18") == ["fc.weight", "fc.bias"]
    name = "layer4.1.attention.spatial.conv.weight"
    assert torch.equal(model.state_dict()[name], expected[name])


def small(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(1) for name in names}


@pytest.mark.parametrize(
    ("weights", "network", "message"),
    [
        (small("conv1.weight"), "resnet18", "found conv1.weight, ...; known layouts: "),
        ({}, "resnet18", "found nothing, ...; known layouts: Jongchan/attention-module, "),
        ({"conv1.weight": 3}, "resnet18", "'state_dict'"),
        ([1, 2], "resnet18", "'state_dict'"),
        (small("layer1.0.se.fc.0.weight"), "vgg16", "vgg16; one of: resnet18, resnet34, resnet50, resnet101, resnet152"),
        (small("bam1.channel_att.gate_c.gate_c_fc_7.weight"), "resnet18", "fc_7.weight: unknown layer of bam of"),
    ],
)  # fmt: skip
def test_weights_without_a_known_layout_are_refused(weights, network, message):
    with pytest.raises(UserError) as error:
        rename(weights, network)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "network", "attention", "message"),
    [
        ({}, ("resnet18", CLASSES + 1), "cbam", f"fc.weight is ({CLASSES}, 512) in weights of Jongchan"),
        ({}, ("resnet18", CLASSES), "bam", "the network has no layer1.0.attention.mlp.0.weight, which"),
        ({"bn1.weight": None}, ("resnet18", CLASSES), "cbam", "have no bn1.weight; build the network resnet18 with"),
        ({}, ("resnet34", CLASSES), "cbam", "weights of Jongchan/attention-module have no layer"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_the_network_are_refused(change, network, attention, message):
    weights = {k: t for k, t in (weights_of("cbam")[0] | change).items() if t is not None}
    model = build_network(*network, attention=attention)
    before = {k: t.clone() for k, t in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_published(model, weights, network[0])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
