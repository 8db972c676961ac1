"""The memory of a module becomes arguments: what it keeps from step to step goes in and comes out.

A module that maps a whole sequence remembers in two ways: recurrent layers (`nn.GRU`, `nn.LSTM`, `nn.RNN`)
carry a hidden vector, and a causal pad `(p, 0)` on the time dim, by `F.pad`, `nn.ZeroPad1d` or a layer of
`fusedge.models.streaming`, stands for the last p inputs. The module itself is not changed: it is watched
on sequences of one and two steps to see which of its calls run over time, and then run with these calls
taking their state from the arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fusedge.bundle.errors import FusedgeError

Inputs = Callable[[int, int], tuple[Tensor, ...]]
"""The module's arguments for a batch and a number of steps in a row."""

_RECURRENT: dict[object, str] = {
    torch.gru: "gru",
    torch.lstm: "lstm",
    torch.rnn_tanh: "rnn",
    torch.rnn_relu: "rnn",
}
_CELLS = (torch.gru_cell, torch.lstm_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell)
_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
_NAME_LENGTH = 60  # leaves room for `state_out.` and `.h` in a name of the manifest


@dataclass(frozen=True)
class _Call:
    """A call that may remember. `shape` is that of its input, for attention the number of keys alone."""

    kind: str
    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Slot:
    """Where a call has its state; `time` and `batch` are dims of its input."""

    kind: str
    names: tuple[str, ...]
    time: int
    batch: int
    shapes: tuple[tuple[int, ...], ...]
    initial: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class Lifted:
    """Which calls of a module have a state, in the order of the calls.

    `shapes` and `initial` (where that is not zeros) are by state, without the batch, float32.
    """

    slots: tuple[_Slot | None, ...] = ()
    shapes: dict[str, tuple[int, ...]] = field(init=False)
    initial: dict[str, NDArray[np.float32]] = field(init=False)

    def __post_init__(self) -> None:
        own = [slot for slot in self.slots if slot]
        shapes = {n: s for slot in own for n, s in zip(slot.names, slot.shapes, strict=True)}
        values = {n: v for slot in own for n, v in zip(slot.names, slot.initial, strict=True)}
        object.__setattr__(self, "shapes", shapes)
        object.__setattr__(self, "initial", {n: v for n, v in values.items() if v.any()})

    def run(
        self, module: nn.Module, inputs: Sequence[Tensor], states: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The outputs of the module from these states, then the new states, each `[B, ...]`."""
        if not self.shapes:
            return as_tuple(module(*inputs))
        with _Stepping(self.slots, states) as stepping:
            outputs = as_tuple(module(*inputs))
        return (*outputs, *stepping.left)

    def whole(self, module: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs of the module as it is, from its own initial state."""
        return as_tuple(module(*inputs))


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a module returns, always as a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def run_module(module: nn.Module, inputs: Sequence[Tensor], where: str) -> tuple[Tensor, ...]:
    """The outputs of a user's module; raises FusedgeError with the inputs' shapes where it fails."""
    try:
        with torch.no_grad():
            return as_tuple(module(*inputs))
    except Exception as error:  # the user's own code
        shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs)
        raise FusedgeError(
            f"the module fails on {shapes}: {type(error).__name__}: {error}", where=where
        ) from error


def lift(module: nn.Module, inputs: Inputs, where: str) -> Lifted:
    """Find the calls of a module that remember, by running it at (batch, steps) (2, 1), (2, 2), (3, 1).

    A call remembers if its input is longer for two steps than for one; one that is repeated for each
    step, or whose batch grows with the steps, starts anew in each and is left alone. States are named after
    the user's modules. Raises FusedgeError for memory that cannot be lifted, with the module's name.
    """
    one, two, other = (_watch(module, inputs(*size), where) for size in ((2, 1), (2, 2), (3, 1)))
    for calls, what in ((two, "one step and for two"), (other, "one batch and for another")):
        if [(c.kind, c.path) for c in one] != [(c.kind, c.path) for c in calls]:
            longer = max(one, calls, key=len)
            odd = next(
                (c for c, d in zip(one, calls, strict=False) if c.path != d.path), longer[-1]
            )
            raise FusedgeError(
                f"{odd.path or odd.kind} is called differently often for {what}",
                where=where,
                hint="a loop over time cannot be lifted: give the layer the whole sequence at once",
            )
    names: set[str] = set()
    return Lifted(tuple(_slot(calls, names, where) for calls in zip(one, two, other, strict=True)))


