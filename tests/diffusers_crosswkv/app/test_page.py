"""What the page's handlers do with what comes from its boxes; `tests/scripts/test_app.py` clicks on the page."""

from types import SimpleNamespace

import pytest

from diffusers_crosswkv.app.studio import Studio

gradio = pytest.importorskip("gradio")


@pytest.fixture
def run(make_pipeline):
    """Make one image for a session that has been started, or not, with a seed or an emptied box."""
    from diffusers_crosswkv.app.page import make_images

    studio = Studio(make_pipeline())

    def call(seed, started=True):
        if started:
            studio.prepare("me")
        boxes = ("a seven", "", "", 1, 2.0, 1, seed, False, None)
        return list(make_images(studio)(*boxes, SimpleNamespace(session_hash="me"), lambda *_, **__: None))

    return call


def test_an_empty_seed_box_is_a_random_seed(run):
    *_, (images, status, seed) = run(None)
    assert (status, images[0][1]) == ("1 of 1 image done.", f"seed {seed}")
    *_, (_, _, seed) = run(7)
    assert seed == 7


def test_images_of_a_session_that_was_not_started(run):
    with pytest.raises(gradio.Error, match="this one is not; call `/start` first"):
        run(7, started=False)
