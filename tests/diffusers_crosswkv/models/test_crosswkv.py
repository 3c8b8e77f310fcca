"""`CrossWKV` against equations 4 to 16 of the paper as `crosswkv_oracle` has them."""

import pytest
import torch
from crosswkv_kernels import cpu_read
from crosswkv_oracle import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    RANKS,
    TEXT,
    make_first_value,
    make_inputs,
    make_layer,
    oracle_of_batch,
)
from diffusers.models.attention_processor import Attention
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_crosswkv.models import CrossWKV

FUSIONS = pytest.mark.parametrize("fusion", ["state", "prefix", "paper"])
WIDER = 24  # where rounding is measured: a norm over the two values of a head of two channels magnifies it
BAR = 1e-9


def run(function, layer, image, text, mask=None, first_value=None):
    """The output, and the gradients of all inputs and parameters."""
    values = first_value if isinstance(first_value, tuple) else (first_value,) if first_value is not None else ()
    inputs = [x.detach().requires_grad_() for x in (image, text, *values)]
    first = None if first_value is None else tuple(inputs[2:]) if isinstance(first_value, tuple) else inputs[2]
    output = function(*inputs[:2], mask, first)
    leaves = dict(zip(("image", "text", "first_value", "first_image_value"), inputs, strict=False))
    leaves |= dict(layer.named_parameters())
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = torch.autograd.grad(output, list(leaves.values()), cotangent.to(output), materialize_grads=True)
    return {"output": output} | dict(zip(leaves, gradients, strict=True))


def assert_follows_the_equations(layer, *inputs):
    expected = run(lambda *args: oracle_of_batch(layer, *args), layer, *inputs)
    actual = run(layer, layer, *inputs)
    errors = {}
    for name, x in expected.items():
        assert actual[name].shape == x.shape
        error = (actual[name] - x).norm() / x.norm().clamp(min=1e-2)  # a gradient may be zero: of the first decay
        if not error <= BAR:
            errors[name] = error.item()
    assert not errors, errors


# equations


@FUSIONS
@settings(max_examples=20, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    value_dim=st.sampled_from([HIDDEN, 12, 36]),
    first_in_group=st.booleans(),
    output_norm=st.sampled_from([None, True, False]),
    bidirectional=st.booleans(),
    data=st.data(),
    seed=st.integers(0, 100),
)
def test_equations(fusion, sizes, value_dim, first_in_group, output_norm, bidirectional, data, seed):
    options = {"output_norm": output_norm, "bidirectional": bidirectional}
    layer = make_layer(fusion, value_dim=value_dim, first_in_group=first_in_group, seed=seed, **options)
    image, text = make_inputs(*sizes, seed=seed)
    keep = st.lists(st.booleans(), min_size=text[..., 0].numel(), max_size=text[..., 0].numel())
    mask = data.draw(st.none() | keep.map(lambda x: torch.tensor(x).view(text.shape[:2])))
    first_value = None if first_in_group else make_first_value(layer, image, text, seed)
    assert_follows_the_equations(layer, image, text, mask, first_value)


@FUSIONS
@pytest.mark.parametrize(("image_length", "text_length"), [(140, 70), (70, 140)])
def test_equations_over_several_chunks(fusion, image_length, text_length):
    assert_follows_the_equations(make_layer(fusion), *make_inputs(1, image_length, text_length))


@FUSIONS
@pytest.mark.parametrize(
    "without",
    [{"decay_rank": 0}, {"in_context_lr_rank": 0}, {"value_rank": 0}, {"output_norm": False}],
    ids=lambda without: next(iter(without)),
)
def test_equations_with_a_part_left_out(fusion, without):
    layer = make_layer(fusion, first_in_group=False, **without)
    image, text = make_inputs(2, 6, 4)
    assert_follows_the_equations(layer, image, text, None, make_first_value(layer, image, text))
    whole = make_layer(fusion, first_in_group=False, output_norm=True)
    assert sum(p.numel() for p in layer.parameters()) < sum(p.numel() for p in whole.parameters())