class _Watching(TorchFunctionMode):
    """Notes each call that may remember, with the path of the module that makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.path = [""]
        self.calls: list[_Call] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if kind := _kind(func):
            self.calls.append(_Call(kind, self.path[-1], args, kwargs, _shape(func, args, kwargs)))
        return func(*args, **kwargs)

    @contextmanager
    def following(self, module: nn.Module) -> Iterator[None]:
        """Keep `path` at the module that is being run."""
        with ExitStack() as stack:
            for name, child in module.named_modules():
                hooks = (
                    child.register_forward_pre_hook(lambda *_, name=name: self.path.append(name)),
                    child.register_forward_hook(lambda *_: self._leave(), always_call=True),
                )
                for hook in hooks:
                    stack.callback(hook.remove)
            yield

    def _leave(self) -> None:
        self.path.pop()


def _kind(func: object) -> str:
    """The kind of a call that may remember, empty for all others."""
    if func is functional.pad:
        return "pad"
    if func in _CONVOLUTIONS:
        return "convolution"
    if func in (
        functional.scaled_dot_product_attention,
        functional.multi_head_attention_forward,
    ):
        return "attention"
    return "cell" if func in _CELLS else _RECURRENT.get(func, "")


def _shape(func: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    if func is functional.scaled_dot_product_attention:
        return (int((args[1] if len(args) > 1 else kwargs["key"]).shape[-2]),)
    if func is functional.multi_head_attention_forward:  # [L, B, E]
        return (int((args[1] if len(args) > 1 else kwargs["key"]).shape[0]),)
    return tuple((args[0] if args else kwargs["input"]).shape)


def _watch(module: nn.Module, inputs: tuple[Tensor, ...], where: str) -> list[_Call]:
    watching = _Watching()
    with watching.following(module), watching:
        run_module(module, inputs, where)
    return watching.calls


def _slot(calls: tuple[_Call, _Call, _Call], names: set[str], where: str) -> _Slot | None:
    """The state of a call that was seen at one step, at two, and at another batch."""
    one, two, other = calls
    longer = [axis for axis, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b]
    batch = [axis for axis, (a, b) in enumerate(zip(one.shape, other.shape, strict=True)) if a != b]
    refuse = _Refusal(one, where)
    if one.kind in _RECURRENT.values():
        if not isinstance(one.args[3], bool):
            refuse("runs over packed sequences", "give it the padded sequence [B, T, C]")
        time = int(one.args[-1])  # batch_first
        if time in batch:
            refuse("runs over the batch as if that were time", "batch_first=True, [B, T, C]")
        if time not in longer:
            return None
        _check_batch(one, other, batch, refuse)
        return _recurrent(calls, time, names, refuse)
    if one.kind == "pad":
        pads = _pads(one)
        times = [axis for axis in longer if axis in pads]
        if not times:
            return None
        _check_batch(one, other, batch, refuse)
        return _padded(one, times, batch[0], names, refuse)
    if one.kind == "convolution" and any(_pads_both_ends(one, axis) for axis in longer):
        refuse(
            "pads both ends of time, so it looks ahead",
            "padding=0 after functional.pad(x, (kernel_size - 1, 0))",
        )
    if one.kind == "attention" and longer and not _masked(one):
        refuse(
            "attends to all of time, which is no bounded memory",
            "use fusedge.models.streaming.CausalAttention",
        )
    return None


class _Refusal:
    """Raises the error that a call cannot be lifted."""

    def __init__(self, call: _Call, where: str) -> None:
        self.call, self.where = call, where

    def __call__(self, what: str, hint: str) -> None:
        raise FusedgeError(
            f"{self.call.path or self.call.kind} {what}", where=self.where, hint=hint
        )


def _check_batch(one: _Call, other: _Call, batch: Sequence[int], refuse: _Refusal) -> None:
    if [(one.shape[a], other.shape[a]) for a in batch] != [(2, 3)]:
        refuse(
            f"runs over time with shapes {list(one.shape)} for a batch of 2, "
            f"{list(other.shape)} for one of 3",
            "one dim must be the batch, and nothing else, so that each stream has a memory of its own",
        )


def _unique(call: _Call, names: set[str]) -> str:
    """The state's name: of the module that calls, numbered from its second call on."""
    path = re.sub(r"[^A-Za-z0-9_.\-]", "_", call.path or call.kind)[-_NAME_LENGTH:]
    name, count = path, 1
    while name in names:
        count += 1
        name = f"{path}.{count}"
    names.add(name)
    return name


