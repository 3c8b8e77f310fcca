"""What the public functions require; every message gives the requirement, the value and the fix."""

import torch

from .feature_maps import PRODUCTS, QUADRATIC, check_feature_map, number_of_features


def check_state_writes(
    decay, rate, key, value, first_value, value_share, k_k, k_a, mask, num_heads, feature_map
) -> None:
    if (first_value is None) != (value_share is None):
        raise ValueError(
            "`first_value` and `value_share` must both be given or both be None, got one; give the other."
        )
    check_feature_map(feature_map)
    optional = {"first_value": first_value, "value_share": value_share}
    check_tensors(optional | {"k_k": k_k}, decay=decay, rate=rate, key=key, value=value, k_a=k_a)
    products = feature_map == QUADRATIC
    check_dims("[B, T, H * n]" if products else "[B, T, H * K]", key=key)
    check_dims("[B, T, H * V]", value=value)
    for name, x in (("key", key), ("value", value)):
        if num_heads < 1 or x.shape[2] % num_heads:
            raise ValueError(f"`num_heads` must divide the width of `{name}`, got {num_heads} and {x.shape[2]}.")
    width = number_of_features(feature_map, key.shape[2])
    for name, x in (("decay", decay), ("rate", rate)):
        if x.shape not in [(*key.shape[:2], width), (*key.shape[:2], num_heads)]:
            raise ValueError(
                f"`{name}` must be [B, T, H * K] or [B, T, H], H * K = {width} and the rest as in `key`, got "
                f"{shape_of(x)} and {shape_of(key)}"
                + (f"; K is {PRODUCTS} n, for {feature_map!r}." if products else ".")
            )
    if value.shape[:2] != key.shape[:2]:
        raise ValueError(
            f"`value` must be [B, T, H * V] with the B and T of `key`, got {shape_of(value)} and {shape_of(key)}."
        )
    for name, x in optional.items():
        if x is not None and x.shape != value.shape:
            raise ValueError(f"`{name}` must have the shape of `value`, got {shape_of(x)} and {shape_of(value)}.")
    if k_k is not None and k_k.shape != (width,):
        raise ValueError(f"`k_k` must be [H * K] = [{width}], got {shape_of(k_k)}.")
    if k_a.shape != rate.shape[2:]:
        raise ValueError(f"`k_a` must be as wide as `rate`, {shape_of(rate)[2:]}, got {shape_of(k_a)}.")
    if mask is not None:
        check_mask(mask, key)


def check_mask(mask, key) -> None:
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise TypeError(f"`mask` must be a boolean tensor, True at tokens to keep, got {kind}; convert it by .bool().")
    if mask.shape != key.shape[:2]:
        raise ValueError(f"`mask` must be [B, T] = {shape_of(key)[:2]}, got {shape_of(mask)}.")
    if mask.device != key.device:
        raise ValueError(
            f"All tensors must be on one device, got {key.device} and, for `mask`, {mask.device}; move it."
        )


def check_state_readout(r, state, norm_weight, norm_bias, gate, eps, feature_map) -> None:
    check_feature_map(feature_map)
    check_tensors({"gate": gate, "norm_weight": norm_weight, "norm_bias": norm_bias}, r=r, state=state)
    check_dims("[B, T, H, n]" if feature_map == QUADRATIC else "[B, T, H, K]", r=r)
    check_dims("[B, H, V, K]", state=state)
    batch_size, length, num_heads, channels = r.shape
    head_dim = number_of_features(feature_map, channels)
    if (state.shape[0], state.shape[1], state.shape[3]) != (batch_size, num_heads, head_dim):
        of = f"of `r`, {PRODUCTS} features of each channel," if feature_map == QUADRATIC else "of `r`,"
        raise ValueError(
            f"`state` must be [B, H, V, K] with the B, H and K {of} got {shape_of(state)} and {shape_of(r)}."
        )
    width = num_heads * state.shape[2]
    check_norm(norm_weight, norm_bias, width, eps)
    if gate is not None and gate.shape != (batch_size, length, width):
        raise ValueError(f"`gate` must be [B, T, H * V] = {[batch_size, length, width]}, got {shape_of(gate)}.")


