"""`wkv7` on Triton as custom operators of PyTorch: opaque to `torch.compile` and `torch.export`, with their gradients.

One forward launch, one backward launch; where few heads meet many tokens two more of each, which let segments of the
sequence run in parallel. What a kernel is started with follows from the shapes: nothing is tuned while a user waits.
"""

from typing import Any, NamedTuple

import torch
from torch.library import custom_op

from .elementwise import are_multiples
from .triton_blocks import optional_contiguous
from .triton_launch import dot_precision, launch
from .triton_multiples import multiples_backward_kernel, multiples_forward_kernel, multiples_inverses_kernel
from .triton_recurrent import wkv7_recurrent_kernel
from .triton_segments import wkv7_combine_kernel, wkv7_segments_backward_kernel, wkv7_segments_kernel
from .triton_wkv7 import wkv7_backward_kernel, wkv7_forward_kernel

CHUNK_SIZE = 16  # 32 would halve the states that are kept, but its backward spills registers
ENOUGH_PROGRAMS = 256  # about two for each multiprocessor of a large GPU
MIN_SEGMENT = 16  # chunks: below, passing states between segments costs more than it saves
FEWEST_SEGMENTS = 4  # fewer save less than the scan that finds what segments do to states costs
FEWEST_OF_MULTIPLES = 16  # the same where `triton_multiples.py` scans in one piece: a ninth of the time per chunk


