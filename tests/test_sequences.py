"""Ragged, long and streamed sequences, and every layer's states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rnn_ext
from rnn_ext import ops


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_lengths_equal_packing(bidirectional: bool, batch_first: bool) -> None:
    module = rnn_ext.RNN(3, 5, 2, bidirectional=bidirectional, batch_first=batch_first).double()
    x, lengths = torch.randn(4, 7, 3, dtype=torch.float64), torch.tensor([3, 7, 1, 5])
    if not batch_first:
        x = x.transpose(0, 1)
    hx = torch.randn(4 if bidirectional else 2, 4, 5, dtype=torch.float64)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
    expected, h_n = module(packed, hx)
    expected = nn.utils.rnn.pad_packed_sequence(expected, batch_first)[0]
    output, last = module(x, hx, lengths=lengths)
    torch.testing.assert_close((output, last), (expected, h_n))
    grads = [torch.autograd.grad(y.pow(2).sum(), list(module.parameters())) for y in (output, expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([3, 2], r"lengths must be an int64 tensor of shape \(2,\) on the CPU, one entry a sequence, got list"),
        (torch.tensor([3, 2], dtype=torch.int32), r"got torch.int32 \(2,\)"),
        (torch.tensor([3, 2, 1]), r"got torch.int64 \(3,\)"),
        (torch.tensor([3, 0]), r"lengths must be from 1 to the padded length 4, got \[3, 0\]"),
        (torch.tensor([5, 1]), r"lengths must be from 1 to the padded length 4, got \[5, 1\]"),
    ],
)
def test_bad_lengths(lengths: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rnn_ext.RNN(3, 5)(torch.randn(4, 2, 3), lengths=lengths)


def test_lengths_where_they_do_not_belong() -> None:
    module = rnn_ext.RNN(3, 5)
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0 in RNN"):
        module(torch.randn(0, 2, 3), lengths=torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="a PackedSequence has its own"):
        module(nn.utils.rnn.pack_sequence([torch.randn(2, 3)]), lengths=torch.tensor([2]))
    with pytest.raises(ValueError, match="lengths is for batched input"):
        module(torch.randn(4, 3), lengths=torch.tensor([4]))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [(3, 7, 1, 5), (4,), (2, 2), (1, 6)])
def test_nested_tensors(lengths: tuple[int, ...], bidirectional: bool, batch_first: bool) -> None:
    module = rnn_ext.RNN(3, 5, 2, bidirectional=bidirectional, batch_first=batch_first).double()
    sequences = [torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in lengths]
    hx = torch.randn(4 if bidirectional else 2, len(lengths), 5, dtype=torch.float64)
    nested = torch.nested.as_nested_tensor(sequences, layout=torch.jagged)
    output, h_n = module(nested, hx)
    inputs = [*sequences, *module.parameters()]
    grads = torch.autograd.grad(output.values().pow(2).sum() + h_n.sum(), inputs)
    each = [module(x.unsqueeze(0 if batch_first else 1), hx[:, i : i + 1]) for i, x in enumerate(sequences)]
    for i, h in enumerate(output.unbind()):
        torch.testing.assert_close(h, each[i][0].squeeze(0 if batch_first else 1))
    torch.testing.assert_close(h_n, torch.cat([last for _, last in each], 1))
    expected = torch.autograd.grad(sum(h.pow(2).sum() + last.sum() for h, last in each), inputs)
    torch.testing.assert_close(grads, expected)
    doubled = module(nested * 2)[0] + output  # of the same raggedness
    assert doubled.is_nested
    layers, _ = module(nested, return_all_layers=True)
    assert [h.is_nested for h in layers] == [True, True]


def test_bad_nested_tensors() -> None:
    module = rnn_ext.RNN(3, 5)
    with pytest.raises(ValueError, match=r"with layout=torch.jagged and without holes, got 3 dimensions, layout"):
        module(torch.nested.nested_tensor([torch.randn(2, 3)]))
    with pytest.raises(ValueError, match=r"must have at least one step, got \[2, 0\]"):
        module(torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(0, 3)], layout=torch.jagged))
    for offsets in ([1, 3, 7], [0, 3, 6]):
        holes = torch.nested.nested_tensor_from_jagged(torch.randn(7, 3), torch.tensor(offsets))
        with pytest.raises(ValueError, match=rf"must begin at 0 and end at its 7 rows of values, got \{offsets}"):
            module(holes)
    with pytest.raises(ValueError, match="a nested tensor has its own"):
        module(torch.nested.nested_tensor([torch.randn(2, 3)], layout=torch.jagged), lengths=torch.tensor([2]))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["padded", "batch first", "unbatched", "packed"])
def test_return_all_layers(kind: str, bidirectional: bool) -> None:
    directions = 2 if bidirectional else 1
    module = rnn_ext.RNN(3, 5, 3, bidirectional=bidirectional, batch_first=kind == "batch first", dropout=0.5).eval()
    x: Any = torch.randn(4, 2, 3)
    if kind == "unbatched":
        x = x[:, 0]
    if kind == "packed":
        x = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([2, 4]), enforce_sorted=False)
    outputs, h_n = module(x, return_all_layers=True)
    output, expected_h_n = module(x)
    assert len(outputs) == 3
    torch.testing.assert_close(outputs[-1], output)
    torch.testing.assert_close(h_n, expected_h_n)
    for k in range(3):
        alone = nn.RNN(3 if k == 0 else 5 * directions, 5, bidirectional=bidirectional, batch_first=module.batch_first)
        for name, value in alone.named_parameters():
            value.data = getattr(module, name.replace("l0", f"l{k}")).data
        x, _ = alone(x)
        torch.testing.assert_close(outputs[k], x)


def test_all_layers_may_be_edited_before_backward() -> None:
    module = rnn_ext.RNN(3, 5, 2)
    x = torch.randn(4, 2, 3)
    expected = torch.autograd.grad(module(x)[0].sum(), list(module.parameters()))
    outputs, _ = module(x, return_all_layers=True)
    total = outputs[-1].sum()
    outputs[0].zero_()
    torch.testing.assert_close(torch.autograd.grad(total, list(module.parameters())), expected)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from(["tanh", "relu"]),
)
def test_checkpointing_changes_no_gradient(
    time: int, batch: int, layers: int, bidirectional: bool, every: int, with_hx: bool, nonlinearity: str
) -> None:
    torch.manual_seed(0)
    module = rnn_ext.RNN(3, 5, layers, nonlinearity, bidirectional=bidirectional).double()
    x = torch.randn(time, batch, 3, dtype=torch.float64, requires_grad=True)
    states = layers * (2 if bidirectional else 1)
    hx = torch.randn(states, batch, 5, dtype=torch.float64, requires_grad=True) if with_hx else None
    inputs = [x, *module.parameters()] + ([] if hx is None else [hx])
    results = []
    for options in ({}, {"checkpoint_every": every}):
        output, h_n = module(x, hx, **options)
        loss = output.pow(2).sum() + h_n.sin().sum()
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), inputs)
        results.append((output, h_n, first, second))
    torch.testing.assert_close(*results)


def saved_elements(module: nn.Module, x: Tensor, **options: Any) -> int:
    """Elements of all that a forward pass keeps for backward, besides the input and the parameters."""
    given = {t.untyped_storage().data_ptr() for t in (x, *module.parameters())}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes() // t.element_size()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        output, h_n = module(x, **options)
    # What the graph holds for backward is alive; the output is the user's.
    assert output.requires_grad and h_n.requires_grad
    return sum(kept.values())


def test_checkpointing_keeps_few_states() -> None:
    time, batch, hidden, every = 400, 2, 16, 20
    module, x = rnn_ext.RNN(4, hidden, 2), torch.randn(time, batch, 4)
    whole = saved_elements(module, x)
    few = saved_elements(module, x, checkpoint_every=every)
    assert whole >= 2 * time * batch * hidden
    # Two layers' states between chunks.
    assert few <= 2 * (time // every) * batch * hidden


class PeakElements(TorchDispatchMode):
    """The most elements that tensors made under this mode held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        self.made = {k: v for k, v in self.made.items() if not v[0].expired()}
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in given:
                storage = t.untyped_storage()
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes() // t.element_size()
        self.peak = max(self.peak, sum(size for _, size in self.made.values()))
        return result


