"""`hf-whittle push`: publish a student's folder on the Hub."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import Outcome, add_json

if TYPE_CHECKING:
    from ..hub.publication import Publication

HELP = "Publish the folder of a student on the Hub, with its model card, in one commit."
EXAMPLE = "hf-whittle push my-student me/my-student --dry-run"
INTERRUPTED = "run the same command again; files that were uploaded are not sent twice"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="folder written by `hf-whittle run`, `hf-whittle extract` or a Trainer")
    parser.add_argument("repo_id", help="repository to publish in, such as me/pythia-160m-whittled; created if need be")
    parser.add_argument("--dry-run", action="store_true", help="show every file, its size and the card; send nothing")
    parser.add_argument("--private", action="store_true", default=None, help="make the repository private")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--revision", help="branch to publish on, created if need be (default: main)")
    where.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--commit-message", help="message of the commit")
    parser.add_argument("--overwrite", action="store_true", help="publish over a model of another architecture")
    parser.add_argument("--license", help="license of the student (default: its super-network's)")
    parser.add_argument(
        "--language", nargs="+", help="codes of its languages, such as en (default: its super-network's)"
    )
    parser.add_argument("--lm-eval", type=Path, help="results written by `lm_eval --output_path`, for the card")
    add_json(parser)


def main(options: argparse.Namespace) -> Outcome:
    from ..hub.card import SubnetModelCardData
    from ..hub.publication import publication_of_folder
    from ..hub.push import push_subnet_to_hub
    from ..hub.repository import check_repo_id

    check_repo_id(options.repo_id)
    stated: dict[str, Any] = {"license": options.license, "language": options.language}
    stated = {name: value for name, value in stated.items() if value is not None}
    card_data = SubnetModelCardData(**stated) if stated else None
    if options.dry_run:
        publication = publication_of_folder(
            options.folder, options.repo_id, card_data=card_data, lm_eval=options.lm_eval
        )
        return _not_sent(publication, options.repo_id)
    commit = push_subnet_to_hub(
        options.folder,
        options.repo_id,
        card_data=card_data,
        lm_eval=options.lm_eval,
        private=options.private,
        revision=options.revision,
        create_pr=options.create_pr,
        commit_message=options.commit_message,
        overwrite=options.overwrite,
    )
    url = commit.pr_url or commit.commit_url
    return Outcome({"repo_id": options.repo_id, "url": url}, f"Published: {url}")


def _not_sent(publication: "Publication", repo_id: str) -> Outcome:
    """The outcome of a trial, which sends nothing."""
    facts = {"repo_id": repo_id, "files": _sizes(publication), "card": publication.card}
    last = f"Nothing was sent; without --dry-run this goes to {repo_id}"
    return Outcome(facts, f"{listing(publication)}\n\n{publication.card}\n{last}")


def _sizes(publication: "Publication") -> dict[str, int]:
    """Bytes of every file."""
    return {name: publication.size(name) for name in sorted(publication.files)}


def listing(publication: "Publication") -> str:
    """List every file with its size, and the sum."""
    sizes = _sizes(publication)
    sizes[f"{len(sizes)} files"] = sum(sizes.values())
    width = max(map(len, sizes))
    return "\n".join(f"{name:<{width}}  {size:>15,} bytes" for name, size in sizes.items())
