import dataclasses
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusers_crosswkv.data.captions import OPPOSITE, Description, Mention, describe
from diffusers_crosswkv.data.scenes import Scene, SceneObject, draw_scene
from diffusers_crosswkv.evaluation.alignment import bootstrap, judge, paired_difference, shuffled

RED = SceneObject("red", "ring", "small", (0, 0))
BLUE = SceneObject("blue", "square", "large", (1, 2))
SCENE = Scene((RED, BLUE), 3)


def say(*mentions, relation=None):
    return Description("", "English", "medium", mentions, relation)


def mention(x, **changes):
    return dataclasses.replace(Mention(x.colour, x.shape, x.size, x.cell), **changes)


@given(st.integers(0, 9999), st.integers(1, 5), st.booleans())
def test_a_scene_agrees_with_its_captions(seed, objects, in_order):
    scene = draw_scene(random.Random(seed), 3, objects)
    verdict = judge(describe(scene, random.Random(seed), in_reading_order=in_order), scene)
    assert verdict.everything == verdict.binding == verdict.count == verdict.colour == verdict.shape == 1
    assert {verdict.size, verdict.cell, verdict.relation} <= {None, 1}
    assert all(right for _, right in verdict.bound_by_row)


def test_attributes_that_change_places_are_all_there_but_not_bound():
    swapped = say(mention(RED, colour="blue"), mention(BLUE, colour="red"))
    verdict = judge(swapped, SCENE)
    assert (verdict.shape, verdict.size, verdict.cell, verdict.count) == (1, 1, 1, 1)
    assert (verdict.colour, verdict.binding, verdict.everything) == (0, 0, 0)
    assert verdict.bound_by_row == ((0, False), (1, False))


def test_one_wrong_fact():
    verdict = judge(say(mention(RED), mention(BLUE, shape="cross")), SCENE)
    assert (verdict.colour, verdict.shape, verdict.binding, verdict.everything) == (1, 0.5, 0.5, 0)
    verdict = judge(say(mention(RED, cell=(2, 2)), mention(BLUE, cell=None)), SCENE)
    assert (verdict.cell, verdict.binding) == (0, 0.5)
    assert verdict.bound_by_row == ((2, False),)


def test_what_is_not_said_is_not_asked():
    verdict = judge(say(mention(RED, size=None, cell=None), mention(BLUE, size=None, cell=None)), SCENE)
    assert (verdict.size, verdict.cell, verdict.relation, verdict.everything) == (None, None, None, 1)


def test_counting():
    three = Scene((*SCENE.objects, SceneObject("red", "cross", "small", (2, 2))), 3)
    verdict = judge(say(mention(RED), mention(BLUE)), three)
    assert (verdict.binding, verdict.count, verdict.everything) == (1, 0, 0)
    verdict = judge(say(mention(RED), mention(BLUE)), Scene((RED,), 3))
    assert (verdict.binding, verdict.count) == (0.5, 0)
    verdict = judge(say(mention(RED)), Scene((), 3))
    assert (verdict.colour, verdict.shape, verdict.binding, verdict.count, verdict.everything) == (0, 0, 0, 0, 0)


def test_an_object_that_is_right_as_a_whole_is_not_given_away_for_single_facts():
    near = dataclasses.replace(RED, shape="square"), dataclasses.replace(RED, colour="blue", shape="cross")
    mentions = [mention(RED), Mention("red", "square", "small", (2, 0))]
    verdict = judge(say(*mentions), Scene((RED, dataclasses.replace(near[1], cell=(2, 2))), 3))
    assert verdict.binding == 0.5


def test_an_object_serves_one_mention():
    twice = say(mention(RED, size=None, cell=None), mention(RED, size=None, cell=None))
    assert judge(twice, SCENE).binding == 0.5


@pytest.mark.parametrize("relation", OPPOSITE)
def test_relations(relation):
    plain = [mention(x, size=None, cell=None) for x in (RED, BLUE)]
    holds = relation in ("left", "above")
    assert judge(say(*plain, relation=relation), SCENE).relation == holds
    assert judge(say(*plain, relation=relation), SCENE).everything == holds
    assert judge(say(*plain[::-1], relation=relation), SCENE).relation == (not holds)
    assert judge(say(*plain, relation=relation), Scene((RED,), 3)).relation == 0


def test_relation_between_look_alikes():
    """Two equal objects always stand as the caption says if they can."""
    other = dataclasses.replace(RED, cell=(0, 2))
    plain = mention(RED, size=None, cell=None)
    for relation in ("left", "right"):
        assert judge(say(plain, plain, relation=relation), Scene((RED, other), 3)).everything == 1
    assert judge(say(plain, plain, relation="above"), Scene((RED, other), 3)).everything == 0


def test_bootstrap_covers_the_mean():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(60):
        groups = [rng.random(200) < 0.7 for _ in range(3)]
        mean = bootstrap(groups, seed)
        assert mean.low <= mean.mean <= mean.high
        assert mean.count == 600
        covered += mean.low <= 0.7 <= mean.high
    assert covered >= 52  # 95 % of 60 is 57
    assert bootstrap([[], []]) is None
    assert bootstrap([[1.0, 1.0]]).low == 1


def test_bootstrap_sees_that_trainings_differ():
    alike = bootstrap([[0, 1] * 100] * 3)
    unlike = bootstrap([[0] * 200, [0, 1] * 100, [1] * 200])
    assert alike.mean == unlike.mean == 0.5
    assert unlike.high - unlike.low > 2 * (alike.high - alike.low)


def test_paired_difference_is_sharper_than_its_parts():
    rng = np.random.default_rng(0)
    easy = rng.random((3, 300)) < rng.random(300)
    better = easy | (rng.random((3, 300)) < 0.05)
    difference = paired_difference(better, easy)
    assert difference.low > 0
    assert difference.mean == pytest.approx(better.mean() - easy.mean())
    alone = bootstrap(list(better))
    assert difference.high - difference.low < (alone.high - alone.low) / 2
    assert paired_difference([[1, 0]], [[1, 0]]).high == 0
    for wrong in ([[1, 0]], [[1], [1]]):
        with pytest.raises(ValueError, match="same captions for as many trainings"):
            paired_difference(wrong, [[], []])


@given(st.integers(2, 50))
def test_shuffled_leaves_nothing_in_its_place(count):
    order = shuffled(count)
    assert sorted(order) == list(range(count))
    assert all(i != j for i, j in enumerate(order))