def test_checkpointing_makes_few_states_at_once_in_backward() -> None:
    batch, hidden, every = 2, 16, 20

    def peak(time: int, **options: Any) -> int:
        module = rnn_ext.RNN(1, hidden, 2)
        _, h_n = module(torch.randn(time, batch, 1), **options)
        with PeakElements() as made:
            h_n.sum().backward()
        return made.peak

    # Those of one chunk, however many chunks there are.
    assert peak(800, checkpoint_every=every) == peak(400, checkpoint_every=every)
    assert peak(800) >= 800 * batch * hidden >= 4 * peak(800, checkpoint_every=every)


def test_checkpointed_dropout_is_drawn_once() -> None:
    for bidirectional in (False, True):
        module = rnn_ext.RNN(4, 8, 2, dropout=0.5, bidirectional=bidirectional).double()
        x = torch.randn(12, 3, 4, dtype=torch.float64, requires_grad=True)

        def loss(x: Tensor, module: rnn_ext.RNN = module) -> Tensor:
            torch.manual_seed(5)
            return module(x, checkpoint_every=4)[0].pow(2).sum()

        # Were the masks of backward's forward pass others, the gradient would not be that of the loss.
        assert torch.autograd.gradcheck(loss, x)
        torch.manual_seed(5)
        kept = module(x)[0]
        assert not torch.equal(kept, module.eval()(x)[0])


@pytest.mark.parametrize("every", [0, -3, 2.0, True])
def test_bad_checkpoint_every(every: Any) -> None:
    with pytest.raises(ValueError, match=f"checkpoint_every must be a positive int, got {every!r}"):
        rnn_ext.RNN(3, 5)(torch.randn(4, 2, 3), checkpoint_every=every)


def test_what_cannot_be_checkpointed() -> None:
    module = rnn_ext.RNN(3, 5)
    x = torch.randn(4, 2, 3)
    with pytest.raises(ValueError, match="sequences of one length"):
        module(x, lengths=torch.tensor([4, 2]), checkpoint_every=2)
    with pytest.raises(ValueError, match="sequences of one length"):
        module(nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 2])), checkpoint_every=2)
    with pytest.raises(ValueError, match="excludes return_all_layers"):
        module(x, checkpoint_every=2, return_all_layers=True)


@given(st.integers(2, 30), st.integers(1, 20), st.sampled_from([1, 7, 16, 33, 64, 100]), st.data())
def test_streaming_has_the_bits_of_one_call(time: int, batch: int, hidden: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, time - 1))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    torch.manual_seed(0)
    u, w = torch.randn(time, batch, hidden).to(dtype), (torch.randn(hidden, hidden) / hidden**0.5).to(dtype)
    h, h_n = ops.recurrence(u, None, w)
    first, state = ops.recurrence(u[:cut], None, w)
    second, last = ops.recurrence(u[cut:], state, w)
    assert torch.equal(torch.cat([first, second]), h)
    assert torch.equal(last, h_n)
