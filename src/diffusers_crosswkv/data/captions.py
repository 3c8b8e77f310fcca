"""Captions of scenes in four languages, and what exactly each of them says.

A caption names all objects of its scene in one of the language's wordings. Sizes, places and relations may be left
out; `Description` keeps what was said, so that a picture is held to that and to nothing else. Sentences that are true
of every scene, and say nothing of its objects, make a caption as long as one likes.
"""

import random
import re
from dataclasses import dataclass

from .scenes import Scene, SceneObject

LENGTHS = {"short": (1, 5), "medium": (6, 20), "long": (21, 100), "very long": (101, 340)}  # words, from and to
PLACES = ("early", "middle", "late")  # of the clauses that matter, between the ones that do not
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Grammar:
    """The words of one language; where a word depends on gender, masculine and feminine are separated by a slash."""

    article: str
    shapes: dict[str, str]  # a feminine noun ends in "*"
    colours: dict[str, str]
    sizes: dict[str, str]
    object: str  # how article, size, colour and shape follow each other
    rows: dict[int, tuple[str, ...]]  # by grid
    columns: dict[int, tuple[str, ...]]
    cell: str  # how row and column follow each other
    numbered_cell: str  # where a grid has too many cells for names
    centre: str
    clauses: tuple[str, ...]  # an object {0} and its cell {cell}
    relations: dict[str, str]
    related: tuple[str, str]  # {0} stands in relation to {1}; in relation to {0} stands {1}
    joins: tuple[str, ...]  # between clauses
    last_joins: tuple[str, ...]  # before the last one
    openings: tuple[str, ...]
    irrelevant: tuple[str, ...]
    space: str = " "
    full_stop: str = ". "


