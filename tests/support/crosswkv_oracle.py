"""Equations 4 to 16 of the paper in float64, one token after another: small layers, and what they ought to give."""

import math

import torch

from diffusers_crosswkv.models import CrossWKV

HIDDEN, TEXT, HEAD_DIM, HEADS = 24, 10, 8, 3
RANKS = {"decay_rank": 3, "in_context_lr_rank": 4, "gate_rank": 5, "value_rank": 2}


def make_layer(fusion, *, head_dim=HEAD_DIM, dtype=torch.float64, seed=0, **kwargs):
    """A small layer whose every parameter is random: many start at zero, and would hide what they multiply."""
    options = RANKS | {"layer_index": 1, "num_layers": 3} | kwargs
    layer = CrossWKV(HIDDEN, TEXT, head_dim, fusion, **options).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    return layer


def make_inputs(batch=2, image_length=7, text_length=5, *, dtype=torch.float64, seed=0):
    """Image `[B, T, D]` and text `[B, L, D_q]`."""
    generator = torch.Generator().manual_seed(1000 + seed)
    shapes = (batch, image_length, HIDDEN), (batch, text_length, TEXT)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


def low_rank(lora, x, activation=lambda x: x):
    if lora.rank == 0:
        return lora.bias
    y = lora.expand.weight @ activation(lora.reduce.weight @ x)
    return y if lora.expand.bias is None else y + lora.expand.bias


def feature(layer, x):
    """What keys and receptances pass through, per head `[H, K]`: in the paper, nothing."""
    heads = x.view(layer.num_heads, -1)
    if layer.feature_map == "identity":
        return heads
    if layer.feature_map == "silu":
        return heads / (1 + torch.exp(-heads))
    n = heads.shape[1]
    products = [heads[:, i] * heads[:, (i + j) % n] * (2**0.5 if j else 1) for j in range(4) for i in range(n)]
    return torch.stack(products, dim=1) / n**0.5 / (heads.square().mean(1, keepdim=True) + 1e-4)


def per_feature(layer, x):
    """`[H, K]` of what a layer has for every feature, or once for all of a head."""
    return x.view(layer.num_heads, -1).expand(-1, layer.head_dim)


def write(layer, writer, to_k, to_v, sequence, first_values):
    """Equations 4 to 12: of each token `w, k, v, kappa, a`, one row per head, and what its gate sees."""
    before = torch.zeros_like(sequence[0]) if len(sequence) else None
    for t, x in enumerate(sequence):
        x_w, x_k, x_v, x_a, *x_g = [x + (before - x) * mu for mu in writer.mix.mu]  # (4, 5)
        before = x
        k, v = feature(layer, to_k.weight @ x_k), to_v.weight @ x_v  # (7)
        w = -math.exp(-0.5) / (1 + torch.exp(-low_rank(writer.decay_lora, x_w, torch.tanh)))  # (8)
        a = per_feature(layer, 1 / (1 + torch.exp(-low_rank(writer.in_context_lr_lora, x_a))))  # (9)
        if first_values is not None and writer.value_lora is not None:
            share = 1 / (1 + torch.exp(-low_rank(writer.value_lora, x_v)))
            v = (1 - share) * v + share * first_values[t]  # (10)
        kappa = k if writer.k_k is None else k * per_feature(layer, writer.k_k)
        kappa = kappa / (kappa**2).sum(1, keepdim=True).sqrt()  # (11)
        k = k * (1 + (a - 1) * per_feature(layer, writer.k_a))
        yield per_feature(layer, w), k, v.view(layer.num_heads, -1), kappa, a, *x_g  # (12)


def step(S, w, k, v, kappa, a):
    """Equation 13: S_t of every head."""
    return torch.stack(
        [
            S[h] @ (torch.diag(w[h].exp()) - torch.outer(kappa[h], a[h] * kappa[h])) + torch.outer(v[h], k[h])
            for h in range(len(S))
        ]
    )


def read(layer, S, r, x_g, bonus=0):
    """Equations 14 to 16 of one token."""
    o = torch.stack([S[h] @ r[h] for h in range(layer.num_heads)])
    if layer.norm.bias is None:
        o = o.flatten() + bonus
        o = o if layer.norm.weight is None else o * layer.norm.weight
    else:
        centred = o - o.mean(1, keepdim=True)
        o = centred / ((centred**2).mean(1, keepdim=True) + layer.norm.eps).sqrt()
        o = o.flatten() * layer.norm.weight + layer.norm.bias + bonus
    gate = 1
    if layer.gate_lora is not None:
        gate = low_rank(layer.gate_lora, x_g, lambda x: 1 / (1 + torch.exp(-x)))
    return layer.to_out[0].weight @ (o * gate) + layer.to_out[0].bias


def oracle(layer, image, text, text_values=None, image_values=None):
    """One sample: image `[T, D]`, text `[L, D_q]` without masked tokens, values of the group's first layer."""
    S = torch.zeros(layer.num_heads, layer.value_dim // layer.num_heads, layer.head_dim, dtype=torch.float64)
    if layer.fusion != "paper":
        tokens = list(write(layer, layer.text_writer, layer.to_k, layer.to_v, text, text_values))
        S_backward = S
        for token, from_the_end in zip(tokens, reversed(tokens), strict=True):
            S, S_backward = step(S, *token), step(S_backward, *from_the_end)
        forward = layer.num_heads - layer.backward_heads
        S = torch.cat((S[:forward], S_backward[forward:]))
    if layer.fusion == "state":
        size = 1 if layer.norm.read_scale is None else layer.norm.read_scale[:, None]
        return torch.stack([read(layer, S, size * feature(layer, layer.to_q.weight @ x), x) for x in image])
    rows, to_k, to_v = [], layer.to_k, layer.to_v
    if layer.fusion == "prefix":
        to_k, to_v = layer.image_to_k, layer.image_to_v
    for t, (*token, x_g) in enumerate(write(layer, layer.image_writer, to_k, to_v, image, image_values)):
        S = step(S, *token)
        r = torch.zeros(layer.num_heads, layer.head_dim, dtype=torch.float64)  # (6)
        if layer.fusion == "prefix":
            r = feature(layer, layer.to_q.weight @ image[t])
        elif t < len(text):
            r = feature(layer, layer.to_q.weight @ text[t])
        _, k, v, _, _ = token
        bonus = (r * k * layer.norm.r_k).sum(1, keepdim=True) * v
        rows.append(read(layer, S, r, x_g, bonus.flatten()))
    return torch.stack(rows)


def oracle_of_batch(layer, image, text, mask=None, first_value=None):
    values = first_value if isinstance(first_value, tuple) else (first_value, first_value)
    rows = []
    for b in range(len(image)):
        keep = slice(None) if mask is None else mask[b].bool()
        text_values = None if first_value is None or layer.fusion == "paper" else values[0][b][keep]
        rows.append(oracle(layer, image[b], text[b][keep], text_values, None if first_value is None else values[1][b]))
    return torch.stack(rows)


def make_first_value(layer, image, text, seed=0):
    generator = torch.Generator().manual_seed(2000 + seed)
    text_values, image_values = (
        torch.randn(*x.shape[:2], layer.value_dim, generator=generator, dtype=torch.float64) for x in (text, image)
    )
    return {"state": text_values, "paper": image_values, "prefix": (text_values, image_values)}[layer.fusion]
