import pytest

from diffusers_crosswkv.training.tally import NAMED_AT_MOST, Tally, add_up

TORN = (("a.png", "the file ends too early"),)


def test_images_that_cannot_be_read_are_counted_and_named():
    tally = Tally()
    tally.count_images([(), TORN, (), (*TORN, ("b.png", "no image at all"))])
    assert (tally.seen, tally.broken) == (4, 3)
    assert tally.reasons == {"a.png": "the file ends too early", "b.png": "no image at all"}
    tally.count_images([((f"{i}.png", "torn"),) for i in range(NAMED_AT_MOST)])
    assert len(tally.reasons) == NAMED_AT_MOST and tally.broken == NAMED_AT_MOST + 3


def test_the_share_counts_once_there_are_enough_images():
    tally = Tally()
    tally.count_images([TORN] * 5)
    tally.check_images(0.05)  # 5 of 100 at most
    tally.count_images([TORN])
    message = r"At most 5% .*`max_bad_images`.*, but 6 of 12 are, such as a.png: the file ends too early"
    with pytest.raises(ValueError, match=message):
        tally.check_images(0.05)
    tally.count_images([()] * 200)
    tally.check_images(0.05)
    with pytest.raises(ValueError, match="At most 0%"):
        tally.check_images(0)


def test_bad_steps_in_a_row():
    tally = Tally()
    for good in (True, False, False, True, False):
        tally.count_step(good)
    assert (tally.bad_steps, tally.bad_in_a_row) == (3, 1)


def test_tallies_of_processes_add_up_and_come_back():
    tallies = [Tally(10, 1, {"a": "torn"}, 2), Tally(11, 2, {"a": "torn", "b": "empty"}, 2)]
    total = Tally()
    total.load_state_dict(add_up(tally.state_dict() for tally in tallies))
    assert total == Tally(21, 3, {"a": "torn", "b": "empty"}, 2)