GRAMMARS = {
    "English": Grammar(
        article="a/a",
        shapes={"ring": "ring", "square": "square", "triangle": "triangle", "cross": "cross"},
        colours={name: name for name in ("red", "green", "blue", "yellow", "magenta", "cyan")},
        sizes={"small": "small", "large": "large"},
        object="{article} {size} {colour} {shape}",
        rows={2: ("top", "bottom"), 3: ("top", "middle", "bottom")},
        columns={2: ("left", "right"), 3: ("left", "centre", "right")},
        cell="{row} {column}",
        numbered_cell="row {row}, column {column}",
        centre="centre",
        clauses=("{0} {cell}", "{0} in the {cell}", "{cell} {0}", "{cell}: {0}", "in the {cell} {0}"),
        relations={"left": "left of", "right": "right of", "above": "above", "below": "below"},
        related=("{0} {relation} {1}", "{relation} {0} is {1}"),
        joins=(", ", "; "),
        last_joins=(", ", " and ", "; "),
        openings=("", "a picture of ", "there is ", "we see ", "draw "),
        irrelevant=(
            "the background is grey",
            "nobody is in the picture",
            "the drawing is flat",
            "there are no letters in it",
            "nothing casts a shadow",
            "the picture is as wide as high",
            "a program made this",
            "the picture is still",
            "there is no frame",
            "it is only a simple picture",
        ),
    ),
    "Chinese": Grammar(
        article="一个/一个",
        shapes={"ring": "圆环", "square": "方形", "triangle": "三角形", "cross": "十字"},
        colours={"red": "红", "green": "绿", "blue": "蓝", "yellow": "黄", "magenta": "品红", "cyan": "青"},
        sizes={"small": "小", "large": "大"},
        object="{article} {size} {colour}色 {shape}",
        rows={2: ("上方", "下方"), 3: ("上方", "中间", "下方")},
        columns={2: ("左", "右"), 3: ("左侧", "中间", "右侧")},
        cell="{column}{row}",
        numbered_cell="第{row}行第{column}列",
        centre="正中央",
        clauses=("{0}在{cell}", "{cell}{0}", "{cell}有{0}", "{cell}是{0}", "{cell}：{0}"),
        relations={"left": "左边", "right": "右边", "above": "上面", "below": "下面"},
        related=("{0}在{1}的{relation}", "{0}的{relation}是{1}"),
        joins=("，", "；"),
        last_joins=("，", "；"),
        openings=("", "图中有", "画面：", "请画", "一张图："),
        irrelevant=(
            "背景是灰的",
            "画面里没有人",
            "图画是平面的",
            "里面没有文字",
            "任何东西都没有影子",
            "画面一样宽一样高",
            "这是程序画的",
            "画面是静止的",
            "没有边框",
            "只是一张简单的图",
        ),
        space="",
        full_stop="。",
    ),
    "Spanish": Grammar(
        article="un/una",
        shapes={"ring": "anillo", "square": "cuadrado", "triangle": "triángulo", "cross": "cruz*"},
        colours={
            "red": "rojo/roja",
            "green": "verde",
            "blue": "azul",
            "yellow": "amarillo/amarilla",
            "magenta": "magenta",
            "cyan": "cian",
        },
        sizes={"small": "pequeño/pequeña", "large": "grande"},
        object="{article} {shape} {colour} {size}",
        rows={2: ("arriba", "abajo"), 3: ("arriba", "en medio", "abajo")},
        columns={2: ("a la izquierda", "a la derecha"), 3: ("a la izquierda", "al centro", "a la derecha")},
        cell="{row} {column}",
        numbered_cell="fila {row} columna {column}",
        centre="en el centro",
        clauses=("{0} {cell}", "{cell} {0}", "{cell}: {0}", "{cell} hay {0}", "{0} ({cell})"),
        relations={
            "left": "a la izquierda de",
            "right": "a la derecha de",
            "above": "encima de",
            "below": "debajo de",
        },
        related=("{0} {relation} {1}", "{relation} {0} hay {1}"),
        joins=(", ", "; "),
        last_joins=(", ", " y ", "; "),
        openings=("", "una imagen de ", "hay ", "vemos ", "dibuja "),
        irrelevant=(
            "el fondo es gris",
            "no hay nadie en la imagen",
            "el dibujo es plano",
            "no contiene letras",
            "nada proyecta sombra",
            "la imagen es de lados iguales",
            "lo hizo un programa",
            "la imagen no se mueve",
            "no hay marco",
            "es solo una imagen sencilla",
        ),
    ),
    "French": Grammar(
        article="un/une",
        shapes={"ring": "anneau", "square": "carré", "triangle": "triangle", "cross": "croix*"},
        colours={
            "red": "rouge",
            "green": "vert/verte",
            "blue": "bleu/bleue",
            "yellow": "jaune",
            "magenta": "magenta",
            "cyan": "cyan",
        },
        sizes={"small": "petit/petite", "large": "grand/grande"},
        object="{article} {size} {shape} {colour}",
        rows={2: ("en haut", "en bas"), 3: ("en haut", "au milieu", "en bas")},
        columns={2: ("à gauche", "à droite"), 3: ("à gauche", "au centre", "à droite")},
        cell="{row} {column}",
        numbered_cell="ligne {row} colonne {column}",
        centre="en plein centre",
        clauses=("{0} {cell}", "{cell} {0}", "{cell} : {0}", "{cell} il y a {0}", "{0} ({cell})"),
        relations={
            "left": "à gauche de",
            "right": "à droite de",
            "above": "au-dessus de",
            "below": "au-dessous de",
        },
        related=("{0} {relation} {1}", "{relation} {0} il y a {1}"),
        joins=(", ", "; "),
        last_joins=(", ", " et ", "; "),
        openings=("", "une image avec ", "il y a ", "on voit ", "dessine "),
        irrelevant=(
            "le fond est gris",
            "il n'y a personne sur l'image",
            "le dessin est plat",
            "elle ne contient pas de lettres",
            "rien ne projette d'ombre",
            "l'image a des côtés égaux",
            "un programme l'a faite",
            "l'image ne bouge pas",
            "il n'y a pas de cadre",
            "ce n'est qu'une image simple",
        ),
    ),
}
LANGUAGES = tuple(GRAMMARS)