@FUSIONS
@pytest.mark.parametrize("name", ["identity", "silu", "quadratic"])
@pytest.mark.parametrize("head_dim", [8, 24])  # 2 or 6 channels make the features of a `quadratic` head
def test_feature_map(fusion, name, head_dim):
    layer = make_layer(fusion, feature_map=name, head_dim=head_dim)
    assert layer.num_heads == HIDDEN // (head_dim // 4 if name == "quadratic" else head_dim)
    assert_follows_the_equations(layer, *make_inputs(2, 6, 4))


@FUSIONS
def test_defaults_of_the_fusions(fusion):
    layer, forward = make_layer(fusion), make_layer(fusion, bidirectional=False)
    assert layer.feature_map == {"state": "quadratic", "prefix": "silu", "paper": "identity"}[fusion]
    assert layer.backward_heads == {"state": 6, "prefix": 1, "paper": 0}[fusion]
    assert forward.backward_heads == 0
    assert layer.norm.bias is not None
    assert layer.norm.eps == (1 if fusion == "state" else HEAD_DIM * 1e-5)
    gate = CrossWKV(HIDDEN, TEXT, HEAD_DIM, fusion).gate_lora
    assert gate is None if fusion == "state" else gate.rank == 128
    inputs = make_inputs()
    assert not torch.equal(layer(*inputs), make_layer(fusion, norm_eps=0.1)(*inputs))


@pytest.mark.parametrize("gate_rank", [0, 5])
@pytest.mark.parametrize("output_norm", [True, False])
@pytest.mark.parametrize("head_dim", [4, 8, 24, 32])
def test_reading_without_gradients_is_reading(gate_rank, output_norm, head_dim, monkeypatch):
    layer = make_layer("state", head_dim=head_dim, gate_rank=gate_rank, output_norm=output_norm)
    image, text = make_inputs(2, 9, 5)
    expected = layer(image, text)
    monkeypatch.setattr(cpu_read, "CHANNELS_AT_ONCE", 4 * HIDDEN)
    monkeypatch.setattr(cpu_read, "ALIGNMENT", 1)
    with torch.no_grad():
        assert torch.allclose(layer(image, text), expected, rtol=0, atol=1e-12)


def test_a_text_writes_without_looking_back_and_forgets_slowly():
    writer = CrossWKV(HIDDEN, TEXT, HEAD_DIM, layer_index=0, num_layers=3).text_writer
    tokens = torch.randn(1, 6, TEXT)
    assert all(torch.equal(x, tokens) for x in writer.mix(tokens))
    key, value = torch.randn(1, 6, HIDDEN), torch.randn(1, 6, HIDDEN)
    write = writer(key, value, *writer.mix(tokens)[:1], *writer.mix(tokens)[2:])
    assert (write.w.sum(1).exp() > 0.97).all()


@FUSIONS
def test_equations_with_the_initial_values(fusion):
    layer = CrossWKV(HIDDEN, TEXT, HEAD_DIM, fusion, **RANKS).double()
    assert_follows_the_equations(layer, *make_inputs())


@FUSIONS
@pytest.mark.parametrize(
    ("dtype", "bar"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)], ids=str
)
def test_dtypes(fusion, dtype, bar):
    layer = make_layer(fusion, dtype=dtype, head_dim=WIDER)
    inputs = make_inputs(2, 30, 20, dtype=dtype)
    output = layer(*inputs)
    assert output.dtype == dtype
    expected = oracle_of_batch(layer.double(), *(x.double() for x in inputs))
    assert ((output.double() - expected).norm() / expected.norm()).item() <= bar


