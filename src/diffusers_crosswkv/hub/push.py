"""The upload of a saved pipeline: one commit, with its card and sample images."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from .adapter import SavedAdapter, read_saved_adapter
from .card import make_model_card
from .facts import ModelFacts
from .folder import SavedPipeline, read_saved_pipeline

CARD = "README.md"
IMAGE_DIR = "images"
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
NO_TOKEN = (
    "The token must be a valid one of the Hub, and is not, or there is none; pass `token`, set HF_TOKEN, or call "
    "`hf auth login`."
)


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Args:
        url: of the repository.
        commit_url: of the commit.
        card: `written` (there was none), `kept` (there was one) or `replaced`.
    """

    url: str
    commit_url: str
    card: str


def push_to_hub(
    folder: str | os.PathLike,
    repo_id: str,
    facts: ModelFacts | None = None,
    *,
    images: Mapping[str, str | os.PathLike] | None = None,
    grid: str | os.PathLike | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Upload pipeline",
    create_pr: bool = False,
    replace_card: bool = False,
) -> Pushed:
    """Publish a pipeline that `save_pretrained` wrote, a LoRA or a prompt state, with model card and sample images.

    It is checked first, and nothing is sent if it is not complete or not safe. All files go in one commit.
    An interrupted upload is taken up by the same call: large files that arrived are not sent again.

    Args:
        folder: the saved pipeline, or the safetensors file of a LoRA or a prompt state.
        repo_id: `user/name`, or `name` in the namespace of the token; it is created if it does not exist.
        facts: for the card; what is not given is called unknown there.
        images: `{prompt: image file}`, shown as a gallery.
        grid: one image file of many samples, shown on top of the card.
        private: make a new repository private; the namespace's default if None. No effect on an existing one.
        revision: the branch, `main` if None; it is created if it does not exist.
        token: of an account that may write there; the one of `hf auth login` if None.
        commit_message: one line.
        create_pr: open a pull request instead of committing to the branch.
        replace_card: overwrite the card that the repository has. By default it is kept: somebody may have edited it.

    Raises:
        FileNotFoundError: the folder, one of its files or an image is missing.
        ValueError: a file is damaged or not safe, or an argument does not fit.
        PermissionError: the token is wrong, or may not write there.
    """
    saved = read_saved_adapter(folder) if Path(folder).is_file() else read_saved_pipeline(folder)
    pictures = place_images([*(images or {}).values(), *([] if grid is None else [grid])])
    api = HfApi(token=token)
    with explained(repo_id):
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and revision != "main":
            api.create_branch(url.repo_id, branch=revision, exist_ok=True)
        has_card = api.file_exists(url.repo_id, CARD, revision=revision)
        operations = [CommitOperationAdd(place, file) for place, file in files_of(saved).items()]
        operations += [CommitOperationAdd(place, file) for place, file in pictures.items()]
        if replace_card or not has_card:
            gallery = {prompt: f"{IMAGE_DIR}/{Path(file).name}" for prompt, file in (images or {}).items()}
            grid_place = None if grid is None else f"{IMAGE_DIR}/{Path(grid).name}"
            card = make_model_card(facts or ModelFacts(), url.repo_id, saved, gallery, grid_place)
            operations.append(CommitOperationAdd(CARD, str(card).encode()))
        commit = api.create_commit(
            url.repo_id, operations, commit_message=commit_message, revision=revision, create_pr=create_pr
        )
    done = "written" if not has_card else "replaced" if replace_card else "kept"
    return Pushed(str(url), commit.pr_url or commit.commit_url, done)


def files_of(saved: SavedPipeline | SavedAdapter) -> dict[str, Path]:
    """`{path in the repository: file}`."""
    if isinstance(saved, SavedAdapter):
        return {saved.path.name: saved.path}
    return {file.as_posix(): saved.path / file for file in saved.files}


def check_may_push(repo_id: str | None, token: str | None = None) -> str:
    """Find out before the work whether its result can be published; nothing is made on the Hub.

    Args:
        repo_id: `user/name`, or `name` in the namespace of the token.

    Returns:
        `user/name`.

    Raises:
        PermissionError: the token is wrong, or may not write there.
    """
    wanted = repo_id or ""
    with explained(wanted):
        account = HfApi(token=token).whoami()
    organizations = {one["name"] for one in account.get("orgs", []) if one.get("roleInOrg") != "read"}
    namespace, _, name = wanted.rpartition("/")
    namespace = namespace or account["name"]
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise PermissionError(
            f"The token must have write access to {namespace}/{name}, but is for reading; make one with the role "
            "'write'."
        )
    if namespace != account["name"] and namespace not in organizations:
        raise PermissionError(
            f"The token must have write access to {namespace}/{name}, but is that of {account['name']}"
            + (f", who may write to {', '.join(sorted(organizations))} besides" if organizations else "")
            + "; choose another name, or another token."
        )
    return f"{namespace}/{name}"


def place_images(files: Iterable[str | os.PathLike]) -> dict[str, Path]:
    """`{path in the repository: image file}`."""
    places: dict[str, Path] = {}
    for path in map(Path, files):
        if not path.is_file():
            raise FileNotFoundError(f"There must be an image at {path}; there is none.")
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise ValueError(f"An image file must end in {', '.join(IMAGE_SUFFIXES)}, got {path}.")
        if places.setdefault(f"{IMAGE_DIR}/{path.name}", path) != path:
            raise ValueError(f"Image files must have different names, got {path} and another one.")
    return places


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """The Hub's refusals in the words of the person who pushes."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise PermissionError(NO_TOKEN) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise PermissionError(NO_TOKEN) from error
        if status == 403:
            raise PermissionError(
                f"The token must have write access to {repo_id}, and has not; make one with the role 'write' for that "
                "account or organization, or choose another name."
            ) from error
        raise
