"""A search index after a deletion request: which embeddings change, and how to renew them without the images.

    python examples/search_index.py MODEL "tabby cat" tabby --images FOLDER

An index of a two-tower model holds image embeddings as `get_image_features` gives them. The eraser is a linear map on
exactly these, so the index is renewed by one matrix product, from normalised rows too: nothing has to be embedded again.
All rows have to be mapped, not only those of the concept: which those are nobody knows. Queries must come from the erased
text tower from then on; and the old rows have to go, as whoever keeps them keeps the concept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch.nn.functional import normalize

from hf_kd import ErasedModel
from hf_kd.features.reader import ImageReader
from hf_kd.features.text_reader import TextReader


def embed(model: ErasedModel, files: list[Path]) -> torch.Tensor:
    images = [Image.open(file).convert("RGB") for file in files]
    return normalize(ImageReader(model, images).read().erased(model)[0], dim=1)


def search(model: ErasedModel, index: torch.Tensor, query: str, files: list[Path], count: int = 5) -> list[str]:
    model.find_text_tap()
    reader = TextReader(model)
    row = normalize(reader.erased(reader.read([query])), dim=1)
    return [files[i].name for i in (index @ row.T).flatten().topk(min(count, len(files))).indices.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--images", type=Path, required=True)
    options = parser.parse_args()
    files = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    model = ErasedModel.from_pretrained(options.model)
    index = embed(model, files)
    query = f"a photo of a {options.texts[0]}"
    print("before:", search(model, index, query, files))

    model.erase(texts=options.texts)
    renewed = normalize(model.sites[0].eraser(index), dim=1)  # from the stored rows alone
    again = embed(model, files)  # what embedding all images anew would give
    print(f"renewed rows differ from newly embedded ones by at most {float((renewed - again).abs().max()):.1e}")
    print("after:", search(model, renewed, query, files))


if __name__ == "__main__":
    main()
