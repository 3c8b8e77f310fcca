import pytest
import torch

from diffusers_crosswkv.alignment.capacity import NUM_VALUES, QUERIES, draw_facts, measure_recall


def test_facts():
    keys, values, asked, answers = draw_facts(12, 5, torch.Generator().manual_seed(0))
    assert keys.shape == values.shape == (5, 12)
    assert asked.shape == answers.shape == (5, QUERIES)
    for b in range(5):
        facts = dict(zip(keys[b].tolist(), values[b].tolist(), strict=True))
        assert len(facts) == 12
        assert [facts[key] for key in asked[b].tolist()] == answers[b].tolist()


@pytest.mark.parametrize("layer", ["softmax", "state", "prefix"])
def test_a_layer_learns_to_recall(layer):
    rows = measure_recall(layer, head_dim=32, facts=(2, 8), steps=300, progress=False)
    assert [row.facts for row in rows] == [2, 8]
    assert rows[0].chance == 1 / NUM_VALUES
    assert rows[0].accuracy > 10 * rows[0].chance


def test_without_training_it_is_chance():
    (row,) = measure_recall("state", head_dim=16, facts=(8,), steps=4, progress=False)
    assert row.accuracy < 4 * row.chance
