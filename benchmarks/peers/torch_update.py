"""IMPALA's update in PyTorch, for comparison with `pronk bench learner`: the same networks, losses
and sizes, on random pixels.

    python benchmarks/peers/torch_update.py --network shallow --unroll 20 --batch-size 32

Prints JSON: the median milliseconds of an update in the faster of PyTorch's two memory formats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

ACTIONS = 4


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv1(F.relu(self.conv0(F.relu(x))))


def torso(network: str) -> nn.Sequential:
    """Figure 3 of the IMPALA paper, without the LSTM."""
    if network == "shallow":
        convolutions = [nn.Conv2d(4, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU()]
        width = 9 * 9 * 32
    else:
        convolutions, before = [], 4
        for channels in (16, 32, 32):
            convolutions += [
                nn.Conv2d(before, channels, 3, padding=1),
                nn.MaxPool2d(3, 2, padding=1),
                Residual(channels),
                Residual(channels),
            ]
            before = channels
        convolutions.append(nn.ReLU())
        width = 11 * 11 * 32
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(width, 256), nn.ReLU())


class ActorCritic(nn.Module):
    def __init__(self, network: str):
        super().__init__()
        self.torso = torso(network)
        self.policy = nn.Linear(256, ACTIONS)
        self.value = nn.Linear(256, 1)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.torso(pixels.float() / 255.0)
        return self.policy(features), self.value(features)[:, 0]


def loss(model: ActorCritic, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Policy gradient with V-trace, value and entropy terms; rows are time-major `[T + 1, B]`."""
    rows, width = batch["reward"].shape
    logits, value = model(batch["pixels"])
    logits, value = logits.reshape(rows, width, -1), value.reshape(rows, width)
    log_policy = F.log_softmax(logits[:-1], dim=-1)
    log_prob = log_policy.gather(-1, batch["action"][:-1, :, None])[..., 0]
    with torch.no_grad():
        rho = (log_prob - batch["log_prob"][:-1]).exp().clamp(max=1.0)
        discount = 0.99 * (1.0 - batch["terminated"][1:])
        delta = rho * (batch["reward"][1:] + discount * value[1:] - value[:-1])
        error = torch.zeros(width)
        errors = []
        for t in reversed(range(rows - 1)):
            error = delta[t] + discount[t] * rho[t] * error
            errors.append(error)
        target = value[:-1] + torch.stack(errors[::-1])
        after = torch.cat([target[1:], value[-1:]])
        advantage = rho * (batch["reward"][1:] + discount * after - value[:-1])
    policy_loss = -(log_prob * advantage).mean()
    value_loss = 0.5 * (target - value[:-1]).square().mean()
    entropy = -(log_policy.exp() * log_policy).sum(-1).mean()
    return policy_loss + 0.5 * value_loss - 0.001 * entropy


def milliseconds(network: str, unroll: int, width: int, seconds: float, layout: str) -> float:
    """Median of one update."""
    torch.manual_seed(0)
    model = ActorCritic(network)
    rows = unroll + 1
    pixels = torch.randint(0, 256, (rows * width, 4, 84, 84), dtype=torch.uint8)
    if layout == "channels last":
        model = model.to(memory_format=torch.channels_last)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(model.parameters(), lr=8e-4, eps=1e-5)
    batch = {
        "pixels": pixels,
        "reward": torch.randn(rows, width).sign(),
        "terminated": torch.zeros(rows, width),
        "action": torch.randint(0, ACTIONS, (rows, width)),
        "log_prob": torch.full((rows, width), -1.386),
    }
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        optimiser.zero_grad()
        loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimiser.step()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[2:])


def main() -> None:
    """Measure both layouts."""
    parser = argparse.ArgumentParser(description="IMPALA's update in PyTorch.")
    parser.add_argument("--network", choices=["shallow", "deep"], default="shallow")
    parser.add_argument("--unroll", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    times = {
        layout: milliseconds(args.network, args.unroll, args.batch_size, args.seconds / 2, layout)
        for layout in ("channels first", "channels last")
    }
    best = min(times, key=lambda layout: times[layout])
    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "network": args.network,
                "layout": best,
                "milliseconds_per_update": times[best],
                "milliseconds_by_layout": times,
            }
        )
    )


if __name__ == "__main__":
    main()
