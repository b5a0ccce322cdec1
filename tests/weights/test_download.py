"""Downloading weights from a hub on loopback, and its faults."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from afterwords.config import Config, load_config
from afterwords.errors import (
    AfterwordsError,
    HubError,
    InvalidInputError,
    MissingExtraError,
    ModelError,
    NotFoundError,
    StorageFullError,
)
from afterwords.weights.catalog import CHECKPOINTS, ModelState, get_status, locate, remove, verify
from afterwords.weights.download import pull
from tests.cli.program import list_files
from tests.error_codes import has_code
from tests.weights.loopback_hub import COMMIT, NEXT_COMMIT, WANTED, WEIGHTS, LoopbackHub, add_pocket, safetensors

NAME = "qwen3-1.7b"


def interrupt_pull(hub: LoopbackHub) -> None:
    """Pull until the weights are cut off at 100,000 bytes and can't be resumed."""
    hub.cuts, hub.refuses_ranges = [100_000], True
    with pytest.raises(HubError, match="status 503", check=has_code("hub_unreachable")):
        pull(NAME)
    hub.refuses_ranges = False
    hub.front.requests.clear()
    hub.cdn.requests.clear()


# -- download -------------------------------------------------------------------------------------------------


def test_pull_downloads_only_required_files(hub: LoopbackHub, home: Path) -> None:
    folder = pull(NAME)

    assert folder == home / "models" / NAME == locate(NAME)
    assert list_files(folder) == sorted([*(name.rpartition("/")[2] for name in WANTED), "lock.json"])
    assert {name: (folder / name).read_bytes() for name in WANTED} == {name: hub.files[name] for name in WANTED}
    assert not list(folder.parent.glob(".pulling-*"))
    assert {path.stat().st_mode & 0o077 for path in [folder, *folder.rglob("*")]} == {0}


def test_lock_records_revision_sizes_and_hashes(hub: LoopbackHub) -> None:
    lock = json.loads((pull(NAME) / "lock.json").read_bytes())

    assert lock["revision"] == COMMIT == get_status(NAME).revision
    assert {file["name"]: file["size_bytes"] for file in lock["files"]} == {n: len(hub.files[n]) for n in WANTED}
    siblings = {sibling["rfilename"]: sibling for sibling in hub.metadata()["siblings"]}
    for file in lock["files"]:
        sibling = siblings[file["name"]]
        assert (file["sha256"] or file["git_sha1"]) == sibling.get("lfs", {"sha256": sibling["blobId"]})["sha256"]


def test_progress_reaches_the_total_and_never_falls(hub: LoopbackHub) -> None:
    reports: list[tuple[int, int]] = []
    hub.cuts = [150_000]
    pull(NAME, progress=lambda done, total, _step: reports.append((done, total)))

    total = sum(len(hub.files[name]) for name in WANTED)
    assert reports == sorted(reports)
    assert reports[-1] == (total, total)


def test_complete_model_is_not_downloaded_again(hub: LoopbackHub) -> None:
    folder = pull(NAME)
    hub.front.requests.clear()
    assert pull(NAME) == folder
    assert hub.front.requests == []


