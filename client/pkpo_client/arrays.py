"""Arrays of NumPy, torch and JAX in; the same kind, dtype and device out.

torch and JAX are never imported here: an array of theirs can only arrive where its package was imported already.
Floating types narrower than float32 travel as float32 and come back as they were; integers and bools become float64
(in JAX what float64 is there, float32 unless `jax_enable_x64`). What comes back is always a new array, and in torch
one without a gradient, since advantages are constants to a loss.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pkpo_client.errors import InvalidArgument, refused


class Array(Protocol):
    """An array of NumPy, torch, JAX or anybody who speaks NumPy's protocol."""

    def __array__(self) -> Any: ...


@dataclass(slots=True)
class Taken:
    """An array as it travels, and the way back.

    Attributes:
        values: float64 or float32, in the shape given.
        give_back: turns an array of that shape into the kind, dtype and device that `values` came as.
    """

    values: NDArray[Any]
    give_back: Callable[[NDArray[Any]], Any]


def taken(rewards: Any) -> Taken:
    """Rewards as they travel.

    Args:
        rewards: an array of NumPy, torch or JAX, or what NumPy makes an array of numbers of.

    Raises:
        InvalidArgument: it is no array of real numbers that can be read here and now.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(rewards, torch.Tensor):
        return _taken_from_torch(torch, rewards)
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(rewards, jax.Array):
        return _taken_from_jax(jax, rewards)
    array = on_host("rewards", rewards)
    travels, returns = _dtypes(array.dtype)
    return Taken(array.astype(travels, copy=False), lambda answer: _narrowed(answer, returns))


def on_host(name: str, values: Any) -> NDArray[Any]:
    """`values` as a NumPy array, wherever they are.

    Args:
        name: of the argument, for the error.
        values: an array of NumPy, torch or JAX, or what NumPy makes an array of.

    Raises:
        InvalidArgument: NumPy makes no array of it, or only one that would lose something.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise refused(name, "is a NumPy masked array; give its .data, and mask=~array.mask")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values, torch.Tensor):
        return np.asarray(values.detach().cpu().numpy())
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(values, jax.core.Tracer):
        raise refused(
            name,
            "is a JAX tracer, which has no values yet; call outside jit, or by pkpo_client.integrations.jax.transform",
        )
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise refused(name, f"is a {type(values).__name__} that no array can be made of: {error}") from error


def kept(rewards: Any) -> Any:
    """Rewards that stay as they are when the caller writes to theirs."""
    if isinstance(rewards, np.ndarray):
        return rewards.copy()
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(rewards, torch.Tensor) and rewards.device.type == "cpu":
        return rewards.detach().clone()
    return rewards


def _taken_from_torch(torch: Any, rewards: Any) -> Taken:
    tensor = rewards.detach()
    if tensor.is_complex():
        raise refused("rewards", f"is of {tensor.dtype}; must be real numbers")
    returns = tensor.dtype if tensor.is_floating_point() else torch.float64
    travels = torch.float64 if returns == torch.float64 else torch.float32
    values = tensor.to(device="cpu", dtype=travels).contiguous().numpy()

    def give_back(answer: NDArray[Any]) -> Any:
        given = torch.from_numpy(answer)
        narrowed = given.to(returns)
        if returns not in (torch.float64, torch.float32):
            fits = torch.isfinite(narrowed.to(torch.float32))
            if not bool(fits.all()):
                raise _too_narrow(float(given[~fits].flatten()[0]), str(returns))
        return narrowed.to(tensor.device)

    return Taken(values, give_back)


def _taken_from_jax(jax: Any, rewards: Any) -> Taken:
    array = on_host("rewards", rewards)
    travels, returns = _dtypes(array.dtype)
    if array.dtype.kind in "biu":
        returns = jax.dtypes.canonicalize_dtype(np.float64)
    where = rewards.sharding
    return Taken(array.astype(travels, copy=False), lambda answer: jax.device_put(_narrowed(answer, returns), where))


def _dtypes(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """What rewards of `dtype` travel as, and what their advantages come back as."""
    if dtype.kind in "biu":
        return np.dtype(np.float64), np.dtype(np.float64)
    # The small floating types of ml_dtypes (bfloat16, float8_*) are void to NumPy.
    if (dtype.kind == "f" and dtype.itemsize <= 4) or (dtype.kind == "V" and "float" in dtype.name):
        return np.dtype(np.float32), dtype
    if dtype.kind == "f":
        return np.dtype(np.float64), dtype
    raise refused("rewards", f"is of dtype {dtype}; must be real numbers")


def _narrowed(answer: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if answer.dtype == dtype:
        return answer
    with np.errstate(over="ignore", invalid="ignore"):
        narrowed = answer.astype(dtype)
        fits = np.isfinite(narrowed.astype(answer.dtype))
    if not fits.all():
        raise _too_narrow(float(answer[~fits].flat[0]), dtype.name)
    return narrowed


def _too_narrow(advantage: float, dtype: str) -> InvalidArgument:
    return refused(
        "rewards", f"is of {dtype}, which the advantage {advantage!r} does not fit; must be float32 or float64"
    )


__all__ = ["Array", "Taken", "kept", "on_host", "taken"]
