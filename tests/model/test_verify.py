"""The receipt and its verification: what is untouched matches, and whatever was changed is found."""

from __future__ import annotations

import copy
import functools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from hf_kd import AuditOptions, ErasedModel
from hf_kd.audit.report import RetentionReport
from hf_kd.cli import app
from hf_kd.errors import HfKdError
from hf_kd.hub.files import RECEIPT, checkpoint_files
from hf_kd.hub.receipt import file_digest, read_receipt, weights_digest
from hf_kd.model.configuration import unknown_type
from hf_kd.model.erase import fingerprint
from hf_kd.model.verification import AGAIN, Check, Verification
from hf_kd.model.verify import verify
from tests.conftest import image_processor, small_resnet, small_vit
from tests.helpers.small import make_dataset
from tests.helpers.taught import taught
from tests.model.test_saving import edit_config

QUICK = {"options": AuditOptions(attacks=["linear"], draws=1, shots=[1, 5]), "progress": False}


@pytest.fixture
def model(request):
    """A network with statistics beside its weights, unless both are asked for: receipts speak of files and tensors."""
    return request.getfixturevalue(getattr(request, "param", "resnet"))


both_networks = pytest.mark.parametrize("model", ["vit", "resnet"], indirect=True)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """The folder of an erased network, by its name, saved when it is first asked for."""

    @functools.cache
    def saved(name):
        network = copy.deepcopy({"vit": small_vit, "resnet": small_resnet}[name]())
        erased = ErasedModel.from_model(network, image_processor())
        folder = tmp_path_factory.mktemp(name) / "model"
        erased.erase(make_dataset([2] * 20), k=2, progress=False).save_pretrained(folder)
        return folder

    return saved


@pytest.fixture
def folder(request, once, tmp_path):
    """A copy of it: of a network with statistics beside its weights, unless one is named."""
    return shutil.copytree(once(getattr(request, "param", "resnet")), tmp_path / "model")


on_vit = pytest.mark.parametrize("folder", ["vit"], indirect=True)


def differing(result) -> set[str]:
    return {check.what for check in result.checks if not check.ok}


@pytest.mark.parametrize("folder", ["vit", "resnet"], indirect=True)
def test_an_untouched_folder_matches_and_the_erasure_repeats_bit_for_bit(folder, forget):
    content = read_receipt(folder / RECEIPT)
    assert content["weights"]["unchanged"], "ESC changes no weight"
    assert content["commands"] == [
        "hf-kd erase BASE_MODEL --dataset DATASET --forget-labels LABEL --method esc --option k=2 --output erased"
    ]
    assert verify(folder).ok
    result = verify(folder, forget)
    assert result.ok
    assert result.repeated
    assert result.checks[-1].found == "the erasers are equal bit for bit"
    other = verify(folder, make_dataset([1] * 20))
    assert differing(other) == {"erasure carried out again"}
    few = verify(folder, forget.select(range(10)))
    assert differing(few) == {"images of request 1", "erasure carried out again"}
    assert few.undecided, "of other images nothing can be told"
    assert not few.ok
    assert not other.undecided


def test_the_digest_does_not_depend_on_shards(folder, tmp_path):
    ErasedModel.from_pretrained(folder).save_pretrained(tmp_path / "sharded", max_shard_size="20kB")
    assert len(list((tmp_path / "sharded").glob("model*.safetensors"))) > 1
    assert weights_digest(checkpoint_files(folder)) == weights_digest(checkpoint_files(tmp_path / "sharded"))
    assert verify(tmp_path / "sharded").ok


@pytest.mark.parametrize(
    ("tamper", "found"),
    [
        ("weight", {"weights"}),
        ("eraser", {"erasers"}),
        ("record", {"file config.json"}),
        ("receipt", {"erasure records"}),
        ("claim", {"claim about the base model's weights"}),
        ("missing", {"file config.json"}),
        ("more", {"file model-extra.safetensors"}),
    ],
)
def test_what_was_changed_is_found(folder, forget, tamper, found):
    weights = folder / "model.safetensors"
    content = json.loads((folder / RECEIPT).read_text())
    if tamper in ("weight", "eraser"):
        state = load_file(weights)
        name = next(name for name in sorted(state) if name.startswith("sites." if tamper == "eraser" else "inner."))
        state[name] = state[name] * 1.001 if tamper == "weight" else state[name].flip(0)
        save_file(state, weights, metadata={"format": "pt"})
    if tamper == "record":
        config = json.loads((folder / "config.json").read_text())
        config["erasures"][0]["n_forget"] = 7
        (folder / "config.json").write_text(json.dumps(config))
    if tamper == "receipt":
        content["erasures"][0]["n_forget"] = 7
    if tamper == "claim":
        content["weights"]["unchanged"] = False
    if tamper == "missing":
        content["files"]["config.json"] = "0" * 64
    if tamper == "more":
        save_file({"x": torch.zeros(1)}, folder / "model-extra.safetensors")
    (folder / RECEIPT).write_text(json.dumps(content))
    result = verify(folder, forget)
    assert not result.ok
    assert found <= differing(result)


