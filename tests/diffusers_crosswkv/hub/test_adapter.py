"""LoRAs and prompt states on the Hub, and what is found out before anything is sent."""

import pytest
import safetensors.torch
import torch

from diffusers_crosswkv.hub import ModelFacts, check_may_push, make_model_card, read_saved_adapter


def test_a_prompt_state(make_pipeline, tmp_path):
    make_pipeline().encode_prompt_state("a seven").save(tmp_path / "seven.safetensors")
    saved = read_saved_adapter(tmp_path / "seven.safetensors")
    assert saved.kind == "state"
    content = str(make_model_card(ModelFacts(base_model="a/digits", example_prompt="an eight"), "me/seven", saved))
    assert 'PromptState.load(hf_hub_download("me/seven", "seven.safetensors"))' in content
    assert 'pipe("an eight", prompt_state=state)' in content
    assert 'DiffusionPipeline.from_pretrained("a/digits")' in content
    assert "- prompt-state" in content and "base_model: a/digits" in content
    assert f"| numbers in it | {saved.numbers:,} |" in content


def test_a_lora(tmp_path):
    safetensors.torch.save_file({"unet.to_q.lora_A.weight": torch.zeros(2, 3)}, tmp_path / "style.safetensors")
    saved = read_saved_adapter(tmp_path / "style.safetensors")
    assert (saved.kind, saved.numbers) == ("lora", 6)
    content = str(make_model_card(ModelFacts(), "me/style", saved))
    assert 'pipe.load_lora_weights("me/style", weight_name="style.safetensors")' in content
    assert "trust_remote_code" not in content


def test_what_is_neither(tmp_path):
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="must hold a LoRA or a prompt state, got"):
        read_saved_adapter(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="no complete safetensors file"):
        read_saved_adapter(tmp_path / "y.safetensors")
    with pytest.raises(FileNotFoundError, match="must be a file at"):
        read_saved_adapter(tmp_path / "z.safetensors")


@pytest.mark.parametrize(
    ("account", "repo_id", "message"),
    [
        ({}, "photos", None),
        ({}, "me/photos", None),
        ({}, "team/photos", None),
        ({}, "readers/photos", "but is that of me, who may write to team besides"),
        ({}, "others/photos", "but is that of me"),
        ({"auth": {"accessToken": {"role": "read"}}}, "photos", "me/photos, but is for reading"),
    ],
)
def test_who_may_push(account, repo_id, message, monkeypatch):
    orgs = [{"name": "team", "roleInOrg": "write"}, {"name": "readers", "roleInOrg": "read"}]
    answer = {"name": "me", "orgs": orgs, "auth": {"accessToken": {"role": "write"}}, **account}
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda self: answer)
    if message is None:
        assert check_may_push(repo_id) == (repo_id if "/" in repo_id else f"me/{repo_id}")
        return
    with pytest.raises(PermissionError, match=message):
        check_may_push(repo_id)
