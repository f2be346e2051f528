"""The supernet: every candidate of a space with its own weights, one of each position computed per step."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hadaptive.models.blocks import build_layer, conv_norm_act
from hadaptive.models.layer_spec import ConvSpec
from hadaptive.nn import ACTIVATIONS, gumbel_noise
from hadaptive.search.position import Candidate, Skip, layers_at
from hadaptive.search.space import Choice, SearchSpace


@dataclass(frozen=True)
class Sample:
    """One path through the supernet.

    Attributes:
        choice: a candidate's number for each position.
        gates: for each position (candidates,), one-hot in value, with the gradient of the softmax.
    """

    choice: Choice
    gates: tuple[Tensor, ...]


class Supernet(nn.Module):
    """All networks of a space, sharing the weights of the candidates they have in common.

    Of a bare choice the forward pass runs one candidate a position. Of a sample it runs every one, and adds up
    what they put out times their gates: that of the path alone, for the other gates are zero, but each
    architecture parameter gets the gradient of what its own candidate would have done.

    Args:
        space: the positions and their candidates.
        num_classes: outputs.
        in_chans: image channels.
        drop_rate: dropout before the classifier.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes).
    """

    def __init__(self, space: SearchSpace, num_classes: int, in_chans: int = 3, drop_rate: float = 0.3) -> None:
        super().__init__()
        self.space = space
        template = space.build((0,) * len(space.positions))
        channels = in_chans
        positions: list[nn.Module] = []

        def build(candidate: Candidate) -> nn.Module:
            return nn.Identity() if isinstance(candidate, Skip) else build_layer(channels, candidate, template)

        for position in space.positions:
            positions.append(nn.ModuleList(build(candidate) for candidate in position))
            channels = layers_at(position)[0].channels
        self.positions = nn.ModuleList(positions)
        activation = space.activation
        last: nn.Module = nn.BatchNorm2d(channels)
        if space.last_channels is not None:
            last = conv_norm_act(channels, ConvSpec(space.last_channels), activation=activation)
            channels = space.last_channels
        hidden: list[nn.Module] = []
        if space.head_channels is not None:
            hidden = [nn.Linear(channels, space.head_channels), ACTIVATIONS[activation]()]
            channels = space.head_channels
        out = nn.Linear(channels, num_classes)
        self.head = nn.Sequential(
            last, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), *hidden, nn.Dropout(drop_rate), out
        )
        self.alpha = nn.ParameterList(0.1 * torch.randn(len(position)) for position in space.positions)

    def weights(self) -> list[nn.Parameter]:
        """The parameters of the candidates and the head, without the architecture's."""
        own = {id(parameter) for parameter in self.alpha}
        return [parameter for parameter in self.parameters() if id(parameter) not in own]

    def candidates(self) -> nn.Module:
        """All but the architecture's parameters, as one module."""
        return nn.ModuleList([self.positions, self.head])

    def sample(self, temperature: float, generator: torch.Generator | None = None) -> Sample:
        """Draw a path by Gumbel-softmax.

        The noise is of the CPU's generator, so that a seed draws the same paths on every device and every rank.

        Args:
            temperature: tau, > 0; shapes gradients only, for the largest of noisy logits is the same at any.
        """
        choice, gates = [], []
        for alpha in self.alpha:
            noise = gumbel_noise(torch.empty(alpha.shape), generator).to(alpha.device)
            logits = (alpha.float().log_softmax(0) + noise) / temperature
            soft = torch.softmax(logits, 0)
            chosen = int(logits.detach().argmax())
            hard = torch.zeros_like(soft)
            hard[chosen] = 1.0
            choice.append(chosen)
            gates.append(hard + (soft - soft.detach()))
        return Sample(tuple(choice), tuple(gates))

    def forward(self, x: Tensor, path: Sample | Choice) -> Tensor:
        """Run one path: a :class:`Sample`, whose gates carry gradients to the architecture, or a bare choice."""
        choice = path.choice if isinstance(path, Sample) else path
        self.space.check_choice(choice)
        for number, (chosen, candidates) in enumerate(zip(choice, self.positions, strict=True)):
            if isinstance(path, Sample):
                gates = path.gates[number]
                every = [gate.to(x.dtype) * own(x) for gate, own in zip(gates, candidates, strict=True)]  # pyright: ignore[reportArgumentType]
                x = torch.stack(every).sum(0)
            else:
                x = candidates[chosen](x)  # pyright: ignore[reportIndexIssue]
        return self.head(x)

    def subnet(self, choice: Choice) -> nn.Sequential:
        """The network of one choice, with the supernet's own weights: a view, not a copy."""
        self.space.check_choice(choice)
        taken = [p[c] for c, p in zip(choice, self.positions, strict=True)]  # pyright: ignore[reportIndexIssue]
        return nn.Sequential(*taken, self.head)

    def best(self) -> Choice:
        """The candidate with the largest architecture parameter at each position; the first among equals."""
        return tuple(int(alpha.detach().argmax()) for alpha in self.alpha)

    def confidence(self) -> list[Tensor]:
        """softmax(alpha) of each position, (candidates,), float32."""
        return [torch.softmax(alpha.detach().float(), 0) for alpha in self.alpha]