@dataclass(frozen=True)
class Mention:
    """What a caption says of one object; None where it says nothing."""

    colour: str
    shape: str
    size: str | None = None
    cell: tuple[int, int] | None = None  # row, column


@dataclass(frozen=True)
class Description:
    """A caption and what it says: all objects, in the order of mention, and perhaps how the first two stand.

    `length` is of `LENGTHS`. `relation` is where the first object is, seen from the second: left, right, above, below.
    """

    text: str
    language: str
    length: str
    mentions: tuple[Mention, ...]
    relation: str | None = None
    place: str | None = None  # of the clauses that matter, if there are others


def describe(
    scene: Scene,
    rng: random.Random,
    language: str | None = None,
    length: str = "medium",
    in_reading_order: bool = True,
    place: str | None = None,
) -> Description:
    """A caption of `scene`, drawn from `rng`.

    Args:
        language: one of `LANGUAGES`; drawn if None.
        length: of `LENGTHS`. A scene with too many objects for `short` gets the shortest caption there is.
        in_reading_order: mention the objects from the upper left to the lower right, else in another order.
        place: where among irrelevant sentences the objects are named, of `PLACES`; drawn if None.

    Raises:
        ValueError: an unknown language, length or place, or a scene without objects.
    """
    for name, value, known in (
        ("language", language, LANGUAGES),
        ("length", length, LENGTHS),
        ("place", place, PLACES),
    ):
        if value is not None and value not in known:
            raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {value!r}.")
    if not scene.objects:
        raise ValueError("A scene must have at least one object to be described, got none.")
    language = language or rng.choice(LANGUAGES)
    shortest, longest = LENGTHS[length]
    objects = list(scene.objects)
    if not in_reading_order and len(objects) > 1:
        while objects == list(scene.objects):
            rng.shuffle(objects)
    terse = length == "short"
    said = choose_what_to_say(len(objects), terse, rng)
    best: Description | None = None
    for _ in range(16):
        core, mentions, relation = name_objects(objects, scene.grid, language, said, terse, rng)
        text, where = pad(core, language, shortest, longest, place, rng)
        words = count_words(text, language)
        found = Description(text, language, length_of(words), mentions, relation, where)
        if shortest <= words <= longest:
            return found
        if best is None or words < count_words(best.text, language):
            best = found
    assert best is not None
    return best


@dataclass(frozen=True)
class Said:
    """What a caption says of its objects beside colour and shape."""

    sizes: bool
    cells: bool
    relation: bool


def choose_what_to_say(num_objects: int, terse: bool, rng: random.Random) -> Said:
    """Drawn before any word is, and little enough to fit: captions of all languages and lengths ask for like things.

    Only a terse one asks for less.
    """
    if terse:
        return Said(sizes=num_objects == 1 and rng.random() < 0.5, cells=False, relation=False)
    if num_objects > 2:
        cells = rng.random() < 0.85
        return Said(sizes=not cells, cells=cells, relation=False)
    weights = (0.6, 0.25, 0.15) if num_objects == 2 else (0.85, 0, 0.15)
    saying = rng.choices(("cells", "relation", "objects"), weights)[0]
    return Said(sizes=rng.random() < 0.7, cells=saying == "cells", relation=saying == "relation")


def length_of(words: int) -> str:
    """The name in `LENGTHS` of a number of words."""
    return next((name for name, (_, longest) in LENGTHS.items() if words <= longest), "very long")


