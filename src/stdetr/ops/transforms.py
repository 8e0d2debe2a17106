"""Transforms of torch.func (grad, vjp, jacrev, vmap, ...) over operators that are registered through torch.library.

``torch.library.register_autograd`` serves ``Tensor.backward`` and compilers; torch.func wants an autograd.Function with
its own ``setup_context`` and ``vmap``.  ``register_autograd`` here gives an operator both from the same two functions:
while a transform is active, a call of the operator runs that Function instead.

Shape legend: B clips, V the axis that vmap maps over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.library import Library

# The first key that a call meets while a transform is active.
_KEY = "FuncTorchDynamicLayerFrontMode"
_libraries: dict[str, Library] = {}


def transforms_active() -> bool:
    """Whether a transform of torch.func surrounds the caller."""
    return torch._C._are_functorch_transforms_active()


def _folded(op: Callable[..., Any], size: int, in_dims: Sequence[Any], arguments: Sequence[Any]) -> Any:
    """One call with V*B clips: every tensor of ``arguments`` has B as its first axis.

    ``in_dims``: the axis V of each argument; None for a tensor without it, a list of None for a list.
    """

    def fold(argument: Any, dim: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        argument = argument.expand(size, *argument.shape) if dim is None else argument.movedim(dim, 0)
        return argument.flatten(0, 1)

    out = op(*map(fold, arguments, in_dims))
    split = lambda tensor: tensor.unflatten(0, (size, tensor.shape[0] // size))  # noqa: E731
    return tuple(map(split, out)) if isinstance(out, tuple) else split(out)


def _looped(op: Callable[..., Any], size: int, in_dims: Sequence[Any], arguments: Sequence[Any]) -> Any:
    """One call for each of V: for operators with tensors that all clips share."""

    def pick(argument: Any, dim: Any, place: int) -> Any:
        return argument.select(dim, place) if isinstance(dim, int) else argument

    outs = [op(*(pick(*pair, place) for pair in zip(arguments, in_dims, strict=True))) for place in range(size)]
    return tuple(map(torch.stack, zip(*outs, strict=True))) if isinstance(outs[0], tuple) else torch.stack(outs)


def _function(
    op: Any, backward: Callable[..., Any], setup_context: Callable[[Any, Sequence[Any], Any], None]
) -> type[Function]:
    shared = any(argument.name.endswith("_table") for argument in op.default._schema.arguments)
    rule = _looped if shared else _folded

    def mapped(info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[Any, Any]:
        out = rule(op, info.batch_size, in_dims, arguments)
        return out, tuple(0 for _ in out) if isinstance(out, tuple) else 0

    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise ValueError(
            "the attention kernels have no forward-mode derivative inside other transforms; "
            "run torch.func.jvp, jacfwd and hessian under stdetr.ops.use_backend('reference')"
        )

    members = {
        "forward": lambda *arguments: op(*arguments),
        "setup_context": setup_context,
        "backward": backward,
        "vmap": mapped,
        "jvp": jvp,
    }
    return type(f"Transformed_{op.__name__}", (Function,), {key: staticmethod(body) for key, body in members.items()})


def register_autograd(
    name: str, backward: Callable[..., Any], *, setup_context: Callable[[Any, Sequence[Any], Any], None]
) -> None:
    """``torch.library.register_autograd``, and the same derivative for transforms of torch.func.

    ``name`` is "namespace::operator".  Each tensor of the operator has B as its first axis, but for those whose name
    ends in ``_table``.
    """
    torch.library.register_autograd(name, backward, setup_context=setup_context)
    namespace, operator = name.split("::")
    op = getattr(getattr(torch.ops, namespace), operator)
    function = _function(op, backward, setup_context)
    if namespace not in _libraries:
        # A registration ends with the object that made it.
        _libraries[namespace] = Library(namespace, "IMPL")
    _libraries[namespace].impl(operator, lambda *arguments: function.apply(*arguments), _KEY)
