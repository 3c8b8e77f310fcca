import pytest
from PIL import Image, ImageFont

from diffusers_crosswkv.generation.contact_sheet import (
    FONT_SIZE,
    MAX_PIXELS,
    contact_sheet,
    drawable,
    label_font,
    label_lines,
)

FONT = ImageFont.load_default(FONT_SIZE)  # Latin letters only, whatever is installed
RED, GREEN, BLUE = (255, 0, 0), (0, 128, 0), (0, 0, 255)


def test_a_row_per_prompt_and_a_column_per_seed():
    images = [[Image.new("RGB", (256, 192), colour) for colour in row] for row in ((RED, GREEN), (BLUE, RED))]
    sheet = contact_sheet(images, ["a seven", "a three"], [3, 4])
    counts = {colour: sum(pixel == colour for pixel in sheet.get_flattened_data()) for colour in (RED, GREEN, BLUE)}
    assert counts == {RED: 2 * 256 * 192, GREEN: 256 * 192, BLUE: 256 * 192}
    where = {colour: sheet_box(sheet, colour) for colour in (GREEN, BLUE)}
    assert where[GREEN][0] > where[BLUE][0]
    assert where[GREEN][1] < where[BLUE][1]


def test_a_title_stands_above_everything():
    images = [[Image.new("RGB", (256, 192), GREEN)]]
    without, titled = contact_sheet(images, ["a"], [0]), contact_sheet(images, ["a"], [0], "a run, step 500")
    added = titled.height - without.height
    assert added > FONT_SIZE
    assert sheet_box(titled, GREEN)[1] == sheet_box(without, GREEN)[1] + added
    assert titled.crop((0, added + 16, *titled.size)).tobytes() == without.crop((0, 16, *without.size)).tobytes()


def sheet_box(sheet, colour):
    mask = Image.new("L", sheet.size)
    mask.putdata([255 * (pixel == colour) for pixel in sheet.get_flattened_data()])
    return mask.getbbox()


def test_small_images_are_enlarged_without_blur():
    image = Image.new("L", (8, 8))
    image.putpixel((3, 3), 255)
    sheet = contact_sheet([[image]], [""], [0]).convert("L")
    box = sheet.crop((16, 16, 128, 180)).point(lambda value: 255 if 0 < value < 60 else 0).getbbox()
    assert box is None  # neither grey nor anything else between black and white


def test_very_many_images_make_a_picture_of_bearable_size():
    sheet = contact_sheet([[Image.new("L", (64, 64))] * 20] * 400, ["p"] * 400, range(20))
    assert sheet.width * sheet.height < 2 * MAX_PIXELS


@pytest.mark.parametrize("prompt", ["a word " * 100, "x" * 1000, "", "a"])
def test_labels_fit(prompt):
    lines = label_lines(prompt, 0, FONT, 300)
    assert 1 <= len(lines) <= 2
    assert all(FONT.getlength(line) <= 300 for line in lines)
    if len(prompt) < 10:
        assert lines == [prompt]


def test_letters_that_the_font_lacks():
    assert drawable("a seven!", FONT)
    assert not drawable("手写", FONT)
    assert label_lines("手写的数字三", 12, FONT, 300) == ["prompt 0012"]
    assert drawable("a seven", label_font())
