"""CelebA's 40 attributes (Liu et al., 2015, arXiv:1411.7766) in words."""

from collections.abc import Iterable, Set

ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache",
    "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks",
    "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick",
    "Wearing_Necklace", "Wearing_Necktie", "Young",
)  # fmt: skip
ADJECTIVES = {
    "Smiling": "smiling",
    "Attractive": "attractive",
    "Chubby": "chubby",
    "Bald": "bald",
    "Young": "young",
}  # in the order of speech
HAIR_SHAPES = {"Wavy_Hair": "wavy", "Straight_Hair": "straight"}
HAIR_COLOURS = {"Black_Hair": "black", "Blond_Hair": "blond", "Brown_Hair": "brown", "Gray_Hair": "gray"}
BEARDS = {
    "Goatee": "a goatee",
    "Mustache": "a mustache",
    "Sideburns": "sideburns",
    "5_o_Clock_Shadow": "a five o'clock shadow",
}
FEATURES = {
    "Bangs": "bangs",
    "Receding_Hairline": "a receding hairline",
    "Arched_Eyebrows": "arched eyebrows",
    "Bushy_Eyebrows": "bushy eyebrows",
    "Narrow_Eyes": "narrow eyes",
    "Bags_Under_Eyes": "bags under the eyes",
    "Big_Nose": "a big nose",
    "Pointy_Nose": "a pointy nose",
    "High_Cheekbones": "high cheekbones",
    "Rosy_Cheeks": "rosy cheeks",
    "Big_Lips": "big lips",
    "Mouth_Slightly_Open": "a slightly open mouth",
    "Oval_Face": "an oval face",
    "Double_Chin": "a double chin",
    "Pale_Skin": "pale skin",
}
WORN = {
    "Eyeglasses": "eyeglasses",
    "Wearing_Hat": "a hat",
    "Wearing_Earrings": "earrings",
    "Wearing_Necklace": "a necklace",
    "Wearing_Necktie": "a necktie",
    "Wearing_Lipstick": "lipstick",
    "Heavy_Makeup": "heavy makeup",
}
TELLING = 2  # features of the shortest wording


def describe_face(attributes: Set[str]) -> tuple[str, ...]:
    """Five wordings for the attributes that hold, from "smiling man with beard" to sentences that name them all.

    All are functions of the attributes. That there is no beard is not said.
    """
    noun = "man" if "Male" in attributes else "woman"
    adjectives = said(ADJECTIVES, attributes)
    features, worn = [*hair(attributes), *beard(attributes), *said(FEATURES, attributes)], said(WORN, attributes)
    person = " ".join([*adjectives, noun])
    blurry = "blurry " if "Blurry" in attributes else ""
    parts = [f"{verb} {listed(words)}" for verb, words in (("with", features), ("wearing", worn)) if words]
    description = f"{with_article(person)} {', '.join(parts)}".strip()
    telling = [*beard(attributes), *worn, *hair(attributes)][:TELLING]
    mostly = " ".join([*adjectives[:1], noun] + ([f"with {listed(map(bare, telling))}"] if telling else []))
    return (
        mostly,
        description,
        f"a {blurry}photo of {description}",
        f"a {blurry}portrait: {', '.join(map(bare, [person, *features, *worn]))}",
        sentence(noun, adjectives, features, worn),
    )


def said(words: dict[str, str], attributes: Set[str]) -> list[str]:
    return [word for name, word in words.items() if name in attributes]


def hair(attributes: Set[str]) -> list[str]:
    words = " ".join(" and ".join(said(table, attributes)) for table in (HAIR_SHAPES, HAIR_COLOURS)).strip()
    return [f"{words} hair"] if words else []


def beard(attributes: Set[str]) -> list[str]:
    """A beard is named as one unless it is named more closely; women without `No_Beard` are slips of the labels."""
    kinds = said(BEARDS, attributes)
    full = "Male" in attributes and not attributes & {"No_Beard", "Goatee", "5_o_Clock_Shadow"}
    return ["a beard"] * full + kinds


def sentence(noun: str, adjectives: list[str], features: list[str], worn: list[str]) -> str:
    said_with = (("is", adjectives), ("has", features), ("wears", worn))
    clauses = [f"{verb} {listed(words)}" for verb, words in said_with if words]
    pronoun = "he" if noun == "man" else "she"
    return f"this {noun} {f'; {pronoun} '.join(clauses)}" if clauses else f"this is a {noun}"


def listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def bare(words: str) -> str:
    """Without an article."""
    return words.removeprefix("a ").removeprefix("an ")
