"""The selection recorder: counts by hand, bounds, and no trace once it is closed."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from hadaptive.nn import (
    AdaptiveCrossHadamard,
    CrossHadamardExpansion,
    SelectionRecorder,
    SelectionReport,
    gumbel_top_k,
    top_k_channels,
)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def report(frequency: list[float]) -> SelectionReport:
    return SelectionReport("layer", 4, torch.tensor(frequency), 1.0, 4.0, 0.5)


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(
        AdaptiveCrossHadamard(4, 3, selection="sample"),
        AdaptiveCrossHadamard(7, 2, norm="dyt", selection="sample"),
    )


def test_eval_counts_equal_a_count_by_hand() -> None:
    expansion = CrossHadamardExpansion(6, 3, selection="sample").eval()
    batches = torch.randn(3, 4, 6, 2, 2)
    counts = [0] * 6
    with SelectionRecorder(expansion) as recorder:
        for x in batches:
            expansion(x)
            for row in expansion.score(x).tolist():
                for channel in sorted(range(6), key=lambda c: -row[c])[:3]:
                    counts[channel] += 1
    (result,) = recorder.reports()
    assert result.samples == 12
    assert (12 * result.frequency).round().tolist() == counts
    assert result.agreement == 1.0


def test_training_counts_and_agreement_equal_a_count_by_hand() -> None:
    expansion, x = CrossHadamardExpansion(6, 3, selection="sample"), torch.randn(32, 6, 2, 2)
    with SelectionRecorder(expansion) as recorder:
        torch.manual_seed(5)
        expansion(x)
    torch.manual_seed(5)
    scores = expansion.score(x)
    sampled, best = gumbel_top_k(scores, 3, torch.tensor(4.0))[0].tolist(), top_k_channels(scores, 3).tolist()
    counts = [sum(channel in row for row in sampled) for channel in range(6)]
    agreed = sum(len(set(a) & set(b)) for a, b in zip(sampled, best, strict=True))
    (result,) = recorder.reports()
    assert (32 * result.frequency).round().tolist() == counts
    assert result.agreement == pytest.approx(agreed / 96)
    assert 0 < result.agreement < 1


def test_reports_name_the_layers_in_order_with_their_state(model: nn.Sequential) -> None:
    model[1].cross_hadamard.select.temperature.fill_(1.25)
    with torch.no_grad():
        model[0].cross_hadamard.norm.alpha.fill_(0.75)
    with SelectionRecorder(model) as recorder:
        assert recorder.reports() == []
        model(torch.randn(2, 4, 3, 3))
    first, second = recorder.reports()
    assert (first.layer, second.layer) == ("0.cross_hadamard", "1.cross_hadamard")
    assert (first.temperature, second.temperature) == (4.0, 1.25)
    assert first.alpha == 0.75
    assert math.isnan(second.alpha)  # not DySoft
    assert [len(r.frequency) for r in (first, second)] == [4, 7]
    assert [float(r.frequency.sum()) for r in (first, second)] == pytest.approx([3.0, 2.0])


def test_entropy_is_one_for_uniform_and_least_for_a_fixed_choice() -> None:
    assert report([0.5] * 8).entropy == pytest.approx(1.0)
    assert report([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).entropy == pytest.approx(math.log(2) / math.log(8))
    assert math.log(2) / math.log(4) < report([1.0, 0.7, 0.3, 0.0]).entropy < 1
    assert report([0.0] * 4).entropy == 0.0


def test_entropy_stays_within_its_bounds(model: nn.Sequential) -> None:
    with SelectionRecorder(model) as recorder:
        for _ in range(3):
            model(torch.randn(5, 4, 3, 3))
    for result, (k, channels) in zip(recorder.reports(), [(3, 4), (2, 7)], strict=True):
        assert math.log(k) / math.log(channels) - 1e-6 <= result.entropy <= 1 + 1e-6


def test_most_selected_puts_the_lower_channel_first_among_equals() -> None:
    assert report([0.1, 0.9, 0.5, 0.9, 0.0]).most_selected(3) == [1, 3, 2]
    assert len(report([0.1, 0.9]).most_selected()) == 2


def test_no_hooks_before_nor_after(model: nn.Sequential) -> None:
    assert hooks(model) == 0
    recorder = SelectionRecorder(model)
    assert hooks(model) == 2
    model(torch.randn(2, 4, 3, 3))
    recorder.close()
    recorder.close()
    assert hooks(model) == 0
    model(torch.randn(2, 4, 3, 3))
    assert [r.samples for r in recorder.reports()] == [2, 2]


def test_hooks_go_with_an_exception(model: nn.Sequential) -> None:
    with pytest.raises(ValueError, match="expected"), SelectionRecorder(model):
        model(torch.randn(2, 5, 3, 3))
    assert hooks(model) == 0


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_recording_changes_no_output(model: nn.Sequential, training: bool) -> None:
    model.train(training)
    x, outputs = torch.randn(2, 4, 3, 3), []
    for attached in (False, True):
        torch.manual_seed(3)
        recorder = SelectionRecorder(model) if attached else None
        y = model(x)
        outputs.append((y, torch.autograd.grad(y.square().sum(), model[0].mix.weight)[0], torch.rand(1)))
        if recorder is not None:
            recorder.close()
    for plain, recorded in zip(*outputs, strict=True):
        assert torch.equal(plain, recorded)


def test_recording_one_pass_in_three(model: nn.Sequential) -> None:
    with SelectionRecorder(model, every=3) as recorder:
        for _ in range(7):  # passes 0, 3 and 6
            model(torch.randn(2, 4, 3, 3))
    assert [r.samples for r in recorder.reports()] == [6, 6]


def test_reset_forgets_and_goes_on(model: nn.Sequential) -> None:
    with SelectionRecorder(model) as recorder:
        model(torch.randn(2, 4, 3, 3))
        recorder.reset()
        assert recorder.reports() == []
        model(torch.randn(5, 4, 3, 3))
    assert [r.samples for r in recorder.reports()] == [5, 5]


def test_two_recorders_do_not_disturb_each_other(model: nn.Sequential) -> None:
    with SelectionRecorder(model) as outer:
        with SelectionRecorder(model) as inner:
            model(torch.randn(2, 4, 3, 3))
        model(torch.randn(2, 4, 3, 3))
    assert [r.samples for r in inner.reports()] == [2, 2]
    assert [r.samples for r in outer.reports()] == [4, 4]


def test_resumed_recording_equals_an_unbroken_one(model: nn.Sequential) -> None:
    batches: list[Tensor] = list(torch.randn(5, 3, 4, 3, 3))
    model.eval()
    with SelectionRecorder(model, every=2) as unbroken:
        for x in batches:
            model(x)
    with SelectionRecorder(model, every=2) as first:
        for x in itertools.islice(batches, 3):
            model(x)
    with SelectionRecorder(model, every=2) as resumed:
        resumed.load_state_dict(first.state_dict())
        for x in batches[3:]:
            model(x)
    assert unbroken.state_dict().keys() == resumed.state_dict().keys()
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert [r.samples for r in resumed.reports()] == [9, 9]


def test_a_state_is_a_snapshot(model: nn.Sequential) -> None:
    with SelectionRecorder(model) as recorder:
        model(torch.randn(2, 4, 3, 3))
        state = recorder.state_dict()
        before = {name: value.clone() for name, value in state.items()}
        model(torch.randn(2, 4, 3, 3))
    assert all(torch.equal(before[name], value) for name, value in state.items())


def test_the_default_device_is_not_the_recorders(model: nn.Sequential) -> None:
    with torch.device("meta"):
        recorder = SelectionRecorder(model)
    model(torch.randn(2, 4, 3, 3))
    assert [report.samples for report in recorder.reports()] == [2, 2]


def test_a_compiled_network_is_compiled_once() -> None:
    """A count in Python was a guard: every pass compiled anew, until the compiler gave up."""
    model = nn.Sequential(
        AdaptiveCrossHadamard(4, 3, selection="sample"),
        nn.Conv2d(7, 4, 1),
        AdaptiveCrossHadamard(4, 2, selection="sample"),
    )
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    with SelectionRecorder(model, every=4) as recorder:
        compiled = torch.compile(model, backend=count)
        for _ in range(6):
            compiled(torch.randn(3, 4, 5, 5))
        recorder.reset()
        compiled(torch.randn(3, 4, 5, 5))
    torch.compiler.reset()
    assert len(graphs) == 1
    assert [report.samples for report in recorder.reports()] == [3, 3]
