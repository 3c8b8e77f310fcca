from diffusers_crosswkv.training.tally import NAMED_AT_MOST, Tally, add_up, broken_images, too_many_broken

TORN = (("a.png", "the file ends too early"),)


def test_images_that_cannot_be_read_are_counted_and_named():
    tally = Tally()
    tally.count_images([(), TORN, (), (*TORN, ("b.png", "no image at all"))])
    assert (tally.seen, tally.broken) == (4, 3)
    assert tally.reasons == {"a.png": "the file ends too early", "b.png": "no image at all"}
    tally.count_images([((f"{i}.png", "torn"),) for i in range(NAMED_AT_MOST)])
    assert len(tally.reasons) == NAMED_AT_MOST and tally.broken == NAMED_AT_MOST + 3


def test_the_share_counts_once_there_are_enough_images():
    assert not too_many_broken(5, 5, 0.05)  # 5 of 100 at most
    assert too_many_broken(6, 6, 0.05)
    assert not too_many_broken(206, 6, 0.05)
    assert too_many_broken(206, 1, 0)


def tally_of(seen, broken, *names):
    return Tally(seen, broken, dict.fromkeys(names, "torn") | {"c.png": "empty"}).state_dict()


def test_an_image_counts_once_however_often_it_is_drawn():
    assert broken_images(tally_of(56, 11), 6, 0.1) is None  # one of a few may be
    assert broken_images(tally_of(56, 11), 6, 0.0)
    assert broken_images(tally_of(56, 11, "a.png", "b.png"), 30, 0.1) is None
    message = broken_images(tally_of(56, 11, "a.png", "b.png"), 29, 0.1)
    assert message.startswith("At most 10% of the images may be broken (`max_bad_images`), but 3 of 29 are, such as ")
    assert "a.png: torn. Most frequent: torn (2), empty (1). Mend or remove them" in message
    assert "but 7 of 12 are" in broken_images(tally_of(6, 6, *"123456"), 1000, 0.05)  # of those seen so far
    assert "but 3 of 12 are" in broken_images(tally_of(6, 6, "1", "2"), None, 0.05)  # of a stream


def test_draws_count_where_broken_images_are_too_many_to_name():
    names = [f"{i}.png" for i in range(NAMED_AT_MOST)]
    assert "but 5000 of 45000 are" in broken_images(tally_of(40_000, 5_000, *names), 20_000, 0.1)
    assert broken_images(tally_of(45_001, 5_000, *names), 20_000, 0.1) is None


def test_bad_steps_in_a_row():
    tally = Tally()
    for good in (True, False, False, True, False):
        tally.count_step(good)
    assert (tally.bad_steps, tally.bad_in_a_row) == (3, 1)


def test_tallies_of_processes_add_up_and_come_back():
    tallies = [Tally(10, 1, {"a": "torn"}, 2, 1), Tally(11, 2, {"a": "torn", "b": "empty"}, 2, 1)]
    total = Tally()
    total.load_state_dict(add_up(tally.state_dict() for tally in tallies))
    assert total == Tally(21, 3, {"a": "torn", "b": "empty"}, 2, 1)
