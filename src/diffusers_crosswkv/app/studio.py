"""What the page does, without the page: images for a session, one after another, which that session can stop."""

import copy
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from diffusers import DiffusionPipeline
from PIL import Image

from ..generation import ImageConfig, StoppedError, make_image, prompt_length
from ..generation.config import MAX_SEED
from ..generation.image import check_takes
from ..models import PromptState

OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Update:
    """What a session has so far: images with their captions, and a line on how it stands."""

    images: tuple[tuple[Image.Image, str], ...]
    status: str


class Studio:
    """A pipeline that many sessions use, one image at a time.

    Args:
        pipeline: a text-to-image pipeline of Diffusers.
    """

    def __init__(self, pipeline: DiffusionPipeline):
        self.pipeline = pipeline
        self._counter = copy.copy(pipeline)  # fast tokenizers are not safe in two threads: counting has one of its own
        if getattr(pipeline, "tokenizer", None) is not None:
            self._counter.tokenizer = copy.deepcopy(pipeline.tokenizer)
        self._stops: dict[str, threading.Event] = {}

    @property
    def has_prompt_states(self) -> bool:
        unet = getattr(self.pipeline, "unet", None)
        fusion = None if unet is None else unet.config.get("crosswkv_fusion")
        return hasattr(self.pipeline, "encode_prompt_state") and fusion != "paper"

    def count(self, prompt: str, more: str) -> str:
        """A line on the length of the whole prompt."""
        text = joined(prompt, more)
        length = prompt_length(self._counter, text) if text else None
        return "" if length is None else str(length)

    def prepare(self, session: str) -> None:
        """Forget an earlier stop; from now on a stop counts, also while the session waits for its turn."""
        self._stops[session] = threading.Event()

    def stop(self, session: str) -> None:
        """Stop the session's images after the step that is being made."""
        if session in self._stops:
            self._stops[session].set()

    def leave(self, session: str) -> None:
        """Stop, and forget the session."""
        self.stop(session)
        self._stops.pop(session, None)

    def images(
        self, session: str, config: ImageConfig, count: int, on_progress: OnProgress | None = None
    ) -> Iterator[Update]:
        """Make `count` images with the seeds `config.seed`, `config.seed + 1`, ...; an update after each, and one
        where the session stopped.

        Args:
            session: whose `stop` ends it; [`~Studio.prepare`] comes first.
            config: the first image; an empty prompt is none if there is a prompt state.
            count: >= 1.
            on_progress: called as `on_progress(done, total, text)` after every step of all images.

        Raises:
            OSError, ValueError: a setting does not fit, or the session was not prepared or has left.
        """
        if config.prompt_state is not None and not config.prompt:
            config = replace(config, prompt=None)
        replace(config, seed=config.seed + count - 1).check()
        config.check()
        state = None if config.prompt_state is None else self.read_state(config.prompt_state)
        stop = self._stops.get(session)
        if stop is None:
            raise ValueError("A session must be open while it makes images, and this one is not; call `/start` first.")
        made: tuple[tuple[Image.Image, str], ...] = ()
        for number in range(1, count + 1):
            if stop.is_set():
                yield Update(made, f"Stopped before image {number} of {count}.")
                return
            watch = Watch(stop, on_progress, number, count)
            seed = config.seed + number - 1
            try:
                result = make_image(self.pipeline, replace(config, seed=seed), state, watch)
            except StoppedError:
                yield Update(made, f"Stopped after step {watch.done} of {watch.total} of image {number} of {count}.")
                return
            made = (
                *made,
                (result.image, f"seed {seed}" + (", refused by the safety checker" if result.flagged else "")),
            )
            yield Update(made, f"{number} of {count} image{'s' * (count > 1)} done.")

    def read_state(self, path: str) -> PromptState:
        """The one prompt state of a file that a visitor brought.

        Raises:
            ValueError: the file is no prompt state, holds several, or is of another model.
        """
        check_takes(self.pipeline, "prompt_state")
        try:
            state = PromptState.load(path)
        except ValueError as error:  # visitors know the file's name, not the server's folders
            raise ValueError(str(error).replace(path, Path(path).name)) from error
        if len(state) != 1:
            raise ValueError(f"The file must hold the state of one prompt, got {len(state)}; save state[0] alone.")
        unet = self.pipeline.unet
        state.to(unet.device).check(unet, unet.prompt_state_spec(), 1)
        return state

    def write_state(self, prompt: str, more: str, continued: str | None, folder: Path) -> Path:
        """Write the state of a prompt, or of `continued` with the prompt after it.

        Raises:
            ValueError: there is neither a prompt nor a state, or the state does not fit.
        """
        state = None if continued is None else self.read_state(continued)
        text = joined(prompt, more)
        if not text and state is None:
            raise ValueError("There must be a prompt or a prompt state, got neither.")
        path = folder / "prompt-state.safetensors"
        self.pipeline.encode_prompt_state(text or None, state).save(path)
        return path


class Watch:
    """After every step: report, and stop if it is asked for."""

    def __init__(self, stop: threading.Event, on_progress: OnProgress | None, number: int, count: int):
        self.stop, self.on_progress, self.number, self.count = stop, on_progress, number, count
        self.done = self.total = 0

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        if self.on_progress is not None:
            steps = (self.number - 1) * total + done
            self.on_progress(steps, self.count * total, f"image {self.number} of {self.count}, step {done} of {total}")
        if self.stop.is_set() and done < total:
            raise StoppedError


def joined(prompt: str, more: str) -> str:
    """The whole prompt: the short box and the long one after it."""
    return " ".join(text.strip() for text in (prompt, more) if text.strip())


def random_seed(count: int) -> int:
    """A seed with room for `count` images."""
    return random.randint(0, MAX_SEED - count + 1)
