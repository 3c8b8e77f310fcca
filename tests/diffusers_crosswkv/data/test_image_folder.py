import json
import random
import unicodedata

import pytest
from pictures import write_image

from diffusers_crosswkv.data.caption_builders import CaptionBuilders
from diffusers_crosswkv.data.image_folder import ImageFolder


def captions_of(records):
    """All wordings by name."""
    return {records.name(i): records.record(i).caption.texts for i in range(len(records))}


def open_folder(folder, **options):
    return ImageFolder(folder, CaptionBuilders(folder=str(folder), **options))


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def test_text_files_beside_images_one_wording_per_line(tmp_path):
    write_image(tmp_path / "b.png", caption="ein Fuchs\n\n  狐狸  \n")
    write_image(tmp_path / "nested/deep/ä.JPG", caption="\ufeffa hill")
    write_image(tmp_path / "c.webp").with_suffix(".caption").write_text("kohya's default", encoding="utf-8")
    records = open_folder(tmp_path)
    assert captions_of(records) == {
        "b.png": ("ein Fuchs", "狐狸"),
        "c.webp": ("kohya's default",),
        "nested/deep/ä.JPG": ("a hill",),
    }
    assert records.findings == []
    assert {records.record(0).caption(random.Random(i)) for i in range(20)} == {"ein Fuchs", "狐狸"}


def test_metadata_jsonl_in_nested_folders(tmp_path):
    for name in ("one.png", "sub/two.png", "sub/three.png"):
        write_image(tmp_path / name)
    write_lines(
        tmp_path / "metadata.jsonl",
        {"file_name": "one.png", "text": "first"},
        {"file_name": "one.png", "text": "first again"},
        {"file_name": "gone.png", "text": "was deleted"},
        {"file_name": "sub\\three.png", "text": ["third", " ", "trois"]},
    )
    write_lines(tmp_path / "sub/metadata.jsonl", {"file_name": "two.png", "text": "second"})
    records = open_folder(tmp_path)
    assert captions_of(records) == {
        "one.png": ("first", "first again"),
        "sub/three.png": ("third", "trois"),
        "sub/two.png": ("second",),
    }
    assert records.findings == [("gone.png", "is named in a table of captions, but is not there")]


def test_metadata_csv_with_a_column_of_another_name(tmp_path):
    for name in ("1.png", "2.png"):
        write_image(tmp_path / name)
    table = 'file_name,beschreibung\n1.png,"eins, mit Komma"\n2.png,\n'
    (tmp_path / "metadata.csv").write_text(table, encoding="utf-8-sig")
    records = open_folder(tmp_path, column="beschreibung")
    assert captions_of(records) == {"1.png": ("eins, mit Komma",)}
    assert records.findings == [("2.png", "has an empty caption")]
    with pytest.raises(ValueError, match=r"must have a column of captions.*its columns are beschreibung"):
        open_folder(tmp_path)
    with pytest.raises(ValueError, match=r"`caption_column` must be a column of .*, got 'texte'"):
        open_folder(tmp_path, column="texte")


def test_rows_and_text_files_may_be_mixed(tmp_path):
    write_image(tmp_path / "row.png", caption="not this")
    write_image(tmp_path / "file.png", caption="from the file")
    write_lines(tmp_path / "metadata.jsonl", {"file_name": "row.png", "prompt": "from the row"})
    assert captions_of(open_folder(tmp_path)) == {"file.png": ("from the file",), "row.png": ("from the row",)}


def test_an_empty_row_takes_no_other_with_it(tmp_path):
    for name in ("some.png", "none.png"):
        write_image(tmp_path / name)
    rows = "some.png,\nsome.png,one\nsome.png,two\nsome.png, \nnone.png,\nnone.png,\n"
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{rows}")
    records = open_folder(tmp_path)
    assert captions_of(records) == {"some.png": ("one", "two")}
    assert records.findings == [("none.png", "has an empty caption")]


def test_what_has_no_caption_is_left_out_and_listed(tmp_path):
    write_image(tmp_path / "good.png", caption="x")
    write_image(tmp_path / "blank.png", caption=" \n\t")
    write_image(tmp_path / "none.png")
    write_image(tmp_path / "latin.png").with_suffix(".txt").write_bytes("caf\xe9".encode("latin-1"))
    write_image(tmp_path / ".hidden.png", caption="x")
    write_image(tmp_path / ".thumbnails/good.png", caption="x")
    (tmp_path / "notes.txt").write_text("no image")
    records = open_folder(tmp_path)
    assert list(captions_of(records)) == ["good.png"]
    assert records.findings == [
        ("blank.png", "has an empty caption"),
        ("latin.png", "has a caption file that is not UTF-8 (latin.txt)"),
        ("none.png", "has no caption: no row in a table, and no text file beside it"),
    ]


def test_accents_may_be_written_in_two_ways(tmp_path):
    composed, separate = (unicodedata.normalize(form, "café.png") for form in ("NFC", "NFD"))
    write_image(tmp_path / separate)
    write_lines(tmp_path / "metadata.jsonl", {"file_name": composed, "text": "coffee"})
    assert captions_of(open_folder(tmp_path)) == {separate: ("coffee",)}