def ceil_div(x: int, y: int) -> int:
    return -(-x // y)


class Sizes(NamedTuple):
    """What the launches of one call have in common."""

    batch_size: int
    length: int
    heads: int
    K: int
    V: int

    @property
    def chunks(self) -> int:
        return ceil_div(self.length, CHUNK_SIZE)

    @property
    def programs(self) -> int:
        return self.batch_size * self.heads


def sizes_of(kappa: torch.Tensor, v: torch.Tensor) -> Sizes:
    batch_size, length, heads, head_dim = kappa.shape
    return Sizes(batch_size, length, heads, head_dim, v.shape[-1])


def block_size(width: int) -> int:
    """The power of two that holds `width` numbers, 16 at least: the least that a matrix product takes."""
    return max(16, 1 << (width - 1).bit_length())


def number_of_segments(sizes: Sizes) -> int:
    """How many parts of a sequence run in parallel: 1 where heads alone fill the GPU."""
    wanted = min(ENOUGH_PROGRAMS // max(1, sizes.programs), sizes.chunks // MIN_SEGMENT)
    if wanted < FEWEST_SEGMENTS:
        return 1
    return ceil_div(sizes.chunks, ceil_div(sizes.chunks, wanted))


def segments_of(r, w, k, v, kappa, a) -> int:
    """The same for these tensors: 1 too where one piece is as fast, or parts would need more shared memory than many
    GPUs have.
    """
    sizes = sizes_of(kappa, v)
    if max(sizes.K, sizes.V) > 64 and dot_precision(r, w, k, v, kappa, a) == "tf32x3":
        return 1
    segments = number_of_segments(sizes)
    return 1 if segments < FEWEST_OF_MULTIPLES and takes_multiples(1, r, w, k, kappa, a) else segments


def strided(*tensors: torch.Tensor | None) -> tuple[list[Any], list[int]]:
    """Tensors `[B, T, H, D]` whose last dimension is contiguous, and their other strides, in a row."""
    dense = [x if x is None or x.shape[-1] == 1 or x.stride(-1) == 1 else x.contiguous() for x in tensors]
    return dense, [stride for x in dense for stride in ((0, 0, 0) if x is None else x.stride()[:3])]


def widths_of(sizes: Sizes, w: torch.Tensor, k: torch.Tensor, a: torch.Tensor) -> dict[str, int]:
    """Constants of every kernel that reads tokens: the sizes of heads, and how many of `w`, `k` and `a` one has."""
    own = {name: x.shape[-1] for name, x in (("KW", w), ("KK", k), ("KA", a))}
    return {"K": sizes.K, "V": sizes.V, **own, "BK": block_size(sizes.K)}


def chunk_constants(sizes: Sizes, strides: list[int], r, w, k, v, kappa, a) -> dict[str, Any]:
    """Constants of every kernel that walks over chunks; offsets of 64 bits only where a sequence needs them."""
    largest = max(*strides[1::3], sizes.heads * max(sizes.K, sizes.V))
    wide = (sizes.chunks + 1) * CHUNK_SIZE * largest >= 2**31
    precision = dot_precision(r, w, k, v, kappa, a)
    return {**widths_of(sizes, w, k, a), "BT": CHUNK_SIZE, "WIDE": wide, "PRECISION": precision}


def forward_options(sizes: Sizes, segments: int, precision: str) -> dict[str, int]:
    """What keeps the forward kernel's registers from spilling: all values of 64 in one program of 4 warps, or fewer in
    one of 8, for exact products need twice the registers. Values are split once more where programs are few.
    """
    wide = precision != "tf32" or block_size(sizes.K) > 64
    few = sizes.programs * segments < ENOUGH_PROGRAMS // 2
    return {"BV": min(block_size(sizes.V), 32 if wide or few else 64), "num_warps": 8 if wide else 4}


def takes_multiples(segments: int, r, w, k, kappa, a) -> bool:
    """Whether `triton_multiples.py` can scan: a sequence in one piece, whose state is all that is asked for."""
    return segments == 1 and r is None and are_multiples(w, k, kappa, a)


def scan_multiples(tensors, strides, sizes: Sizes, constants: dict[str, Any], backward: bool = False) -> None:
    """In two launches, forward or backward: what no state is a part of comes first, of all chunks at once."""
    options = {name: constants[name] for name in ("K", "V", "BK", "BT", "WIDE", "PRECISION")}
    wide = constants["BK"] > 64
    BV = 16 if backward or wide else min(block_size(sizes.V), 32)
    programs = sizes.programs * (1 if backward else ceil_div(sizes.V, BV))
    counts = (sizes.length, sizes.heads)
    w, _, v, kappa, a = tensors[:5]
    inverses = v.new_empty(sizes.programs, sizes.chunks, CHUNK_SIZE, CHUNK_SIZE, dtype=torch.float32)
    arguments = (w, kappa, a, inverses, *strides[:3], *strides[9:], *counts)
    of_keys = {name: value for name, value in options.items() if name != "V"}
    grid = (sizes.programs * sizes.chunks,)
    launch(multiples_inverses_kernel, grid, *arguments, num_warps=4 if wide else 1, **of_keys)
    kernel = multiples_backward_kernel if backward else multiples_forward_kernel
    launch(kernel, (programs,), *tensors, inverses, *strides, *counts, BV=BV, num_warps=8 if wide else 4, **options)


@custom_op("crosswkv::wkv7", mutates_args=())
def wkv7_operator(
    r: torch.Tensor | None,
    w: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kappa: torch.Tensor,
    a: torch.Tensor,
    initial_state: torch.Tensor | None,
    output_final_state: bool,
    segments: int,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output (empty without `r`), final state (empty if it is not asked for), and for the backward, if `save`: states
    `[B, H, chunks, V, K]` at the starts of chunks and, if there is more than one segment, the segments' transitions
    `[B, H, segments, K, K]`.
    """
    sizes = sizes_of(kappa, v)
    o, final_state, saved, transitions = empty_results(r, kappa, v, output_final_state, segments, save)
    (r, w, k, v, kappa, a), strides = strided(r, w, k, v, kappa, a)
    constants = chunk_constants(sizes, strides, r, w, k, v, kappa, a)
    per_segment = ceil_div(sizes.chunks, segments)
    starts = optional_contiguous(initial_state)
    if takes_multiples(segments, r, w, k, kappa, a):
        tensors = (w, k, v, kappa, a, starts, asked_for(final_state), asked_for(saved))
        scan_multiples(tensors, strides[3:], sizes, constants)
        return o, final_state, saved, transitions
    if segments > 1:
        made = transitions if save else k.new_empty(transitions_shape(sizes, segments), dtype=torch.float32)
        starts = starts_of_segments(sizes, (w, k, v, kappa, a), strides[3:], starts, made, constants)
    options = forward_options(sizes, segments, constants["PRECISION"])
    grid = (sizes.programs * ceil_div(sizes.V, options["BV"]), segments)
    results = (o if r is not None else None, starts, asked_for(final_state), asked_for(saved))
    arguments = (r, w, k, v, kappa, a, *results, *strides, sizes.length, sizes.heads, per_segment, segments)
    launch(wkv7_forward_kernel, grid, *arguments, **options, **constants)
    return o, final_state, saved, transitions


def asked_for(result: torch.Tensor) -> torch.Tensor | None:
    """What a kernel shall write, or None: results that nobody asked for have no elements."""
    return result if result.ndim > 1 else None


def transitions_shape(sizes: Sizes, segments: int) -> tuple[int, ...]:
    return sizes.batch_size, sizes.heads, segments, sizes.K, sizes.K


def starts_of_segments(sizes, writes, strides, start, transitions, constants) -> torch.Tensor:
    """`[B, H, segments, V, K]`: the state that each segment starts from. Fills `transitions`."""
    segments = transitions.shape[2]
    written = transitions.new_empty(state_shape(sizes, segments))
    arguments = (*writes, transitions, written, *strides, sizes.length, sizes.heads, ceil_div(sizes.chunks, segments))
    grid, options = (sizes.programs, segments), {"BV": block_size(sizes.V), "num_warps": 8}
    launch(wkv7_segments_kernel, grid, *arguments, segments, **options, **constants)
    return pass_through_segments(sizes, start, transitions, written, constants, reverse=False)


def pass_through_segments(sizes, start, transitions, added, constants, reverse: bool) -> torch.Tensor:
    """`[B, H, segments, V, K]`: what reaches each segment, from the first on or, reversed, from the last on."""
    segments = transitions.shape[2]
    passed = transitions.new_empty(state_shape(sizes, segments))
    BV = min(block_size(sizes.V), 32)
    grid = (sizes.programs * ceil_div(sizes.V, BV),)
    options = {name: constants[name] for name in ("K", "V", "BK", "PRECISION")}
    options |= {"BV": BV, "REVERSE": reverse, "num_warps": 4}
    launch(wkv7_combine_kernel, grid, start, transitions, added, passed, segments, **options)
    return passed


def empty_results(r, kappa, v, output_final_state: bool, segments: int, save: bool) -> tuple[torch.Tensor, ...]:
    sizes = sizes_of(kappa, v)
    o = v.new_empty(v.shape if r is not None else (0,))
    state = (sizes.batch_size, sizes.heads)
    shape = (*state, sizes.V, sizes.K) if output_final_state else (0,)
    final_state = kappa.new_empty(shape, dtype=torch.float32)
    saved = kappa.new_empty((*state, sizes.chunks, sizes.V, sizes.K) if save else (0,), dtype=torch.float32)
    kept = save and segments > 1
    transitions = kappa.new_empty(transitions_shape(sizes, segments) if kept else (0,), dtype=torch.float32)
    return o, final_state, saved, transitions


@wkv7_operator.register_fake
def _(r, w, k, v, kappa, a, initial_state, output_final_state, segments, save):
    return empty_results(r, kappa, v, output_final_state, segments, save)


@custom_op("crosswkv::wkv7_backward", mutates_args=())
def wkv7_backward_operator(
    d_o: torch.Tensor | None,
    d_final: torch.Tensor | None,
    r: torch.Tensor | None,
    w: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kappa: torch.Tensor,
    a: torch.Tensor,
    saved: torch.Tensor,
    transitions: torch.Tensor,
    segments: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of r (empty without), w, k, v, kappa, a and the initial state."""
    sizes = sizes_of(kappa, v)
    reads = r is not None and d_o is not None
    if not reads:
        d_r, r, d_o = zeros_or_empty(r, k), None, None
    gradients: list[Any] = [None if x is None else x.new_empty(x.shape) for x in (r, w, k, v, kappa, a)]
    (r, w, k, v, kappa, a, d_o), strides = strided(r, w, k, v, kappa, a, d_o)
    constants = chunk_constants(sizes, strides, r, w, k, v, kappa, a)
    if segments > 1:
        d_states = ends_of_segments(sizes, (r, w, kappa, a, d_o), strides, d_final, transitions, constants)
    elif d_final is None:
        d_states = saved.new_zeros(state_shape(sizes, 1))
    else:
        d_states = d_final[:, :, None].clone(memory_format=torch.contiguous_format)
    if takes_multiples(segments, r, w, k, kappa, a):
        tensors = (w, k, v, kappa, a, saved, d_states, *gradients[1:])
        scan_multiples(tensors, strides[3:18], sizes, constants, backward=True)
    else:
        arguments = (r, w, k, v, kappa, a, d_o, saved, d_states, *gradients, *strides)
        counts = (sizes.length, sizes.heads, ceil_div(sizes.chunks, segments), segments)
        large = constants["BK"] > 64 and constants["PRECISION"] == "tf32x3"  # in shared memory
        options = {"BV": 16 if large else min(block_size(sizes.V), 32), "num_warps": 8}
        grid = (sizes.programs, segments)
        launch(wkv7_backward_kernel, grid, *arguments, *counts, **options, **constants)
    d_start = d_states.squeeze(2) if segments == 1 else d_states[:, :, 0].clone(memory_format=torch.contiguous_format)
    return gradients[0] if reads else d_r, *gradients[1:], d_start


def state_shape(sizes: Sizes, segments: int) -> tuple[int, ...]:
    return sizes.batch_size, sizes.heads, segments, sizes.V, sizes.K


def zeros_or_empty(r: torch.Tensor | None, k: torch.Tensor) -> torch.Tensor:
    return k.new_empty(0) if r is None else torch.zeros_like(r, memory_format=torch.contiguous_format)


def ends_of_segments(sizes, tensors, strides, end, transitions, constants) -> torch.Tensor:
    """`[B, H, segments, V, K]`: the state's gradient that reaches the end of each segment."""
    segments, added = transitions.shape[2], None
    if tensors[-1] is not None:
        added = transitions.new_empty(state_shape(sizes, segments))
        strides = [*strides[:6], *strides[12:]]  # of r, w, kappa, a, do
        counts = (sizes.length, sizes.heads, ceil_div(sizes.chunks, segments), segments)
        grid, options = (sizes.programs, segments), {"BV": block_size(sizes.V), "num_warps": 8}
        launch(wkv7_segments_backward_kernel, grid, *tensors, added, *strides, *counts, **options, **constants)
    return pass_through_segments(sizes, optional_contiguous(end), transitions, added, constants, reverse=True)


@wkv7_backward_operator.register_fake
def _(d_o, d_final, r, w, k, v, kappa, a, saved, transitions, segments):
    d_r = k.new_empty(0) if r is None else r.new_empty(r.shape)
    d_start = saved.new_empty(kappa.shape[0], kappa.shape[2], v.shape[-1], kappa.shape[-1])
    return d_r, *(x.new_empty(x.shape) for x in (w, k, v, kappa, a)), d_start


def save_for_backward(ctx, inputs, output) -> None:
    r, w, k, v, kappa, a, initial_state, ctx.output_final_state, ctx.segments, save = inputs
    ctx.kept_nothing = not save
    _, _, saved, transitions = output
    ctx.save_for_backward(r, w, k, v, kappa, a, saved, transitions)
    ctx.state_dtype = None if initial_state is None else initial_state.dtype
    ctx.set_materialize_grads(False)


def backward(ctx, d_o, d_final, _d_saved, _d_transitions):
    r, w, k, v, kappa, a, saved, transitions = ctx.saved_tensors
    if ctx.kept_nothing:
        raise RuntimeError(
            "A gradient of wkv7 needs the states of its forward, but that was called, traced or exported without "
            "gradients; do so with gradients enabled and an input that requires one."
        )
    d_final = d_final if ctx.output_final_state else None
    gradients = wkv7_backward_operator(d_o, d_final, r, w, k, v, kappa, a, saved, transitions, ctx.segments)
    d_r, *d_writes, d_start = gradients
    d_start = None if ctx.state_dtype is None else d_start.to(ctx.state_dtype)
    return None if r is None else d_r, *d_writes, d_start, None, None, None


wkv7_operator.register_autograd(backward, setup_context=save_for_backward)


@custom_op("crosswkv::wkv7_recurrent", mutates_args=())
def wkv7_recurrent_operator(
    r: torch.Tensor | None,
    w: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kappa: torch.Tensor,
    a: torch.Tensor,
    initial_state: torch.Tensor | None,
    output_final_state: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (empty without `r`) and final state (empty if it is not asked for), token by token."""
    sizes = sizes_of(kappa, v)
    o, final_state, _, _ = empty_results(r, kappa, v, output_final_state, 1, False)
    (r, w, k, v, kappa, a), strides = strided(r, w, k, v, kappa, a)
    BV = min(block_size(sizes.V), 32)
    grid = (sizes.programs * ceil_div(sizes.V, BV),)
    results = (o if r is not None else None, optional_contiguous(initial_state), asked_for(final_state))
    tensors = (r, w, k, v, kappa, a, *results)
    options = {**widths_of(sizes, w, k, a), "BV": BV, "num_warps": 4}
    launch(wkv7_recurrent_kernel, grid, *tensors, *strides, sizes.length, sizes.heads, **options)
    return o, final_state


@wkv7_recurrent_operator.register_fake
def _(r, w, k, v, kappa, a, initial_state, output_final_state):
    return empty_results(r, kappa, v, output_final_state, 1, False)[:2]


def save_inputs(ctx, inputs, output) -> None:
    *tensors, ctx.output_final_state = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def recurrent_backward(ctx, d_o, d_final):
    """In chunks: the states inside are computed again."""
    *inputs, initial_state = ctx.saved_tensors
    segments = segments_of(*inputs)
    _, _, saved, transitions = wkv7_operator(*inputs, initial_state, False, segments, True)
    d_final = d_final if ctx.output_final_state else None
    d_r, *rest = wkv7_backward_operator(d_o, d_final, *inputs, saved, transitions, segments)
    *d_writes, d_start = rest
    return (None if inputs[0] is None else d_r, *d_writes, None if initial_state is None else d_start, None)


wkv7_recurrent_operator.register_autograd(recurrent_backward, setup_context=save_inputs)


def wkv7_triton(
    r: torch.Tensor | None,
    w: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kappa: torch.Tensor,
    a: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    recurrent: bool = False,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The same function as [`wkv7`]; float32, bfloat16 or float16."""
    tensors = (r, w, k, v, kappa, a, initial_state)
    wants_state = output_final_state or r is None
    if recurrent:
        o, final_state = wkv7_recurrent_operator(*tensors, wants_state)
    else:
        save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
        # an exported program serves other lengths too: nothing in it may depend on this one
        segments = 1 if torch.compiler.is_exporting() else segments_of(r, w, k, v, kappa, a)
        o, final_state, _, _ = wkv7_operator(*tensors, wants_state, segments, save)
    return None if r is None else o, final_state if wants_state else None
