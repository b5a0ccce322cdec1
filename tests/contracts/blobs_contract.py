"""The contract of the port `Blobs`. The tests of each adapter inherit it and define the fixture `blobs`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest

from afterwords.server.ports import Blobs
from afterwords.server.records import BlobInfo

VOICE, OTHER = "voices/0c6f2f0e", "voices/0c6f2f0e-2"
AUDIO = bytes(range(256)) * 600  # 150 KB
LARGE = bytes(range(256)) * 8192  # 2 MiB: some adapters read it differently


class Chunks:
    """LARGE `n_chunks` times."""

    def __init__(self, n_chunks: int) -> None:
        self._n_chunks = n_chunks
        self.size_bytes = n_chunks * len(LARGE)

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(self._n_chunks):
            yield LARGE


async def everything(blobs: Blobs, prefix: str = "") -> dict[str, BlobInfo]:
    return {blob.path: blob async for batch in blobs.listing(prefix) for blob in batch}


@pytest.mark.anyio
class BlobsContract:
    """Tests of any storage."""

    signs_urls = False

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.mark.parametrize("data", [b"", b"x", AUDIO, LARGE], ids=["empty", "byte", "audio", "large"])
    @pytest.mark.parametrize("is_durable", [True, False])
    async def test_get_returns_what_was_put(self, blobs: Blobs, data: bytes, is_durable: bool) -> None:
        await blobs.put(f"{VOICE}/ref.wav", data, is_durable=is_durable)
        assert await blobs.get(f"{VOICE}/ref.wav") == data
        assert await blobs.get(f"{VOICE}/ref.wav", sha256=sha256(data).hexdigest()) == data

    @pytest.mark.parametrize("n_chunks", [1, 9], ids=["large", "very large"])
    async def test_get_returns_what_was_put_in_chunks(self, blobs: Blobs, n_chunks: int) -> None:
        await blobs.put("jobs/1.wav", Chunks(n_chunks))
        assert await blobs.get("jobs/1.wav") == LARGE * n_chunks
        assert list(await everything(blobs)) == ["jobs/1.wav"]

    @pytest.mark.parametrize("data", [b"x", LARGE], ids=["byte", "large"])
    async def test_open_blob_is_read_in_chunks(self, blobs: Blobs, data: bytes) -> None:
        await blobs.put("jobs/1.wav", data)
        reader = await blobs.open("jobs/1.wav", sha256=sha256(data).hexdigest())
        assert reader is not None
        try:
            assert reader.size_bytes == len(data)
            assert reader.chunk_bytes > 0
            assert await reader.read(0, reader.size_bytes + 10) == data
            half = len(data) // 2
            assert await reader.read(half, 100) == data[half : half + 100]
            assert await reader.read(len(data), 1) == b""
        finally:
            reader.close()

    @pytest.mark.parametrize("data", [b"x", LARGE], ids=["byte", "large"])
    async def test_missing_or_altered_blob_is_not_opened(self, blobs: Blobs, data: bytes) -> None:
        digest = sha256(data).hexdigest()
        assert await blobs.open("jobs/1.wav", sha256=digest) is None
        await blobs.put("jobs/1.wav", data[:-1] + b"\0")
        assert await blobs.open("jobs/1.wav", sha256=digest) is None

    async def test_blob_that_was_never_put_is_missing(self, blobs: Blobs) -> None:
        assert await blobs.get("jobs/1.wav") is None
        assert not await blobs.exists("jobs/1.wav")

    async def test_folder_is_not_a_blob(self, blobs: Blobs) -> None:
        await blobs.put(f"{VOICE}/ref.wav", b"x")
        assert await blobs.get(VOICE) is None
        assert not await blobs.exists(VOICE)
        await blobs.delete(VOICE)
        assert await blobs.exists(f"{VOICE}/ref.wav")

    async def test_blob_is_not_a_folder(self, blobs: Blobs) -> None:
        await blobs.put("jobs/1.wav", b"x")
        assert await blobs.get("jobs/1.wav/2.wav") is None
        assert not await blobs.exists("jobs/1.wav/2.wav")
        assert await everything(blobs, "jobs/1.wav/") == {}

    @pytest.mark.parametrize("data", [AUDIO, LARGE], ids=["audio", "large"])
    async def test_blob_with_another_digest_is_missing(self, blobs: Blobs, data: bytes) -> None:
        await blobs.put("jobs/1.wav", data)
        digest = sha256(data).hexdigest()
        for altered in (data[:-1], data[:99] + b"\0" + data[100:], b""):
            await blobs.put("jobs/1.wav", altered)
            assert await blobs.get("jobs/1.wav", sha256=digest) is None
            assert await blobs.exists("jobs/1.wav")

    async def test_second_put_replaces_the_first(self, blobs: Blobs) -> None:
        await blobs.put("jobs/1.wav", AUDIO)
        await blobs.put("jobs/1.wav", b"short")
        assert await blobs.get("jobs/1.wav") == b"short"
        assert list(await everything(blobs)) == ["jobs/1.wav"]

    async def test_concurrent_puts_leave_one_complete_blob(self, blobs: Blobs) -> None:
        written = [bytes([number]) * 100_000 for number in range(20)]
        await asyncio.gather(*(blobs.put("voices/a/cache/b.wav", data) for data in written))
        assert await blobs.get("voices/a/cache/b.wav") in written
        assert list(await everything(blobs)) == ["voices/a/cache/b.wav"]

    async def test_concurrent_deletions_do_not_break_puts(self, blobs: Blobs) -> None:
        puts = [blobs.put(f"jobs/{number}.wav", b"x") for number in range(20)]
        deletions = [blobs.delete(f"jobs/{number}-2.wav") for number in range(20)]
        await asyncio.gather(*(step for pair in zip(puts, deletions, strict=True) for step in pair))
        assert len(await everything(blobs)) == 20

    async def test_delete_removes_only_the_given_blobs(self, blobs: Blobs) -> None:
        for name in "abc":
            await blobs.put(f"jobs/{name}.wav", b"x")
        await blobs.delete("jobs/a.wav", "jobs/b.wav")
        assert list(await everything(blobs)) == ["jobs/c.wav"]

    async def test_deleting_a_missing_blob_is_ignored(self, blobs: Blobs) -> None:
        await blobs.delete()
        await blobs.delete("jobs/1.wav", "jobs/deep/er/2.wav")
        await blobs.delete_all("voices/none/")
        assert await everything(blobs) == {}

    async def test_delete_all_keeps_folders_with_a_longer_name(self, blobs: Blobs) -> None:
        for path in (f"{VOICE}/ref.wav", f"{VOICE}/cache/a.wav", f"{VOICE}/prompts/b.bin", f"{OTHER}/ref.wav"):
            await blobs.put(path, b"x")
        await blobs.delete_all(f"{VOICE}/")
        assert list(await everything(blobs)) == [f"{OTHER}/ref.wav"]

    async def test_listing_has_size_and_time_of_all_blobs(self, blobs: Blobs) -> None:
        await blobs.put(f"{VOICE}/cache/a.wav", AUDIO)
        await blobs.put(f"{OTHER}/ref.wav", b"x")
        found = await everything(blobs, f"{VOICE}/")
        assert {path: blob.size_bytes for path, blob in found.items()} == {f"{VOICE}/cache/a.wav": len(AUDIO)}
        modified_at = found[f"{VOICE}/cache/a.wav"].modified_at
        assert modified_at.utcoffset() == timedelta(0)
        assert abs(datetime.now(UTC) - modified_at) < timedelta(minutes=1)

    async def test_listing_has_batches_and_may_end_early(self, blobs: Blobs) -> None:
        await asyncio.gather(*(blobs.put(f"jobs/{number}.wav", b"", is_durable=False) for number in range(510)))
        sizes = [len(batch) async for batch in blobs.listing()]
        assert sum(sizes) == 510
        assert len(sizes) > 1
        async for batch in blobs.listing("jobs"):
            await blobs.delete(*(blob.path for blob in batch))
            break
        assert 0 < len(await everything(blobs)) < 510

    async def test_only_a_bucket_signs_urls_and_only_of_blobs(self, blobs: Blobs) -> None:
        assert await blobs.signed_url("jobs/1.wav") is None
        await blobs.put("jobs/1.wav", b"x")
        assert (await blobs.signed_url("jobs/1.wav") is not None) == self.signs_urls

    async def test_check_leaves_nothing_behind(self, blobs: Blobs) -> None:
        await blobs.check()
        assert await everything(blobs) == {}

    @pytest.mark.parametrize(
        "path",
        [
            *("/", "/etc/passwd", "a//b", "a/", "..", "../a", "a/../b", "a/..", "a..b", ".", "a/./b"),
            *("A", "ä", "１", "a\\b", "a#1", "a_b", "~", "a%2fb", "", "a b", "a\0", "a\n", "\ud800"),
        ],
    )
    async def test_invalid_path_raises_before_anything_happens(self, blobs: Blobs, path: str) -> None:
        await blobs.put("a", b"x")
        for step in (blobs.put(path, b""), blobs.get(path), blobs.exists(path), blobs.delete("a", path)):
            with pytest.raises(ValueError, match="not the path"):
                await step
        if path != "a/":  # a folder may end in a slash
            with pytest.raises(ValueError, match="not the path"):
                await blobs.delete_all(path)
            if path:
                with pytest.raises(ValueError, match="not the path"):
                    await everything(blobs, path)
        assert list(await everything(blobs)) == ["a"]
