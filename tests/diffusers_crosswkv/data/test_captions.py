import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusers_crosswkv.data.captions import (
    GRAMMARS,
    LANGUAGES,
    LENGTHS,
    OPPOSITE,
    PLACES,
    Mention,
    count_words,
    describe,
    name_object,
)
from diffusers_crosswkv.data.scenes import COLOURS, SHAPES, SIZES, Scene, SceneObject, draw_scene

seeds = st.integers(0, 100_000)
languages = st.sampled_from(LANGUAGES)


def scene_of(seed, objects=3, grid=3):
    return draw_scene(random.Random(seed), grid, objects)


@given(seeds, languages, st.integers(1, 5), st.sampled_from(sorted(LENGTHS)), st.booleans())
def test_what_a_caption_says_is_true(seed, language, objects, length, in_order):
    scene = scene_of(seed, objects)
    description = describe(scene, random.Random(seed), language, length, in_order)
    remaining = list(scene.objects)
    for mention in description.mentions:
        match = next(
            x
            for x in remaining
            if (x.colour, x.shape) == (mention.colour, mention.shape)
            and mention.size in (None, x.size)
            and mention.cell in (None, x.cell)
        )
        remaining.remove(match)
    assert not remaining
    if description.relation:
        first, second = (next(x for x in scene.objects if same(x, m)) for m in description.mentions)
        if (first.colour, first.shape, first.size) != (second.colour, second.shape, second.size):
            assert holds(description.relation, first.cell, second.cell)


def same(x, mention):
    return (x.colour, x.shape, mention.size or x.size) == (mention.colour, mention.shape, x.size)


def holds(relation, first, second):
    return {
        "left": first[1] < second[1],
        "right": first[1] > second[1],
        "above": first[0] < second[0],
        "below": first[0] > second[0],
    }[relation]


@given(seeds, languages, st.sampled_from(sorted(LENGTHS)))
def test_lengths(seed, language, length):
    objects = 1 if length == "short" else 2
    description = describe(scene_of(seed, objects), random.Random(seed), language, length)
    shortest, longest = LENGTHS[length]
    assert shortest <= count_words(description.text, language) <= longest
    assert description.length == length


@given(seeds, st.integers(1, 3))
def test_captions_of_all_languages_and_lengths_ask_for_like_things(seed, objects):
    scene = scene_of(seed, objects)
    found = [
        describe(scene, random.Random(seed), language, length)
        for language in LANGUAGES
        for length in ("medium", "long", "very long")
    ]
    assert len({x.mentions for x in found}) == 1
    assert len({x.relation is None for x in found}) == 1


@given(seeds, languages)
def test_objects_are_mentioned_in_reading_order_or_in_another_one(seed, language):
    scene = scene_of(seed)
    pairs = [(x.colour, x.shape) for x in scene.objects]

    def mentioned(in_order):
        description = describe(scene, random.Random(seed), language, in_reading_order=in_order)
        return [(m.colour, m.shape) for m in description.mentions]

    assert mentioned(True) == pairs
    if len(set(pairs)) == 3:
        assert mentioned(False) != pairs
    assert sorted(mentioned(False)) == sorted(pairs)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_fact_has_words_of_its_own(language):
    names = {
        name_object(Mention(colour, shape, size), GRAMMARS[language], article)
        for colour in COLOURS
        for shape in SHAPES
        for size in (None, *SIZES)
        for article in (True, False)
    }
    assert len(names) == len(COLOURS) * len(SHAPES) * 3 * 2


def test_agreement_and_elision():
    cross = Mention("red", "cross", "small")
    assert name_object(cross, GRAMMARS["Spanish"], True) == "una cruz roja pequeña"
    assert name_object(cross, GRAMMARS["French"], True) == "une petite croix rouge"
    assert name_object(Mention("green", "square", "large"), GRAMMARS["French"], True) == "un grand carré vert"
    assert name_object(cross, GRAMMARS["Chinese"], True) == "一个小红色十字"
    scene = Scene((SceneObject("red", "ring", "large", (0, 0)), SceneObject("blue", "cross", "large", (0, 2))), 3)
    texts = [describe(scene, random.Random(seed), "French").text for seed in range(200)]
    assert any("gauche d'un" in text for text in texts)
    assert not any("de un" in text for text in texts)


def test_relations_are_said_from_both_sides():
    scene = Scene((SceneObject("red", "ring", "large", (0, 0)), SceneObject("blue", "cross", "large", (2, 2))), 3)
    found = [describe(scene, random.Random(seed), "English") for seed in range(300)]
    related = [x for x in found if x.relation]
    assert {x.relation for x in related} == {"left", "above"}
    words = {word for x in related for word in OPPOSITE if f" {word} " in f" {x.text} "}
    assert words == set(OPPOSITE)
    other_way = [describe(scene, random.Random(seed), "English", in_reading_order=False) for seed in range(99)]
    assert {x.relation for x in other_way} <= {None, "right", "below"}


@given(seeds, languages)
def test_the_place_of_the_clauses_that_matter(seed, language):
    scene = Scene((SceneObject("red", "ring", "large", (0, 0)),), 3)
    words = GRAMMARS[language].colours["red"].split("/")

    def position(place):
        text = describe(scene, random.Random(seed), language, "long", place=place).text
        return max(text.find(word) for word in words) / len(text)

    early, middle, late = (position(place) for place in PLACES)
    assert early < middle < late


def test_the_whole_grammar_is_used():
    rng = random.Random(0)
    texts = {
        name: [describe(scene_of(i, 2), rng, name, length).text for i in range(200) for length in ("medium", "long")]
        for name in LANGUAGES
    }
    for name, grammar in GRAMMARS.items():
        joined = "\n".join(texts[name])
        for words in (grammar.openings, grammar.irrelevant, grammar.relations.values()):
            assert all(word.removesuffix("de").strip() in joined for word in words), name


def test_bad_arguments():
    scene = scene_of(0)
    with pytest.raises(ValueError, match="`language` must be one of English, Chinese, Spanish, French, got 'Latin'"):
        describe(scene, random.Random(0), "Latin")
    with pytest.raises(ValueError, match="`length` must be one of short, medium, long, very long, got 'tiny'"):
        describe(scene, random.Random(0), length="tiny")
    with pytest.raises(ValueError, match="`place` must be one of early, middle, late, got 'last'"):
        describe(scene, random.Random(0), place="last")
    with pytest.raises(ValueError, match="at least one object to be described, got none"):
        describe(Scene((), 3), random.Random(0))
