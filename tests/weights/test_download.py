"""Pulling the weights of an engine: from a hub on loopback, with everything that may go wrong on the way."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from afterwords.config import Config, load_config
from afterwords.errors import (
    AfterwordsError,
    ForeignModelError,
    HubBusyError,
    HubError,
    HubMissingError,
    HubRefusedError,
    HubUnreachableError,
    InvalidInputError,
    ModelFileError,
    ModelNotHereError,
    OfflineError,
    StorageFullError,
    UnknownModelError,
)
from afterwords.weights.catalog import State, locate, remove, standing, verify
from afterwords.weights.download import pull
from afterwords.weights.hub import RETRIES, Hub
from tests.cli.program import files_in
from tests.weights.loopback_hub import COMMIT, NEXT_COMMIT, WANTED, WEIGHTS, LoopbackHub, safetensors

NAME = "qwen3-1.7b"


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def bring(hub: LoopbackHub, pauses: list[float]) -> Callable[..., Path]:
    """Pull without waiting between tries."""

    def brought(*, is_update: bool = False, is_repair: bool = False) -> Path:
        return pull(NAME, is_update=is_update, is_repair=is_repair, hub=lambda: Hub(pause=pauses.append))

    return brought


def lock_in(folder: Path) -> dict[str, dict[str, object]]:
    return {entry["name"]: entry for entry in json.loads((folder / "lock.json").read_bytes())["files"]}


# -- a pull that goes well ------------------------------------------------------------------------------------


def test_all_that_the_engine_needs_comes_and_nothing_else(
    hub: LoopbackHub, bring: Callable[..., Path], home: Path
) -> None:
    folder = bring()

    assert folder == home / "models" / NAME == locate(NAME)
    assert files_in(folder) == sorted([*(name.rpartition("/")[2] for name in WANTED), "lock.json"])
    assert {name: (folder / name).read_bytes() for name in WANTED} == {name: hub.files[name] for name in WANTED}
    assert not list(folder.parent.glob(".pulling-*"))


def test_lock_keeps_commit_size_and_hash_of_every_file(hub: LoopbackHub, bring: Callable[..., Path]) -> None:
    folder = bring()

    assert json.loads((folder / "lock.json").read_bytes())["revision"] == COMMIT == standing(NAME).revision
    stated = {name: (entry["size_bytes"], entry["sha256"]) for name, entry in lock_in(folder).items()}
    assert stated == {name: (len(hub.files[name]), sha256(hub.files[name]).hexdigest()) for name in WANTED}


def test_files_are_for_their_owner_alone(bring: Callable[..., Path]) -> None:
    folder = bring()
    assert {path.stat().st_mode & 0o077 for path in [folder, *folder.rglob("*")]} == {0}


def test_progress_counts_every_byte_once_and_never_runs_back(hub: LoopbackHub) -> None:
    told: list[tuple[int, int]] = []
    hub.cuts = [150_000]
    pull(NAME, progress=lambda done, total, _step: told.append((done, total)), hub=lambda: Hub(pause=lambda _s: None))

    total = sum(len(hub.files[name]) for name in WANTED)
    assert told == sorted(told)
    assert told[-1] == (total, total)


def test_model_that_is_here_is_not_asked_for_again(hub: LoopbackHub, bring: Callable[..., Path]) -> None:
    folder = bring()
    hub.front.seen.clear()
    assert bring() == folder
    assert hub.front.seen == []


def test_token_goes_to_the_hub_and_to_no_other_host(
    hub: LoopbackHub, bring: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    bring()
    assert {seen.token for seen in hub.front.seen} == {"Bearer hf_secret"}
    assert {seen.token for seen in hub.cdn.seen} == {None}


def test_token_is_not_sent_where_others_could_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with Hub("http://mirror.example", token="hf_secret") as hub:
        assert not hub._access.is_private  # what decides whether it is sent


# -- breaking off and going on --------------------------------------------------------------------------------


def test_connection_that_breaks_off_is_taken_up_where_it_was(
    hub: LoopbackHub, bring: Callable[..., Path], pauses: list[float]
) -> None:
    hub.cuts = [100_000, 300_000]
    bring()
    assert hub.ranges() == [None, "bytes=100000-", "bytes=300000-"]
    assert len(pauses) == 2


def test_next_pull_goes_on_where_the_last_one_failed(hub: LoopbackHub, bring: Callable[..., Path]) -> None:
    hub.cuts = [100_000] * (RETRIES + 1)
    with pytest.raises(HubUnreachableError, match="ended too early"):
        bring()
    assert standing(NAME).state is State.PARTIAL
    assert standing(NAME).present_bytes > 100_000
    hub.cdn.seen.clear()

    bring()
    assert hub.ranges() == ["bytes=100000-"]
    verify(NAME)


def test_hub_that_knows_no_ranges_is_read_from_the_start(hub: LoopbackHub, bring: Callable[..., Path]) -> None:
    hub.cuts, hub.ignores_ranges = [100_000], True
    bring()
    assert len(hub.ranges()) == 2
    verify(NAME)


def test_broken_pull_goes_on_at_its_revision(hub: LoopbackHub, bring: Callable[..., Path]) -> None:
    hub.cuts = [100_000] * (RETRIES + 1)
    with pytest.raises(HubUnreachableError):
        bring()
    hub.front.seen.clear()
    bring()
    assert not [seen for seen in hub.front.seen if seen.path.startswith("/api/models/")]
    assert standing(NAME).revision == COMMIT


def test_of_two_pulls_at_once_one_downloads_and_the_other_waits(hub: LoopbackHub) -> None:
    hub.stall_after = 100_000
    steps: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        def told(_done: int, _total: int, step: str) -> None:
            steps.append(step)
            waiting.set()

        pull(NAME, progress=told)

    threads = [threading.Thread(target=pull, args=(NAME,)), threading.Thread(target=second)]
    threads[0].start()
    assert hub.stalled.wait(20)
    threads[1].start()
    assert waiting.wait(20)
    hub.go.set()
    for thread in threads:
        thread.join(20)

    assert hub.ranges() == [None]
    assert steps == ["waiting for another pull"]
    verify(NAME)


# -- what comes is not what was stated ------------------------------------------------------------------------


def test_altered_file_is_fetched_once_more(hub: LoopbackHub, bring: Callable[..., Path]) -> None:
    hub.spoils = 1
    bring()
    assert hub.ranges() == [None, None]
    verify(NAME)


def test_file_that_comes_altered_twice_is_named_and_removed(hub: LoopbackHub, bring: Callable[..., Path]) -> None:
    hub.spoils = 2
    with pytest.raises(ModelFileError, match=rf"{WEIGHTS} came twice with another hash"):
        bring()
    assert not list(Path(str(standing(NAME).path)).glob(f"{WEIGHTS}*"))
    with pytest.raises(ModelNotHereError):
        locate(NAME)


def test_small_file_is_held_against_its_git_hash(hub: LoopbackHub, bring: Callable[..., Path]) -> None:
    siblings = hub.metadata()["siblings"]
    next(sibling for sibling in siblings if sibling["rfilename"] == "vocab.json")["blobId"] = "d" * 40
    hub.siblings = siblings
    with pytest.raises(ModelFileError, match=r"vocab\.json came twice"):
        bring()


def test_file_that_the_hub_changed_meanwhile_is_named_before_it_is_fetched(
    hub: LoopbackHub, bring: Callable[..., Path]
) -> None:
    hub.cuts = [100_000] * (RETRIES + 1)
    with pytest.raises(HubUnreachableError):
        bring()
    hub.files[WEIGHTS] = safetensors(400_000, b"n")
    hub.cdn.seen.clear()
    with pytest.raises(ModelFileError, match=rf"{WEIGHTS} was changed at the hub"):
        bring()
    hub.cdn.seen.clear()
    bring(is_update=True)
    assert hub.ranges() == [None]
    verify(NAME)


# -- what the hub refuses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error", "exit_code"),
    [(401, HubRefusedError, 3), (403, HubRefusedError, 3), (404, HubMissingError, 4), (418, HubError, 8)],
)
def test_refusal_is_told_at_once(
    hub: LoopbackHub,
    bring: Callable[..., Path],
    pauses: list[float],
    status: int,
    error: type[HubError],
    exit_code: int,
) -> None:
    hub.refusals = [(status, {})]
    with pytest.raises(error, match=hub.url) as caught:
        bring()
    assert caught.value.exit_code == exit_code
    assert pauses == []


def test_file_that_the_hub_has_lost_is_named(hub: LoopbackHub, bring: Callable[..., Path]) -> None:
    siblings = hub.metadata()["siblings"]
    del hub.files["vocab.json"]
    hub.siblings = siblings
    with pytest.raises(HubMissingError, match=r"has no file vocab\.json"):
        bring()


@pytest.mark.parametrize(
    ("status", "headers", "waits_s"),
    [
        (429, {"Retry-After": "7"}, 7),
        (429, {"RateLimit": '"api";r=0;t=9'}, 9),
        (429, {}, 0),
        (503, {}, 0),
        (500, {}, 0),
    ],
)
def test_busy_hub_is_asked_again_when_it_wishes(
    hub: LoopbackHub,
    bring: Callable[..., Path],
    pauses: list[float],
    status: int,
    headers: dict[str, str],
    waits_s: int,
) -> None:
    hub.refusals = [(status, headers)]
    bring()
    assert len(pauses) == 1
    assert waits_s <= pauses[0] < waits_s + 1


def test_hub_that_wants_more_patience_than_a_minute_is_believed(
    hub: LoopbackHub, bring: Callable[..., Path], pauses: list[float]
) -> None:
    hub.refusals = [(429, {"RateLimit": '"resolvers";r=0;t=290'})]
    with pytest.raises(HubBusyError) as caught:
        bring()
    assert "in 290 s" in caught.value.hint
    assert pauses == []


def test_hub_that_stays_away_is_given_up(hub: LoopbackHub, bring: Callable[..., Path], pauses: list[float]) -> None:
    hub.refusals = [(503, {})] * (RETRIES + 1)
    with pytest.raises(HubUnreachableError, match="status 503"):
        bring()
    assert len(pauses) == RETRIES
    assert pauses[-1] > pauses[0]


def test_no_network_is_told_at_once(bring: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnreachableError, match=r"http://127\.0\.0\.1:9 can't be reached: connection refused"):
        bring()


@pytest.mark.parametrize("url", ["hub", "ftp://hub", "https://user:secret@hub.example"])
def test_endpoint_that_is_no_address_is_refused_without_showing_it(
    bring: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", url)
    with pytest.raises(InvalidInputError, match="HF_ENDPOINT") as caught:
        bring()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda told: told.pop("sha"),
        lambda told: told.update(sha="main"),
        lambda told: told.pop("siblings"),
        lambda told: told["siblings"][2].pop("size"),
        lambda told: told["siblings"][2].pop("blobId"),
        lambda told: told["siblings"][2].update(blobId=7),
        lambda told: told["siblings"].append("config.json"),
    ],
)
def test_mirror_that_states_no_hashes_is_refused(
    hub: LoopbackHub, bring: Callable[..., Path], spoil: Callable[[dict[str, object]], object], home: Path
) -> None:
    told = hub.metadata()
    spoil(told)
    hub.metadata = lambda: told  # type: ignore[method-assign]  # the hub of this test alone
    with pytest.raises(HubError, match="does not state"):
        bring()
    assert not (home / "models" / NAME).exists()


@pytest.mark.parametrize(
    "name", [".x.safetensors", "..safetensors", "a\\b.safetensors", "C:x.safetensors", "é.safetensors"]
)
def test_name_that_is_no_plain_one_is_refused(
    hub: LoopbackHub, bring: Callable[..., Path], name: str, home: Path
) -> None:
    hub.files[name] = b"x"
    with pytest.raises(HubError, match="does not state"):
        bring()
    assert not list(home.rglob("*.safetensors"))


def test_name_that_leads_out_of_the_folder_is_left_alone(
    hub: LoopbackHub, bring: Callable[..., Path], home: Path
) -> None:
    hub.files |= {"../x.safetensors": b"x", "/x.safetensors": b"x", "speech_tokenizer/../../x.safetensors": b"x"}
    bring()
    assert not list(home.rglob("x.safetensors"))


def test_repository_without_weights_is_refused(hub: LoopbackHub, bring: Callable[..., Path]) -> None:
    del hub.files["speech_tokenizer/model.safetensors"]
    with pytest.raises(HubMissingError, match=r"has no speech_tokenizer/\*\.safetensors in Qwen/"):
        bring()


def test_hub_that_sends_the_metadata_elsewhere_is_not_believed(hub: LoopbackHub, bring: Callable[..., Path]) -> None:
    hub.refusals = [(302, {"Location": f"{hub.cdn.url}/blobs/{COMMIT}/config.json"})]
    with pytest.raises(HubError, match="to another host"):
        bring()


def test_hub_that_speaks_html_is_refused(hub: LoopbackHub, bring: Callable[..., Path]) -> None:
    hub.refusals = [(200, {})]
    with pytest.raises(HubError, match="not JSON"):
        bring()


# -- offline, and on a full disk ------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "AFTERWORDS_OFFLINE"])
def test_offline_nothing_is_asked(
    hub: LoopbackHub, bring: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, switch: str
) -> None:
    monkeypatch.setenv(switch, "1")
    with pytest.raises(OfflineError, match=switch):
        bring()
    assert hub.front.seen == []


def test_offline_a_model_that_is_here_is_found(
    hub: LoopbackHub, bring: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bring()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert bring() == folder == locate(NAME)


def test_disk_without_room_is_told_before_anything_is_fetched(
    hub: LoopbackHub, bring: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # No disk of a test is as small as that.
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 100_000}))
    with pytest.raises(StorageFullError, match=r"has 0\.0 GB free"):
        bring()
    assert hub.ranges() == []


def test_disk_that_runs_full_is_a_typed_error_and_the_next_pull_goes_on(
    hub: LoopbackHub, bring: Callable[..., Path]
) -> None:
    code = (
        "import resource\n"
        "from afterwords.errors import StorageFullError\n"
        "from afterwords.weights.download import pull\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try:\n"
        f"    pull({NAME!r})\n"
        "except StorageFullError:\n"
        "    raise SystemExit(0)\n"
        "raise SystemExit('pulled onto a full disk')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    hub.cdn.seen.clear()
    bring()
    assert hub.ranges() == ["bytes=200000-"]
    verify(NAME)


# -- updating and mending -------------------------------------------------------------------------------------


def renewed(hub: LoopbackHub) -> None:
    """The hub has a new commit, in which only the weights of the codec differ."""
    hub.commit = NEXT_COMMIT
    hub.files["speech_tokenizer/model.safetensors"] = safetensors(60_000, b"n")
    for host in (hub.front, hub.cdn):
        host.seen.clear()


def test_update_fetches_what_differs_and_keeps_the_rest(hub: LoopbackHub, bring: Callable[..., Path]) -> None:
    bring()
    renewed(hub)
    bring()
    assert standing(NAME).revision == COMMIT

    folder = bring(is_update=True)

    assert standing(NAME).revision == NEXT_COMMIT
    assert [seen.path.rpartition("/")[2] for seen in hub.cdn.seen] == ["model.safetensors"]
    assert "speech_tokenizer" in hub.cdn.seen[0].path
    assert all(isinstance(entry["sha256"], str) for entry in lock_in(folder).values())
    verify(NAME)
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [NAME]


def test_update_that_fails_leaves_the_old_one_whole(hub: LoopbackHub, bring: Callable[..., Path]) -> None:
    bring()
    renewed(hub)
    hub.files[WEIGHTS] = safetensors(400_000, b"n")
    hub.spoils = 2
    with pytest.raises(ModelFileError):
        bring(is_update=True)
    assert verify(NAME).revision == COMMIT


def test_update_without_anything_new_changes_nothing(hub: LoopbackHub, bring: Callable[..., Path]) -> None:
    folder = bring()
    before = (folder / WEIGHTS).stat()
    assert bring(is_update=True) == folder
    assert (folder / WEIGHTS).stat() == before


def test_cut_file_is_named_and_the_next_pull_fetches_it_alone(hub: LoopbackHub, bring: Callable[..., Path]) -> None:
    folder = bring()
    (folder / WEIGHTS).write_bytes(b"cut")
    with pytest.raises(ModelFileError, match=rf"{WEIGHTS} has 3 bytes where 400,\d+ belong") as caught:
        locate(NAME)
    assert caught.value.hint == f"afterwords models pull {NAME}"
    hub.cdn.seen.clear()

    bring()
    assert [seen.path.rpartition("/")[2] for seen in hub.cdn.seen] == [WEIGHTS]
    verify(NAME)


def test_altered_file_is_found_by_verify_and_mended_by_repair(hub: LoopbackHub, bring: Callable[..., Path]) -> None:
    folder = bring()
    (folder / WEIGHTS).write_bytes(safetensors(400_000, b"!"))
    locate(NAME)  # sizes fit: reading gigabytes is not for every start
    with pytest.raises(ModelFileError, match=rf"{WEIGHTS} was altered") as caught:
        verify(NAME)
    assert caught.value.hint.endswith("--repair")

    bring(is_repair=True)
    verify(NAME)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": 2}', b'{"schema": 1, "files": [{"name": "../x"}]}'])
def test_damaged_lock_is_named_and_a_pull_mends_it(bring: Callable[..., Path], content: bytes) -> None:
    lock = bring() / "lock.json"
    lock.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"lock\.json is damaged"):
        locate(NAME)
    bring()
    verify(NAME)


# -- folders of one's own -------------------------------------------------------------------------------------


@pytest.fixture
def own(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that a person filled, below AFTERWORDS_MODELS."""
    folder = tmp_path / "own" / NAME
    for name in WANTED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(hub.files[name])
    monkeypatch.setenv("AFTERWORDS_MODELS", str(folder.parent))
    return folder


