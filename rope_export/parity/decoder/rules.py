"""What each operation of ATen does to the deviations of its operands, and adds to them.

A rule notes the deviation of the result: of what is carried over, to first order and as of
independent operands, and of the operation's own roundings. u: of a stored number; v: of a partial
sum.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rope_export.parity.bounds import UNDERFLOW
from rope_export.parity.decoder.deviation import Operation
from rope_export.parity.layer.carried import INT8

Rule = Callable[[Operation], None]

MAKING = {
    "zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like",
    "new_zeros", "new_ones", "new_full", "new_empty", "arange", "scalar_tensor",
}  # fmt: skip
"""Operations whose results are exact, and may be written to."""

PLACING = {
    "cat", "stack", "_to_copy", "copy_", "where", "index_put", "index_put_", "scatter", "scatter_",
    "slice_scatter", "select_scatter", "constant_pad_nd", "tril", "triu", "roll", "index_copy_",
    "masked_select", "masked_fill", "masked_fill_", "fill_", "zero_",
}  # fmt: skip
"""As `exact.MOVING`: numbers that are put beside, or over, others."""

EXACT = {
    "histc", "bincount", "eq", "ne", "lt", "le", "gt", "ge", "argmax", "argmin", "isfinite",
    "isnan", "isinf", "floor", "round", "ceil", "sign", "any", "all", "_local_scalar_dense",
}  # fmt: skip
"""Operations whose results small errors do not move."""

HIDDEN = 1e30
"""Size of a score that a mask has made so small that it has no weight."""

POSITIVE = {"rsqrt", "sqrt", "log", "reciprocal", "pow"}
"""Functions that may not be looked at on the other side of zero."""

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Makes a function the rule of the operations of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def _note(op: Operation, carried: Any, stored: float = 1.0) -> None:
    """What is carried over, and the rounding of what is stored."""
    y = torch.where(op.values.abs() < HIDDEN, op.values, 0.0)
    op.note(carried + stored * (op.to.u * y) ** 2)


@rule("mm", "bmm")
def _product(op: Operation) -> None:
    deviation = op.to.of(op.args[0])
    if deviation is not None and deviation.scores is not None:
        _note(op, _averaged(op, op.args[0], op.args[1], deviation.scores))
    else:
        _note(op, _summed(op, *op.args[:2]), 2)


@rule("addmm", "baddbmm")
def _product_and_sum(op: Operation) -> None:
    alpha, beta = op.kwargs.get("alpha", 1), op.kwargs.get("beta", 1)
    summed = _summed(op, *op.args[1:3])
    _note(op, alpha**2 * summed + beta**2 * op.squares(op.args[0]), 2)


def _summed(op: Operation, a: Tensor, b: Tensor) -> Tensor:
    """n products of sum y, whose n partial sums are rounded. These lead from 0 to y like a random
    walk: with r the root sum of the products' squares, their mean square is y^2 / 3 + r^2 / 6,
    which (y^2 + r^2) / 2 bounds.
    """
    to, terms = op.to, a.shape[-1]
    to.longest = max(to.longest, terms)
    own = to.v**2 * terms / 2
    error = to.squares(a)
    block = to.int8_blocks.get(to.widened.origin(b) or 0)
    if block is not None:
        error = error + _rounded_to_int8(a, block)
    result = torch.matmul(error + own * a**2, to.widened.of(b, torch.square))
    result = result + own * op.values**2
    return result if to.of(b) is None else result + torch.matmul(a**2, to.squares(b))


def _rounded_to_int8(x: Tensor, block: int) -> Tensor:
    """As in `layer.deviations`: each block of features has the step that its largest needs."""
    width = x.shape[-1]
    blocks = F.pad(x.abs(), (0, -width % block)).unflatten(-1, (-1, block))
    squares = 2 * (blocks.amax(dim=-1) / INT8 / 2) ** 2
    return squares.repeat_interleave(block, dim=-1)[..., :width]


def _averaged(op: Operation, w: Tensor, b: Tensor, scores: Tensor) -> Tensor:
    """Means of values b by the weights w of a softmax, whose scores are off.

    The errors of scores share that of their query, so they are taken as conspiring, by Cauchy and
    Schwarz; one beyond 1/2 may move a mean by tanh of it, as a share of the values' spread.
    Source: as in `layer.deviations` and `layer.moved`.
    """
    to, y, terms = op.to, op.values, w.shape[-1]
    to.longest = max(to.longest, terms)
    errors = torch.where(w > 0, scores, 0.0).sqrt()
    largest = errors.amax(dim=-1, keepdim=True)
    values2 = b**2
    variance = torch.clamp(torch.matmul(w, values2) - y**2, min=0.0)
    beyond = torch.expm1(errors.clamp(max=50.0)) ** 2
    conspiring = torch.sum(w * beyond, dim=-1, keepdim=True) * variance
    spread = b.amax(dim=-2, keepdim=True) - b.amin(dim=-2, keepdim=True)
    moved = torch.maximum(conspiring, (torch.tanh(largest) * spread) ** 2)
    weighted = torch.matmul(w**2, values2)
    rounded = (to.u**2 + (8 + terms) * to.v**2) * weighted + to.v**2 * terms * y**2
    underflow = UNDERFLOW[to.dtype] ** 2 * values2.sum(dim=-2, keepdim=True)
    carried = 0.0 if to.of(b) is None else torch.matmul(w**2, to.squares(b))
    return torch.where(largest > 0.5, moved, conspiring) + rounded + underflow + carried


@rule("add", "add_", "sub", "sub_", "rsub")
def _added(op: Operation) -> None:
    alpha = op.kwargs.get("alpha", 1)
    _note(op, op.squares(op.args[0]) + alpha**2 * op.squares(op.args[1]))


@rule("mul", "mul_")
def _multiplied(op: Operation) -> None:
    a, b = op.args[:2]
    if op.values.is_complex():
        _multiplied_complex(op, a, b)
    else:
        _note(op, op.squares(a) * b**2 + op.squares(b) * a**2)


def _multiplied_complex(op: Operation, a: Any, b: Any) -> None:
    """Each part is a sum of two products, as of a rotation by cosine and sine."""
    (ar, ai), (br, bi) = _parts(a), _parts(b)
    (sar, sai), (sbr, sbi) = _parts(op.squares(a)), _parts(op.squares(b))
    u2 = op.to.u**2
    real = sar * br**2 + sai * bi**2 + sbr * ar**2 + sbi * ai**2
    real = real + u2 * (ar**2 * br**2 + ai**2 * bi**2 + op.values.real**2)
    imaginary = sar * bi**2 + sai * br**2 + sbi * ar**2 + sbr * ai**2
    imaginary = imaginary + u2 * (ar**2 * bi**2 + ai**2 * br**2 + op.values.imag**2)
    op.note(torch.complex(real, imaginary))


def _parts(x: Any) -> tuple[Any, Any]:
    """The real and the imaginary part of a tensor or a number."""
    if isinstance(x, Tensor):
        return (x.real, x.imag) if x.is_complex() else (x, 0.0)
    return complex(x).real, complex(x).imag


@rule("view_as_complex")
def _as_complex(op: Operation) -> None:
    op.note(torch.view_as_complex(op.squares(op.args[0]).contiguous()))


@rule("view_as_real")
def _as_real(op: Operation) -> None:
    op.note(torch.view_as_real(op.squares(op.args[0])))


@rule("polar")
def _polar(op: Operation) -> None:
    """r (cos x + i sin x): errors of r and x, and of both functions."""
    size, angle = op.args[:2]
    real, imaginary = op.values.real, op.values.imag
    carried, off = op.squares(size), op.squares(angle)
    unit = torch.polar(torch.ones_like(angle), angle)
    own = 2 * op.to.u**2
    op.note(
        torch.complex(
            carried * unit.real**2 + off * imaginary**2 + own * real**2,
            carried * unit.imag**2 + off * real**2 + own * imaginary**2,
        )
    )


@rule("div", "div_")
def _divided(op: Operation) -> None:
    a, b = op.args[:2]
    _note(op, (op.squares(a) + op.values**2 * op.squares(b)) / b**2)


@rule("neg")
def _negated(op: Operation) -> None:
    op.note(op.squares(op.args[0]))


@rule("maximum", "minimum")
def _larger(op: Operation) -> None:
    op.note(torch.maximum(op.squares(op.args[0]), op.squares(op.args[1])))


@rule(
    "silu", "gelu", "tanh", "sigmoid", "exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "pow",
    "relu", "square", "softplus", "sin", "cos", "erf", "reciprocal", "clamp", "clamp_min",
    "clamp_max", "hardtanh", "elu", "leaky_relu", "log_sigmoid_forward", "exp2", "abs", "mish",
    "hardswish", "hardsigmoid", "silu_", "relu_", "tanh_", "sigmoid_", "clamp_", "log_sigmoid",
)  # fmt: skip
def _of_one_number(op: Operation) -> None:
    """By the slope, which is taken from the function itself beside x."""
    x, *others = op.args
    name = op.name.rstrip("_")
    step = 1e-6 * x.abs() + 1e-200 if name in POSITIVE else torch.full_like(x, 1e-6)
    function = getattr(torch.ops.aten, name)

    def at(z: Tensor) -> Tensor:
        value = function(z, *others, **op.kwargs)
        return value[0] if isinstance(value, tuple) else value

    slope = (at(x + step) - at(x - step)) / (2 * step)
    _note(op, slope**2 * op.squares(x), 2)


@rule("sum", "mean", "cumsum")
def _reduced(op: Operation) -> None:
    """As of products; a mean is divided by its number of terms."""
    x, to = op.args[0], op.to
    terms = x.shape[op.args[1]] if op.name == "cumsum" else x.numel() // max(op.values.numel(), 1)
    to.longest = max(to.longest, terms)
    own = to.v**2 * terms / 2
    rest = {key: value for key, value in op.kwargs.items() if key != "dtype"}
    added = op.func(to.squares(x) + own * x**2, *op.args[1:], **rest)
    _note(op, (added / terms if op.name == "mean" else added) + own * op.values**2)


@rule("amax", "amin")
def _largest(op: Operation) -> None:
    op.note(torch.amax(op.squares(op.args[0]), *op.args[1:], **op.kwargs))


@rule("_softmax")
def _softmax(op: Operation) -> None:
    """w_j moves by w_j (e_j - sum of w_k e_k)."""
    x, axis, *_ = op.args
    w, to = op.values, op.to
    top = x.amax(dim=axis, keepdim=True)
    shift = torch.where(w > 0, x - top, 0.0)
    scores = torch.where(w > 0, to.squares(x) + (to.v * shift) ** 2, 0.0)
    beyond = torch.expm1(scores.sqrt().clamp(max=50.0)) ** 2
    together = torch.sum(w**2 * beyond, dim=axis, keepdim=True)
    own = (to.u**2 + 8 * to.v**2) * w**2 + UNDERFLOW[to.dtype] ** 2
    op.note(w**2 * (beyond + together) + own, scores)


@rule("topk", "sort", "max", "min")
def _chosen(op: Operation) -> None:
    """The largest of several, with their margin: of what was left out the next is nearest."""
    if isinstance(op.result, Tensor):
        op.note(torch.amax(op.squares(op.args[0])))
        return
    x, (values, indices) = op.args[0], op.result
    default = -1 if op.name in ("topk", "sort") else 0
    axis = op.argument(2 if op.name == "topk" else 1, "dim", default)
    squares = op.squares(x)
    keep = values.ndim == x.ndim
    at = indices if keep else indices.unsqueeze(axis)
    gathered = squares.gather(axis, at)
    op.note(gathered if keep else gathered.squeeze(axis))
    if op.name == "topk" and values.shape[axis] < x.shape[axis]:
        op.to.margins.append(_margin(x, squares, at, axis))


def _margin(x: Tensor, squares: Tensor, chosen: Tensor, axis: int) -> Tensor:
    """How far the chosen are above the others, in deviations of the difference, (...)."""
    left = torch.ones_like(x, dtype=torch.bool).scatter(axis, chosen, False)
    last, at_last = torch.where(left, torch.inf, x).min(dim=axis, keepdim=True)
    following, at_following = torch.where(left, x, -torch.inf).max(dim=axis, keepdim=True)
    deviation = squares.gather(axis, at_last) + squares.gather(axis, at_following)
    return ((last - following) / deviation.sqrt().clamp(min=1e-300)).squeeze(axis)


@rule("index_add_", "index_add", "scatter_add", "scatter_add_")
def _added_at(op: Operation) -> None:
    squares = op.squares(op.args[0]).clone()
    other = op.squares(op.args[3])
    function = getattr(torch.ops.aten, op.name.rstrip("_"))
    _note(op, function(squares, op.args[1], op.args[2], other))


@rule("native_layer_norm", "_fused_rms_norm")
def _normed(op: Operation) -> None:
    """x over its root mean square r: dx / r, and for the change of r x (sum of x dx) / (n r^3)."""
    x, shape, weight = op.args[:3]
    axes, n = list(range(-len(shape), 0)), 1
    for size in shape:
        n *= size
    error, to = op.squares(x), op.to
    if op.name == "native_layer_norm":
        x = x - x.mean(dim=axes, keepdim=True)
        error = error + error.mean(dim=axes, keepdim=True) / n
    eps = op.args[-1] or 0.0
    inverse = 1 / (torch.mean(x**2, dim=axes, keepdim=True) + eps)
    by = 1.0 if weight is None else weight**2
    together = torch.sum(x**2 * error, dim=axes, keepdim=True) / n**2
    to.longest = max(to.longest, n)
    wide = (n + 8) * to.v**2 * by * x**2 * inverse
    _note(op, by * (inverse * error + x**2 * inverse**3 * together) + wide)
