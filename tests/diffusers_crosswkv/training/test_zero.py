"""What DeepSpeed is refused for; what it does is in test_processes.py."""

import pytest

from diffusers_crosswkv.training import TrainingConfig, zero


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        ({"zero_optimization": {"stage": 3}}, {}, "`zero_stage` 1 or 2, got 3; .* FSDP2 .* scripts/accelerate/fsdp2"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, {}, "`none`, got cpu and none"),
        ({}, {"optimizer": "muon"}, "`optimizer` adamw, got muon"),
        ({}, {"optimizer": "adamw8bit"}, "`optimizer` adamw, got adamw8bit"),
        ({}, {"mixed_precision": "fp16"}, "`mixed_precision` bf16 or no, got fp16"),
        ({"scheduler": {"type": "WarmupLR"}}, {}, "a file without optimizer and scheduler, got one with"),
    ],
)
def test_what_deepspeed_does_not_do_is_refused(settings, values, message, monkeypatch, tmp_path):
    monkeypatch.setattr(zero, "compare_versions", lambda *_: True)  # it need not be installed
    with pytest.raises(ValueError, match=message):
        zero.check_zero({"zero_optimization": {"stage": 2}} | settings, TrainingConfig(tmp_path, 1, **values))
    zero.check_zero({"zero_optimization": {"stage": 1}}, TrainingConfig(tmp_path, 1))


def test_an_old_deepspeed_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(zero, "compare_versions", lambda *_: False)
    with pytest.raises(ValueError, match=r"version 0\.19 or later"):
        zero.check_zero({"zero_optimization": {"stage": 2}}, TrainingConfig(tmp_path, 1))
