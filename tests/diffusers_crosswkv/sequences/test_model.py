import pytest
import torch

from diffusers_crosswkv.sequences import SequenceConfig, SequenceModel

ARMS = pytest.mark.parametrize(
    "options",
    [
        {"mixer": mixer, "start": start, "rate_limit": rate_limit, "layers": 2}
        for mixer, start, rate_limit in (
            ("wkv7", "state", 2),
            ("wkv7", "token", 1),
            ("wkv7", "nothing", 1),
            ("diagonal", "state", 1),
            ("softmax", "state", 1),
            ("softmax", "nothing", 1),
        )
    ]
    + [{"mixer": "wkv7", "start": "token", "rate_limit": 2, "layers": 2, "updates": 3}],
    ids=lambda options: "-".join(map(str, options.values())),
)


def make_model(**options):
    """A float64 model whose every parameter is random: many start at zero, and would hide what they multiply."""
    model = SequenceModel(SequenceConfig(vocabulary=7, classes=5, width=16, head_dim=8, **options)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model


def tokens_of(length, batch=3):
    return torch.randint(7, (batch, length))


@ARMS
def test_logits_follow_from_the_tokens_before_alone(options):
    model, tokens = make_model(**options), tokens_of(20)
    logits = model(tokens)
    assert logits.shape == (3, 20, 5)
    torch.testing.assert_close(model(tokens[:, :9]), logits[:, :9])
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 7
    difference = (model(changed) - logits).abs().amin(dim=(0, 2))
    assert difference[:9].max() < 1e-14
    assert difference[9:].min() > 1e-10  # every later token sees it


@ARMS
def test_every_parameter_learns(options):
    model = make_model(**options)
    model(tokens_of(6)).square().sum().backward()
    unreached = {name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0}
    if options["mixer"] == "diagonal":  # nothing is removed
        assert unreached == {f"blocks.{i}.mixer.writer.k_k" for i in range(2)}
    else:
        assert not unreached


@ARMS
def test_order_matters(options):
    model = make_model(**options | {"layers": 1})
    first, second = torch.tensor([[1, 2, 3]]), torch.tensor([[2, 1, 3]])
    assert (model(first) - model(second))[:, -1].abs().max() > 1e-6


@ARMS
def test_trace_holds_what_the_logits_are_made_of(options):
    model, tokens = make_model(**options), tokens_of(6)
    trace = model.trace(tokens)
    assert [x.shape for x in trace.hidden] == [(3, 6, 16)] * 3
    torch.testing.assert_close(model.head(model.norm(trace.hidden[-1])), model(tokens))
    if options["mixer"] == "softmax":
        assert trace.states == []
        return
    assert [x.shape for x in trace.states] == [(3, 6, 2, 8, 8)] * 2
    torch.testing.assert_close(model.trace(tokens[:, :4]).states[1], trace.states[1][:, :4])


def test_what_stands_before_the_first_token():
    assert make_model(start="nothing").blocks[0].mixer.start is None
    assert make_model(start="state").blocks[0].mixer.start.shape == (2, 8, 8)
    assert make_model(start="state").start is None
    assert make_model(start="token").start.shape == make_model(mixer="softmax").start.shape == (16,)


def test_a_token_of_several_updates_is_several_tokens_in_a_row():
    several, single = make_model(updates=3, start="token"), make_model(start="token")
    single.load_state_dict(several.state_dict() | {"embedding.weight": torch.zeros(7, 16)})
    single.embedding = torch.nn.Embedding.from_pretrained(several.embedding.weight.reshape(21, 16))
    tokens = tokens_of(5)
    in_a_row = (3 * tokens[:, :, None] + torch.arange(3)).flatten(1)
    torch.testing.assert_close(several(tokens), single(in_a_row)[:, 2::3])
    for many, one in zip(several.trace(tokens).states, single.trace(in_a_row).states, strict=True):
        torch.testing.assert_close(many, one[:, 2::3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixer": "gru"}, "`mixer` must be one of wkv7, diagonal, softmax, got 'gru'"),
        ({"rate_limit": 3}, "`rate_limit` must be one of 1, 2, got 3"),
        ({"start": "zero"}, "`start` must be one of state, token, nothing, got 'zero'"),
        ({"layers": 0}, "`layers` must be at least 1, got 0"),
        ({"head_dim": 5}, "`head_dim` must divide `width`, got 5 and 32"),
    ],
)
def test_config_says_what_it_needs(options, message):
    with pytest.raises(ValueError, match=message):
        SequenceConfig(7, 5, **options)
