"""A README that is there: what of it is a person's, and the same without what is ours."""

from __future__ import annotations

from huggingface_hub.repocard import REGEX_YAML_BLOCK

from .card import BEGIN, END, TAGS, as_list, has_metadata
from .card_results import OUR_SPLITS, Card


def joined(published: str | None, local: str) -> str:
    """The README of a repository with a person's text: its own, or where it has none that of the folder.

    Args:
        published: That of the repository; its metadata are kept, too. None where it has no README.
        local: That of the folder.
    """
    if published is None:
        return local
    if own_text(published) or not own_text(local):
        return published
    metadata = REGEX_YAML_BLOCK.match(published)
    return metadata[0].rstrip() + "\n" + REGEX_YAML_BLOCK.sub("", local) if metadata else local


def own_text(readme: str) -> str:
    """What a person wrote: all but the metadata and our section."""
    before, begin, rest = REGEX_YAML_BLOCK.sub("", readme).partition(BEGIN)
    return (before + (rest.partition(END)[2] if begin else "")).strip()


def withdrawn(existing: str) -> str:
    """The README without our section, tags and results: the model beside it forgot nothing.

    Raises ValueError for metadata that are not YAML.
    """
    card = Card(existing, ignore_metadata_errors=True) if has_metadata(existing) else None
    body = card.text if card else existing
    first, last = body.find(BEGIN), body.find(END)
    if body.count(BEGIN) != 1 or body.count(END) != 1 or last < first:
        return existing
    body = body[:first].rstrip("\r\n") + body[last + len(END) :]
    if card is None:
        return body
    card.text = body
    card.data.tags = [tag for tag in as_list(card.data.tags) if tag not in TAGS] or None
    card.data.eval_results = [
        one for one in card.data.eval_results or [] if one.dataset_split not in OUR_SPLITS
    ] or None
    if card.data.eval_results is None:
        card.data.model_name = None  # that of the results
    return str(card)
