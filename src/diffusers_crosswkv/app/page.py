"""The page in a browser, in Gradio: it calls nobody but its own server."""

import functools
import inspect
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
from diffusers import DiffusionPipeline

from ..generation import ImageConfig
from ..generation.config import MAX_SEED
from .studio import Studio, joined, random_seed

MAX_IMAGES, MAX_STEPS, MAX_GUIDANCE = 8, 150, 20.0
SMALL_IMAGE = 128  # pixels; smaller ones are shown with sharp pixels
ONE_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "pipeline"}
UPLOAD_LIMIT = "256mb"
PROGRESS = gr.Progress()  # as a default value it asks Gradio for the bar of the event
FONTS = (gr.themes.Font("ui-sans-serif"), gr.themes.Font("system-ui"), gr.themes.Font("sans-serif"))
CSS = """
.gradio-container main { width: 100%; max-width: 1240px; margin: 0 auto; }
#length p { font-size: 0.9em; opacity: 0.75; margin: 0; font-variant-numeric: tabular-nums; }
#status p { margin: 0; min-height: 1.5em; }
#gallery .grid-wrap { max-height: none; }
#gallery .caption-label { font-size: 11px; padding: 2px 6px; max-width: 100%; }
"""
SHARP_PIXELS = "#gallery img { image-rendering: pixelated; }"


def build_page(pipeline: DiffusionPipeline, title: str) -> gr.Blocks:
    """The page for a pipeline that [`~diffusers_crosswkv.generation.load_pipeline`] loaded."""
    studio = Studio(pipeline)
    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# {title}")
        with gr.Row():
            with gr.Column(min_width=340):
                inputs = make_inputs(studio)
                state_file, encode, encoded = make_state_inputs(studio)
            with gr.Column(min_width=340):
                with gr.Row():
                    generate = gr.Button("Generate", variant="primary", elem_id="generate")
                    stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop")
                status = gr.Markdown("", elem_id="status", min_height=28)
                gallery = gr.Gallery(
                    label="Images", columns=2, object_fit="contain", format="png", elem_id="gallery",
                    buttons=["download", "fullscreen"],
                )  # fmt: skip
        values = [*inputs.values(), state_file]
        start = gr.on([generate.click, inputs["prompt"].submit], prepare(studio), None, [generate, stop], queue=False)
        run = start.then(
            make_images(studio), values, [gallery, status, inputs["seed"]], show_progress_on=status, **ONE_AT_A_TIME
        )
        for afterwards in (run.success, run.failure):  # `then` does not follow a failed step of a chain
            afterwards(lambda: buttons(idle=True), None, [generate, stop], queue=False, show_progress="hidden")
        stop.click(for_session(studio.stop), None, None, queue=False)
        texts = [inputs["prompt"], inputs["more"], state_file]
        encode.click(write_state(studio), texts, encoded, show_progress_on=encoded, **ONE_AT_A_TIME)
        state_file.upload(read_state(studio), state_file, status, show_progress="hidden", **ONE_AT_A_TIME)
        page.unload(for_session(studio.leave))
    return page


def launch_page(page: gr.Blocks, pipeline: DiffusionPipeline, **options: Any) -> None:
    """Serve the page; `options` are those of Gradio's `launch`. It asks no other server for anything."""
    css = CSS + (SHARP_PIXELS if image_size(pipeline) < SMALL_IMAGE else "")
    page.queue(max_size=32).launch(
        share=False,
        ssr_mode=False,
        css=css,
        theme=gr.themes.Default(font=FONTS, primary_hue="indigo"),
        max_file_size=UPLOAD_LIMIT,
        footer_links=[],
        **options,
    )