@FUSIONS
def test_autocast(fusion):
    layer = make_layer(fusion, dtype=torch.float32, head_dim=WIDER)
    inputs = make_inputs(2, 30, 20, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(*inputs)
    expected = oracle_of_batch(layer.double(), *(x.double() for x in inputs))
    assert ((output.double() - expected).norm() / expected.norm()).item() <= 1e-2


# masks

MASKS = {"left": "00111111", "right": "11111000", "both": "01111100", "interior": "10110101", "all kept": "11111111"}


def two_masks(name):
    """Two samples, padded alike, so that deleting leaves a rectangle."""
    return torch.tensor([[int(c) for c in MASKS[name]]] * 2)


@FUSIONS
@pytest.mark.parametrize("image_length", [3, 12])
@pytest.mark.parametrize("where", MASKS)
def test_masking_is_deleting(fusion, where, image_length):
    layer, mask = make_layer(fusion, first_in_group=False), two_masks(where)
    image, text = make_inputs(2, image_length, 8)
    first_value = make_first_value(layer, image, text)
    keep = mask[0].bool()
    kept = {"state": lambda x: x[:, keep], "prefix": lambda x: (x[0][:, keep], x[1]), "paper": lambda x: x}[fusion]
    expected = layer(image, text[:, keep], None, kept(first_value))
    for masks in (mask, mask.bool(), mask.float()):
        torch.testing.assert_close(layer(image, text, masks, first_value), expected, rtol=1e-11, atol=1e-11)


@FUSIONS
@pytest.mark.parametrize("where", MASKS)
def test_what_is_masked_does_not_matter(fusion, where):
    layer, keep = make_layer(fusion), two_masks(where).bool()
    image, text = make_inputs(2, 12, 8)
    output = layer(image, text.requires_grad_(), keep)
    (gradient,) = torch.autograd.grad(output.square().sum(), text)
    assert torch.equal(gradient[~keep], torch.zeros_like(gradient[~keep]))
    assert gradient[keep].norm(dim=-1).min() > 0
    assert torch.equal(layer(image, text.masked_fill(~keep[:, :, None], 1e6), keep), output)


@FUSIONS
def test_all_masked(fusion):
    layer = make_layer(fusion)
    assert_follows_the_equations(layer, *make_inputs(), torch.tensor([[0] * 5, [1] * 5]))


# who sees whom


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_paper_rows_behind_the_text_do_not_see_it(dtype):
    layer = make_layer("paper", dtype=dtype)
    image, text = make_inputs(2, 9, 5, dtype=dtype)
    same = (layer(image, text) == layer(image, text + 1)).all(dim=-1)
    assert same.tolist() == [[False] * 5 + [True] * 4] * 2


@pytest.mark.parametrize("fusion", ["state", "prefix"])
@pytest.mark.parametrize("image_length", [1, 4, 9])
def test_every_text_token_reaches_every_image_token(fusion, image_length):
    layer = make_layer(fusion)
    image, text = make_inputs(2, image_length, 6)
    output = layer(image, text)
    for token in range(6):
        changed = text.clone()
        changed[:, token] += 1
        assert (layer(image, changed) - output).abs().amax(dim=-1).min() > 1e-6


def test_state_does_not_see_places():
    layer = make_layer("state")
    image, text = make_inputs(2, 9, 5)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(image[:, order], text), layer(image, text)[:, order], rtol=1e-12, atol=1e-12)


@FUSIONS
def test_samples_are_independent(fusion):
    layer = make_layer(fusion)
    image, text = make_inputs(3)
    alone = torch.cat([layer(image[b : b + 1], text[b : b + 1]) for b in range(3)])
    torch.testing.assert_close(layer(image, text), alone, rtol=1e-11, atol=1e-11)


# parameters


@FUSIONS
@pytest.mark.parametrize("first_in_group", [True, False])
def test_every_parameter_learns(fusion, first_in_group):
    layer = make_layer(fusion, first_in_group=first_in_group)
    image, text = make_inputs()
    first_value = None if first_in_group else make_first_value(layer, image, text)
    layer(image, text, None, first_value).square().sum().backward()
    still = [name for name, p in layer.named_parameters() if p.grad is None or not (p.grad != 0).all()]
    assert not still


@FUSIONS
def test_removal_key_learns_from_its_initial_value(fusion):
    layer = CrossWKV(HIDDEN, TEXT, HEAD_DIM, fusion, feature_map="silu", **RANKS)
    torch.nn.init.normal_(layer.to_out[0].weight)
    layer(*make_inputs(dtype=torch.float32)).square().sum().backward()
    gradients = [p.grad for name, p in layer.named_parameters() if name.endswith("k_k")]
    assert gradients
    assert all((gradient != 0).all() for gradient in gradients)


def test_state_projections_are_those_of_an_attention():
    layer = CrossWKV(HIDDEN, TEXT, HEAD_DIM)
    attention = Attention(HIDDEN, TEXT, heads=HEADS, dim_head=HEAD_DIM).state_dict()
    projections = {name: p.shape for name, p in layer.state_dict().items() if name in attention}
    assert projections == {name: p.shape for name, p in attention.items()}


