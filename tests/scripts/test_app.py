"""The page in a real browser: typed into, clicked, stopped, looked at."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import webdriver

SCRIPT = Path(__file__).parents[2] / "scripts/app.py"

if webdriver.CHROMIUM is None or webdriver.DRIVER is None:
    pytest.skip("needs chromium and chromedriver", allow_module_level=True)
pytest.importorskip("gradio")


@pytest.fixture
def address(make_pipeline, tmp_path):
    """Where the script serves a small pipeline."""
    make_pipeline().save_pretrained(tmp_path / "pipeline")
    settings = {"DIR7_MODEL": str(tmp_path / "pipeline"), "GRADIO_TEMP_DIR": str(tmp_path / "gradio")}
    with (tmp_path / "app.log").open("w") as log:
        line = [sys.executable, "-u", SCRIPT, "--device", "cpu", "--title", "Digits"]
        process = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, env=os.environ | settings)
        try:
            yield webdriver.wait_for_line(tmp_path / "app.log", "Running on local URL:", process)
        finally:
            process.terminate()
            process.wait()


@pytest.fixture
def page(address, tmp_path):
    with webdriver.browser(tmp_path) as page:
        page.open(address)
        page.wait(lambda: page.text("#generate") == "Generate")
        yield page


def enabled(page, button):
    return page.run(f"return !document.querySelector('#{button}').disabled")


def status(page):
    return page.text("#status .prose")


def images(page):
    return page.run(
        "return [...document.querySelectorAll('#gallery .grid-container img')].map(i => i.complete && i.naturalWidth)"
    )


def columns(page):
    """Whether the gallery stands beside the prompt, and whether the page is wider than the window."""
    left, right, overflow = page.run(
        "const x = name => document.querySelector(name).getBoundingClientRect().left;"
        "return [x('#prompt'), x('#gallery'), document.documentElement.scrollWidth > window.innerWidth]"
    )
    return right > left + 100, overflow


def test_a_visit(page, tmp_path, make_pipeline):
    # 1. Length of the prompt while one types
    page.type("#prompt textarea", "a handwritten seven")
    page.wait(lambda: "in 1 window of up to 77" in page.text("#length"))
    page.type("#more textarea", "a handwritten three, " * 30)
    page.wait(lambda: "in 2 windows of up to 77" in page.text("#length"))
    page.type("#more textarea", " ")

    # 2. Images fill the gallery
    page.type("#steps input[type=number]", "3\t")
    page.type("#count input[type=number]", "2\t")
    assert not enabled(page, "stop")
    page.click("#generate")
    page.wait(lambda: status(page) == "2 of 2 images done.")
    page.wait(lambda: images(page) == [8, 8])
    seed = page.run("return document.querySelector('#seed input').value")
    assert f"seed {seed}" in page.text("#gallery")

    # 3. Stop in the middle of a long run
    page.type("#steps input[type=number]", "150\t")
    page.click("#generate")
    page.wait(lambda: "step" in page.text("#status") and enabled(page, "stop"))
    page.click("#stop")
    page.wait(lambda: status(page).startswith("Stopped after step "))
    assert int(status(page).split()[3]) < 150
    page.wait(lambda: enabled(page, "generate") and not enabled(page, "stop"))
    assert len(images(page)) < 2

    # 4. A prompt state comes as a file, another goes, one of another model is refused
    page.click("#states button")
    page.wait(lambda: page.run("return document.querySelector('#encode')?.offsetParent != null"))
    page.click("#encode")
    page.wait(lambda: "prompt-state" in page.text("#state-out"))
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    make_pipeline().encode_prompt_state("a handwritten").save(good)
    make_pipeline(seed=1).encode_prompt_state("a handwritten").save(bad)
    page.upload("#state-in input[type=file]", good)
    page.wait(lambda: status(page).startswith("The prompt continues a state of"))
    page.type("#steps input[type=number]", "3\t")
    page.click("#generate")
    page.wait(lambda: status(page) == "2 of 2 images done.")
    page.click("#state-in button[aria-label=Clear], #state-in button[title=Clear]")
    page.wait(lambda: "good" not in page.text("#state-in"))
    page.upload("#state-in input[type=file]", bad)
    page.wait(lambda: "it was made for another model" in page.text("body"))
    page.run("document.querySelector('#generate').click()")  # which may lie under the message
    page.wait(lambda: "(2)" in page.text(".toast-title"))
    page.wait(lambda: enabled(page, "generate") and not enabled(page, "stop"))

    # 5. Fits wide and narrow windows, and asks nobody else for anything
    page.resize(1280, 900)
    page.wait(lambda: columns(page) == (True, False))
    page.resize(500, 900)
    page.wait(lambda: columns(page) == (False, False))
    asked = [url for url in page.requests() if not url.startswith(("data:", "blob:"))]
    assert asked
    assert all(url.startswith("http://127.0.0.1:") for url in asked), asked