def test_a_processor_for_a_model_without_one(vit, processor, forget, tmp_path):
    erased = ErasedModel.from_model(vit, processor).erase(forget, k=2, progress=False)
    erased.processor = None
    erased.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="no image processor"):
        verify(tmp_path / "model", forget)
    assert verify(tmp_path / "model", forget, processor=processor).ok


def signed_anew(folder) -> None:
    """The receipt with the hashes of the files as they are, as who edits them writes it."""
    content = json.loads((folder / RECEIPT).read_text())
    content["files"] = {name: file_digest(folder / name) for name in content["files"]}
    (folder / RECEIPT).write_text(json.dumps(content))


def test_a_model_that_does_not_load_is_a_check_that_failed(vit, processor, forget, tmp_path):
    erased = ErasedModel.from_model(vit, processor).erase(forget, k=2, mask_head=True, progress=False)
    erased.save_pretrained(tmp_path / "model")
    edit_config(tmp_path / "model", lambda config: config["taps"][0].update(heads=["vit.layernorm"]))
    signed_anew(tmp_path / "model")
    result = verify(tmp_path / "model", forget)
    assert differing(result) == {"acts as its records say", "erasure carried out again"}
    ran = CliRunner().invoke(app, ["verify", str(tmp_path / "model")])
    assert ran.exit_code == 1
    assert "DIFFERS" in ran.output


def test_another_base_hides_no_fault_of_the_folder(vit, processor, forget, tmp_path):
    other = copy.deepcopy(vit)
    with torch.no_grad():
        other.classifier.weight.mul_(2)
    other.save_pretrained(tmp_path / "other")
    erased = ErasedModel.from_model(vit, processor).erase(forget, k=2, mask_head=True, progress=False)
    erased.save_pretrained(tmp_path / "model")
    result = verify(tmp_path / "model", forget, base=str(tmp_path / "other"))
    assert differing(result) == {"weights before erasing (base model)"}, "the rest is checked all the same"
    assert result.as_published
    edit_config(tmp_path / "model", lambda config: config["taps"][0].update(heads=["vit.layernorm"]))
    signed_anew(tmp_path / "model")
    result = verify(tmp_path / "model", base=str(tmp_path / "other"))
    assert "acts as its records say" in differing(result)
    assert not result.as_published


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "model.safetensors", "tokenizer.json", RECEIPT]
)
def test_no_card_is_written_over_a_receipt_of_other_files(folder, name):
    ran = CliRunner().invoke(app, ["card", str(folder)])
    assert ran.exit_code == 0, "an untouched folder gets as many cards as anybody likes"
    before = (folder / RECEIPT).read_bytes()
    if name == "model.safetensors":
        state = load_file(folder / name)
        state[min(state)] += 1
        save_file(state, folder / name, metadata={"format": "pt"})
    elif name == RECEIPT:
        content = json.loads(before)
        content["erasures"][0]["n_forget"] = 7
        before = json.dumps(content).encode()
        (folder / RECEIPT).write_bytes(before)
    else:
        content = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        (folder / name).write_text(json.dumps(content | {"something": "else"}))
    for command in (["card", str(folder)], ["push", str(folder), "user/name"]):
        ran = CliRunner().invoke(app, command)
        assert ran.exit_code == 1
        assert "a new one would hide" in " ".join(ran.output.split())
    assert (folder / RECEIPT).read_bytes() == before
    (folder / RECEIPT).unlink()
    assert CliRunner().invoke(app, ["card", str(folder)]).exit_code == 0
    assert verify(folder).ok


def write_hashes_anew(erased: ErasedModel) -> None:
    """As who forges an eraser and the hashes in its record alike: a checkpoint whose hashes differ does not even load."""
    erased._describe_erasers()
    erased.config.erasures[-1] |= {"sha256": [fingerprint(site.eraser) for site in erased.sites]}