def check_scan_readout(o, r, k, v, r_k, norm_weight, norm_bias, gate, eps) -> None:
    optional = {"norm_weight": norm_weight, "norm_bias": norm_bias}
    check_tensors(optional, o=o, r=r, k=k, v=v, r_k=r_k, gate=gate)
    check_dims("[B, R, H, V]", v=v)
    check_dims("[B, R, H, K]", r=r)
    if o.shape != v.shape:
        raise ValueError(f"`o` must have the shape of `v`, got {shape_of(o)} and {shape_of(v)}.")
    if k.shape != r.shape:
        raise ValueError(f"`k` must have the shape of `r`, got {shape_of(k)} and {shape_of(r)}.")
    if r.shape[:3] != v.shape[:3]:
        raise ValueError(f"`r` must be [B, R, H, K] with the B, R and H of `v`, got {shape_of(r)} and {shape_of(v)}.")
    if r_k.shape != r.shape[2:]:
        raise ValueError(f"`r_k` must be [H, K] = {shape_of(r)[2:]}, got {shape_of(r_k)}.")
    batch_size, rows_read, num_heads, value_dim = v.shape
    width = num_heads * value_dim
    check_norm(norm_weight, norm_bias, width, eps)
    check_dims("[B, T, H * V]", gate=gate)
    if gate.shape[0] != batch_size or gate.shape[1] < rows_read or gate.shape[2] != width:
        raise ValueError(
            f"`gate` must be [B, T, H * V] = [{batch_size}, at least {rows_read}, {width}], got {shape_of(gate)}."
        )


def check_norm(norm_weight, norm_bias, width: int, eps: float) -> None:
    if (norm_weight is None) != (norm_bias is None):
        raise ValueError("`norm_weight` and `norm_bias` must both be given or both be None, got one; give the other.")
    for name, norm in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if norm is not None and norm.shape != (width,):
            raise ValueError(f"`{name}` must be [H * V] = [{width}], got {shape_of(norm)}.")
    if not eps > 0:
        raise ValueError(f"`eps` must be positive, got {eps}; the models use head_dim * 1e-5.")


def check_tensors(optional: dict[str, torch.Tensor | None], **required: torch.Tensor) -> None:
    device = None
    given = {name: x for name, x in optional.items() if x is not None}
    for name, x in (required | given).items():
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, torch.Tensor) else None if x is None else type(x).__name__
            raise TypeError(f"`{name}` must be a floating point tensor, got {kind}.")
        device = device or x.device
        if x.device != device:
            raise ValueError(
                f"All tensors must be on one device, got {device} and, for `{name}`, {x.device}; move it."
            )


def check_dims(layout: str, **tensors: torch.Tensor | None) -> None:
    for name, x in tensors.items():
        if x is not None and x.ndim != layout.count(",") + 1:
            raise ValueError(f"`{name}` must be {layout}, got {shape_of(x)}.")


def shape_of(x: torch.Tensor) -> list[int]:
    return list(x.shape)


def check_channel_write(write, initial_state) -> None:
    w, k, v, channels, a = write
    one = {"w": w, "k": k, "a": a}
    check_tensors({"initial_state": initial_state}, v=v, kappa=channels, **one)
    check_dims("[B, T, H, n]", kappa=channels)
    check_dims("[B, T, H, V]", v=v)
    for name, x in one.items():
        if x.shape != (*channels.shape[:3], 1):
            raise ValueError(
                f"`{name}` must be [B, T, H, 1] with the sizes of `kappa`, got {shape_of(x)} and {shape_of(channels)}."
            )
    check_value(v, channels)
    batch_size, _, num_heads, n = channels.shape
    check_initial_state(initial_state, [batch_size, num_heads, v.shape[-1], PRODUCTS * n])


def check_wkv7(r, w, k, v, kappa, a, initial_state) -> None:
    check_tensors({"r": r, "initial_state": initial_state}, w=w, k=k, v=v, kappa=kappa, a=a)
    check_dims("[B, T, H, K]", kappa=kappa, r=r, w=w, k=k, a=a)
    check_dims("[B, T, H, V]", v=v)
    of = f"of `kappa`, got {{}} and {shape_of(kappa)}."
    if r is not None and r.shape != kappa.shape:
        raise ValueError(f"`r` must have the shape [B, T, H, K] {of.format(shape_of(r))}")
    for name, x in (("w", w), ("k", k), ("a", a)):
        if x.shape not in (kappa.shape, (*kappa.shape[:3], 1)):
            raise ValueError(
                f"`{name}` must be [B, T, H, K] or, one number for a head, [B, T, H, 1], with the sizes "
                + of.format(shape_of(x))
            )
    check_value(v, kappa)
    batch_size, _, num_heads, head_dim = kappa.shape
    check_initial_state(initial_state, [batch_size, num_heads, v.shape[-1], head_dim])


def check_value(v, kappa) -> None:
    if v.shape[:3] != kappa.shape[:3]:
        raise ValueError(
            f"`v` must be [B, T, H, V] with the B, T and H of `kappa`, got {shape_of(v)} and {shape_of(kappa)}."
        )


def check_initial_state(initial_state, expected: list[int]) -> None:
    if initial_state is not None and shape_of(initial_state) != expected:
        raise ValueError(
            f"`initial_state` must be [B, H, V, K] = {expected}, got {shape_of(initial_state)}; "
            "a state of flash-linear-attention is [B, H, K, V]: transpose its last two dimensions."
        )