def test_a_file_that_changes_is_another_one(tmp_path):
    path = write_image(tmp_path / "a.png", caption="x")
    first = open_folder(tmp_path).record(0).identity
    assert open_folder(tmp_path).record(0).identity == first
    write_image(path, seed=1)
    assert open_folder(tmp_path).record(0).identity != first


def test_errors_name_the_place(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a folder that is there"):
        open_folder(tmp_path / "nowhere")
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match="must hold images"):
        open_folder(tmp_path)
    write_image(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n{broken\n')
    with pytest.raises(ValueError, match=r"metadata.jsonl must be UTF-8 .* line 2 is no JSON"):
        open_folder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"image": "a.png", "text": "x"}\n')
    with pytest.raises(ValueError, match="line 1 has no `file_name`"):
        open_folder(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,red, green\n")
    with pytest.raises(
        ValueError, match=r"line 2 has more fields than the header \(a caption with commas needs quotes"
    ):
        open_folder(tmp_path)
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": 7}\n')
    with pytest.raises(ValueError, match=r"must be a string or a list of strings, but the column `text` .* holds 7"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ('1.png,"red\n2.png,green\n', 1),  # to the end of the file
        ('1.png,"two\nlines"\n\n2.png,"red\n3.png,"blue"\n', 3),  # to the next quote
        ('1.png,"a "red" car"\n', 1),
    ],
)
def test_quotes_that_do_not_match(tmp_path, rows, line):
    for name in ("1.png", "2.png", "3.png"):
        write_image(tmp_path / name)
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{rows}")
    with pytest.raises(ValueError, match=rf"metadata.csv must be .* after line {line} quotes do not match.*; mend it"):
        open_folder(tmp_path)


def test_links_to_folders_are_followed_once(tmp_path):
    """A link is of no account where what it leads to lies in the folder, and loops end."""
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    write_image(data / "z/own.png", caption="own")
    write_image(elsewhere / "deep/1.png")
    write_image(elsewhere / "2.png", caption="linked")
    write_lines(elsewhere / "metadata.jsonl", {"file_name": "deep/1.png", "text": "from a linked table"})
    (data / "a").symlink_to(data / "z")
    (data / "m").symlink_to(elsewhere)
    (data / "n").symlink_to(elsewhere / "deep")
    (data / ".hidden").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(data)
    (elsewhere / "self").symlink_to(elsewhere)
    records = open_folder(data)
    assert captions_of(records) == {
        "m/2.png": ("linked",),
        "m/deep/1.png": ("from a linked table",),
        "z/own.png": ("own",),
    }
    assert records.findings == []


def test_a_folder_for_each_class(tmp_path):
    for name in ("airplane/1.png", "dog/1.png", "stray.png"):
        write_image(tmp_path / name)
    records = open_folder(tmp_path, name="cifar10-class")
    assert captions_of(records) == {"airplane/1.png": ("airplane",), "dog/1.png": ("dog",)}
    assert records.findings == [("stray.png", "has no class label")]


def test_imagenet_as_its_archive_unpacks(tmp_path):
    write_image(tmp_path / "train/n01440764/n01440764_10026.JPEG")
    write_image(tmp_path / "train/n02056570/n02056570_1.JPEG")
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\nn02056570 king penguin\n")
    assert list(captions_of(open_folder(tmp_path / "train", name="imagenet-class")).values()) == [
        ("tench",),
        ("king penguin",),
    ]
    wordings = captions_of(open_folder(tmp_path / "train", name="imagenet"))["n01440764/n01440764_10026.JPEG"]
    assert "a photo of a tench" in wordings
    assert "a photo of a Tinca tinca" in wordings


CELEBA_HEADER = (
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair "
    "Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones "
    "Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline "
    "Rosy_Cheeks Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick "
    "Wearing_Necklace Wearing_Necktie Young"
)


@pytest.mark.parametrize("form", ["txt", "csv"])
def test_celeba_as_its_archive_unpacks(tmp_path, form):
    names = CELEBA_HEADER.split()
    faces = {"000001.jpg": {"Male", "Smiling"}, "000002.jpg": {"Blond_Hair", "No_Beard", "Young"}}
    lines = []
    for name, attributes in faces.items():
        write_image(tmp_path / "img_align_celeba" / name)
        lines.append([name, *("1" if x in attributes else "-1" for x in names)])
    if form == "txt":
        text = f"202599\n{CELEBA_HEADER} \n" + "".join(f"{line[0]}  {' '.join(line[1:])}\n" for line in lines)
    else:
        text = "\n".join(",".join(line) for line in [["image_id", *names], *lines]) + "\n"
    (tmp_path / f"list_attr_celeba.{form}").write_text(text)
    for folder in (tmp_path, tmp_path / "img_align_celeba"):
        found = list(captions_of(open_folder(folder, name="celeba")).values())
        assert found[0][0] == "smiling man with beard"
        assert found[1][0] == "young woman with blond hair"
