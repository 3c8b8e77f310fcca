"""Publish a saved pipeline on the Hugging Face Hub, with a model card, sample images and the code that loads it.

    python scripts/push_to_hub.py runs/quickstart/pipeline you/digits --license apache-2.0 \\
        --facts runs/quickstart/facts.json --grid runs/quickstart/digits.png

Log in first with `hf auth login`, or set HF_TOKEN. The same command takes up an interrupted upload.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from diffusers_crosswkv.hub import ModelFacts, load_facts, push_to_hub


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `save_pretrained` wrote")
    parser.add_argument("repo_id", help="user/name")
    parser.add_argument("--facts", type=Path, help="JSON file with what the card shall say: fields of ModelFacts")
    parser.add_argument("--license", help="of the weights, as the Hub writes it: apache-2.0, mit, cc-by-4.0, ...")
    parser.add_argument("--image", nargs=2, action="append", default=[], metavar=("PROMPT", "FILE"), help="a sample")
    parser.add_argument("--grid", type=Path, help="one picture of many samples")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch, main by default")
    parser.add_argument("--token", help="instead of HF_TOKEN or `hf auth login`")
    parser.add_argument("--message", default="Upload pipeline", help="of the commit")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--replace-card", action="store_true", help="overwrite the card that is there")
    arguments = parser.parse_args()
    try:
        facts = load_facts(arguments.facts) if arguments.facts else ModelFacts()
        if arguments.license:
            facts = dataclasses.replace(facts, license=arguments.license)
        pushed = push_to_hub(
            arguments.folder,
            arguments.repo_id,
            facts,
            images=dict(arguments.image),
            grid=arguments.grid,
            private=arguments.private,
            revision=arguments.revision,
            token=arguments.token,
            commit_message=arguments.message,
            create_pr=arguments.create_pr,
            replace_card=arguments.replace_card,
        )
    except (OSError, ValueError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        sys.exit(f"error: {error}")
    print(f"{pushed.url}\nmodel card {pushed.card}; {pushed.commit_url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
