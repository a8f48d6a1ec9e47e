"""Backbones: every family builds at its sizes, keeps published counts, loads weights, and refuses by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cl_runner import downloads
from cl_runner.backbones import PytorchCV, SmallCNN, TorchVision, classifier_name, pytorchcv
from cl_runner.backbones import torchvision as tv
from cl_runner.backbones.weights import adapt_channels, read_state
from cl_runner.errors import RequestError


def build(backbone, *, in_channels=3, image_size=32, n_classes=10, meta=False, **options):
    with torch.device("meta" if meta else "cpu"):
        return backbone.build(in_channels=in_channels, image_size=image_size, n_classes=n_classes, **options)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# name, image size, n_classes, dotted name of the classifier
TORCHVISION = [
    ("alexnet", 64, 7, "classifier.6"),
    ("vgg19_bn", 32, 200, "classifier.6"),
    ("resnet18", 28, 5, "fc"),
    ("wide_resnet50_2", 32, 5, "fc"),
    ("googlenet", 32, 5, "fc"),
    ("inception_v3", 96, 5, "fc"),
    ("squeezenet1_0", 32, 5, "classifier.1"),
    ("densenet121", 32, 5, "classifier"),
    ("mobilenet_v3_small", 32, 5, "classifier.3"),
    ("mnasnet0_5", 32, 5, "classifier.1"),
    ("shufflenet_v2_x0_5", 32, 5, "fc"),
    ("efficientnet_b0", 32, 5, "classifier.1"),
    ("regnet_y_400mf", 32, 5, "fc"),
    ("convnext_tiny", 64, 5, "classifier.2"),
    ("swin_t", 64, 5, "head"),
    ("vit_b_16", 32, 5, "heads.head"),
    ("maxvit_t", 224, 5, "classifier.5"),
]
PYTORCHCV = [
    ("resnet20_cifar10", 32, 7, "output"),
    ("resnet20_cifar10", 64, 10, "output"),
    ("densenet40_k12_cifar10", 28, 5, "output"),
    ("nin_cifar10", 32, 5, "output.final_conv.conv"),
    ("rir_cifar10", 32, 5, "output.final_conv.conv"),
    ("wrn16_10_cifar10", 32, 5, "output"),
    ("resnet10", 32, 5, "output"),
    ("vgg11", 224, 5, "output.fc3"),
    ("squeezenet_v1_1", 64, 5, "output.final_conv"),
    ("mobilenet_wd4", 32, 5, "output"),
    ("efficientnet_b0", 32, 5, "output.fc"),
    ("xception", 224, 5, "output"),
    ("dpn68", 64, 5, "output.classifier"),
]


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize(
    ("kind", "name", "image_size", "n_classes", "classifier"),
    [(TorchVision, *row) for row in TORCHVISION] + [(PytorchCV, *row) for row in PYTORCHCV],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_every_family_gives_a_score_a_class(kind, name, image_size, n_classes, classifier, in_channels):
    sizes = {"in_channels": in_channels, "image_size": image_size, "n_classes": n_classes}
    network = build(kind(name=name), meta=True, **sizes)
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    assert network.training
    assert classifier_name(network, n_classes) == classifier
    images = torch.empty(2, in_channels, image_size, image_size, device="meta")
    assert network.eval()(images).shape == (2, n_classes)


def test_a_network_whose_shapes_depend_on_values_builds():
    assert build(PytorchCV(name="isqrtcovresnet18"), n_classes=5, meta=True).output.weight.is_meta
    network = build(PytorchCV(name="isqrtcovresnet18"), in_channels=1, n_classes=5).eval()
    assert network(torch.randn(2, 1, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("image_size", [2, 5, 8, 28, 32, 64])
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_small_cnn_takes_small_images(in_channels, image_size, layers):
    network = build(SmallCNN(layers=layers, width=4), in_channels=in_channels, image_size=image_size, n_classes=5)
    assert network(torch.randn(2, in_channels, image_size, image_size)).shape == (2, 5)
    assert classifier_name(network, 5) == "classifier"


def test_small_cnn_pools_as_an_adaptive_average_does():
    network = build(SmallCNN(layers=1, width=3), image_size=9, n_classes=2)
    features = torch.randn(2, 3, 4, 4)  # 9 -> 4 by the one max-pool
    assert torch.equal(network.pool(features), nn.AdaptiveAvgPool2d(2)(features))
    odd = build(SmallCNN(layers=1, width=3), image_size=3, n_classes=2)
    features = torch.randn(2, 3, 3, 3)
    torch.testing.assert_close(odd.pool(features), nn.AdaptiveAvgPool2d(2)(features))


def test_small_cnn_learns_digits():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
    torch.manual_seed(0)
    order = torch.randperm(len(images))
    train, test = order[450:], order[:450]
    network = build(SmallCNN(), in_channels=1, image_size=8)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(5):
        for batch in train[torch.randperm(len(train))].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    network.eval()
    assert (network(images[test]).argmax(1) == labels[test]).float().mean() > 0.97


def test_vgg19_bn_has_the_published_layers():
    network = build(TorchVision(name="vgg19_bn"), image_size=224, n_classes=200, meta=True)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert len(convolutions) == 16
    assert sum(module.in_channels + module.out_channels for module in convolutions) == 10_499
    # 25088*4096 + 4096, 4096*4096 + 4096, 4096*200 + 200
    assert [count(module) for module in linears] == [102_764_544, 16_781_312, 819_400]
    assert sum(map(count, linears)) == 120_365_256


@pytest.mark.parametrize("name", ["resnet18", "vgg19_bn", "mobilenet_v3_small", "swin_t", "vit_b_16"])
def test_torchvision_counts_are_the_published_ones(name):
    from torchvision.models import get_model_weights

    network = build(TorchVision(name=name), image_size=224, n_classes=1000, meta=True)
    assert count(network) == get_model_weights(name).DEFAULT.meta["num_params"]


@pytest.mark.parametrize("name", ["resnet20_cifar10", "densenet40_k12_cifar10", "nin_cifar10", "resnet10", "dpn68"])
def test_pytorchcv_counts_are_the_published_ones(name):
    from pytorchcv.models.common.model_store import get_model_weight_count

    cifar = name.endswith("cifar10")
    sizes = {"image_size": 32 if cifar else 224, "n_classes": 10 if cifar else 1000}
    network = build(PytorchCV(name=name), meta=True, **sizes)
    assert count(network) == get_model_weight_count(name)


def test_golden_counts():
    assert count(build(PytorchCV(name="resnet20_cifar10"), meta=True)) == 272_474
    assert count(build(TorchVision(name="resnet18"), image_size=224, n_classes=1000, meta=True)) == 11_689_512
    # The small stem has 64*3*3*3 instead of 64*3*7*7 weights.
    small = build(TorchVision(name="resnet18"), image_size=32, n_classes=1000, meta=True)
    assert count(small) == 11_689_512 - 64 * 3 * (49 - 9)


@pytest.mark.parametrize("kind", [TorchVision, PytorchCV])
def test_stem(kind):
    def first(**options):
        size = options.pop("image_size", 32)
        network = build(kind(name="resnet18", **options), image_size=size, meta=True, load_weights=False)
        convolution = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
        pools = [module for module in network.modules() if isinstance(module, nn.MaxPool2d)]
        return convolution.kernel_size, convolution.stride, len(pools)

    original, small = ((7, 7), (2, 2), 1), ((3, 3), (1, 1), 0)
    assert first() == small
    assert first(image_size=64) == small
    assert first(image_size=96) == original
    assert first(stem="original") == original
    assert first(pretrained=True) == original
    assert first(stem="small", image_size=224) == small


@pytest.mark.parametrize(
    ("backbone", "kernel", "stride"),
    [
        (TorchVision(name="vgg11_bn"), 3, 1),
        (PytorchCV(name="resnet20_cifar10"), 3, 1),
        (TorchVision(name="swin_t"), 4, 4),
    ],
    ids=["vgg11_bn", "resnet20_cifar10", "swin_t"],
)
def test_auto_stem_leaves_what_does_not_overlap_and_stride(backbone, kernel, stride):
    network = build(backbone, image_size=64, meta=True)
    convolution = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert (convolution.kernel_size[0], convolution.stride[0]) == (kernel, stride)


@pytest.mark.parametrize(
    "backbone",
    [SmallCNN(), PytorchCV(name="resnet20_cifar10"), TorchVision(name="squeezenet1_1"), TorchVision(name="resnet18")],
    ids=lambda backbone: backbone.name,
)
def test_the_seed_decides_the_weights(backbone):
    def state(seed):
        torch.manual_seed(seed)
        return build(backbone, in_channels=1, n_classes=7).state_dict()

    first, again, other = state(0), state(0), state(1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_a_redrawn_first_convolution_keeps_the_spread_of_its_output():
    torch.manual_seed(0)
    published = build(TorchVision(name="resnet18", stem="original")).conv1.weight
    small = build(TorchVision(name="resnet18"), in_channels=1).conv1.weight
    # Equal variance of the output: std * sqrt(fan-in), fan-ins 3*49 and 1*9; 576 draws, so about 3 % of spread.
    assert small.std().item() * 3 == pytest.approx((published.std() * 147**0.5).item(), rel=0.15)


def save(state, path):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


NESTS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
}


@pytest.mark.parametrize(
    ("suffix", "nest"), [(".safetensors", "plain"), (".pth", "plain"), (".pt", "state_dict"), (".pth", "model")]
)
@pytest.mark.parametrize(
    ("kind", "name"), [(SmallCNN, "small_cnn"), (PytorchCV, "resnet20_cifar10"), (TorchVision, "mnasnet0_5")]
)
def test_saved_weights_come_back(tmp_path, kind, name, suffix, nest):
    trained = build(kind(name=name), n_classes=7)
    path = save(NESTS[nest](dict(trained.state_dict())), tmp_path / f"weights{suffix}")
    options = {"stem": "small"} if kind is TorchVision else {}
    loaded = build(kind(name=name, pretrained=path, **options), n_classes=7)
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_another_number_of_classes_keeps_its_own_classifier(tmp_path):
    trained = build(PytorchCV(name="resnet20_cifar10"))
    path = save(trained.state_dict(), tmp_path / "weights.pth")
    torch.manual_seed(5)
    fresh = build(PytorchCV(name="resnet20_cifar10"), n_classes=4)
    torch.manual_seed(5)
    loaded = build(PytorchCV(name="resnet20_cifar10", pretrained=path), n_classes=4)
    assert torch.equal(loaded.output.weight, fresh.output.weight)
    key = "features.stage3.unit3.body.conv2.conv.weight"
    assert torch.equal(loaded.get_parameter(key), trained.get_parameter(key))


def test_colour_weights_treat_grey_as_colour(tmp_path):
    colour = build(PytorchCV(name="resnet20_cifar10")).eval()
    path = save(colour.state_dict(), tmp_path / "weights.safetensors")
    grey = build(PytorchCV(name="resnet20_cifar10", pretrained=path), in_channels=1).eval()
    images = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(grey(images), colour(images.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)
    again = adapt_channels(adapt_channels(torch.randn(4, 3, 3, 3), torch.Size([4, 1, 3, 3])), torch.Size([4, 3, 3, 3]))
    assert again.shape == (4, 3, 3, 3)


def test_torchvision_files_of_older_layouts_load():
    network = nn.Module()
    state = {
        "features.denseblock1.denselayer1.norm.1.weight": torch.ones(1),
        "encoder.layers.encoder_layer_0.mlp.linear_1.weight": torch.ones(1),
        "encoder.layers.encoder_layer_0.mlp.linear_2.bias": torch.ones(1),
        "aux1.fc1.weight": torch.ones(1),
        "AuxLogits.fc.bias": torch.ones(1),
    }
    assert list(tv._fit_layout(network, state)) == [
        "features.denseblock1.denselayer1.norm1.weight",
        "encoder.layers.encoder_layer_0.mlp.0.weight",
        "encoder.layers.encoder_layer_0.mlp.3.bias",
    ]


def test_position_embeddings_are_fitted_to_the_image_size():
    from torchvision.models import VisionTransformer

    options = {"patch_size": 16, "num_layers": 1, "num_heads": 1, "hidden_dim": 8, "mlp_dim": 8, "num_classes": 3}
    large, small = VisionTransformer(image_size=64, **options), VisionTransformer(image_size=32, **options)
    fitted = tv._fit_layout(small, large.state_dict())
    assert fitted["encoder.pos_embedding"].shape == (1, 2 * 2 + 1, 8)
    small.load_state_dict(fitted)


def test_default_weights_are_read_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = build(TorchVision(name="squeezenet1_1", stem="original"), image_size=224, n_classes=1000)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    save(published.state_dict(), tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    loaded = build(TorchVision(name="squeezenet1_1", pretrained=True), image_size=64, n_classes=7)
    assert torch.equal(loaded.features[0].weight, published.features[0].weight)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    def refuse(*args, **options):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(pytorchcv, "STORE", tmp_path / ".torch" / "models")
    monkeypatch.setattr(downloads, "urlopen", refuse)


@pytest.mark.parametrize("backbone", [TorchVision(name="resnet18", pretrained=True)], ids=["torchvision"])
def test_planning_reads_no_weights(no_network, backbone):
    assert count(build(backbone, image_size=224, n_classes=1000, meta=True, load_weights=False)) == 11_689_512
    missing = PytorchCV(name="resnet20_cifar10", pretrained="absent.pth")
    assert count(build(missing, meta=True, load_weights=False)) == 272_474


@pytest.mark.parametrize(
    ("backbone", "file"),
    [
        (TorchVision(name="resnet18", pretrained=True), "hub/checkpoints/resnet18-f37072fd.pth"),
        (PytorchCV(name="resnet20_cifar10", pretrained=True), ".torch/models/resnet20_cifar10-"),
    ],
    ids=["torchvision", "pytorchcv"],
)
def test_weights_that_cannot_be_had_are_named(no_network, backbone, file):
    with pytest.raises(RequestError) as refusal:
        build(backbone)
    assert "backbone.pretrained=true" in refusal.value.message
    assert "no route to host" in refusal.value.message
    assert file in refusal.value.hint
    assert "backbone.pretrained=PATH" in refusal.value.hint


def write_files(folder):
    """Files that must be refused, by what is wrong with them."""
    state = dict(build(PytorchCV(name="resnet20_cifar10")).state_dict())
    whole = {suffix: save(state, folder / f"whole{suffix}") for suffix in (".pth", ".safetensors")}
    for suffix, path in whole.items():
        data = Path(path).read_bytes()
        (folder / f"cut{suffix}").write_bytes(data[: len(data) // 2])
    (folder / "empty.pth").write_bytes(b"")
    (folder / "text.pth").write_text("<html>not found</html>")
    (folder / "weights.bin").write_bytes(b"x")
    (folder / "folder.pth").mkdir()
    torch.save(nn.Linear(2, 2), folder / "code.pth")
    torch.save([torch.ones(2)], folder / "list.pth")
    torch.save({"weights": 3}, folder / "number.pth")
    torch.save({}, folder / "nothing.pth")
    stage = "features.stage1.unit1.body.conv1.conv.weight"
    torch.save({key: value for key, value in state.items() if key != stage}, folder / "missing.pth")
    torch.save(state | {"extra.weight": torch.ones(1)}, folder / "unexpected.pth")
    torch.save(state | {stage: torch.ones(16, 16, 5, 5)}, folder / "shape.pth")
    torch.save(state | {"features.init_block.conv.weight": torch.ones(16, 3, 7, 7)}, folder / "stem.pth")
    torch.save(state | {"output.weight": torch.ones(10, 32)}, folder / "head.pth")


@pytest.fixture(scope="module")
def refused_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    write_files(folder)
    return folder


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("absent.pth", "no such file"),
        ("folder.pth", "no such file"),
        ("weights.bin", "not a weights file"),
        ("cut.pth", "damaged"),
        ("cut.safetensors", "damaged"),
        ("empty.pth", "damaged"),
        ("text.pth", "damaged"),
        ("code.pth", "run code"),
        ("list.pth", "no state dict"),
        ("number.pth", "no state dict"),
        ("nothing.pth", "no state dict"),
        ("missing.pth", "missing features.stage1.unit1.body.conv1.conv.weight"),
        ("unexpected.pth", "unexpected extra.weight"),
        ("shape.pth", "features.stage1.unit1.body.conv1.conv.weight is 16x16x5x5 in the file and 16x16x3x3"),
        ("stem.pth", "backbone.stem"),
        ("head.pth", "output.weight is 10x32 in the file and 10x64"),
    ],
)
def test_unusable_weights_are_refused_by_name(refused_files, file, says):
    path = refused_files / file
    with pytest.raises(RequestError) as refusal:
        build(PytorchCV(name="resnet20_cifar10", pretrained=str(path)))
    assert refusal.value.message.startswith(f"backbone.pretrained={path}: ")
    assert says in str(refusal.value)
    assert "\n" not in refusal.value.message


def test_old_files_without_step_counters_load(tmp_path):
    trained = build(PytorchCV(name="resnet20_cifar10"))
    state = {key: value for key, value in trained.state_dict().items() if not key.endswith("num_batches_tracked")}
    path = save(state, tmp_path / "weights.pth")
    loaded = build(PytorchCV(name="resnet20_cifar10", pretrained=path))
    assert torch.equal(loaded.output.weight, trained.output.weight)
    assert read_state(path).keys() == state.keys()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TorchVision(name="resnet81"), ("backbone.name=resnet81", "did you mean 'resnet18'?")),
        (
            lambda: PytorchCV(name="resnet20_cifar11"),
            ("backbone.name=resnet20_cifar11", "did you mean 'resnet20_cifar1"),
        ),
        (lambda: TorchVision(name="fasterrcnn_resnet50_fpn"), ("backbone.name=fasterrcnn", "does not classify images")),
        (lambda: TorchVision(name="fcn_resnet50"), ("does not classify images",)),
        (lambda: TorchVision(name="r3d_18"), ("does not classify images",)),
        (lambda: TorchVision(name="quantized_resnet18"), ("did you mean 'resnet18'?",)),
        (lambda: PytorchCV(name="fcn8sd_resnetd50b_voc"), ("it does not classify images",)),
        (lambda: PytorchCV(name="simplepose_resnet18_coco"), ("it does not classify images",)),
        (
            lambda: TorchVision(name="vgg11"),
            ("backbone.name=vgg11", "benchmark.image_size=8", "benchmark.image_size=32"),
        ),
        (lambda: TorchVision(name="vit_b_32"), ("benchmark.image_size=8", "it runs at benchmark.image_size=32")),
        (lambda: TorchVision(name="alexnet", stem="original"), ("backbone.name=alexnet", "benchmark.image_size=64")),
        (lambda: TorchVision(name="vgg11", stem="small"), ("backbone.stem=small", "backbone.stem=original")),
        (lambda: TorchVision(name="resnet18", stem="tiny"), ("backbone.stem=tiny", "auto, original, small")),
        (lambda: PytorchCV(name="resnet18", stem="tiny"), ("backbone.stem=tiny",)),
        (lambda: SmallCNN(pretrained=True), ("backbone.pretrained=true", "backbone.pretrained=PATH")),
        (lambda: SmallCNN(layers=0), ("backbone.layers=0", "backbone.layers=2")),
        (lambda: SmallCNN(width=0), ("backbone.width=0", "backbone.width=32")),
        (lambda: PytorchCV(name="resnext26_16x4d", pretrained=True), ("publishes no weights for resnext26_16x4d",)),
    ],
)
def test_what_cannot_be_built_is_refused_with_help(make, says, no_network):
    with pytest.raises(RequestError) as refusal:
        build(make(), image_size=8)
    assert all(words in str(refusal.value) for words in says), str(refusal.value)
    assert "\n" not in refusal.value.message
    assert refusal.value.hint


def test_a_network_without_a_classifier_is_refused():
    with pytest.raises(RequestError, match="no linear layer or convolution with 10 outputs"):
        classifier_name(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), 10)


def test_imports_are_light():
    code = (
        "import sys, cl_runner.backbones; assert 'torch' not in sys.modules;"
        "from cl_runner.backbones import SmallCNN, PytorchCV, TorchVision;"
        "assert not {'torchvision', 'pytorchcv', 'avalanche'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
