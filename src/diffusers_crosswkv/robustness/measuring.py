"""What is measured with the trained models of one arm: digits read as asked, and the size of the states."""

from collections.abc import Iterator
from functools import cache

import torch
from scipy.stats import binomtest

from ..alignment.drawing import denoise
from ..data.captions import GRAMMARS
from ..data.digits import LANGUAGES, load_digits
from ..evaluation.digits import DigitJudge
from ..finetuning.state_log import as_json
from ..models.state_statistics import observe_states, state_statistics
from ..models.text_windows import encode_texts
from ..quickstart import NOISE_SCHEDULE
from ..training import Models
from .arms import LOOKED_AT, Preset, without_prefix
from .prompt_sets import prompts

Row = dict
TEXTS = ("sentences", "one token, again and again")


def measure_prompts(models: Models, preset: Preset, name: str, with_prefix: bool) -> Row:
    """Of one prompt set, in all languages: the share of digits that are read as asked, with its 95 % interval."""
    given = models if with_prefix else without_prefix(models)
    counts, tokens = {}, []
    for language in LANGUAGES:
        texts, asked = prompts(name, language, preset.drawn, preset.seed)
        images = denoise(given, texts, NOISE_SCHEDULE, preset.sampling_steps, preset.guidance_scale, preset.seed)
        counts[language] = int((judge().read(images) == torch.tensor(asked)).sum())
        tokens += [len(models.tokenizer(given.text_prefix + text, verbose=False).input_ids) for text in texts]
    right, drawn = sum(counts.values()), preset.drawn * len(LANGUAGES)
    interval = binomtest(right, drawn).proportion_ci(method="wilson")
    return {
        "kind": "prompts",
        "prompts": name,
        "endoftext": with_prefix,
        "right": right / drawn,
        "low": interval.low,
        "high": interval.high,
        "drawn": drawn,
        "by_language": {language: count / preset.drawn for language, count in counts.items()},
        "tokens": [min(tokens), max(tokens)],
    }


@cache
def judge() -> DigitJudge:
    return DigitJudge(load_digits())


def measure_sampling(models: Models, preset: Preset) -> Row:
    """The states' statistics after every denoising step, with guidance; per layer a list over the steps."""
    steps: list[dict[str, dict]] = []
    with observe_states(models.unet) as states:

        def look() -> None:
            steps.append({name: as_json(state_statistics(state)) for name, state in states.items()})

        denoise(models, LOOKED_AT, NOISE_SCHEDULE, preset.sampling_steps, preset.guidance_scale, preset.seed, look)
    layers = {name: {x: [step[name][x] for step in steps] for x in found} for name, found in steps[0].items()}
    return {"kind": "sampling", "layers": layers}


@torch.no_grad()
def measure_lengths(models: Models, preset: Preset) -> Row:
    """The statistics of states that prompts of so many tokens leave, whatever training had; per layer and text.

    In `paper` fusion a prompt leaves none.
    """
    found = {
        text: [
            {name: as_json(state_statistics(state)) for name, state in states_of(models, embeds).items()}
            for embeds in texts_of_lengths(models, text, preset.lengths)
        ]
        for text in TEXTS
    }
    return {"kind": "lengths", "tokens": list(preset.lengths), "texts": found}


def texts_of_lengths(models: Models, text: str, lengths: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """Embeddings `[1, L, D_q]` for every length; the shorter ones begin the longest."""
    words = " ".join(f"{sentence}." for sentence in GRAMMARS["English"].irrelevant)
    if text == TEXTS[0]:
        once = len(models.tokenizer(words, verbose=False).input_ids)
        long_text = " ".join([words] * (1 + max(lengths) // once))
        embeds, _ = encode_texts(models.text_encoder, models.tokenizer, [long_text])
    else:
        embeds, _ = encode_texts(models.text_encoder, models.tokenizer, ["seven"])
        embeds = embeds[:, 1:2].expand(-1, max(lengths), -1)  # behind the token that begins a text
    for length in lengths:
        yield embeds[:, :length]


def states_of(models: Models, embeds: torch.Tensor) -> dict[str, torch.Tensor]:
    """Per layer, in the order of execution."""
    states = models.unet.encode_prompt(embeds).states
    return {str(number): state for number, state in enumerate(states)}
