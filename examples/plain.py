"""The whole experiment in one file of plain PyTorch: from an ordering's four lists to a test error.

    python examples/plain.py --ordering full-preact --depth 20 --iterations 2000

A ResNet of 6n+2 layers learns CIFAR-10 with BatchNorm (bn) and ReLU in one of the five orderings of
He et al., "Identity Mappings in Deep Residual Networks" (arXiv:1603.05027, figure 4), with the
paper's protocol. `--data` names the folder that contains `cifar-10-batches-py`, unpacked from
https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz.

Read `Unit.forward` first: it is the equation. `resvar` computes the same losses from the same
weights and batches (tests/test_plain_example.py); it adds speed, bottlenecks, exact resumption,
sweeps and statistics.
"""

import argparse
import os
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

# --- the five orderings and the network -----------------------------------------------------------


class Ordering(NamedTuple):
    """The operations at the four places of a residual unit of two convolutions."""

    lead: tuple[str, ...]  # before the first convolution
    between: tuple[str, ...]  # between the two
    trail: tuple[str, ...]  # after the second convolution
    after_add: tuple[str, ...]  # after the addition of branch and shortcut


ORDERINGS = {
    "original": Ordering((), ("bn", "relu"), ("bn",), ("relu",)),
    "bn-after-add": Ordering((), ("bn", "relu"), (), ("bn", "relu")),
    "relu-before-add": Ordering((), ("bn", "relu"), ("bn", "relu"), ()),
    "relu-only-preact": Ordering(("relu",), ("bn", "relu"), ("bn",), ()),
    "full-preact": Ordering(("bn", "relu"), ("bn", "relu"), (), ()),
}