def test_without_own_projections_there_are_none():
    layer = CrossWKV(HIDDEN, TEXT, HEAD_DIM, own_projections=False)
    assert not [name for name, _ in layer.named_parameters() if name.startswith("to_")]


def test_paper_needs_first_values_only_where_text_reads():
    layer = make_layer("paper", first_in_group=False)
    image, text = make_inputs(2, 7, 5)
    first_value = make_first_value(layer, image, text)
    assert torch.equal(layer(image, text, None, first_value[:, :5]), layer(image, text, None, first_value))


# errors


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"head_dim": 7}, "`head_dim` must be a multiple of 4 with `feature_map='quadratic'`.* got 7; 4 would do"),
        ({"head_dim": 28}, r"`head_dim` / 4 \(`feature_map='quadratic'`\) must divide `hidden_size`, got 28 and 24"),
        ({"head_dim": 7, "fusion": "paper"}, "`head_dim` must divide `hidden_size`, got 7 and 24; choose one of"),
        ({"head_dim": 48, "fusion": "prefix"}, "`head_dim` must divide `hidden_size`, got 48 and 24"),
        ({"head_dim": 0}, "`head_dim` must be positive, got 0"),
        (
            {"value_dim": 25},
            r"`value_dim` must be a multiple of the number of heads, got 25 and 12 heads .* 24 would do",
        ),
        ({"value_dim": 0}, "`value_dim` must be a multiple of the number of heads, got 0 and 12 heads"),
        ({"fusion": "softmax"}, "`fusion` must be one of state, paper, prefix, got 'softmax'"),
        ({"feature_map": "relu"}, "`feature_map` must be one of identity, silu, quadratic or None, got 'relu'"),
        ({"fusion": "paper", "gate_rank": 0}, "`gate_rank` must be at least 1, got 0"),
        ({"gate_rank": -1}, "`gate_rank` must be at least 0, got -1"),
        ({"norm_eps": 0.0}, "`norm_eps` must be positive, got 0.0"),
        ({"decay_rank": -1}, "`decay_rank` must be at least 0, got -1"),
    ],
)
def test_construction_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CrossWKV(HIDDEN, TEXT, **{"head_dim": HEAD_DIM} | kwargs)


@FUSIONS
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 7, 23), (2, 5, 10)), r"`hidden_states` must be \[B, T, D\] with D = 24, got \[2, 7, 23\]"),
        (((7, 24), (2, 5, 10)), r"`hidden_states` must be \[B, T, D\] with D = 24, got \[7, 24\]"),
        (((2, 7, 24), (2, 5, 24)), r"`encoder_hidden_states` .* D_q = cross_attention_dim = 10, got \[2, 5, 24\]"),
        (((2, 7, 24), (5, 10)), r"`encoder_hidden_states` must be \[B, L, D_q\] .* got \[5, 10\]"),
        (((2, 7, 24), (2, 0, 10)), r"`encoder_hidden_states` must be .* L >= 1 .* got \[2, 0, 10\]"),
        (((2, 7, 24), (1, 5, 10)), "`encoder_hidden_states` must hold one text per image, got 1 texts and 2 images"),
        (((2, 7, 24), (2, 5, 10), (2, 6)), r"`encoder_attention_mask` must be \[B, L\] = \[2, 5\] .* got \[2, 6\]"),
        (((2, 7, 24), (2, 5, 10), (2, 1, 5)), r"`encoder_attention_mask` must be .* got \[2, 1, 5\]"),
        (((2, 7, 24), (2, 5, 10), (5,)), r"`encoder_attention_mask` must be .* got \[5\]"),
    ],
)
def test_call_errors(fusion, shapes, message):
    with pytest.raises(ValueError, match=message):
        make_layer(fusion, dtype=torch.float32)(*(torch.ones(shape) for shape in shapes))


@FUSIONS
def test_first_value_is_required_behind_the_first_layer(fusion):
    layer = make_layer(fusion, first_in_group=False)
    with pytest.raises(ValueError, match=r"`first_value` is required: .*first_in_group=True"):
        layer(*make_inputs())


def test_prefix_needs_first_values_of_text_and_image():
    layer = make_layer("prefix", first_in_group=False)
    image, text = make_inputs()
    with pytest.raises(ValueError, match="`first_value` is required"):
        layer(image, text, None, make_first_value(layer, image, text)[0])
