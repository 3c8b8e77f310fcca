"""All images of a run as one labelled picture: a row per prompt, a column per seed."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MAX_PIXELS = 40_000_000
SMALLEST_CELL, LARGEST_CELL, GAP, MARGIN = 112, 320, 8, 16
NARROWEST_SHEET, FONT_SIZE, LINE, LABEL_LINES = 420, 16, 21, 2
BACKGROUND, TEXT_COLOUR, SEED_COLOUR = "#ffffff", "#1a1a1a", "#6b6b6b"
UNKNOWN = "\U0010ffff"  # no font has it: drawn as that font draws what it lacks
FONTS = (  # those that know Chinese, Japanese and Korean too; the first that is installed is taken
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "Hiragino Sans GB.ttc",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "DejaVuSans.ttf",
)


def contact_sheet(
    images: Sequence[Sequence[Image.Image]], prompts: Sequence[str], seeds: Sequence[int], title: str | None = None
) -> Image.Image:
    """One picture of `images`, a list per prompt with an image per seed, under a title if there is one.

    Cells are as large as the largest image, within 112 to 320 pixels, and smaller where there are very many.
    """
    columns = len(seeds)
    cell_width, cell_height = cell_size(images, columns)
    width = max(NARROWEST_SHEET, 2 * MARGIN + columns * (cell_width + GAP) - GAP)
    font = label_font()
    labels = [label_lines(prompt, number, font, width - 2 * MARGIN) for number, prompt in enumerate(prompts)]
    row_heights = [LINE * len(lines) + cell_height + 2 * GAP + LINE for lines in labels]
    heading = 0 if title is None else LINE + GAP
    sheet = Image.new("RGB", (width, 2 * MARGIN + heading + sum(row_heights)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if title is not None:
        draw.text((MARGIN, MARGIN), title, fill=SEED_COLOUR, font=font)
    top = MARGIN + heading
    for lines, row, row_height in zip(labels, images, row_heights, strict=True):
        draw.multiline_text((MARGIN, top), "\n".join(lines), fill=TEXT_COLOUR, font=font, spacing=LINE - FONT_SIZE)
        image_top = top + LINE * len(lines) + GAP // 2
        for column, (image, seed) in enumerate(zip(row, seeds, strict=True)):
            left = MARGIN + column * (cell_width + GAP)
            picture = fitted(image, cell_width, cell_height)
            sheet.paste(picture, (left, image_top))
            for label in (f"seed {seed}", f"{seed}"):
                if font.getlength(label) <= cell_width:
                    draw.text((left, image_top + picture.height + 3), label, fill=SEED_COLOUR, font=font)
                    break
        top += row_height
    return sheet


def cell_size(images: Sequence[Sequence[Image.Image]], columns: int) -> tuple[int, int]:
    """Width and height of a cell."""
    image = images[0][0]
    room = math.isqrt(MAX_PIXELS // (columns * len(images)))
    longest = max(image.size)
    if longest < SMALLEST_CELL:  # a whole multiple, so that all its pixels are of one size
        scale: float = max(1, min(math.ceil(SMALLEST_CELL / longest), room // longest))
    else:
        scale = min(1.0, LARGEST_CELL / longest, room / longest)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    """`image` in RGB at the size of a cell; small ones are enlarged without blur."""
    resampling = Image.Resampling.NEAREST if width > image.width else Image.Resampling.LANCZOS
    return image.convert("RGB").resize((width, height), resampling)


def label_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The first of the fonts that is installed, else Pillow's own, which knows Latin letters only."""
    for name in FONTS:
        try:
            return ImageFont.truetype(name, FONT_SIZE)
        except OSError:
            continue
    return ImageFont.load_default(FONT_SIZE)


def label_lines(prompt: str, number: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """`prompt` in lines of `width` pixels, cut at two; a number where the font lacks its letters."""
    prompt = " ".join(prompt.split())
    if not drawable(prompt, font):
        return [f"prompt {number:04d}"]
    lines = [""]
    for word in prompt.split(" "):
        for piece in pieces(word, font, width):
            longer = f"{lines[-1]} {piece}".strip() if piece is not word or lines[-1] else piece
            if font.getlength(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(piece)
    if len(lines) > LABEL_LINES:
        last = lines[LABEL_LINES - 1]
        while font.getlength(last + " …") > width:
            last = last[:-1]
        lines = [*lines[: LABEL_LINES - 1], last + " …"]
    return lines


def pieces(word: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """`word` itself, or parts that fit into `width` pixels."""
    parts, part = [], ""
    for letter in word:
        if part and font.getlength(part + letter) > width:
            parts.append(part)
            part = ""
        part += letter
    return [*parts, part]


def drawable(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> bool:
    """Whether the font has every letter of `text`."""
    unknown = bytes(font.getmask(UNKNOWN))
    return not any(bytes(font.getmask(letter)) == unknown for letter in set(text) if not letter.isspace())