class Unit(nn.Module):
    """A residual unit, [N, channels_in, H, W] → [N, channels, H/stride, W/stride]."""

    def __init__(self, ordering: Ordering, channels_in: int, channels: int) -> None:
        super().__init__()
        self.stride = channels // channels_in  # halve the resolution where the channels double
        self.extra = (channels - channels_in) // 2
        self.lead = operations(ordering.lead, channels_in)
        self.branch = nn.Sequential(
            convolution(channels_in, channels, self.stride),
            *operations(ordering.between, channels),
            convolution(channels, channels),
            *operations(ordering.trail, channels),
        )
        self.after_add = operations(ordering.after_add, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.after_add(self.branch(self.lead(x)) + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Identity; if the shape changes, every second pixel, and zeros as new channels."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.extra, self.extra)) if self.extra else x


class ResNet(nn.Module):
    """Images float [N, 3, 32, 32] → logits [N, 10]: stem, three stages of n units, head."""

    def __init__(self, ordering: Ordering, depth: int) -> None:
        super().__init__()
        n, rest = divmod(depth - 2, 6)
        if n < 1 or rest:
            raise ValueError(f"depth {depth} is not 6n+2, such as 20, 32, 44, 56 or 110")
        # Of BN and ReLU, those that are not in the lead follow the first convolution. The first
        # unit's lead comes here, before the split: its shortcut passes on the activated signal.
        after_first = [op for op in ("bn", "relu") if op not in ordering.lead]
        self.stem = nn.Sequential(
            convolution(3, 16), *operations(after_first, 16), *operations(ordering.lead, 16)
        )
        widths = [16] * (n + 1) + [32] * n + [64] * n
        self.units = nn.Sequential(
            *(
                Unit(ordering if index else ordering._replace(lead=()), channels_in, channels)
                for index, (channels_in, channels) in enumerate(pairwise(widths))
            )
        )
        self.head = operations(ordering.lead, 64)
        self.classifier = nn.Linear(64, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He initialisation, arXiv:1502.01852
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.head(self.units(self.stem(images))).mean(dim=(2, 3)))


def convolution(channels_in: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)


def operations(names: Iterable[str], channels: int) -> nn.Sequential:
    return nn.Sequential(*(nn.BatchNorm2d(channels) if op == "bn" else nn.ReLU() for op in names))


# --- the data -------------------------------------------------------------------------------------

AUGMENTATION = transforms.Compose(
    [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
)


@dataclass
class Cifar10(Dataset[tuple[Tensor, Tensor]]):
    """Images minus the mean training image, each cropped and flipped at random if `augment`."""

    images: Tensor  # uint8 [N, 3, 32, 32]
    labels: Tensor  # int64 [N]
    mean: Tensor  # float [3, 32, 32], of pixels in [0, 1]
    augment: bool

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index].float() / 255 - self.mean
        return AUGMENTATION(image) if self.augment else image, self.labels[index]


def load_cifar10(folder: Path) -> tuple[Cifar10, Cifar10]:
    """Training and test set. A pickle can run any program: only open the official files."""

    def read(*names: str) -> tuple[Tensor, Tensor]:
        paths = [folder / "cifar-10-batches-py" / name for name in names]
        files = [pickle.loads(path.read_bytes(), encoding="latin1") for path in paths]
        images = np.concatenate([file["data"] for file in files]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([file["labels"] for file in files])
        return torch.from_numpy(images), torch.from_numpy(labels)

    images, labels = read(*(f"data_batch_{number}" for number in range(1, 6)))
    mean = images.double().mean(dim=0).div(255).float()
    return Cifar10(images, labels, mean, True), Cifar10(*read("test_batch"), mean, False)


def endless_batches(images: Cifar10, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches, float [size, 3, 32, 32] and int64 [size], epoch after epoch."""
    loader = DataLoader(images, size, shuffle=True, drop_last=True, num_workers=2)
    while True:
        yield from loader


# --- training and evaluation ----------------------------------------------------------------------


def build_optimizer(network: nn.Module) -> torch.optim.SGD:
    """SGD with momentum; weight decay on weights, not on BN's parameters or the bias."""
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": 1e-4}, {"params": others}]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def learning_rate(iteration: int, iterations: int) -> float:
    """0.1, divided by 10 halfway and at three quarters; 0.01 at the very beginning."""
    if iteration < iterations * 400 // 64_000:
        return 0.01
    return 0.1 * 0.1 ** ((iteration >= iterations // 2) + (iteration >= iterations * 3 // 4))


def train_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, bn: int
) -> float:
    """One update; returns the mean loss over the batch.

    BN sees `bn` images at a time, as on each of the paper's two GPUs; the gradients of these
    micro-batches add up to the gradient of the mean loss.
    """
    optimizer.zero_grad()
    total = 0.0
    for x, y in zip(images.split(bn), labels.split(bn), strict=True):
        loss = F.cross_entropy(network(x), y, reduction="sum")
        (loss / len(labels)).backward()
        total += loss.item()
    optimizer.step()
    return total / len(labels)


@torch.no_grad()
def measure_error(network: nn.Module, images: Cifar10, device: torch.device) -> float:
    """Misclassified images in percent, with BN's running statistics."""
    network.eval()
    wrong = 0
    for x, y in DataLoader(images, batch_size=500):
        wrong += int((network(x.to(device)).argmax(dim=1) != y.to(device)).sum())
    return 100 * wrong / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a ResNet in one ordering on CIFAR-10.")
    parser.add_argument("--ordering", choices=ORDERINGS, default="full-preact")
    parser.add_argument("--depth", type=int, default=20, help="6n+2: 20, 32, 44, 56, 110 …")
    parser.add_argument("--iterations", type=int, default=64_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=os.environ.get("RESVAR_DATA", "data"))
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training, test = load_cifar10(options.data)
    network = ResNet(ORDERINGS[options.ordering], options.depth).to(device).train()
    optimizer = build_optimizer(network)
    batches = endless_batches(training, size=128)
    for iteration in range(options.iterations):
        rate = learning_rate(iteration, options.iterations)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, labels = next(batches)
        loss = train_step(network, optimizer, images.to(device), labels.to(device), bn=64)
        if iteration % 20 == 0:
            print(f"iteration {iteration:,}: learning rate {rate:.3g}, loss {loss:.4f}", flush=True)
    print(f"test error {measure_error(network, test, device):.2f} %")


if __name__ == "__main__":
    main()
