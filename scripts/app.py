"""A page in the browser that makes images from prompts; also the app.py of a Space.

    python scripts/app.py runs/quickstart/pipeline
    DIR7_MODEL=user/name python scripts/app.py

Needs the extra `app`: pip install "diffusers-crosswkv[app]". Nothing leaves this machine.
"""

import argparse
import os
import sys

from diffusers_crosswkv.app.page import build_page, launch_page
from diffusers_crosswkv.generation import ModelConfig, load_pipeline

MODEL, TITLE = os.environ.get("DIR7_MODEL"), os.environ.get("DIR7_TITLE", "DIR-7")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=MODEL, help="a pipeline's folder or Hub id; default: DIR7_MODEL")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--variant", help="of the weight files, such as fp16")
    parser.add_argument("--dtype", default="auto", help="float32, float16, bfloat16; auto: by device")
    parser.add_argument("--device", default="auto", help="such as cpu or cuda:1; auto: the accelerator, if any")
    parser.add_argument("--scheduler", help="a scheduler's class, such as EulerDiscrete")
    parser.add_argument("--title", default=TITLE, help="of the page; default: DIR7_TITLE")
    parser.add_argument("--host", help="default: this machine only; 0.0.0.0 serves the network")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    arguments = parser.parse_args()
    if arguments.model is None:
        parser.error("a model is needed: a pipeline's folder or Hub id, as argument or in DIR7_MODEL")
    names = ("model", "revision", "variant", "dtype", "device", "scheduler")
    try:
        pipeline, _ = load_pipeline(ModelConfig(**{name: getattr(arguments, name) for name in names}))
        page = build_page(pipeline, arguments.title)
        launch_page(page, pipeline, server_name=arguments.host, server_port=arguments.port)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
