"""Mixtures of experts, Mamba, mixed precision, dropout, and what modules do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.nn.torch_twins import check_twin, close, load_from_torch, torch

from tilewright import asarray, nn
from tilewright.dtypes import bf16, f16, f32
from tilewright.errors import DTypeError, ShapeError
from tilewright.graph import topological
from tilewright.nn import functional as F
from tilewright.tensor import random
from tilewright.tensor.compiled import compile
from tilewright.tensor.core import Tensor, realize

tn, TF = torch.nn, torch.nn.functional


def x(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# mixtures of experts


class TorchMoE(tn.Module):  # type: ignore[misc, name-defined]
    """Every expert on every row, weighted by gates that are mostly 0."""

    def __init__(self, width: int, hidden: int, experts: int, k: int) -> None:
        super().__init__()
        self.gate = tn.Linear(width, experts, bias=False)
        self.w1 = tn.Parameter(torch.randn(experts, hidden, width) / 4)
        self.w3 = tn.Parameter(torch.randn(experts, hidden, width) / 4)
        self.w2 = tn.Parameter(torch.randn(experts, width, hidden) / 4)
        self.k = k

    def forward(self, x: Any) -> Any:
        rows = x.reshape(-1, x.shape[-1])
        probs = self.gate(rows).softmax(-1)
        best, chosen = probs.topk(self.k, -1)
        best = best / best.sum(-1, keepdim=True)
        gates = torch.zeros_like(probs).scatter(1, chosen, best)
        h = TF.silu(torch.einsum("nd,ehd->neh", rows, self.w1))
        h = h * torch.einsum("nd,ehd->neh", rows, self.w3)
        y = (torch.einsum("neh,edh->ned", h, self.w2) * gates[..., None]).sum(1)
        shares = TF.one_hot(chosen, probs.shape[1]).float().mean((0, 1))
        return y.reshape(x.shape), (shares * probs.mean(0)).sum() * probs.shape[1]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_mixture_of_experts_is_the_weighted_sum(k: int) -> None:
    torch.manual_seed(0)
    check_twin(nn.MoE(8, 12, 4, k), TorchMoE(8, 12, 4, k), x(3, 7, 8))


def test_rows_beyond_an_experts_capacity_lose_its_part() -> None:
    moe = nn.MoE(8, 12, 2, 1, capacity_factor=1.0)
    weight = np.zeros((2, 8), np.float32)
    weight[0, 0] = 5  # every row with a positive first number wants expert 0
    moe.gate.weight.assign(asarray(weight))
    rows = np.abs(x(10, 8))
    y, balance = moe(asarray(rows))
    full = nn.MoE(8, 12, 2, 1)
    full.load_state_dict(moe.state_dict())
    want, _ = full(asarray(rows))
    assert moe.capacity(10) == 5
    np.testing.assert_array_equal(y.numpy()[:5], want.numpy()[:5])
    assert not y.numpy()[5:].any()
    assert balance.item() > 1.5


def test_the_graph_of_a_mixture_does_not_grow_with_rows_or_experts() -> None:
    def size(rows: int, experts: int) -> int:
        y, _ = nn.MoE(8, 12, experts)(asarray(x(rows, 8)))
        return len(topological([y.node]))

    assert size(4, 4) == size(500, 32)


# Mamba


class TorchMamba(tn.Module):  # type: ignore[misc, name-defined]
    """The mixer of mamba_ssm with its scan step by step."""

    def __init__(self, d_model: int, n: int, conv: int, rank: int) -> None:
        super().__init__()
        inner = 2 * d_model
        self.n, self.rank = n, rank
        self.in_proj = tn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = tn.Conv1d(inner, inner, conv, padding=conv - 1, groups=inner)
        self.x_proj = tn.Linear(inner, rank + 2 * n, bias=False)
        self.dt_proj = tn.Linear(rank, inner)
        self.A_log = tn.Parameter(torch.arange(1, n + 1).float().repeat(inner, 1).log())
        self.D = tn.Parameter(torch.randn(inner))
        self.out_proj = tn.Linear(inner, d_model, bias=False)

    def forward(self, u: Any) -> Any:
        steps = u.shape[1]
        h, z = self.in_proj(u).chunk(2, -1)
        h = TF.silu(self.conv1d(h.transpose(1, 2))[..., :steps].transpose(1, 2))
        dt, b, c = self.x_proj(h).split([self.rank, self.n, self.n], -1)
        delta, a = TF.softplus(self.dt_proj(dt)), -self.A_log.exp()
        state, ys = torch.zeros(u.shape[0], h.shape[2], self.n), []
        for t in range(steps):
            state = state * (delta[:, t, :, None] * a).exp()
            state = state + (delta[:, t] * h[:, t])[..., None] * b[:, t, None]
            ys.append((state * c[:, t, None]).sum(-1) + self.D * h[:, t])
        return self.out_proj(torch.stack(ys, 1) * TF.silu(z))


def test_mamba_is_the_step_by_step_recurrence() -> None:
    torch.manual_seed(0)
    check_twin(nn.Mamba(8, 4, 3, dt_rank=2), TorchMamba(8, 4, 3, 2), x(2, 9, 8))


def test_mamba_starts_with_the_step_sizes_of_the_paper() -> None:
    layer = nn.Mamba(64)
    assert layer.dt_proj.bias is not None
    dt = np.log1p(np.exp(layer.dt_proj.bias.numpy().astype(np.float64)))
    assert dt.min() >= 0.00099
    assert dt.max() <= 0.101
    assert abs(np.log(dt).mean() - np.log(0.01)) < 0.4
    names = {name.split(".")[0] for name in layer.state_dict()}
    assert names == {"in_proj", "conv1d", "x_proj", "dt_proj", "A_log", "D", "out_proj"}


def test_mamba_sees_no_later_token() -> None:
    model = nn.MambaLM(nn.MambaConfig(11, 16, 2, 4))
    ids = np.random.default_rng(0).integers(0, 11, (1, 10))
    changed = ids.copy()
    changed[0, 6:] = (changed[0, 6:] + 1) % 11
    a, b = model(asarray(ids)).numpy(), model(asarray(changed)).numpy()
    np.testing.assert_array_equal(a[:, :6], b[:, :6])
    assert (a[:, 6:] != b[:, 6:]).any(axis=-1).all()


# mixed precision


def test_autocast_multiplies_bf16_and_keeps_gradients_f32() -> None:
    torch.manual_seed(0)
    theirs = tn.Sequential(tn.Linear(32, 64), tn.GELU(), tn.Linear(64, 8))
    ours = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8))
    load_from_torch(ours, theirs)
    rows, t = x(16, 32), np.arange(16) % 8
    with nn.autocast():
        y = ours(asarray(rows))
        loss = F.cross_entropy(y, asarray(t))
    with torch.autocast("cpu", torch.bfloat16):
        z = theirs(torch.from_numpy(rows))
        want = TF.cross_entropy(z.float(), torch.from_numpy(t))
    loss.backward()
    want.backward()
    assert y.dtype is bf16
    assert loss.dtype is f32
    assert np.abs(y.numpy() - z.detach().float().numpy()).max() < 0.02
    assert abs(loss.item() - want.item()) < 3e-3
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters()):
        assert p.grad is not None
        assert p.grad.dtype is f32, name
        close(p.grad, q.grad, name, 2e-3)
    exact = F.linear(asarray(rows), ours[0].weight, ours[0].bias)
    assert exact.dtype is f32  # outside again


@pytest.mark.parametrize("dtype", [bf16, f16])
def test_autocast_of_every_product(dtype: Any) -> None:
    image, w = asarray(x(1, 3, 6, 6)), asarray(x(4, 3, 3, 3))
    q = asarray(x(1, 2, 5, 8))
    with nn.autocast(dtype):
        found = [
            q @ q.mT,
            F.conv(image, w, padding=1),
            F.attention(q, q, q, causal=True),
            F.linear(q, asarray(x(3, 8))),
        ]
        with nn.autocast(enabled=False):
            inner = q @ q.mT
        kept = [F.layer_norm(q), q.softmax(-1), F.mse_loss(q, q), inner]
    assert all(t.dtype is dtype for t in found)
    assert all(t.dtype is f32 for t in kept)
    exact = [q @ q.mT, F.conv(image, w, padding=1), F.attention(q, q, q, causal=True)]
    for a, b in zip(found, exact):
        close(a, b.numpy(), "", 2e-2)
    with pytest.raises(DTypeError, match="bfloat16 or float16"), nn.autocast("f32"):
        pass


def test_autocast_around_a_compiled_function_is_another_program() -> None:
    double = compile(lambda a: a @ a)
    a = asarray(x(4, 4))
    assert double(a).dtype is f32
    with nn.autocast():
        assert double(a).dtype is bf16
    assert double(a).dtype is f32


# dropout


def test_dropout_keeps_the_mean_and_scales_the_gradient() -> None:
    random.seed(3)
    ones = asarray(np.ones((200, 300), np.float32))
    ones.requires_grad = True
    y = nn.Dropout(0.3)(ones)
    y.sum().backward()
    a = y.numpy()
    assert set(np.unique(a)) == {np.float32(0), np.float32(1 / 0.7)}
    assert abs((a == 0).mean() - 0.3) < 0.01
    assert ones.grad is not None
    np.testing.assert_array_equal(ones.grad.numpy(), a)
    again = nn.Dropout(0.3)(ones).numpy()
    assert (again != a).any()
    random.seed(3)
    np.testing.assert_array_equal(nn.Dropout(0.3)(ones).numpy(), a)


def test_dropout_of_channels_at_the_ends_and_in_use() -> None:
    image = asarray(np.ones((20, 30, 2, 2), np.float32))
    a = nn.Dropout2d(0.5)(image).numpy().reshape(20, 30, 4)
    assert (a == a[..., :1]).all()
    assert 0.4 < (a == 0).mean() < 0.6
    assert not F.dropout(image, 1.0).numpy().any()
    layer = nn.Dropout(0.5).eval()
    assert layer(image) is image
    with pytest.raises(ShapeError, match="probability"):
        F.dropout(image, 1.5)


# modules


class Odd(nn.Module):
    """Modules and tensors in every kind of attribute."""

    def __init__(self) -> None:
        self.first = nn.Linear(2, 3)
        self.listed = [nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)]
        self.named = {"a": nn.Linear(1, 1)}
        self.shared = self.first
        self.buffer = asarray(np.zeros(2, np.float32))
        self._private = asarray(np.zeros(2, np.float32))
        self.note = "not a tensor"


def test_names_of_parameters_and_buffers() -> None:
    odd = Odd()
    names = set(odd.state_dict())
    assert "first.weight" in names
    assert "listed.2.bias" in names
    assert "named.a.weight" in names
    assert "shared.weight" in names
    assert "buffer" in names
    assert "_private" not in names
    assert len(odd.parameters()) == 8  # the shared ones once
    assert [name for name, _ in odd.named_buffers()] == ["buffer"]
    assert dict(odd.named_modules())["listed.0"] is odd.listed[0]
    assert "Linear" in repr(odd)


def test_modes_freezing_dtypes_and_functions_of_modules() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(), F.relu, nn.BatchNorm1d(3))
    assert len(model) == 4
    model.eval()
    assert not any(m.training for m in model.modules())
    assert len(model) == 4
    model.train()
    seen: list[str] = []
    model.apply(lambda m: seen.append(type(m).__name__))
    assert seen == ["Linear", "Dropout", "BatchNorm1d", "Sequential"]
    model.to(bf16)
    assert model[0].weight.dtype is bf16
    assert model[0].weight.requires_grad
    assert not model[3].running_mean.requires_grad
    assert str(model[3].num_batches_tracked.dtype) == "i64"
    rotary = nn.RotaryEmbedding(4, 4).to(bf16)
    assert rotary._cos.dtype is f32  # angles keep their digits
    model[0].requires_grad_(False)
    assert len(model.parameters()) == 2
    listed = nn.ModuleList([nn.Linear(1, 1)])
    listed.append(nn.Linear(1, 2))
    assert [m.weight.shape for m in listed] == [(1, 1), (2, 1)]
    assert set(listed.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_initial_values_are_drawn_once() -> None:
    layer = nn.Linear(4, 4)
    assert layer.weight.node.value is None
    layer(asarray(x(1, 4)))
    assert layer.weight.node.value is not None
    copy = layer.weight.numpy().copy()
    layer(asarray(x(1, 4))).realize()
    np.testing.assert_array_equal(layer.weight.numpy(), copy)


def test_running_statistics_are_computed_with_the_loss() -> None:
    """Not on their own (the work before them would be done twice), and not later and later."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 1))
    batch = asarray(x(4, 1, 6, 6))
    model(batch).mean().backward()
    norm = model[1]
    for t in (norm.running_mean, norm.running_var, norm.num_batches_tracked):
        assert t.node.op == "data"
    y: Tensor = model(batch)
    assert norm.running_mean.node.op != "data"
    realize(y)
    assert norm.running_mean.node.op == "data"
    assert norm.num_batches_tracked.item() == 2