def _recurrent(
    calls: tuple[_Call, _Call, _Call], time: int, names: set[str], refuse: _Refusal
) -> _Slot:
    one = calls[0]
    if one.args[-2]:
        refuse("is bidirectional, so it looks ahead", "bidirectional=False")
    firsts = [_hidden(call) for call in calls]
    for group in zip(*firsts, strict=True):
        first = group[0][:, :1]
        if not all(torch.equal(state, first.expand_as(state)) for state in group):
            refuse(
                "has an initial state that depends on the input",
                "start from zeros or from a parameter that is the same for each input",
            )
    initial = [state[:, 0].numpy().astype(np.float32) for state in firsts[0]]
    if _projected(one):
        # The state is what the cell holds before its projection: see _run_projected.
        if initial[0].any():
            refuse("has a projection and an initial state", "start from zeros, or proj_size=0")
        initial[0] = np.zeros_like(initial[1])
    name = _unique(one, names)
    return _Slot(
        one.kind,
        (f"{name}.h", f"{name}.c") if one.kind == "lstm" else (name,),
        time,
        1 - time,
        tuple(value.shape for value in initial),
        tuple(initial),
    )


def _hidden(call: _Call) -> tuple[Tensor, ...]:
    """The initial state of a recurrent call, `[layers, B, H]` each."""
    given = call.args[1]
    return tuple(state.detach() for state in ((given,) if isinstance(given, Tensor) else given))


def _pads(call: _Call) -> dict[int, tuple[int, int]]:
    """What `F.pad` adds before and after, by dim, where it adds or takes anything."""
    sizes = call.args[1] if len(call.args) > 1 else call.kwargs["pad"]
    pairs = zip(sizes[::2], sizes[1::2], strict=True)
    dims = reversed(range(len(call.shape)))
    return {dim: pair for dim, pair in zip(dims, pairs, strict=False) if any(pair)}


def _option(call: _Call, place: int, name: str, default: Any) -> Any:
    return call.args[place] if len(call.args) > place else call.kwargs.get(name, default)


def _padded(
    call: _Call, times: Sequence[int], batch: int, names: set[str], refuse: _Refusal
) -> _Slot:
    pads, time = _pads(call), times[0]
    before, after = pads[time]
    if len(times) > 1 or after > 0:
        refuse("pads the end of time, so it looks ahead", "pad (p, 0) on the time dim")
    if before <= 0 or before + after < 0:
        refuse("cuts off a part of time", "pad (p, 0) on the time dim before the convolution")
    if (mode := _option(call, 2, "mode", "constant")) != "constant":
        refuse(f"pads time by {mode}, from what is known only at an end", "pad with a constant")
    if call.args[0].dtype != torch.float32:
        refuse(f"pads values of {call.args[0].dtype}", "convert them with .float() before")
    sizes = {axis: size + sum(pads.get(axis, (0, 0))) for axis, size in enumerate(call.shape)}
    shape = tuple(before if axis == time else sizes[axis] for axis in sizes if axis != batch)
    value = np.full(shape, _option(call, 3, "value", None) or 0, np.float32)
    return _Slot("pad", (_unique(call, names),), time, batch, (shape,), (value,))