def test_an_eraser_that_is_not_what_the_record_says_is_found_by_doing_it_again(model, processor, forget, tmp_path):
    erased = ErasedModel.from_model(model, processor).erase(forget, k=2, progress=False)
    for site in erased.sites:
        directions = torch.linalg.qr(torch.randn(site.tap.dim, 2, generator=torch.Generator().manual_seed(0))).Q
        site.eraser.directions.copy_(directions)
    write_hashes_anew(erased)
    erased.save_pretrained(tmp_path / "swapped")
    assert verify(tmp_path / "swapped").ok, "hashes alone say only that files are those of the receipt"
    assert differing(verify(tmp_path / "swapped", forget)) == {"erasure carried out again"}


@both_networks
def test_requests_that_build_on_each_other(model, processor, forget, tmp_path):
    more = make_dataset([4] * 12, seed=3)
    erased = (
        ErasedModel.from_model(model, processor).erase(forget, k=2, progress=False).erase(more, k=1, progress=False)
    )
    erased.save_pretrained(tmp_path / "two")
    assert verify(tmp_path / "two", [forget, more]).ok
    for too_few in (forget, [forget]):
        told = verify(tmp_path / "two", too_few)
        assert told.undecided, "nothing differs"
        assert "2 requests" in told.headline
        assert len(told.checks) > 4, "what hashes tell is told"


@pytest.mark.parametrize("method", ["cover", "leace", "mean-difference", "prototype-orthogonal", "esc"])
@pytest.mark.parametrize("label", ["(erased)", None], ids=["renamed", "dropped"])
def test_every_kind_of_request_is_carried_out_again(model, processor, tmp_path, method, label):
    forget, retain = make_dataset([2] * 40), make_dataset([0, 1, 3, 4] * 12, seed=3)
    options = {"k": 2, "renorm": True} if method == "esc" else {}
    reads = method not in ("cover", "esc")
    erased = ErasedModel.from_model(taught(model, processor), processor)
    given = {"retain": retain if reads else None, "mask_head": True, "erased_label": label}
    erased.erase(forget, method, progress=False, **given, **options).save_pretrained(tmp_path / "model")
    assert erased.erasures[0].n_retain == (48 if reads else None)
    result = verify(tmp_path / "model", forget, retain=retain)
    assert result.ok, result
    assert result.checks[-1].found == "the erasers are equal bit for bit"
    assert {"masked classes", "masks and labels"} <= {check.what for check in result.checks}
    (command,) = read_receipt(tmp_path / "model" / RECEIPT)["commands"]
    assert "--mask-head" in command
    assert ("--drop-label" in command) == (label is None)
    assert "limit" not in command, "nobody typed one"
    assert ("renorm=true" in command) == (method == "esc")
    if reads:
        without = verify(tmp_path / "model", forget)
        assert without.undecided
        assert "retain=" in without.headline
        few = verify(tmp_path / "model", forget, retain=retain.select(range(24)))
        assert differing(few) == {"retained images of request 1", "erasure carried out again"}


@pytest.mark.parametrize(
    ("method", "buffer"), [("cover", "prototypes"), ("cover", "limits"), ("cover", "share_bias"), ("leace", "center")]
)
def test_what_a_matrix_does_not_show_is_compared_too(vit, processor, tmp_path, method, buffer):
    """A cover map has no matrix, and an affine one also an offset."""
    forget, retain = make_dataset([2] * 40), make_dataset([0, 1, 3, 4] * 12, seed=3)
    erased = ErasedModel.from_model(taught(vit, processor), processor)
    erased.erase(forget, method, retain=retain if method == "leace" else None, progress=False)
    values = getattr(erased.sites[0].eraser, buffer)
    values.copy_(torch.tensor([0.0, 0.3, 0.0]) if buffer == "limits" else values * 1.01)
    write_hashes_anew(erased)
    erased.save_pretrained(tmp_path / "model")
    assert verify(tmp_path / "model").ok
    assert differing(verify(tmp_path / "model", forget, retain=retain)) == {"erasure carried out again"}


def test_rounding_elsewhere_is_the_same_erasure(vit, processor, tmp_path):
    erased = ErasedModel.from_model(taught(vit, processor), processor)
    erased.erase(make_dataset([2] * 40), "cover", progress=False)
    for buffer in (erased.sites[0].eraser.prototypes, erased.sites[0].eraser.share_bias):
        buffer.mul_(1 + 1e-6)
    write_hashes_anew(erased)
    erased.save_pretrained(tmp_path / "model")
    result = verify(tmp_path / "model", make_dataset([2] * 40))
    assert result.ok, result
    assert "of its norm" in result.checks[-1].found


