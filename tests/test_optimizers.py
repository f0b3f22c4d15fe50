"""The fused optimisers do what others do, whatever the layout of parameters and state."""

import pytest
import torch

from utils import optimizers

SPECS = [
    {"name": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    {"name": "SGD", "lr": 0.1},
    {"name": "SGD", "lr": 0.1, "momentum": 0.9, "nesterov": True},
    {"name": "AdamW", "lr": 0.01},
]


def model(channels_last=False):
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 4, 3),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 5),
    )
    return network.to(memory_format=torch.channels_last) if channels_last else network


def train(network, optimizer, steps, frozen=()):
    for step in steps:
        inputs = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        network(inputs).square().mean().backward()
        if step in frozen:
            for parameter in network[0].parameters():
                parameter.grad = None
        optimizers.step(optimizer, None)


def weights(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("frozen", [(), (0, 1)])
@pytest.mark.parametrize("spec", SPECS)
def test_fused_steps_are_those_of_the_plain_loop(spec, frozen, channels_last):
    fused, plain = model(channels_last), model()
    optimizer = optimizers.make(spec, fused.parameters())
    assert optimizer.param_groups[0]["fused"]
    train(fused, optimizer, range(5), frozen)
    plain_loop = optimizers.make(spec | {"foreach": False}, plain.parameters())
    train(plain, plain_loop, range(5), frozen)
    torch.testing.assert_close(weights(fused), weights(plain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("before, after", [(False, True), (True, False)])
def test_a_state_that_was_saved_in_another_layout_goes_on_as_it_was(spec, before, after, tmp_path):
    undisturbed = model()
    train(undisturbed, optimizers.make(spec, undisturbed.parameters()), range(6))
    first, second = model(before), model(after)
    optimizer = optimizers.make(spec, first.parameters())
    train(first, optimizer, range(3))
    torch.save([first.state_dict(), optimizer.state_dict()], tmp_path / "saved.pt")
    network, state = torch.load(tmp_path / "saved.pt", weights_only=True)
    second.load_state_dict(network)
    optimizer = optimizers.make(spec, second.parameters())
    optimizer.load_state_dict(state)
    train(second, optimizer, range(3, 6))
    torch.testing.assert_close(weights(second), weights(undisturbed), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"fused": False}, {"foreach": True}, {"foreach": False}, {"dampening": 0.5}]
)
def test_who_asks_for_another_form_gets_it(options):
    spec = SPECS[0] | options
    assert not optimizers.make(spec, model().parameters()).param_groups[0]["fused"]
