"""Triton's interpreter, brought nearer to a GPU: how it rounds to bfloat16, and what tensor cores multiply."""

import numpy as np
import triton.language as tl
from triton._C.libtriton.ir import INPUT_PRECISION
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder

exact_dot, cutting_cast, patch_tensor = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl, None


def rounding_cast(self, src, dst_type):
    """float32 to the nearest bfloat16, as GPUs round; the interpreter cuts off."""
    if (src.dtype.scalar, dst_type.scalar) == (tl.float32, tl.bfloat16):
        bits = np.ascontiguousarray(src.data).view(np.uint32)
        finite = np.isfinite(src.data)
        rounded = np.where(finite, bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1)), bits)
        src = type(src)(rounded.view(np.float32), src.dtype)
    return cutting_cast(self, src, dst_type)


def cut(x: np.ndarray) -> np.ndarray:
    """To tf32, 10 bits of mantissa."""
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def tensor_core_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
    """`tf32` multiplies once; `tf32x3` also what the cut has left, but for the product of both rests."""
    if input_precision not in (INPUT_PRECISION.TF32, INPUT_PRECISION.TF32x3):
        return exact_dot(self, a, b, d, input_precision, max_num_imprecise_acc)
    a, b = np.asarray(a.data, np.float32), np.asarray(b.data, np.float32)
    parts = [(cut(a), cut(b))]
    if input_precision == INPUT_PRECISION.TF32x3:
        parts += [(cut(a), cut(b - cut(b))), (cut(a - cut(a)), cut(b))]
    product = sum(np.matmul(x, y) for x, y in parts)
    return type(d)(product + d.data, d.dtype.scalar)


def patch_index(tensor, scope) -> None:
    """Triton 3.6 cannot use a number that it computed as the end of a loop if NumPy is 2.4 or newer."""
    assert patch_tensor is not None
    patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))


def install() -> None:
    """For the whole process; called by conftest.py."""
    global patch_tensor
    InterpreterBuilder.cast_impl = rounding_cast
    patch_tensor, interpreter._patch_lang_tensor = interpreter._patch_lang_tensor, patch_index


def use_tensor_cores(monkeypatch) -> None:
    """Until the test ends. It changes nothing on a GPU."""
    monkeypatch.setattr(InterpreterBuilder, "create_dot", tensor_core_dot)