def test_folder_of_ones_own_goes_before_what_was_pulled(hub: LoopbackHub, own: Path) -> None:
    pulled = pull(NAME, Config(home=load_config().home))
    assert locate(NAME) == own != pulled
    assert (standing(NAME).is_pulled, standing(NAME).revision) == (False, None)


def test_what_was_pulled_serves_where_the_own_folder_has_none(
    bring: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled = bring()
    monkeypatch.setenv("AFTERWORDS_MODELS", str(tmp_path / "own"))
    assert locate(NAME) == pulled


def test_models_are_pulled_to_the_folder_that_is_set(
    bring: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFTERWORDS_MODELS", str(tmp_path / "own"))
    assert bring() == tmp_path / "own" / NAME == locate(NAME)


@pytest.mark.parametrize("name", ["config.json", "vocab.json", WEIGHTS, "speech_tokenizer/model.safetensors"])
def test_file_that_the_own_folder_lacks_is_named(own: Path, bring: Callable[..., Path], name: str) -> None:
    (own / name).unlink()
    with pytest.raises(ModelFileError, match="is missing"):
        locate(NAME)
    with pytest.raises(ModelFileError, match="is missing"):  # and a pull does not touch it
        bring()


@pytest.mark.parametrize("length", [0, 4, 20, 400_000])
def test_cut_weights_in_the_own_folder_are_named(own: Path, length: int) -> None:
    (own / WEIGHTS).write_bytes((own / WEIGHTS).read_bytes()[:length])
    with pytest.raises(ModelFileError, match=WEIGHTS):
        locate(NAME)


def test_shard_that_an_index_names_must_be_there(own: Path) -> None:
    index = {"weight_map": {"a": WEIGHTS, "b": "model-2.safetensors"}}
    (own / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFileError, match=r"model-2\.safetensors is missing"):
        locate(NAME)


def test_own_folder_is_neither_removed_nor_replaced(own: Path, bring: Callable[..., Path]) -> None:
    with pytest.raises(ForeignModelError):
        remove(NAME)
    for wish in ("is_update", "is_repair"):
        with pytest.raises(ForeignModelError):
            bring(**{wish: True})
    assert verify(NAME).path == own


# -- removing -------------------------------------------------------------------------------------------------


def test_removed_model_is_gone(bring: Callable[..., Path]) -> None:
    folder = bring()
    assert remove(NAME) == folder
    assert standing(NAME).state is State.ABSENT
    assert not [path for path in folder.parent.iterdir() if path.is_dir()]
    with pytest.raises(ModelNotHereError):
        remove(NAME)


def test_broken_pull_can_be_removed(hub: LoopbackHub, bring: Callable[..., Path]) -> None:
    hub.spoils = 2
    with pytest.raises(ModelFileError):
        bring()
    remove(NAME)
    assert standing(NAME).state is State.ABSENT


@pytest.mark.parametrize("act", [locate, pull, remove, verify, standing])
def test_model_that_nobody_knows_is_refused(act: Callable[[str], object]) -> None:
    with pytest.raises(UnknownModelError, match="no model 'gpt'") as caught:
        act("gpt")
    assert isinstance(caught.value, AfterwordsError)
    assert NAME in caught.value.hint
