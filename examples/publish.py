"""The whole way: forget a class, measure what is left, publish, and let somebody else load and check it.

    python examples/publish.py --weights CHECKPOINT --data DIR [--forget tench] [--repo USER/NAME]

CHECKPOINT is an image classifier of transformers; DIR holds train.parquet and test.parquet (columns image and label).
With --repo it publishes on the Hub that you are logged in to; without, on a Hub on loopback (that of the project's tests),
where nothing leaves this machine. Publishing and loading are two processes: the second knows only the name.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def publish(weights: str, data: Path, forget: str, repo: str, out: Path) -> None:
    """Erase, audit, push; writes the logits of a few images, to compare."""
    from datasets import load_dataset
    from safetensors.torch import save_file

    from hf_kd import ErasedModel
    from hf_kd.data.labels import resolve_forget_labels
    from hf_kd.data.load import filter_by_labels

    images = load_dataset("parquet", data_files={split: str(data / f"{split}.parquet") for split in ("train", "test")})
    ids = resolve_forget_labels([forget], images["train"].features["label"].names)

    model = ErasedModel.from_pretrained(weights)
    model.erase(filter_by_labels(images["train"], "label", ids), progress=False)
    report = model.audit(images["train"], images["test"], progress=False)
    pushed = model.push_to_hub(repo, report=report, private=True)
    print(f"published {pushed.url}, loads back bit for bit: {pushed.verified}")

    few = images["test"].select(range(0, len(images["test"]), 50))
    inputs = model.processor([image.convert("RGB") for image in few["image"]], return_tensors="pt")
    save_file(dict(inputs) | {"logits": answers(model, inputs)}, out / "answers.safetensors")
    few[0]["image"].convert("RGB").save(out / "photo.png")
    print(f"converged D_ft {report.score('converged', 'D_ft').value:.2f}, strongest attack {report.worst_case.group}")


def load(repo: str, out: Path) -> None:
    """What somebody who knows only the name does: load, classify, read the card, verify."""
    import torch
    from huggingface_hub import ModelCard
    from safetensors.torch import load_file
    from transformers import pipeline

    from hf_kd import ErasedModel
    from hf_kd.model.verify import verify

    model = ErasedModel.from_pretrained(repo).eval()
    there = load_file(out / "answers.safetensors")
    logits = answers(model, {name: value for name, value in there.items() if name != "logits"})
    print("logits equal bit for bit:", torch.equal(logits, there["logits"]))
    print("pipeline:", pipeline("image-classification", model=repo)(str(out / "photo.png"))[0])
    for result in ModelCard.load(repo).data.eval_results:
        print(f"card: {result.dataset_split} {result.metric_name}: {result.metric_value}")
    checked = verify(repo)
    print("verify:", "everything matches the receipt" if checked.ok else checked)
    if not (checked.ok and torch.equal(logits, there["logits"])):
        raise SystemExit(1)


def answers(model, inputs):
    import torch

    with torch.no_grad():
        return model.eval()(**inputs).logits


@contextlib.contextmanager
def loopback():
    """A Hub on loopback; yields what a client's environment needs to use it."""
    path = Path(__file__).resolve().parents[1] / "tests" / "helpers" / "hub_server.py"
    spec = importlib.util.spec_from_file_location("hub_server", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["hub_server"] = module
    spec.loader.exec_module(module)
    with module.Hub().serve() as hub:
        yield {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_writer_token", "HF_HUB_DISABLE_XET": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--forget", default="tench")
    parser.add_argument("--repo")
    parser.add_argument("--step", choices=("publish", "load"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step == "publish":
        return publish(arguments.weights, arguments.data, arguments.forget, arguments.repo, arguments.out)
    if arguments.step == "load":
        return load(arguments.repo, arguments.out)
    with tempfile.TemporaryDirectory() as out, contextlib.ExitStack() as stack:
        environment = dict(os.environ)
        repo = arguments.repo
        if repo is None:
            environment |= stack.enter_context(loopback()) | {"HF_HOME": str(Path(out) / "hf_home")}
            environment.pop("HF_HUB_OFFLINE", None)
            repo = "ana/mobilenet-without-tench"
        for step in ("publish", "load"):
            command = [sys.executable, __file__, "--weights", arguments.weights, "--data", str(arguments.data)]
            command += ["--forget", arguments.forget, "--repo", repo, "--step", step, "--out", out]
            done = subprocess.run(command, env=environment)
            if done.returncode:
                raise SystemExit(f"{step} failed: {json.dumps(command[1:])}")
    return None


if __name__ == "__main__":
    main()
