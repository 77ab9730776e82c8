"""An eraser on its own through a real client and a Hub on loopback: pushed, found with its base, refused on another one."""

from __future__ import annotations

import copy
import json
import re

import pytest

from hf_kd.data.paths import ERASER_CONFIG
from hf_kd.hub.files import ERASER_WEIGHTS, RECEIPT
from tests.conftest import image_processor, small_vit
from tests.helpers import processes
from tests.hub.conftest import WRITER
from tests.hub.test_publish import everything

START = """
import json
import torch
from huggingface_hub import HfApi
from hf_kd import ErasedModel
from hf_kd.errors import HfKdError
from hf_kd.model.verify import verify
from tests.helpers.small import make_dataset
api = HfApi()
def refused(call):
    try:
        call()
    except HfKdError as error:
        return str(error)
    raise SystemExit("not refused")
def erased(base):
    return ErasedModel.from_pretrained(base).erase(make_dataset([2] * 20), k=2, progress=False)
pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
"""

PUSH = """
api.create_repo("ana/base")
base = api.upload_folder(folder_path="base", repo_id="ana/base").oid
model = erased("ana/base")
pushed = model.push_to_hub("ana/eraser", eraser_only=True, show_class_names=False)
assert pushed.verified
print(json.dumps(pushed.to_dict() | {"base": base, "logits": model(pixels).logits.tolist()}))
"""


@pytest.fixture
def place(tmp_path):
    copy.deepcopy(small_vit()).save_pretrained(tmp_path / "base")
    image_processor().save_pretrained(tmp_path / "base")
    return tmp_path


def test_push_load_beside_the_base_and_alone(hub, run_client, place):
    done = run_client(START + PUSH)
    pushed = json.loads(done.out)
    assert "Its base is loaded from the Hub" in done.err
    files = hub.files("ana/eraser")
    assert set(files) - {".gitattributes"} == {
        ERASER_CONFIG,
        ERASER_WEIGHTS,
        RECEIPT,
        "README.md",
        "preprocessor_config.json",
    }
    assert len(hub.repo("ana/eraser").commits) == 2, "one commit after the initial one"
    card = files["README.md"].decode()
    for said in ("base_model: ana/base", "base_model_relation: adapter", "not a removal.** The base model is public",
                 f'revision="{pushed["base"]}", eraser="ana/eraser"'):  # fmt: skip
        assert said in card
    assert not re.search(r"\bcat\b", card)
    receipt = json.loads(files[RECEIPT])
    assert (receipt["base_model"], receipt["base_commit"]) == ("ana/base", pushed["base"])
    assert WRITER not in everything(hub)
    assert str(place) not in everything(hub)

    run_client(START + f"""
logits = torch.tensor({pushed["logits"]})
def same(model):
    return torch.equal(model(pixels).logits, logits)
assert same(ErasedModel.from_pretrained("ana/eraser"))
assert same(ErasedModel.from_pretrained("ana/base", eraser="ana/eraser"))
assert same(ErasedModel.from_pretrained("ana/base", eraser="ana/eraser@{pushed["commit"]}"))
assert same(ErasedModel.from_pretrained("base", eraser="ana/eraser")), "the same weights in a folder"
assert same(ErasedModel.from_pretrained("base").load_eraser("ana/eraser", revision="main"))
result = verify("ana/eraser", make_dataset([2] * 20))
assert result.ok, result
# the base moves on: what is there now is another model, and the commit that the eraser names is still its base
moved = ErasedModel.from_pretrained("base").inner
moved.classifier.bias.data += 1
moved.save_pretrained("moved")
api.upload_folder(folder_path="moved", repo_id="ana/base")
text = refused(lambda: ErasedModel.from_pretrained("ana/base", eraser="ana/eraser"))
assert "another revision" in text and "'ana/base' at commit {pushed["base"]}" in text, text
assert same(ErasedModel.from_pretrained("ana/base", revision="{pushed["base"]}", eraser="ana/eraser"))
assert same(ErasedModel.from_pretrained("ana/eraser"))
assert verify("ana/eraser").ok
assert not verify("ana/eraser", base="moved").ok
""")  # fmt: skip


