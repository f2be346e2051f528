"""Hadaptive-Net: built from a :class:`NetSpec`, with the interface of timm's networks.

Source: arXiv 2505.22226, section 4 and its appendix (S, M, L).
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d, calculate_drop_path_rates
from timm.models import checkpoint_seq
from torch import Tensor, nn
from torch.types import Device

from hadaptive.errors import UserError
from hadaptive.models.blocks import build_block, conv_norm_act
from hadaptive.models.layer_spec import ConvSpec
from hadaptive.models.published import HADAPTIVE_NET_S
from hadaptive.models.spec import NetSpec
from hadaptive.nn import ACTIVATIONS


def stage_indices(num_stages: int, indices: int | list[int] | None) -> list[int]:
    """Which stages are wanted: the last n if an int, all if None, else those listed (negative from the end)."""
    if indices is None:
        indices = num_stages
    if isinstance(indices, int):
        if not 0 < indices <= num_stages:
            raise UserError(f"only 1 to {num_stages} intermediates can be taken, not {indices}")
        return list(range(num_stages - indices, num_stages))
    for i in indices:
        if not -num_stages <= i < num_stages:
            raise UserError(f"there is no stage {i}; the {num_stages} stages are 0 to {num_stages - 1}")
    if not indices:
        raise UserError("at least one stage must be asked for, got an empty list of indices")
    return [i + num_stages if i < 0 else i for i in indices]


def check_pool(pool: SelectAdaptivePool2d, num_classes: int) -> None:
    """Raise one clear UserError if there is a classifier but nothing pools the map for it."""
    if pool.is_identity() and num_classes > 0:
        raise UserError('global_pool="" passes the map through, so there can be no classifier: use num_classes=0')


class HadaptiveNet(nn.Module):
    """A network of adaptive bottlenecks with the interface of timm's convolutional networks.

    Args:
        spec: the architecture.
        num_classes: 0 leaves the pre-logits.
        in_chans: image channels.
        global_pool: timm's pool type; "" passes the unpooled map through and needs num_classes=0.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth, rising linearly over the blocks.
        stem_strides: override the strides of the first convolutions for small images,
            see :meth:`NetSpec.with_stem_strides`; the spec kept in ``self.spec`` includes it.
        device, dtype: of parameters and buffers; temperatures are float32.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes).

    Raises:
        UserError: the spec, the pool or stem_strides do not fit.
    """

    feature_info: list[dict[str, Any]]
    _kept_args: dict[str, Any]
    __jit_unused_properties__ = ("_model_args",)

    def __init__(
        self,
        spec: NetSpec = HADAPTIVE_NET_S,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.3,
        drop_path_rate: float = 0.0,
        stem_strides: tuple[int, ...] | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: Any = {"device": device, "dtype": dtype}
        if stem_strides is not None:
            spec = spec.with_stem_strides(*stem_strides)
        self.spec = spec
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = float(drop_rate)  # as TorchScript wants it
        self.grad_checkpointing = False
        self.feature_info = []
        self._kept_args = {}

        self.stem = conv_norm_act(in_chans, spec.stem, **dd, activation=spec.activation)
        channels, reduction = spec.stem.channels, spec.stem.stride
        stages: list[nn.Sequential] = []

        layers: list[nn.Module] = []
        for conv in spec.stage1:
            layers.append(conv_norm_act(channels, conv, **dd, activation=spec.activation))
            channels, reduction = conv.channels, reduction * conv.stride
        if layers:
            stages.append(nn.Sequential(*layers))
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": "stages.0"})

        blocks = sum(len(stage) for stage in spec.stages)
        rates: Any = calculate_drop_path_rates(drop_path_rate, blocks)
        number = 0
        for stage in spec.stages:
            layers = []
            for block in stage:
                layers.append(build_block(channels, block, spec, rates[number], number, **dd))
                number += 1
                channels, reduction = block.channels, reduction * block.stride
            self.feature_info.append(
                {"num_chs": channels, "reduction": reduction, "module": f"stages.{len(stages)}"}
            )
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)

        self.last: nn.Module = nn.BatchNorm2d(channels, **dd)
        if spec.last_channels is not None:
            last = ConvSpec(spec.last_channels)
            self.last, channels = conv_norm_act(channels, last, **dd, activation=spec.activation), last.channels
        self.num_features = channels
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool)
        check_pool(self.global_pool, num_classes)
        # 1x1 convolution rather than a linear layer, so that global_pool="" can pass a map through.
        pooled = self.num_features * self.global_pool.feat_mult()
        self.conv_head, self.act_head, self.head_hidden_size = nn.Identity(), nn.Identity(), pooled
        if spec.head_channels is not None:
            self.conv_head = nn.Conv2d(pooled, spec.head_channels, 1, **dd)
            self.act_head, self.head_hidden_size = ACTIVATIONS[spec.activation](), spec.head_channels
        self.flatten = nn.Flatten(1) if global_pool else nn.Identity()
        self.classifier = self._new_classifier(num_classes, **dd)

    def _new_classifier(self, num_classes: int, device: Device, dtype: torch.dtype | None) -> nn.Module:
        if num_classes < 1:
            return nn.Identity()
        return nn.Linear(self.head_hidden_size, num_classes, device=device, dtype=dtype)

    @property
    def _model_args(self) -> dict[str, Any]:
        """What timm keeps of its arguments, and saves to build the network again; the spec in it is plain data."""
        return self._kept_args

    @_model_args.setter
    def _model_args(self, args: dict[str, Any]) -> None:
        if "spec" in args:
            args = {name: value for name, value in args.items() if name != "stem_strides"}
            args["spec"] = self.spec.to_dict()
        self._kept_args = args

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith("norm.alpha")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            "stem": r"^stem",
            "blocks": [
                (r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)", None),
                (r"^(?:last|conv_head)", (99999,)),
            ],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        pool = self.global_pool if global_pool is None else SelectAdaptivePool2d(pool_type=global_pool)
        check_pool(pool, num_classes)
        if pool.feat_mult() != self.global_pool.feat_mult():
            raise UserError("catavgmax has twice the channels of other pools: choose it when the model is built")
        self.num_classes = num_classes
        self.global_pool = pool
        self.flatten = nn.Identity() if pool.is_identity() else nn.Flatten(1)
        weight = next(self.parameters())  # the stem: the one layer that pruning never takes away
        self.classifier = self._new_classifier(num_classes, weight.device, weight.dtype)
        self.train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The outputs of chosen stages, and the final features.

        Args:
            x: (B, in_chans, H, W).
            indices: the last n stages if an int, all if None, else those listed.
            norm: accepted for timm's sake, and without effect.
            stop_early: do not compute stages after the last one wanted.
            output_fmt: "NCHW".
            intermediates_only: leave out the final features.
        """
        if output_fmt != "NCHW":
            raise UserError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take = stage_indices(len(self.stages), indices)
        last_index = max(take)
        intermediates: list[Tensor] = []
        x = self.stem(x)
        if torch.jit.is_scripting() or not stop_early:  # noqa: SIM108 (TorchScript)
            stages = self.stages
        else:
            stages = self.stages[: last_index + 1]
        for i, stage in enumerate(stages):
            x = self._run(stage, x)
            if i in take:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        if len(stages) == len(self.stages):
            x = self.last(x)
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages that the chosen intermediates do not need; returns their indices."""
        take = stage_indices(len(self.stages), indices)
        last_index = max(take)
        pruned = last_index < len(self.stages) - 1
        self.stages = self.stages[: last_index + 1]
        if pruned or prune_norm:
            self.last = nn.Identity()
            self.num_features = self.feature_info[last_index]["num_chs"]
        if pruned or prune_norm or prune_head:
            self.conv_head, self.act_head = nn.Identity(), nn.Identity()
            self.head_hidden_size = self.num_features
            self.global_pool, self.flatten = SelectAdaptivePool2d(pool_type=""), nn.Identity()
            self.num_classes, self.classifier = 0, nn.Identity()
        return take

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(stage, x)
        return stage(x)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.stages, x, flatten=True)
        else:
            x = self.stages(x)
        return self.last(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.flatten(self.act_head(self.conv_head(self.global_pool(x))))
        if self.drop_rate > 0.0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
