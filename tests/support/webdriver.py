"""A browser without a window, driven over the W3C WebDriver protocol with nothing but the standard library."""

import contextlib
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id, fixed by the protocol
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)


class Browser:
    """A session of WebDriver; elements are found by CSS selectors."""

    def __init__(self, url: str):
        self.url = url

    def call(self, method: str, path: str, **body):
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from error

    def open(self, address: str) -> None:
        self.call("POST", "/url", url=address)

    def find(self, selector: str) -> str:
        return self.call("POST", "/element", using="css selector", value=selector)[ELEMENT]

    def click(self, selector: str) -> None:
        self.call("POST", f"/element/{self.find(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        """Replace what the box holds by `text`, key by key."""
        path = f"/element/{self.find(selector)}"
        self.call("POST", f"{path}/clear")
        self.call("POST", f"{path}/value", text=text)

    def upload(self, selector: str, file: Path) -> None:
        self.call("POST", f"/element/{self.find(selector)}/value", text=str(file))

    def run(self, script: str):
        """What JavaScript returns."""
        return self.call("POST", "/execute/sync", script=script, args=[])

    def text(self, selector: str) -> str:
        return self.run(f"return document.querySelector({json.dumps(selector)})?.innerText ?? ''").strip()

    def resize(self, width: int, height: int) -> None:
        self.call("POST", "/window/rect", width=width, height=height)

    def wait(self, condition: Callable[[], object], seconds: float = 60):
        """The first true value of `condition`."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > end:
                raise AssertionError(f"waited {seconds} s in vain; the page reads:\n{self.text('body')}")
            time.sleep(0.1)
        return value

    def requests(self) -> list[str]:
        """The addresses that pages from the web, not those of the browser itself, have asked for."""
        messages = [
            json.loads(line["message"])["message"] for line in self.call("POST", "/se/log", type="performance")
        ]
        sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent if params["documentURL"].startswith("http")]


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A Chromium with a profile of its own in `folder`."""
    log = (folder / "driver.log").open("w+")
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=log, stderr=subprocess.STDOUT)
    try:
        port = wait_for_line(Path(log.name), "started successfully on port ", driver)
        options = {"binary": CHROMIUM, "args": [*FLAGS.split(), f"--user-data-dir={folder / 'profile'}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL"}}
        server = Browser(f"http://127.0.0.1:{port.rstrip('.')}")
        session = server.call("POST", "/session", capabilities={"alwaysMatch": wanted})["sessionId"]
        page = Browser(f"{server.url}/session/{session}")
        try:
            yield page
        finally:
            page.call("DELETE", "")
    finally:
        driver.terminate()
        driver.wait()
        log.close()


def wait_for_line(path: Path, text: str, process: subprocess.Popen, seconds: float = 120) -> str:
    """What stands after `text` in a file that `process` writes."""
    end = time.monotonic() + seconds
    while True:
        written = path.read_text()
        if text in written:
            return written.partition(text)[2].split()[0]
        if process.poll() is not None or time.monotonic() > end:
            raise AssertionError(f"{process.args} did not start:\n{written}")
        time.sleep(0.1)