def test_a_mask_that_the_records_do_not_speak_of_is_found(vit, processor, tmp_path):
    erased = ErasedModel.from_model(taught(vit, processor), processor)
    erased.erase(make_dataset([2] * 40), "cover", progress=False)
    erased.config.masked = [2, 3]
    with pytest.raises(ValueError, match=r"classes \[2\] are never answered"):
        erased.save_pretrained(tmp_path / "model")


def test_several_requests_that_read_retained_images(resnet, processor, tmp_path):
    sets = [make_dataset([label] * 20, seed=label) for label in (2, 4)]
    stay = [make_dataset([0, 1, 3] * 12, seed=3), make_dataset([0, 1] * 12, seed=5)]
    erased = ErasedModel.from_model(resnet, processor)
    for forget, retain in zip(sets, stay, strict=True):
        erased.erase(forget, "mean-difference", retain=retain, progress=False)
    erased.save_pretrained(tmp_path / "two")
    assert verify(tmp_path / "two", sets, retain=stay).ok
    told = verify(tmp_path / "two", sets, retain=stay[:1] * 3)
    assert told.undecided
    assert "list of their 2 sets" in told.headline


def test_the_base_model_is_what_the_receipt_says(model, processor, forget, tmp_path):
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    erased = ErasedModel.from_pretrained(tmp_path / "base").erase(forget, k=2, progress=False)
    assert erased.config.base_model is None, "a local path is nobody else's business"
    erased.save_pretrained(tmp_path / "erased")
    assert verify(tmp_path / "erased", forget, base=str(tmp_path / "base")).ok
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path / "base")
    result = verify(tmp_path / "erased", base=str(tmp_path / "base"))
    assert differing(result) == {"weights before erasing (base model)"}


def test_damaged_receipts_are_refused(folder):
    (folder / RECEIPT).write_text("{}")
    with pytest.raises(ValueError, match="no receipt"):
        verify(folder)
    (folder / RECEIPT).write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        verify(folder)
    (folder / RECEIPT).unlink()
    with pytest.raises(FileNotFoundError, match="hf-kd card"):
        verify(folder)


def test_a_receipt_cannot_name_files_elsewhere(folder):
    content = json.loads((folder / RECEIPT).read_text())
    content["files"]["../../etc/passwd"] = "0"
    (folder / RECEIPT).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="beside itself"):
        verify(folder)


def check(what="weights", ok=True, found="", **marks):
    return Check(what, ok, found, **marks)


@pytest.mark.parametrize(
    ("checks", "said"),
    [
        ([check(), check("file a"), check(AGAIN)], "Everything matches the receipt."),
        (
            [check(), check("file a")],
            "Everything matches the receipt. The erasure was not carried out again: give its images.",
        ),
        (
            [
                check(),
                check("file a"),
                check("file b"),
                check("c", skipped=True),
                check(AGAIN, None, "not tried: no names"),
            ],
            "2 files and 1 other check match the receipt. "
            "Whether the erasure gives the same eraser again could not be verified: no names.",
        ),
        (
            [check(), check("file a", False), check("old", skipped=True), check("erasers", False), check(AGAIN, None)],
            "Not as published: 2 of 4 checks differ from the receipt: file a, erasers.",
        ),
        (
            [check(), check("base", False, of_given=True), check(AGAIN)],
            "It matches its receipt, and what was given to compare with it does not: base.",
        ),
    ],
)
def test_the_headline_counts_what_matches_and_says_what_was_not_verified(checks, said):
    result = Verification("model", tuple(checks), any(one.what == AGAIN and one.ok is not None for one in checks))
    assert result.headline == said == result.to_dict()["headline"]


def test_a_class_that_is_not_known_here_says_nothing_against_the_folder(folder, forget, monkeypatch):
    def unknown(*given):
        raise unknown_type("The model inside", "own")

    monkeypatch.setattr("hf_kd.model.verify._loaded", unknown)
    found = verify(folder, forget)
    assert found.undecided
    assert found.as_published
    assert found.headline.startswith("3 files and ")
    assert (
        "Whether it acts as its records say could not be verified: The model inside is of type 'own'" in found.headline
    )
    assert "--import FILE" in found.headline
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes() + b" ")
    assert verify(folder).headline.startswith("Not as published: 1 of "), "its files are compared all the same"