def _pads_both_ends(call: _Call, axis: int) -> bool:
    """Whether a convolution adds zeros to a dim of its input."""
    if axis < 2:
        return False
    padding = _option(call, 4, "padding", 0)
    if isinstance(padding, str):
        return padding != "valid" and call.args[1].shape[axis] > 1
    sizes = (padding,) * len(call.shape) if isinstance(padding, int) else padding
    return bool(sizes[axis - 2])


def _masked(call: _Call) -> bool:
    return isinstance(_option(call, 3, "attn_mask", None), Tensor)


def _projected(call: _Call) -> bool:
    """Whether an LSTM has a projection: one more weight for each layer."""
    return call.kind == "lstm" and len(call.args[2]) == call.args[4] * (5 if call.args[3] else 3)


class _Stepping(TorchFunctionMode):
    """Runs calls with a slot from the given states, and keeps in `left` the states that they leave.

    States are kept here and not in modules: torch.export forbids to assign to a module.
    """

    def __init__(self, slots: Sequence[_Slot | None], states: Sequence[Tensor]) -> None:
        super().__init__()
        self._slots, self._states = iter(slots), iter(states)
        self.left: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        kind = _kind(func)
        slot = next(self._slots, None) if kind else None
        if slot is None:
            return func(*args, **kwargs)
        assert slot.kind == kind  # as lift() made sure by running three times
        call = _Call(kind, "", args, kwargs, tuple(args[0].shape))
        return self._pad(slot, call) if kind == "pad" else self._recur(slot, call, func)

    def _pad(self, slot: _Slot, call: _Call) -> Tensor:
        pads = _pads(call)
        before, after = pads.pop(slot.time)
        x = call.args[0]
        if pads:
            flat = [size for axis in reversed(range(x.dim())) for size in pads.get(axis, (0, 0))]
            x = functional.pad(x, flat, value=_option(call, 3, "value", None))
        state = next(self._states).movedim(0, slot.batch)
        joined = torch.cat([state, x], dim=slot.time)
        length = joined.shape[slot.time]
        self.left.append(joined.narrow(slot.time, length - before, before).movedim(slot.batch, 0))
        return joined.narrow(slot.time, 0, length + after) if after else joined

    def _recur(self, slot: _Slot, call: _Call, func: Any) -> tuple[Tensor, ...]:
        # Contiguous, or the exporter's loop of nn.RNN fails over strides that change.
        given = [next(self._states).transpose(0, 1).contiguous() for _ in slot.names]
        if _projected(call):
            output, last, states = _run_projected(call, given[0], given[1], slot.time)
        else:
            hidden = tuple(given) if slot.kind == "lstm" else given[0]
            output, *states = func(call.args[0], hidden, *call.args[2:])
            last = states[0]
        self.left += [state.transpose(0, 1) for state in states]
        return (output, last, *states[1:])


def _run_projected(
    call: _Call, hidden: Tensor, cell: Tensor, time: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """An LSTM with projections as one without, which the exporter knows: W_hh W_hr takes W_hh's place.

    Its hidden state is that before the projection, `[layers, B, H]` like the cell's. Returns the output,
    the last projected state and the states.
    """
    x, _, weights, biases, layers = call.args[:5]
    each = len(weights) // layers
    projected, hiddens, cells = [], [], []
    for layer in range(layers):
        own = weights[layer * each : (layer + 1) * each]
        merged = [own[0], own[1] @ own[-1], *own[2:-1]]
        state = (hidden[layer : layer + 1], cell[layer : layer + 1])
        x, h, c = torch.lstm(x, state, merged, biases, 1, 0.0, False, False, bool(time))
        x = functional.linear(x, own[-1])
        projected.append(functional.linear(h, own[-1]))
        hiddens.append(h)
        cells.append(c)
    return x, torch.cat(projected), [torch.cat(hiddens), torch.cat(cells)]
