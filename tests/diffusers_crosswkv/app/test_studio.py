import pytest
from diffusers import StableDiffusionPipeline

from diffusers_crosswkv import PromptState
from diffusers_crosswkv.app.studio import Studio, random_seed
from diffusers_crosswkv.generation import ImageConfig, make_image
from diffusers_crosswkv.generation.config import MAX_SEED

SEVEN = ImageConfig("a handwritten seven", seed=3, num_inference_steps=4, guidance_scale=2.0)


@pytest.fixture
def studio(make_pipeline):
    studio = Studio(make_pipeline())
    studio.prepare("me")
    return studio


def pixels(update):
    return [image.tobytes() for image, _ in update.images]


def test_images_come_one_by_one_with_their_own_seeds(studio):
    progress = []
    updates = list(studio.images("me", SEVEN, 2, lambda *values: progress.append(values)))
    assert [update.status for update in updates] == ["1 of 2 images done.", "2 of 2 images done."]
    assert [len(update.images) for update in updates] == [1, 2]
    assert [caption for _, caption in updates[1].images] == ["seed 3", "seed 4"]
    assert pixels(updates[0]) == [make_image(studio.pipeline, SEVEN).image.tobytes()]
    assert [done for done, _, _ in progress] == list(range(1, 9))
    assert progress[5][1:] == (8, "image 2 of 2, step 2 of 4")


def test_stop_in_the_middle_of_an_image(studio):
    def stop_at_six(done, total, text):
        if done == 6:
            studio.stop("me")

    updates = list(studio.images("me", SEVEN, 3, stop_at_six))
    assert [update.status for update in updates] == [
        "1 of 3 images done.",
        "Stopped after step 2 of 4 of image 2 of 3.",
    ]
    assert [len(update.images) for update in updates] == [1, 1]


def test_a_stop_is_of_one_session_and_one_run(studio):
    studio.prepare("you")
    studio.stop("you")
    studio.stop("a stranger")
    assert len(list(studio.images("me", SEVEN, 1))) == 1
    assert [u.status for u in studio.images("you", SEVEN, 1)] == ["Stopped before image 1 of 1."]  # while it waited
    studio.prepare("you")
    assert [u.status for u in studio.images("you", SEVEN, 1)] == ["1 of 1 image done."]


def test_who_leaves_stops(studio):
    updates = studio.images("me", SEVEN, 3)
    next(updates)
    studio.leave("me")
    assert next(updates).status == "Stopped before image 2 of 3."
    studio.leave("me")


def test_length_of_both_boxes(studio):
    assert studio.count("a seven", "") == studio.count("", " a seven ")
    assert studio.count(" ", "") == ""
    assert studio.count("a seven", "a handwritten three, " * 60).endswith("windows of up to 77")


def test_counting_leaves_the_pipelines_tokenizer_alone(studio):
    expected = studio.count("a seven", "")
    studio.pipeline.tokenizer = None
    assert studio.count("a seven", "") == expected


def test_states_are_written_read_and_continued(studio, tmp_path):
    path = studio.write_state("a handwritten", "seven", None, tmp_path)
    assert path.name == "prompt-state.safetensors"
    (from_state,) = studio.images("me", ImageConfig("", 3, None, 4, 2.0, prompt_state=str(path)), 1)
    (from_text,) = studio.images("me", SEVEN, 1)
    assert pixels(from_state) == pixels(from_text)
    studio.write_state("in red", "", str(path), tmp_path / "")
    (continued,) = studio.images("me", ImageConfig("", 3, None, 4, 2.0, prompt_state=str(path)), 1)
    assert pixels(continued) != pixels(from_text)


def test_states_that_do_not_fit(studio, make_pipeline, tmp_path):
    path = tmp_path / "state.safetensors"
    make_pipeline(seed=1).encode_prompt_state("a seven").save(path)
    with pytest.raises(ValueError, match="it was made for another model"):
        studio.read_state(str(path))
    state = studio.pipeline.encode_prompt_state(["a seven", "a three"])
    state.save(path)
    with pytest.raises(ValueError, match=r"state of one prompt, got 2; save state\[0\] alone"):
        studio.read_state(str(path))
    state[0].save(path)
    assert isinstance(studio.read_state(str(path)), PromptState)
    path.write_text("nonsense")
    with pytest.raises(ValueError, match=r"^state\.safetensors is no complete safetensors file"):
        studio.read_state(str(path))
    with pytest.raises(ValueError, match="must be a prompt or a prompt state, got neither"):
        studio.write_state(" ", "", None, tmp_path)


def test_who_has_prompt_states(studio, make_pipeline):
    assert studio.has_prompt_states
    assert not Studio(make_pipeline(crosswkv_fusion="paper")).has_prompt_states
    assert not hasattr(StableDiffusionPipeline, "encode_prompt_state")


def test_bad_settings_are_refused_before_the_first_image(studio):
    with pytest.raises(ValueError, match="Seeds must be 0 to"):
        next(studio.images("me", ImageConfig("a seven", seed=MAX_SEED), 2))


def test_random_seeds_leave_room():
    assert all(0 <= random_seed(8) <= MAX_SEED - 7 for _ in range(100))
    assert random_seed(MAX_SEED + 1) == 0
