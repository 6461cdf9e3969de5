"""Every layer that PyTorch has, against it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.nn.torch_twins import check_twin, load_from_torch, torch

from tilewright import nn

tn = torch.nn


def x(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ids(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, n, shape)


CASES: dict[str, Callable[[], tuple[Any, ...]]] = {
    "linear": lambda: (nn.Linear(5, 7), tn.Linear(5, 7), x(2, 3, 5)),
    "linear without bias": lambda: (nn.Linear(5, 7, False), tn.Linear(5, 7, False), x(4, 5)),
    "linear on a vector": lambda: (nn.Linear(5, 7), tn.Linear(5, 7), x(5)),
    "embedding": lambda: (nn.Embedding(11, 6), tn.Embedding(11, 6), ids(11, 3, 4)),
    "embedding with padding": lambda: (
        nn.Embedding(5, 6, padding_idx=2),
        tn.Embedding(5, 6, padding_idx=2),
        ids(5, 3, 4),
    ),
    "conv1d": lambda: (
        nn.Conv1d(4, 6, 3, stride=2, padding=1),
        tn.Conv1d(4, 6, 3, stride=2, padding=1),
        x(2, 4, 11),
    ),
    "conv1d depthwise": lambda: (
        nn.Conv1d(6, 6, 4, padding=3, groups=6),
        tn.Conv1d(6, 6, 4, padding=3, groups=6),
        x(2, 6, 9),
    ),
    "conv2d": lambda: (
        nn.Conv2d(3, 8, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1)),
        tn.Conv2d(3, 8, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1)),
        x(2, 3, 9, 8),
    ),
    "conv2d groups same": lambda: (
        nn.Conv2d(4, 6, 3, padding="same", groups=2, bias=False),
        tn.Conv2d(4, 6, 3, padding="same", groups=2, bias=False),
        x(2, 4, 7, 6),
    ),
    "conv3d": lambda: (
        nn.Conv3d(2, 3, 3, padding=1),
        tn.Conv3d(2, 3, 3, padding=1),
        x(2, 2, 4, 5, 6),
    ),
    "convtranspose1d": lambda: (
        nn.ConvTranspose1d(4, 3, 4, stride=2, padding=1),
        tn.ConvTranspose1d(4, 3, 4, stride=2, padding=1),
        x(2, 4, 7),
    ),
    "convtranspose2d": lambda: (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        tn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        x(2, 4, 5, 6),
    ),
    "batchnorm1d": lambda: (nn.BatchNorm1d(6), tn.BatchNorm1d(6), x(8, 6)),
    "batchnorm1d of sequences": lambda: (nn.BatchNorm1d(6), tn.BatchNorm1d(6), x(4, 6, 5)),
    "batchnorm2d": lambda: (nn.BatchNorm2d(3), tn.BatchNorm2d(3), x(4, 3, 5, 6) * 2 + 1),
    "batchnorm2d averages": lambda: (
        nn.BatchNorm2d(3, momentum=None),
        tn.BatchNorm2d(3, momentum=None),
        x(4, 3, 5, 6),
    ),
    "batchnorm2d plain": lambda: (
        nn.BatchNorm2d(3, affine=False, track_running_stats=False),
        tn.BatchNorm2d(3, affine=False, track_running_stats=False),
        x(4, 3, 5, 6),
    ),
    "batchnorm2d in use": lambda: (
        nn.BatchNorm2d(3).eval(),
        tn.BatchNorm2d(3).eval(),
        x(4, 3, 5, 6),
    ),
    "groupnorm": lambda: (nn.GroupNorm(2, 6), tn.GroupNorm(2, 6), x(3, 6, 4, 5) + 3),
    "layernorm": lambda: (nn.LayerNorm(9), tn.LayerNorm(9), x(2, 5, 9) * 3 + 10),
    "layernorm of two axes": lambda: (nn.LayerNorm((4, 5)), tn.LayerNorm((4, 5)), x(3, 4, 5)),
    "rmsnorm": lambda: (nn.RMSNorm(9, 1e-6), tn.RMSNorm(9, 1e-6), x(2, 5, 9)),
    "maxpool1d": lambda: (nn.MaxPool1d(3, 2, 1), tn.MaxPool1d(3, 2, 1), x(2, 3, 9)),
    "maxpool2d": lambda: (
        nn.MaxPool2d(2, ceil_mode=True),
        tn.MaxPool2d(2, ceil_mode=True),
        x(2, 3, 7, 9),
    ),
    "maxpool3d": lambda: (nn.MaxPool3d(2), tn.MaxPool3d(2), x(1, 2, 4, 5, 6)),
    "avgpool1d": lambda: (nn.AvgPool1d(3, 2, 1), tn.AvgPool1d(3, 2, 1), x(2, 3, 9)),
    "avgpool2d": lambda: (
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        tn.AvgPool2d(3, 2, 1, count_include_pad=False),
        x(2, 3, 7, 9),
    ),
    "adaptiveavgpool2d": lambda: (
        nn.AdaptiveAvgPool2d((3, 4)),
        tn.AdaptiveAvgPool2d((3, 4)),
        x(2, 3, 7, 9),
    ),
    "adaptivemaxpool2d": lambda: (
        nn.AdaptiveMaxPool2d(3),
        tn.AdaptiveMaxPool2d(3),
        x(2, 3, 7, 9),
    ),
    "gelu": lambda: (nn.GELU(), tn.GELU(), x(5, 7) * 3),
    "gelu tanh": lambda: (nn.GELU("tanh"), tn.GELU("tanh"), x(5, 7) * 3),
    "silu": lambda: (nn.SiLU(), tn.SiLU(), x(5, 7) * 3),
    "leakyrelu": lambda: (nn.LeakyReLU(0.2), tn.LeakyReLU(0.2), x(5, 7)),
    "elu": lambda: (nn.ELU(0.7), tn.ELU(0.7), x(5, 7)),
    "softplus": lambda: (nn.Softplus(), tn.Softplus(), x(5, 7) * 9),
    "sequential": lambda: (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)),
        tn.Sequential(tn.Conv2d(1, 4, 3), tn.ReLU(), tn.Flatten(), tn.Linear(64, 3)),
        x(2, 1, 6, 6),
    ),
    "gru": lambda: (nn.GRU(4, 5), tn.GRU(4, 5), x(6, 3, 4)),
    "gru deep both ways": lambda: (
        nn.GRU(4, 5, 2, bidirectional=True, batch_first=True),
        tn.GRU(4, 5, 2, bidirectional=True, batch_first=True),
        x(3, 6, 4),
    ),
    "lstm": lambda: (nn.LSTM(4, 5, bias=False), tn.LSTM(4, 5, bias=False), x(6, 3, 4)),
    "lstm deep both ways": lambda: (
        nn.LSTM(4, 5, 2, bidirectional=True),
        tn.LSTM(4, 5, 2, bidirectional=True),
        x(5, 3, 4),
    ),
    "gru from a state": lambda: (nn.GRU(4, 5, 2), tn.GRU(4, 5, 2), x(6, 3, 4), x(2, 3, 5)),
}


@pytest.mark.parametrize("case", CASES)
def test_layer_is_pytorchs(case: str) -> None:
    torch.manual_seed(0)
    ours, theirs, *inputs = CASES[case]()
    check_twin(ours, theirs, *inputs)


def test_batch_statistics_over_several_batches_and_in_use() -> None:
    ours, theirs = nn.BatchNorm2d(3), tn.BatchNorm2d(3)
    for i in range(3):
        check_twin(ours, theirs, x(4, 3, 5, 6, seed=i) * (i + 1))
    assert ours.num_batches_tracked is not None
    assert ours.num_batches_tracked.item() == 3
    check_twin(ours.eval(), theirs.eval(), x(4, 3, 5, 6))


@pytest.mark.parametrize("bias", [True, False])
def test_multihead_attention_is_pytorchs(bias: bool) -> None:
    torch.manual_seed(0)
    ours = nn.MultiheadAttention(12, 3, bias)
    theirs = tn.MultiheadAttention(12, 3, bias=bias, batch_first=True)

    class Self(tn.Module):  # type: ignore[misc, name-defined]
        def forward(self, q: Any) -> Any:
            return theirs(q, q, q, need_weights=False)[0]

    peer = Self()
    peer.parameters = theirs.parameters
    peer.named_parameters = theirs.named_parameters
    peer.state_dict = theirs.state_dict
    peer.load_state_dict = theirs.load_state_dict
    check_twin(ours, peer, x(2, 7, 12))

    class Cross(Self):
        def forward(self, q: Any, k: Any) -> Any:
            hidden = torch.triu(torch.ones(5, 7, dtype=torch.bool), 3)
            return theirs(q, k, k, need_weights=False, attn_mask=hidden)[0]

    theirs.zero_grad()
    cross = Cross()
    cross.parameters = theirs.parameters
    cross.named_parameters = theirs.named_parameters
    cross.state_dict = theirs.state_dict
    cross.load_state_dict = theirs.load_state_dict
    ours.zero_grad()
    from tilewright import asarray

    seen = asarray(np.triu(np.ones((5, 7)), 3) == 0)
    check_twin(ours, cross, x(2, 5, 12), x(2, 7, 12), call=lambda m, q, k: m(q, k, mask=seen))


MOMENTS = [
    (lambda: nn.Linear(200, 300), lambda: tn.Linear(200, 300)),
    (lambda: nn.Conv2d(16, 64, 3), lambda: tn.Conv2d(16, 64, 3)),
    (lambda: nn.ConvTranspose2d(16, 64, 3), lambda: tn.ConvTranspose2d(16, 64, 3)),
    (lambda: nn.Embedding(500, 60), lambda: tn.Embedding(500, 60)),
    (lambda: nn.LSTM(50, 60), lambda: tn.LSTM(50, 60)),
    (lambda: nn.LayerNorm(30), lambda: tn.LayerNorm(30)),
    (lambda: nn.BatchNorm1d(30), lambda: tn.BatchNorm1d(30)),
]


@pytest.mark.parametrize(("ours", "theirs"), MOMENTS)
def test_initial_values_have_pytorchs_distribution(
    ours: Callable[[], nn.Module], theirs: Callable[[], Any]
) -> None:
    mine = ours().state_dict()
    for name, t in theirs().state_dict().items():
        a, b = mine[name].numpy().astype(np.float64), t.double().numpy()
        n = max(a.size, 2)
        spread = max(b.std(), a.std(), 1e-12)
        assert abs(a.mean() - b.mean()) <= 6 * spread * np.sqrt(2 / n), name
        assert abs(a.std() - b.std()) <= 6 * spread * np.sqrt(1 / n), name
        if a.size > 5000 and np.abs(b).max() < 2 * spread:  # uniform: the bounds agree, too
            assert np.isclose(np.abs(a).max(), np.abs(b).max(), rtol=0.02), name


def test_load_refuses_what_does_not_fit_and_changes_nothing() -> None:
    from tilewright.errors import FormatError, ShapeError

    layer = nn.Linear(3, 4)
    before = layer.weight.numpy().copy()
    good = {"weight": np.zeros((4, 3), np.float32), "bias": np.zeros(4, np.float32)}
    with pytest.raises(FormatError, match="missing: bias"):
        layer.load_state_dict({"weight": good["weight"]})
    with pytest.raises(FormatError, match="not in the module: extra"):
        layer.load_state_dict({**good, "extra": good["bias"]})
    with pytest.raises(ShapeError, match="bias has shape"):
        layer.load_state_dict({**good, "bias": np.zeros(5, np.float32)})
    np.testing.assert_array_equal(layer.weight.numpy(), before)
    left = layer.load_state_dict({"weight": good["weight"]}, strict=False)
    assert left == ["missing: bias"]
    assert not layer.weight.numpy().any()
    twin = tn.Linear(3, 4)
    load_from_torch(layer, twin)