def test_token_is_sent_to_the_hub_only(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pull(NAME)
    assert {seen.token for seen in hub.front.requests} == {"Bearer hf_secret"}
    assert {seen.token for seen in hub.cdn.requests} == {None}


def test_token_is_not_sent_over_plain_http(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("127.0.0.1", "0.0.0.0"))  # this machine, by another name
    pull(NAME)
    assert {seen.token for seen in hub.front.requests} == {None}


def test_missing_huggingface_hub_names_the_extra(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for name, extra in ((NAME, "cuda"), ("qwen3-0.6b-4bit", "mlx"), ("pocket", "pocket")):
        with pytest.raises(MissingExtraError, match=f"'{extra}'"):
            pull(name)


# -- several repositories, and gated ones ---------------------------------------------------------------------


@pytest.fixture
def pocket_hub(hub: LoopbackHub) -> LoopbackHub:
    """Serve the two repositories of `pocket`, with files that only have the right names."""
    add_pocket(hub, {"model.safetensors": safetensors(5_000), "preview.safetensors": b"no part of it"}, b"{}")
    return hub


def test_checkpoint_of_two_repositories_is_pulled(pocket_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_accepted")
    folder = pull("pocket")

    weights, tokenizer = CHECKPOINTS["pocket"].sources
    assert list_files(folder) == ["lock.json", "model.safetensors", "tokenizer.json"]
    assert (folder / tokenizer.required[0]).read_bytes() == b"{}"
    assert verify("pocket").revision == weights.revision
    facts = json.loads((folder / "lock.json").read_bytes())
    assert [(file["repository"], file["revision"]) for file in facts["files"]] == [
        (None, None),
        (tokenizer.repository, tokenizer.revision),
    ]
    (folder / tokenizer.required[0]).unlink()
    pull("pocket")  # the lock says where it is
    verify("pocket")


@pytest.mark.parametrize("token", [None, "hf_other"])
def test_gated_weights_say_what_to_accept(
    pocket_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match="refused the file", check=has_code("hub_refused")) as caught:
        pull("pocket")
    for needed in ("https://huggingface.co/kyutai/pocket-tts,", "https://huggingface.co/settings/tokens", "HF_TOKEN"):
        assert needed in caught.value.hint
    assert "hf_other" not in str(caught.value)


# -- resume ---------------------------------------------------------------------------------------------------


def test_lost_connection_is_resumed(hub: LoopbackHub) -> None:
    hub.cuts = [100_000, 300_000]
    pull(NAME)
    assert hub.ranges() == [None, "bytes=100000-", "bytes=300000-"]
    verify(NAME)


def test_next_pull_resumes_at_the_same_revision(hub: LoopbackHub) -> None:
    interrupt_pull(hub)
    assert get_status(NAME).state is ModelState.PARTIAL
    assert get_status(NAME).present_bytes > 100_000

    pull(NAME)
    assert hub.ranges() == ["bytes=100000-"]
    assert not [seen for seen in hub.front.requests if seen.path.startswith("/api/models/")]
    assert verify(NAME).revision == COMMIT


def test_hub_without_ranges_is_read_from_the_start(hub: LoopbackHub) -> None:
    hub.cuts, hub.ignores_ranges = [100_000], True
    pull(NAME)
    assert len(hub.ranges()) == 2
    verify(NAME)


def test_concurrent_pull_waits_and_downloads_nothing(hub: LoopbackHub) -> None:
    hub.stall_after = 100_000
    steps: list[str] = []
    waiting = threading.Event()

    def on_progress(_done: int, _total: int, step: str) -> None:
        steps.append(step)
        waiting.set()

    threads = [
        threading.Thread(target=pull, args=(NAME,)),
        threading.Thread(target=pull, args=(NAME,), kwargs={"progress": on_progress}),
    ]
    threads[0].start()
    assert hub.stalled.wait(60)
    threads[1].start()
    assert waiting.wait(60)
    hub.stall_after = None
    hub.go.set()
    for thread in threads:
        thread.join(60)

    assert hub.ranges().count(None) == 1
    assert steps == ["waiting for another pull"]
    verify(NAME)


# -- wrong bytes ----------------------------------------------------------------------------------------------


def test_altered_file_is_downloaded_once_more(hub: LoopbackHub) -> None:
    hub.spoils = 1
    pull(NAME)
    assert hub.ranges() == [None, None]
    verify(NAME)


def test_file_altered_twice_is_refused_and_deleted(hub: LoopbackHub) -> None:
    hub.spoils = 2
    with pytest.raises(ModelError, match=rf"{WEIGHTS} has the wrong hash"):
        pull(NAME)
    assert not list(Path(str(get_status(NAME).path)).glob(f"{WEIGHTS}*"))
    with pytest.raises(ModelError, check=has_code("model_not_here")):
        locate(NAME)


def test_small_file_is_compared_with_its_git_hash(hub: LoopbackHub) -> None:
    siblings = hub.metadata()["siblings"]
    next(sibling for sibling in siblings if sibling["rfilename"] == "vocab.json")["blobId"] = "d" * 40
    hub.siblings = siblings
    with pytest.raises(ModelError, match=r"vocab\.json has the wrong hash"):
        pull(NAME)


def test_file_changed_at_the_hub_needs_an_update(hub: LoopbackHub) -> None:
    interrupt_pull(hub)
    hub.files[WEIGHTS] = safetensors(400_000, b"n")
    with pytest.raises(ModelError, match=rf"{WEIGHTS} has the wrong hash") as caught:
        pull(NAME)
    assert "--update" in caught.value.hint
    pull(NAME, is_update=True)
    verify(NAME)


def test_file_of_another_size_is_refused(hub: LoopbackHub) -> None:
    interrupt_pull(hub)
    hub.files[WEIGHTS] = safetensors(500_000)
    with pytest.raises(HubError, match="sends another size"):
        pull(NAME)


# -- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers", "error", "exit_code", "text"),
    [
        (401, {}, HubError, 3, "HF_TOKEN"),
        (403, {"X-Error-Code": "GatedRepo"}, HubError, 3, "HF_TOKEN"),
        (404, {}, HubError, 4, "HF_ENDPOINT"),
        (418, {}, HubError, 8, "HF_ENDPOINT"),
        (429, {"Retry-After": "7"}, HubError, 6, "in 7 s"),
        (429, {"RateLimit": '"api";r=0;t=290'}, HubError, 6, "in 290 s"),
        (429, {}, HubError, 6, "later"),
        (503, {}, HubError, 8, "pull again"),
    ],
)
def test_refusal_is_a_typed_error(
    hub: LoopbackHub, status: int, headers: dict[str, str], error: type[HubError], exit_code: int, text: str
) -> None:
    hub.refusals = [(status, headers)]
    with pytest.raises(error, match=hub.url) as caught:
        pull(NAME)
    assert type(caught.value) is error
    assert caught.value.exit_code == exit_code
    assert text in caught.value.hint


def test_file_missing_at_the_hub_is_named(hub: LoopbackHub) -> None:
    hub.siblings = hub.metadata()["siblings"]
    del hub.files["vocab.json"]
    with pytest.raises(HubError, match=r"has no file vocab\.json", check=has_code("hub_missing")):
        pull(NAME)


def test_repository_without_weights_is_refused(hub: LoopbackHub) -> None:
    del hub.files["speech_tokenizer/model.safetensors"]
    with pytest.raises(
        HubError, match=r"has no speech_tokenizer/\*\.safetensors in Qwen/", check=has_code("hub_missing")
    ):
        pull(NAME)


def test_unreachable_hub_is_named(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        HubError, match=r"http://127\.0\.0\.1:9 can't be reached: connection refused", check=has_code("hub_unreachable")
    ):
        pull(NAME)


@pytest.mark.parametrize("url", ["hub", "ftp://hub", "https://user:secret@hub.example", "http://hub:port"])
def test_malformed_endpoint_is_refused_but_not_shown(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", url)
    with pytest.raises(InvalidInputError, match="HF_ENDPOINT") as caught:
        pull(NAME)
    assert "secret" not in str(caught.value)


def test_malformed_token_is_refused_but_not_shown(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sec\nret")
    with pytest.raises(InvalidInputError, match="HF_TOKEN") as caught:
        pull(NAME)
    assert "sec" not in str(caught.value)


def test_invalid_metadata_is_refused(hub: LoopbackHub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoils: list[Callable[[Any], object]] = [
        lambda info: info.pop("sha"),
        lambda info: info.update(sha="main"),
        lambda info: info.pop("siblings"),
        lambda info: info["siblings"][2].pop("size"),
        lambda info: info["siblings"][2].pop("blobId"),
        lambda info: info["siblings"][2].update(blobId=7),
        lambda info: info["siblings"].append("config.json"),
    ]
    for spoil in spoils:
        metadata = LoopbackHub.metadata(hub)
        spoil(metadata)
        monkeypatch.setattr(hub, "metadata", lambda metadata=metadata: metadata)
        with pytest.raises(HubError, match="does not state"):
            pull(NAME)
    hub.refusals = [(200, {})]
    with pytest.raises(HubError, match="does not state"):  # HTML
        pull(NAME)
    assert not (home / "models" / NAME).exists()


@pytest.mark.parametrize(
    "name", [".x.safetensors", "..safetensors", "a\\b.safetensors", "C:x.safetensors", "é.safetensors"]
)
def test_unsafe_file_name_is_refused(hub: LoopbackHub, name: str, home: Path) -> None:
    hub.files[name] = b"x"
    with pytest.raises(HubError, match="does not state"):
        pull(NAME)
    assert not list(home.rglob("*.safetensors"))


def test_file_name_outside_the_folder_is_ignored(hub: LoopbackHub, home: Path) -> None:
    hub.files |= {"../x.safetensors": b"x", "/x.safetensors": b"x", "speech_tokenizer/../../x.safetensors": b"x"}
    pull(NAME)
    assert not list(home.rglob("x.safetensors"))


# -- offline and disk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "AFTERWORDS_OFFLINE"])
def test_offline_pull_sends_no_request(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, switch: str) -> None:
    monkeypatch.setenv(switch, "1")
    with pytest.raises(ModelError, match=switch, check=has_code("offline")):
        pull(NAME)
    assert hub.front.requests == []


def test_offline_pull_finds_a_complete_model(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pull(NAME)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert pull(NAME) == folder == locate(NAME)


def test_small_disk_is_refused_before_the_download(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    # No disk of a test is as small as that.
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 100_000}))
    with pytest.raises(StorageFullError, match=r"has 0\.0 GB free"):
        pull(NAME)
    assert hub.ranges() == []


def test_full_disk_is_a_typed_error_and_is_resumed(hub: LoopbackHub) -> None:
    code = (
        "import resource\n"
        "from huggingface_hub import constants\n"
        "from afterwords.errors import StorageFullError\n"
        "from afterwords.weights.download import pull\n"
        "constants.DOWNLOAD_CHUNK_SIZE = 50_000\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try:\n"
        f"    pull({NAME!r})\n"
        "except StorageFullError:\n"
        "    raise SystemExit(0)\n"
        "raise SystemExit('pulled onto a full disk')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    hub.cdn.requests.clear()
    pull(NAME)
    assert hub.ranges() == ["bytes=200000-"]
    verify(NAME)


# -- update and repair ----------------------------------------------------------------------------------------


def publish_next_commit(hub: LoopbackHub) -> None:
    """Publish a commit in which only the weights of the codec differ."""
    hub.commit = NEXT_COMMIT
    hub.files["speech_tokenizer/model.safetensors"] = safetensors(60_000, b"n")
    for host in (hub.front, hub.cdn):
        host.requests.clear()


def test_update_downloads_only_changed_files(hub: LoopbackHub) -> None:
    pull(NAME)
    publish_next_commit(hub)
    pull(NAME)
    assert get_status(NAME).revision == COMMIT

    folder = pull(NAME, is_update=True)

    assert verify(NAME).revision == NEXT_COMMIT
    assert [seen.path.partition(f"{NEXT_COMMIT}/")[2] for seen in hub.cdn.requests] == [
        "speech_tokenizer/model.safetensors"
    ]
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [NAME]


def test_failed_update_keeps_the_old_model(hub: LoopbackHub) -> None:
    pull(NAME)
    publish_next_commit(hub)
    hub.files[WEIGHTS] = safetensors(400_000, b"n")
    hub.spoils = 2
    with pytest.raises(ModelError):
        pull(NAME, is_update=True)
    assert verify(NAME).revision == COMMIT


def test_update_to_the_same_revision_changes_nothing(hub: LoopbackHub) -> None:
    folder = pull(NAME)
    before = (folder / WEIGHTS).stat()
    assert pull(NAME, is_update=True) == folder
    assert (folder / WEIGHTS).stat() == before


def test_truncated_file_alone_is_downloaded_again(hub: LoopbackHub) -> None:
    folder = pull(NAME)
    (folder / WEIGHTS).write_bytes(b"cut")
    with pytest.raises(ModelError, match=rf"{WEIGHTS} has 3 bytes instead of 400,\d+") as caught:
        locate(NAME)
    assert caught.value.hint == f"afterwords models pull {NAME}"
    hub.cdn.requests.clear()

    pull(NAME)
    assert [seen.path.rpartition("/")[2] for seen in hub.cdn.requests] == [WEIGHTS]
    verify(NAME)


def test_altered_file_is_found_by_verify_and_repaired(hub: LoopbackHub) -> None:
    folder = pull(NAME)
    (folder / WEIGHTS).write_bytes(safetensors(400_000, b"!"))
    locate(NAME)  # the size is right, and locate does not read gigabytes
    with pytest.raises(ModelError, match=rf"{WEIGHTS} was altered") as caught:
        verify(NAME)
    assert caught.value.hint.endswith("--repair")

    pull(NAME, is_repair=True)
    verify(NAME)


def test_damaged_lock_is_named_and_replaced(hub: LoopbackHub) -> None:
    path = pull(NAME) / "lock.json"
    valid = json.loads(path.read_bytes())
    without_hash = {"name": "x", "size_bytes": 1}
    for content in (
        b"",
        b"{",
        b"[]",
        json.dumps(valid | {"schema": 2}).encode(),
        json.dumps(valid | {"files": []}).encode(),
        json.dumps(valid | {"files": [without_hash]}).encode(),
        json.dumps(valid | {"files": [without_hash | {"name": "../x", "git_sha1": "a" * 40}]}).encode(),
    ):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"lock\.json is damaged"):
            locate(NAME)
    pull(NAME)
    verify(NAME)


# -- the user's own folders -----------------------------------------------------------------------------------


@pytest.fixture
def own(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that the user filled, below AFTERWORDS_MODELS."""
    folder = tmp_path / "own" / NAME
    for name in WANTED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(hub.files[name])
    monkeypatch.setenv("AFTERWORDS_MODELS", str(folder.parent))
    return folder


def test_own_folder_takes_precedence(hub: LoopbackHub, own: Path) -> None:
    pulled = pull(NAME, Config(home=load_config().home))
    assert locate(NAME) == own != pulled
    assert (get_status(NAME).is_pulled, get_status(NAME).revision) == (False, None)


def test_home_folder_is_used_if_the_own_folder_is_empty(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled = pull(NAME)
    monkeypatch.setenv("AFTERWORDS_MODELS", str(tmp_path / "own"))
    assert locate(NAME) == pulled


def test_models_setting_is_where_models_are_pulled(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFTERWORDS_MODELS", str(tmp_path / "own"))
    assert pull(NAME) == tmp_path / "own" / NAME == locate(NAME)


@pytest.mark.parametrize("name", ["config.json", "vocab.json", WEIGHTS, "speech_tokenizer/model.safetensors"])
def test_missing_file_in_own_folder_is_named(own: Path, name: str) -> None:
    (own / name).unlink()
    for act in (locate, pull):
        with pytest.raises(ModelError, match="is missing"):
            act(NAME)


@pytest.mark.parametrize("length", [0, 4, 20, 400_000])
def test_truncated_weights_in_own_folder_are_named(own: Path, length: int) -> None:
    (own / WEIGHTS).write_bytes((own / WEIGHTS).read_bytes()[:length])
    with pytest.raises(ModelError, match=WEIGHTS):
        locate(NAME)


def test_shards_of_an_index_must_exist(own: Path) -> None:
    index = own / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": WEIGHTS, "b": "model-2.safetensors"}}))
    with pytest.raises(ModelError, match=r"model-2\.safetensors is missing"):
        locate(NAME)
    for content in ("[]", '{"weight_map": {"a": "../x.safetensors"}}'):
        index.write_text(content)
        with pytest.raises(ModelError, match="is not an index"):
            locate(NAME)


def test_own_folder_is_neither_removed_nor_replaced(own: Path) -> None:
    with pytest.raises(ModelError, check=has_code("foreign_model")):
        remove(NAME)
    with pytest.raises(ModelError, check=has_code("foreign_model")):
        pull(NAME, is_update=True)
    with pytest.raises(ModelError, check=has_code("foreign_model")):
        pull(NAME, is_repair=True)
    assert verify(NAME).path == own


# -- removal --------------------------------------------------------------------------------------------------


def test_removed_model_is_gone(hub: LoopbackHub) -> None:
    folder = pull(NAME)
    assert remove(NAME) == folder
    assert get_status(NAME).state is ModelState.ABSENT
    assert not [path for path in folder.parent.iterdir() if path.is_dir()]
    with pytest.raises(ModelError, check=has_code("model_not_here")):
        remove(NAME)


def test_interrupted_pull_can_be_removed(hub: LoopbackHub) -> None:
    interrupt_pull(hub)
    remove(NAME)
    assert get_status(NAME).state is ModelState.ABSENT


@pytest.mark.parametrize("act", [locate, pull, remove, verify, get_status])
def test_unknown_model_is_refused(act: object) -> None:
    with pytest.raises(NotFoundError, match="no model 'gpt'", check=has_code("unknown_model")) as caught:
        act("gpt")  # type: ignore[operator]
    assert isinstance(caught.value, AfterwordsError)
    assert NAME in caught.value.hint