def test_a_base_in_a_folder_is_compared_here_its_path_is_told_nobody_and_no_eraser_is_its_own_base(
    hub, run_client, place
):
    done = run_client(START + """
model = erased("base")
pushed = model.push_to_hub("ana/eraser", eraser_only=True)
assert pushed.verified
assert model.is_erased and len(model.erasures) == 1
assert "from_pretrained(BASE, eraser=" in refused(lambda: ErasedModel.from_pretrained("ana/eraser"))
found = ErasedModel.from_pretrained("base", eraser="ana/eraser")
assert torch.equal(found(pixels).logits, model(pixels).logits)
""")  # fmt: skip
    assert "layer in front of a base" in done.err
    card = hub.files("ana/eraser")["README.md"].decode()
    assert "The base model is not in here" in card
    assert "base_model:" not in card
    assert str(place) not in everything(hub)

    itself = json.loads(hub.files("ana/eraser")[ERASER_CONFIG]) | {"base_model": "ana/eraser", "base_commit": None}
    hub.write("ana/eraser", ERASER_CONFIG, json.dumps(itself).encode())
    processes.empty_hub_home()
    run_client(START + """
text = refused(lambda: ErasedModel.from_pretrained("ana/eraser"))
assert "which is an eraser itself" in text, text
""")  # fmt: skip


def test_a_base_is_named_where_its_repository_gives_the_weights(hub, run_client, place):
    pytest.importorskip("peft")
    run_client(START + """
import peft
from hf_kd import unlearn
api.create_repo("ana/base")
commit = api.upload_folder(folder_path="base", repo_id="ana/base").oid
def base(model):
    return model.config.base_model, model.config.base_commit
plain = ErasedModel.from_pretrained("ana/base")
assert base(plain) == ("ana/base", commit)
record = unlearn(plain, make_dataset([2] * 20), "head-surgery", progress=False).config.hf_kd_unlearned[0]
assert (record["base_model"], record["base_commit"]) == base(plain), "the weights before are the base's"
tuned = peft.get_peft_model(plain.inner, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
tuned.save_pretrained("adapter")
api.create_repo("ana/lora")
api.upload_folder(folder_path="adapter", repo_id="ana/lora")
trained = ErasedModel.from_pretrained("ana/base").train().eval()
for model in (
    ErasedModel.from_pretrained("ana/lora"),
    ErasedModel.from_pretrained("ana/base", num_labels=3, ignore_mismatched_sizes=True),
    ErasedModel.from_model(ErasedModel.from_pretrained("ana/base").inner),
    trained,
):
    assert base(model) == (None, None), base(model)
for number, act in enumerate((
    lambda model: model.erase(make_dataset([2] * 20), k=2, progress=False),
    lambda model: model.save_pretrained("saved"),
    lambda model: unlearn(model, make_dataset([2] * 20), "head-surgery", progress=False),
)):
    for step in (0, 1):
        model = ErasedModel.from_pretrained("ana/base")
        model.inner.classifier.bias.data += step
        act(model)
        assert (base(model) == (None, None)) == bool(step), (number, step, "trained in eval mode")
half = ErasedModel.from_pretrained("ana/base").bfloat16()
assert base(half.erase(make_dataset([2] * 20), k=2, progress=False)) == ("ana/base", commit), "nothing is known"
trained.inner.classifier.bias.data += 1
trained.erase(make_dataset([2] * 20), k=2, progress=False).save_eraser("eraser")
assert "a base that is not on the Hub" in refused(lambda: ErasedModel.from_pretrained("eraser"))
""")  # fmt: skip


def test_a_repository_holds_a_model_or_an_eraser(hub, run_client, place):
    run_client(START + """
model = erased("base")
model.push_to_hub("ana/model")
text = refused(lambda: model.push_to_hub("ana/model", eraser_only=True))
assert "holds a model" in text, text
model.push_to_hub("ana/later", eraser_only=True)
model.push_to_hub("ana/later")
assert torch.equal(ErasedModel.from_pretrained("ana/later")(pixels).logits, model(pixels).logits)
""")  # fmt: skip
    assert len(hub.repo("ana/model").commits) == 2
    assert not set(hub.files("ana/later")) & {ERASER_CONFIG, ERASER_WEIGHTS}
