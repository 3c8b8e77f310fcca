from collections import Counter

import pytest

from diffusers_crosswkv.data.celeba import ATTRIBUTES, describe_face
from diffusers_crosswkv.data.class_names import CIFAR10, class_wordings
from diffusers_crosswkv.evaluation.metrics import protocol_prompts, read_image_prompts, write_image_prompts


def test_cifar10(tmp_path):
    """Classes and wordings in equal shares, of the CLIP score's 1,000 prompts as well."""
    prompts = protocol_prompts("cifar10")
    known = [wording for name in CIFAR10 for wording in class_wordings(name)]
    for part in (prompts, prompts[:1_000]):
        assert Counter(part) == dict.fromkeys(known, len(part) // 50)
    assert prompts[:2] == ("an airplane", "a photo of an automobile")
    assert all(prompts[i] in class_wordings(CIFAR10[i % 10]) for i in range(100))
    write_image_prompts(tmp_path / "prompts.txt", prompts)
    assert read_image_prompts(tmp_path / "prompts.txt") == prompts


@pytest.mark.parametrize("name", ["imagenet256", "imagenet512"])
def test_imagenet(tmp_path, name):
    """Names from the file that ImageNet or Caffe brings along, found beside the reference too."""
    words = tmp_path / "synset_words.txt"
    words.write_text("".join(f"n{number:08d} thing{number}, other{number}\n" for number in range(1_000)))
    prompts = protocol_prompts(name, tmp_path)
    assert len(prompts) == 10_000 and prompts[1_000] == "a photo of a thing0"
    assert Counter(prompts) == {w: 1 for n in range(1_000) for w in class_wordings(f"thing{n}, other{n}")}
    assert protocol_prompts(name, tmp_path / "VIRTUAL.npz") == protocol_prompts(name, words) == prompts
    words.write_text("n01440764 tench, Tinca tinca\n")
    with pytest.raises(ValueError) as refused:
        protocol_prompts(name, tmp_path)
    assert str(refused.value) == (
        "The prompts must be made of ImageNet's 1000 class names, from LOC_synset_mapping.txt or synset_words.txt, "
        f"got 1 in or beside {tmp_path}; name the folder of that file (--captions_from), or give prompts of your own "
        "(--prompts_file)."
    )
    with pytest.raises(ValueError, match="got 0 and no folder to look in"):
        protocol_prompts(name)


def write_attributes(path, count):
    """CelebA's table, where faces with even numbers are men."""
    rows = [[f"{i:06d}.jpg", *("1" if a == "Male" and i % 2 == 0 else "-1" for a in ATTRIBUTES)] for i in range(count)]
    path.write_text("\n".join([str(count), " ".join(ATTRIBUTES), *map(" ".join, rows)]))


def test_celeba(tmp_path):
    """Faces from all over the table, found where CelebA's own layout has it."""
    write_attributes(tmp_path / "list_attr_celeba.txt", 15_000)
    (tmp_path / "img_align_celeba").mkdir()
    prompts = protocol_prompts("celeba64", tmp_path / "img_align_celeba")
    assert prompts == protocol_prompts("celeba64", tmp_path)
    assert (len(prompts), prompts[0], prompts[1]) == (10_000, "man with beard", "a woman")
    men, women = describe_face({"Male"}), describe_face(set())
    assert all(prompt in (women if i * 3 // 2 % 2 else men) for i, prompt in enumerate(prompts))
    assert set(prompts) == {*men, *women}
    with pytest.raises(ValueError, match=r"made of CelebA's attributes, from list_attr_celeba.txt or .* got 0 in or"):
        protocol_prompts("celeba64", tmp_path / "nowhere/else")
