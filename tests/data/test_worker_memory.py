"""The way of a batch from a worker to the process that trains: it arrives unchanged, and no memory stays behind."""

from __future__ import annotations

import pickle
import shutil
from collections import namedtuple
from multiprocessing.reduction import ForkingPickler
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pytest
import torch

from stdetr.data import worker_memory
from stdetr.data.coco_vid_reader import read_coco_vid
from stdetr.data.collate import Collate, DecodedClip
from stdetr.data.dataset import ClipDataset
from stdetr.data.loader import ClipLoader, build_loader, in_turn
from stdetr.data.sampling import CoveringWindows
from stdetr.data.transforms import ClipTransform
from stdetr.data.worker_memory import Attachments, SharedRing, WorkerCollate
from stdetr.structures import Clip, ClipBatch, ClipInfo, ClipTargets, PixelScale

PIXELS = PixelScale((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))


def clip(frames: int, height: int, width: int, seed: int, decoded: bool = True) -> Clip | DecodedClip:
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    info = ClipInfo(1, tuple(range(frames)), tuple(range(frames)), (height, width))
    found = DecodedClip(list(pixels), ClipTargets.empty(frames), info)
    return found if decoded else found.stacked()


def sent(collate: WorkerCollate, clips: list) -> bytes:
    return ForkingPickler.dumps(collate(clips)).tobytes()


def arrived(message: bytes) -> ClipBatch:
    batch = pickle.loads(message)
    assert isinstance(batch, ClipBatch)
    return batch


@pytest.fixture
def collate():
    made = WorkerCollate(Collate(8, PIXELS), ahead=1)
    yield made
    if made._ring is not None:
        made._ring.close()


@pytest.mark.parametrize("decoded", [True, False])
def test_a_batch_arrives_as_it_was(collate, decoded: bool) -> None:
    clips = [clip(2, 5, 9, 0, decoded), clip(3, 8, 4, 1, decoded)]
    want = Collate(8, PIXELS)(clips)
    have = arrived(sent(collate, clips))
    assert have.frames.shape == (2, 3, 3, 8, 16)
    assert torch.equal(have.frames, want.frames)
    assert have.frames.stride() == want.frames.stride()
    assert (have.pixels, have.infos) == (want.pixels, want.infos)
    for name in ("sizes", "frame_mask", "frame_index"):
        assert torch.equal(getattr(have, name), getattr(want, name))


def test_floats_and_a_single_pixel_keep_their_layout() -> None:
    collate = WorkerCollate(Collate(1, None), ahead=0)
    moved = Clip(torch.arange(6.0).view(2, 3, 1, 1), ClipTargets.empty(2), ClipInfo(1, (0, 1), (0, 1), (1, 1)))
    assert torch.equal(arrived(sent(collate, [moved])).frames, moved.frames[None])
    narrow = WorkerCollate(Collate(1, PIXELS), ahead=0)
    thin = clip(2, 7, 1, 3)
    assert torch.equal(arrived(sent(narrow, [thin])).frames, thin.stacked().frames[None])


def test_blocks_are_used_in_turn_and_grow(collate) -> None:
    small, large = clip(1, 8, 8, 0), clip(4, 40, 40, 1)
    messages = [sent(collate, [small]) for _ in range(3)]
    names = [block.name for block in collate._ring._blocks]
    assert len(set(names)) == 3  # ahead + 2
    for message in messages:
        assert torch.equal(arrived(message).frames, small.stacked().frames[None])
    found = arrived(sent(collate, [large]))
    assert torch.equal(found.frames, large.stacked().frames[None])
    blocks = collate._ring._blocks
    assert [block.name for block in blocks][1:] == names[1:]
    assert blocks[0].size >= 4 * 40 * 40 * 3
    with pytest.raises(FileNotFoundError):
        SharedMemory(names[0])  # the small one is gone
    again = sent(collate, [small])  # takes the second
    assert [block.name for block in collate._ring._blocks] == [block.name for block in blocks]
    assert torch.equal(arrived(again).frames, small.stacked().frames[None])


def test_a_message_is_small(collate) -> None:
    message = sent(collate, [clip(5, 64, 64, 0)])
    assert len(message) < 2000
    assert message.count(b"rebuild_storage_fd") == 0  # no descriptor, which each take a connection to send


def test_blocks_stay_mapped_while_they_are_used() -> None:
    ring, here = SharedRing(3), Attachments()
    blocks = [ring.take(8) for _ in range(3)]
    for number, block in enumerate(blocks):
        block.buf[:8] = bytes([number] * 8)
    for turn in range(4):
        for number, block in enumerate(blocks):
            assert here.copy(block.name, 5, torch.uint8).tolist() == [number] * 5
            assert len(here) == (number + 1 if turn == 0 else 3)
    ring.close()  # the worker has gone
    other = SharedRing(1)
    block = other.take(8)
    block.buf[:8] = bytes(range(8))
    mapped = []
    for _ in range(9):
        assert here.copy(block.name, 3, torch.uint8).tolist() == [0, 1, 2]
        mapped.append(len(here))
    # The first three were used last in calls 10, 11 and 12.  Call 19 is the first that lies more than 2 x 4 calls after
    # one of them; three are left, and in call 20 the other two lie more than 2 x 3 calls back.
    assert mapped == [4] * 6 + [3, 1, 1]
    other.close()
    with pytest.raises(FileNotFoundError):
        here.copy(blocks[0].name, 1, torch.uint8)


def test_closing_removes_the_blocks() -> None:
    ring = SharedRing(2)
    names = [ring.take(100).name, ring.take(200).name]
    ring.close()
    for name in names:
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)
    ring.close()


def test_too_little_shared_memory_is_one_line(monkeypatch) -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("this system has no /dev/shm")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(64e6, 60e6, 4e6))
    ring = SharedRing(1)
    with pytest.raises(
        ValueError, match=r"has 4 MB left, a batch needs 5 MB: use fewer data\.loader\.num_workers"
    ) as e:
        ring.take(5_000_000)
    assert "\n" not in str(e.value)
    assert ring.take(1000).size >= 1000
    ring.close()


def loader(toy: Path, workers: int, **keys) -> ClipLoader:
    index = read_coco_vid(toy / "val.json")
    transform = ClipTransform(mean=(0.5,) * 3, std=(0.25,) * 3)
    dataset = ClipDataset(index, toy, CoveringWindows(1), transform)
    return build_loader(dataset, 1, shuffle=False, num_workers=workers, **keys)


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (2, 3)])
def test_no_batch_is_overwritten_while_it_waits(small_toy: Path, workers: int, prefetch: int, monkeypatch) -> None:
    """All batches of two epochs are kept and compared at the end; an epoch that was left early does no harm."""
    names, receive = set(), worker_memory._receive

    def recorded(name: str, *rest) -> ClipBatch:
        names.add(name)
        return receive(name, *rest)

    monkeypatch.setattr(worker_memory, "_receive", recorded)
    alone = [batch.frames for batch in loader(small_toy, 0)]
    assert len(alone) > workers * (prefetch + 2)
    several = loader(small_toy, workers, prefetch=prefetch)
    next(iter(several))
    kept = [batch.frames for _ in range(2) for batch in several]
    order = in_turn(len(alone), workers)
    for have, number in zip(kept, [*order, *order], strict=True):
        assert torch.equal(have, alone[number])
    assert len(names) == workers * (prefetch + 2)
    del several  # the workers end, and their blocks with them
    for name in names:
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)