def test_the_commands(folder, forget, tmp_path):
    (tmp_path / "data").mkdir()
    make_dataset([2] * 20 + [1] * 4).to_parquet(tmp_path / "data" / "train.parquet")
    done = CliRunner().invoke(
        app, ["verify", str(folder), "--dataset", str(tmp_path / "data"), "--forget-labels", "cat", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["ok"]
    done = CliRunner().invoke(app, ["verify", str(folder), "--dataset", str(tmp_path / "data")])
    assert done.exit_code == 3, "without labels the whole split is too much"
    told = " ".join(done.stdout.split())
    few = "images of request 1: 24 were given, the receipt says 20: give the images of the request, as erase got them"
    assert told.startswith("3 files and ")
    assert f"match the receipt. Whether the erasure gives the same eraser again could not be verified: {few}" in told
    assert "DIFFERS" not in told
    splits = make_dataset([0, 1, 2, 3, 4] * 16), make_dataset([0, 1, 2, 3, 4] * 10, seed=9)
    ErasedModel.from_pretrained(folder).audit(*splits, **QUICK).to_json(tmp_path / "report.json")
    (folder / "README.md").write_text("My own words.")
    done = CliRunner().invoke(
        app, ["card", str(folder), "--report", str(tmp_path / "report.json"), "--repo-id", "ana/m"]
    )
    assert done.exit_code == 0, done.output
    text = (folder / "README.md").read_text()
    assert "My own words." in text
    assert "Converged linear probe" in text
    assert (folder / "figures" / "class_means.png").exists()
    assert 2 not in RetentionReport.from_json(folder / "retention_report.json").class_names, (
        "the forgotten one has no name"
    )
    assert verify(folder).ok, "a card changes no weight"
    (folder / "model.safetensors").write_bytes(b"x")
    done = CliRunner().invoke(app, ["verify", str(folder)])
    assert done.exit_code == 1


def test_a_card_that_fails_costs_nothing(model, processor, forget, tmp_path, monkeypatch, caplog):
    from hf_kd.hub import document as documenting

    def broken(*arguments):
        raise ValueError("no card today")

    monkeypatch.setattr(documenting, "render", broken)
    ErasedModel.from_model(model, processor).erase(forget, k=2, progress=False).save_pretrained(tmp_path / "model")
    assert "no card today" in caplog.text
    assert ErasedModel.from_pretrained(tmp_path / "model").is_erased
    assert "hf-kd card FOLDER" in (tmp_path / "model" / "README.md").read_text()


def test_saving_leaves_a_persons_readme_alone(model, processor, forget, tmp_path):
    erased = ErasedModel.from_model(model, processor).erase(forget, k=2, progress=False)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("mine")
    erased.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "README.md").read_text() == "mine"
    assert (tmp_path / "model" / RECEIPT).exists()


# The weights since


def train(model, pixels):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    model(pixel_values=pixels, labels=torch.zeros(len(pixels), dtype=torch.long)).loss.backward()
    optimizer.step()
    return model.eval()


def told(folder) -> tuple:
    weights = read_receipt(folder / RECEIPT)["weights"]
    words = " ".join(check.found for check in verify(folder).checks)
    card = (folder / "README.md").read_text()
    for text in (words, card):
        assert ("trained since" in text.lower()) == (weights["since"] == "trained")
    assert ("the weights of the base model are unchanged" in card) == (weights["since"] == "unchanged")
    return weights["since"], weights["unchanged"], verify(folder).ok


@both_networks
@pytest.mark.parametrize("saved_between", [False, True])
def test_training_after_erasing_is_told_by_receipt_card_and_verify(
    model, processor, forget, pixels, tmp_path, saved_between
):
    erased = ErasedModel.from_model(model, processor).erase(forget, k=2, progress=False)
    erased.save_pretrained(tmp_path / "erased")
    assert told(tmp_path / "erased") == ("unchanged", True, True)
    if saved_between:
        erased = ErasedModel.from_pretrained(tmp_path / "erased")
    train(erased, pixels).save_pretrained(tmp_path / "trained")
    assert told(tmp_path / "trained") == ("trained", False, True)
    ErasedModel.from_pretrained(tmp_path / "trained").save_pretrained(tmp_path / "again")
    assert told(tmp_path / "again") == ("trained", False, True)
    more = ErasedModel.from_pretrained(tmp_path / "again").erase(make_dataset([1] * 20), k=1, progress=False)
    more.save_pretrained(tmp_path / "more")
    assert told(tmp_path / "more") == ("trained", False, True), "the first request counts"
    more.reset().erase(forget, k=2, progress=False).save_pretrained(tmp_path / "anew")
    assert told(tmp_path / "anew") == ("unchanged", True, True)


def test_another_precision_is_no_training(vit, processor, forget, tmp_path):
    erased = ErasedModel.from_model(vit, processor).erase(forget, k=2, progress=False)
    erased.to(torch.bfloat16).save_pretrained(tmp_path)
    assert told(tmp_path) == ("converted", False, True)


def test_a_receipt_that_hides_training_is_found(vit, processor, forget, pixels, tmp_path):
    train(ErasedModel.from_model(vit, processor).erase(forget, k=2, progress=False), pixels).save_pretrained(tmp_path)
    content = json.loads((tmp_path / RECEIPT).read_text())
    content["weights"] |= {"since": "unchanged", "before": content["weights"]["after"], "unchanged": True}
    (tmp_path / RECEIPT).write_text(json.dumps(content))
    assert differing(verify(tmp_path)) == {"weights since the erasure"}


def test_where_nobody_took_a_digest_nothing_is_claimed(vit, processor, forget, tmp_path):
    erased = ErasedModel.from_model(vit, processor).erase(forget, k=2, progress=False)
    erased.config.weights_erased = None  # as in models of hf_kd 0.1
    erased.save_pretrained(tmp_path)
    assert told(tmp_path) == ("unknown", None, True)


# Files that change an answer


@pytest.mark.parametrize(
    "name",
    ["preprocessor_config.json", "processor_config.json", "image_processor_config.json", "video_preprocessor_config.json",
     "tokenizer.json", "tokenizer_config.json", "vocab.txt", "merges.txt", "special_tokens_map.json",
     "generation_config.json", "adapter_config.json", "adapter_model.safetensors", "model.fp16.safetensors",
     "model.safetensors.index.json", "pytorch_model.bin", "chat_template.jinja"],
)  # fmt: skip
@on_vit
def test_every_file_that_changes_an_answer_is_in_the_receipt_or_named(folder, name):
    old = (folder / name).read_bytes() if (folder / name).exists() else b""
    (folder / name).write_bytes(old + b" ")
    assert f"file {name}" in differing(verify(folder))
    (folder / name).unlink()
    assert verify(folder).ok == (old == b"")


def test_files_that_lie_there_when_a_model_is_saved_are_in_its_receipt(vit, processor, forget, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    ErasedModel.from_model(vit, processor).erase(forget, k=2, progress=False).save_pretrained(tmp_path)
    assert {"tokenizer.json", "preprocessor_config.json"} <= set(read_receipt(tmp_path / RECEIPT)["files"])
    assert "notes.txt" not in read_receipt(tmp_path / RECEIPT)["files"]
    assert verify(tmp_path).ok
    (tmp_path / "tokenizer.json").write_text("[]")
    assert differing(verify(tmp_path)) == {"file tokenizer.json"}


JUNK = [None, 1, "text", [], {}, [1], {"a": 1}, [{}], [None], True]


@pytest.mark.parametrize(
    "key", ["files", "weights", "erasers", "folded", "erasures", "changes", "schema_version", "kind"]
)
@on_vit
def test_damage_of_any_entry_is_refused_in_words_or_found(folder, key):
    whole = json.loads((folder / RECEIPT).read_text())

    def noticed(content) -> bool:
        (folder / RECEIPT).write_text(json.dumps(content))
        try:
            return not verify(folder).ok
        except HfKdError:
            return True

    allowed = [whole[key], 1] if key == "schema_version" else [whole[key]]
    for junk in JUNK:
        if not any(junk == value and type(junk) is type(value) for value in allowed):
            assert noticed(whole | {key: junk}), junk
    if key != "changes":  # 0.1 did not write it
        assert noticed({name: value for name, value in whole.items() if name != key})
    for inner in whole[key] if key in ("weights", "files") else ():
        assert noticed(whole | {key: whole[key] | {inner: 7}}), inner
    for inner in whole["erasures"][0] if key == "erasures" else ():
        assert noticed(whole | {key: [whole[key][0] | {inner: {"wrong": 1}}]}), inner


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b'{"kind":', b"null", b"[]"])
@on_vit
def test_what_is_no_receipt_at_all_is_refused_in_words(folder, content):
    (folder / RECEIPT).write_bytes(content)
    with pytest.raises(HfKdError, match="receipt"):
        verify(folder)
