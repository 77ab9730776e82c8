"""The test server behaves as `huggingface_hub` expects of a Hub: the tests of pushing stand on this."""

from __future__ import annotations

CLIENT = """
import os, pathlib
from huggingface_hub import HfApi, hf_hub_download, snapshot_download, ModelCard
from huggingface_hub.errors import RepositoryNotFoundError, EntryNotFoundError, RevisionNotFoundError, HfHubHTTPError
api = HfApi()
assert api.whoami()["name"] == "ana"
url = api.create_repo("ana/m", private=True)
assert url.repo_id == "ana/m"
api.create_repo("ana/m", exist_ok=True)
folder = pathlib.Path("up"); (folder / "sub").mkdir(parents=True)
(folder / "README.md").write_text("---\\nlicense: mit\\n---\\nhello")
(folder / "model.safetensors").write_bytes(os.urandom(5000))
(folder / "sub" / "x.json").write_text("{}")
info = api.upload_folder(folder_path=folder, repo_id="ana/m", commit_message="first")
assert len(info.oid) == 40
assert sorted(api.list_repo_files("ana/m")) == [".gitattributes", "README.md", "model.safetensors", "sub/x.json"]
got = snapshot_download("ana/m")
assert (pathlib.Path(got) / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
assert ModelCard.load("ana/m").data.license == "mit"
(folder / "sub" / "x.json").write_text("[1]")
api.create_branch("ana/m", branch="dev")
api.upload_folder(folder_path=folder, repo_id="ana/m", revision="dev", commit_message="second")
assert pathlib.Path(hf_hub_download("ana/m", "sub/x.json", revision="dev")).read_text() == "[1]"
assert pathlib.Path(hf_hub_download("ana/m", "sub/x.json")).read_text() == "{}"
pr = api.upload_folder(folder_path=folder, repo_id="ana/m", create_pr=True, commit_message="pr")
assert pr.pr_revision == "refs/pr/1", pr
assert pathlib.Path(hf_hub_download("ana/m", "sub/x.json", revision="refs/pr/1")).read_text() == "[1]"
api.create_tag("ana/m", tag="v1")
assert api.model_info("ana/m", revision="v1").sha == info.oid
for call, error in (
    (lambda: hf_hub_download("ana/m", "nothing"), EntryNotFoundError),
    (lambda: hf_hub_download("ana/m", "README.md", revision="nothing"), RevisionNotFoundError),
    (lambda: api.model_info("ana/nothing"), RepositoryNotFoundError),
    (lambda: HfApi(token=False).model_info("ana/m"), RepositoryNotFoundError),
    (lambda: HfApi(token="hf_other_token").upload_file(path_or_fileobj=b"", path_in_repo="a", repo_id="ana/m"),
     HfHubHTTPError),
):
    try:
        call()
    except error:
        continue
    raise SystemExit(f"{error} was not raised")
api.create_repo("ana/s", repo_type="space", space_sdk="gradio")
api.upload_file(path_or_fileobj=b"print(1)", path_in_repo="app.py", repo_id="ana/s", repo_type="space")
assert [commit.title for commit in api.list_repo_commits("ana/m")] == ["first", "initial commit"]
api.create_repo("ana/gone", repo_type="dataset")
api.update_repo_settings("ana/gone", repo_type="dataset", private=True)
assert api.dataset_info("ana/gone").private
api.delete_repo("ana/gone", repo_type="dataset")
assert not api.repo_exists("ana/gone", repo_type="dataset")
print("done")
"""


def test_the_server_is_a_hub_to_its_client(hub, run_client):
    assert run_client(CLIENT).out.strip() == "done"
    assert hub.repo("ana/m").private
    assert hub.repo("ana/s", "space").sdk == "gradio"
    assert hub.files("ana/s", "space")["app.py"] == b"print(1)"
    assert hub.requests("POST .*lfs/objects/batch")
    assert ("dataset", "ana/gone") not in hub.repos