def name_objects(
    objects: list[SceneObject], grid: int, language: str, said: Said, terse: bool, rng: random.Random
) -> tuple[str, tuple[Mention, ...], str | None]:
    """The clauses that matter, what they say of each object, and the relation of the first two."""
    grammar = GRAMMARS[language]
    mentions = tuple(
        Mention(x.colour, x.shape, x.size if said.sizes else None, x.cell if said.cells else None) for x in objects
    )
    with_article = not terse and rng.random() < 0.7
    names = [name_object(mention, grammar, with_article) for mention in mentions]
    relation = relation_of(objects[0].cell, objects[1].cell, rng) if said.relation else None
    if relation is not None:
        forward = rng.random() < 0.5
        word = grammar.relations[relation if forward else OPPOSITE[relation]]
        clauses = [grammar.related[0 if forward else 1].format(*names, relation=word)]
    elif said.cells:
        template = rng.choice(grammar.clauses)
        cells = [name_cell(x.cell, grid, grammar) for x in objects]
        clauses = [template.format(name, cell=cell) for name, cell in zip(names, cells, strict=True)]
    else:
        clauses = names
    text = rng.choice(grammar.joins).join(clauses[:-1])
    text = text + rng.choice(grammar.last_joins) + clauses[-1] if text else clauses[-1]
    if with_article and clauses is names:  # "there is large green triangle" is not English
        text = rng.choice(grammar.openings) + text
    if language == "French":
        text = re.sub(r"\bde (?=une? |anneau)", "d'", text)
    return text, mentions, relation


def name_object(mention: Mention, grammar: Grammar, with_article: bool) -> str:
    noun = grammar.shapes[mention.shape]
    feminine = noun.endswith("*")

    def agree(word: str) -> str:
        return word.split("/")[-1 if feminine else 0]

    words = grammar.object.format(
        article=agree(grammar.article) if with_article else "",
        size=agree(grammar.sizes[mention.size]) if mention.size else "",
        colour=agree(grammar.colours[mention.colour]),
        shape=noun.rstrip("*"),
    )
    return grammar.space.join(words.split())


def name_cell(cell: tuple[int, int], grid: int, grammar: Grammar) -> str:
    row, column = cell
    if grid not in grammar.rows:
        return grammar.numbered_cell.format(row=row + 1, column=column + 1)
    if grid == 3 and cell == (1, 1):
        return grammar.centre
    return grammar.cell.format(row=grammar.rows[grid][row], column=grammar.columns[grid][column])


def relation_of(first: tuple[int, int], second: tuple[int, int], rng: random.Random) -> str:
    """Where `first` is, seen from `second`; where two answers are true, `rng` draws."""
    true = []
    if first[1] != second[1]:
        true.append("left" if first[1] < second[1] else "right")
    if first[0] != second[0]:
        true.append("above" if first[0] < second[0] else "below")
    return rng.choice(true)


def pad(
    core: str, language: str, shortest: int, longest: int, place: str | None, rng: random.Random
) -> tuple[str, str | None]:
    """`core` between irrelevant sentences, `shortest` to `longest` words in all, and its place if there are any.

    A medium caption takes one such sentence now and then: what a longer one is made of should not be new.
    """
    grammar = GRAMMARS[language]
    goal = rng.randint(shortest, longest)
    words = count_words(core, language)
    fewest = 2 if place == "middle" else 1
    sentences: list[str] = []
    while words < (goal if longest > 20 else shortest) or (longest == 20 and not sentences and rng.random() < 0.3):
        sentence = rng.choice(grammar.irrelevant)
        words += count_words(sentence, language)
        if words > longest:
            break
        sentences.append(sentence)
    if not sentences:
        return core, None
    while len(sentences) < fewest:
        sentences.append(rng.choice(grammar.irrelevant))
    place = place or rng.choice(PLACES if len(sentences) > 1 else ("early", "late"))
    before = {"early": 0, "middle": len(sentences) // 2, "late": len(sentences)}[place]
    return grammar.full_stop.join([*sentences[:before], core, *sentences[before:]]), place


def count_words(text: str, language: str) -> int:
    """Words; in Chinese, which does not separate them, half the characters."""
    letters = re.findall(r"\w", text) if language == "Chinese" else text.replace("'", " ").split()
    words = [word for word in letters if any(letter.isalnum() for letter in word)]
    return -(-len(words) // 2) if language == "Chinese" else len(words)