def make_inputs(studio: Studio) -> dict[str, gr.components.Component]:
    """The boxes and sliders, in the order of the arguments of [`make_images`]; hidden what the pipeline lacks."""
    takes = inspect.signature(studio.pipeline.__call__).parameters
    guidance = takes["guidance_scale"].default if "guidance_scale" in takes else 1.0
    any_length = " Nothing is cut off." if hasattr(studio.pipeline, "prompt_windows") else ""
    inputs = {
        "prompt": gr.Textbox(label="Prompt", lines=2, max_lines=6, autofocus=True, elem_id="prompt"),
        "more": gr.Textbox(
            label="Long prompt", info=f"Comes after the prompt.{any_length}", lines=4, max_lines=14, elem_id="more"
        ),
    }
    connect_length(studio, inputs)
    inputs["negative"] = gr.Textbox(
        label="Negative prompt", max_lines=4, visible="negative_prompt" in takes, elem_id="negative"
    )
    with gr.Row():
        inputs["steps"] = gr.Slider(
            1, MAX_STEPS, value=takes["num_inference_steps"].default, step=1, label="Steps", elem_id="steps"
        )
        inputs["guidance"] = gr.Slider(
            *(1.0, MAX_GUIDANCE),
            value=guidance,
            step=0.1,
            label="Guidance",
            visible="guidance_scale" in takes,
            elem_id="guidance",
        )
    with gr.Row(equal_height=True):
        inputs["count"] = gr.Slider(1, MAX_IMAGES, value=4, step=1, label="Images", elem_id="count")
        inputs["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, elem_id="seed")
    inputs["random"] = gr.Checkbox(True, label="New random seed each time", elem_id="random")
    return inputs


def make_state_inputs(studio: Studio) -> tuple[gr.File, gr.Button, gr.File]:
    """The upload of a prompt state, the button that makes one, and its download."""
    with gr.Accordion("Prompt state", open=False, visible=studio.has_prompt_states, elem_id="states"):
        gr.Markdown("All that the model keeps of a prompt, in a file of one size. A prompt continues the state.")
        uploaded = gr.File(label="Continue from", file_types=[".safetensors"], height=110, elem_id="state-in")
        encode = gr.Button("Write this prompt's state", elem_id="encode")
        encoded = gr.File(label="Download", interactive=False, height=110, elem_id="state-out")
    return uploaded, encode, encoded


def connect_length(studio: Studio, boxes: dict[str, gr.components.Component]) -> None:
    """A line that says, while one types, how long the prompt in `boxes` is."""
    length = gr.Markdown("", elem_id="length")
    gr.on(
        [box.change for box in boxes.values()],
        studio.count,
        list(boxes.values()),
        length,
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_limit=1,
    )


def shown_errors(function: Callable) -> Callable:
    """What is wrong with an input is shown to the person, in the words of the library."""

    @functools.wraps(function)
    def wrapped(*arguments):
        try:
            yield from function(*arguments)
        except (OSError, ValueError, RuntimeError) as error:
            raise gr.Error(str(error), duration=15, print_exception=False) from error

    return wrapped


def for_session(function: Callable[[str], None]) -> Callable:
    """`function` as a handler that gets the session of the person who caused the event."""

    def handler(request: gr.Request):
        function(request.session_hash)

    return handler


def prepare(studio: Studio) -> Callable:
    def start(request: gr.Request):
        studio.prepare(request.session_hash)
        return buttons(idle=False)

    return start


def buttons(idle: bool) -> tuple[dict, dict]:
    """What Generate and Stop become."""
    return gr.update(interactive=idle), gr.update(interactive=not idle)


def make_images(studio: Studio) -> Callable:
    takes = inspect.signature(studio.pipeline.__call__).parameters

    @shown_errors
    def run(
        prompt,
        more,
        negative,
        steps,
        guidance,
        count,
        seed,
        new_seed,
        state,
        request: gr.Request,
        progress=PROGRESS,
    ):
        seed = random_seed(count) if new_seed or seed is None else seed  # an emptied box is None
        config = ImageConfig(
            prompt=joined(prompt, more),
            seed=seed,
            negative_prompt=negative or None,
            num_inference_steps=steps,
            guidance_scale=guidance if "guidance_scale" in takes else None,
            prompt_state=state,
        )

        def report(done: int, total: int, text: str) -> None:
            progress((done, total), desc=text)

        yield [], "", seed
        for update in studio.images(request.session_hash, config, count, report):
            yield list(update.images), update.status, seed

    return run


def write_state(studio: Studio) -> Callable:
    @shown_errors
    def run(prompt: str, more: str, state: str | None) -> Iterator[str]:
        with tempfile.TemporaryDirectory() as folder:  # Gradio copies the file before it asks for more
            yield str(studio.write_state(prompt, more, state, Path(folder)))

    return run


def read_state(studio: Studio) -> Callable:
    @shown_errors
    def run(path: str) -> Iterator[str]:
        state = studio.read_state(path)
        yield f"The prompt continues a state of {state.nbytes:,} bytes."

    return run


def image_size(pipeline: DiffusionPipeline) -> int:
    """The longer side of the images that the pipeline makes by default, in pixels; 512 if it does not say."""
    model = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    size = None if model is None else model.config.get("sample_size")
    if size is None:
        return 512
    return (size if isinstance(size, int) else max(size)) * getattr(pipeline, "vae_scale_factor", 1)
