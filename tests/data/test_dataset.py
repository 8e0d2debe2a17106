"""From annotation file to batch: targets, padding, masks, and results that do not depend on workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from stdetr.data.coco_vid import read_coco_vid
from stdetr.data.collate import Collate, continue_count, pad_batch
from stdetr.data.dataset import ClipDataset, clip_seed, pack_tracks
from stdetr.data.loader import EpochBatches, build_loader, video_batches
from stdetr.data.sampling import CoveringWindows, RandomWindows
from stdetr.data.transforms import ClipTransform
from stdetr.structures import Clip, ClipInfo, ClipTargets
from stdetr.video.cache import MemoryCache
from stdetr.video.frame_folder import FrameFolder, read_image

NORMALISE = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def _toy(folder: Path, split: str = "train", frames: int = 5, train: bool = True) -> ClipDataset:
    index = read_coco_vid(folder / f"{split}.json")
    if train:
        flips = [v2.RandomHorizontalFlip(), v2.ColorJitter(0.3, 0.3)]
        return ClipDataset(
            index, folder, RandomWindows(frames), ClipTransform(flips, **NORMALISE), cache=MemoryCache(), seed=3
        )
    return ClipDataset(index, folder, CoveringWindows(frames), ClipTransform([], **NORMALISE))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of image files: three frames of 8x6 px with two tracks, one of them a crowd on the last frame."""
    root = tmp_path_factory.mktemp("images")
    for t in range(3):
        Image.fromarray(np.full((6, 8, 3), 50 * t, np.uint8)).save(root / f"{t}.png")
    size = {"width": 8, "height": 6}
    document = {
        "videos": [{"id": 5, "name": "clip", "length": 3, **size}],
        "images": [{"id": 10 + t, "video_id": 5, "frame_id": t, "file_name": f"{t}.png", **size} for t in range(3)],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 2, "instance_id": 7, "bbox": [0, 0, 4, 3]},
            {"id": 2, "image_id": 12, "category_id": 2, "instance_id": 7, "bbox": [4, 3, 4, 3]},
            {"id": 3, "image_id": 12, "category_id": 1, "instance_id": 8, "bbox": [2, 0, 2, 6], "iscrowd": 1},
            {"id": 4, "image_id": 11, "category_id": 1, "bbox": [1, 1, 2, 2]},
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    (root / "train.json").write_text(json.dumps(document))
    return root


def test_targets_by_hand(images: Path) -> None:
    dataset = ClipDataset(read_coco_vid(images / "train.json"), images, CoveringWindows(3), ClipTransform())
    assert len(dataset) == 1
    clip = dataset[0]
    assert clip.frames[:, 0, 0, 0].tolist() == [0, 50, 100]
    targets = clip.targets
    assert targets.track_ids.tolist() == [7, -1, 8]
    assert targets.labels.tolist() == [1, 0, 0]
    assert targets.present.tolist() == [[True, False, True], [False, True, False], [False, False, True]]
    assert targets.valid.tolist() == [[True, False, True], [False, True, False], [False, False, False]]
    torch.testing.assert_close(targets.boxes[0, 0], torch.tensor([0.25, 0.25, 0.5, 0.5]))
    torch.testing.assert_close(targets.boxes[0, 2], torch.tensor([0.75, 0.75, 0.5, 0.5]))
    assert targets.boxes[0, 1].tolist() == [0, 0, 0, 0]
    assert clip.info == ClipInfo(5, (0, 1, 2), (10, 11, 12), (6, 8), "clip", (), clip_seed(0, 0, 0), last=True)


def _turned(path: Path, orientation: int, width: int = 40, height: int = 20) -> None:
    """A picture whose left upper corner is bright as it is stored, with an EXIF tag."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = 200
    tag = Image.Exif()
    tag[0x0112] = orientation
    Image.fromarray(pixels).save(path, quality=95, exif=tag.tobytes())


@pytest.mark.parametrize(
    ("orientation", "annotated", "shape", "bright"),
    [
        # 6: to be shown turned clockwise, so the bright corner comes to the upper right.  3: upside down.
        (6, (20, 40), (20, 40), (0, 0)),  # annotated as stored (COCO)
        (6, (40, 20), (40, 20), (0, 1)),  # annotated as shown
        (3, (20, 40), (20, 40), (0, 0)),  # the size cannot tell: as stored
        (1, (20, 40), (20, 40), (0, 0)),
        (6, None, (40, 20), (0, 1)),  # nothing annotated: as shown
        (3, None, (20, 40), (1, 1)),
        (6, (99, 7), (20, 40), (0, 0)),  # neither fits: as stored, and the dataset then names both sizes
    ],
)
def test_exif_orientation(orientation: int, annotated, shape, bright, tmp_path: Path) -> None:
    _turned(tmp_path / "photo.jpg", orientation)
    picture = read_image(tmp_path / "photo.jpg", annotated).astype(int)
    assert picture.shape[:2] == shape
    corners = picture[:: shape[0] - 1, :: shape[1] - 1].mean(axis=2)
    assert np.unravel_index(corners.argmax(), (2, 2)) == bright
    assert (np.sort(corners.flatten())[:3] < 30).all()
    if annotated != (99, 7):
        source = FrameFolder("photo", [tmp_path / "photo.jpg"], annotated=annotated)
        np.testing.assert_array_equal(source.read([0])[0], picture)
        assert source.size == shape


@pytest.mark.parametrize(("height", "width"), [(20, 40), (40, 20)])
def test_annotated_photographs_follow_the_annotated_size(height: int, width: int, tmp_path: Path) -> None:
    _turned(tmp_path / "photo.jpg", 6)
    document = {
        "videos": [{"id": 1, "name": "photo", "width": width, "height": height, "length": 1}],
        "images": [{"id": 1, "video_id": 1, "frame_id": 0, "file_name": "photo.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5]}],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(document))
    dataset = ClipDataset(read_coco_vid(tmp_path / "coco.json"), tmp_path, CoveringWindows(1), ClipTransform())
    assert dataset[0].frames.shape == (1, 3, height, width)


def test_two_boxes_with_one_id_on_a_frame_stay_two() -> None:
    targets = pack_tracks(
        image=np.array([0, 0, 1, 1]),
        boxes=np.random.default_rng(0).random((4, 4), np.float32),
        labels=np.array([1, 1, 1, 0]),
        tracks=np.array([4, 4, 4, 4]),
        ignored=np.zeros(4, np.bool_),
        frames=2,
    )
    assert targets.present.int().sum() == 4
    assert targets.present.tolist() == [[True, True], [True, False], [False, True]]
    assert targets.labels.tolist() == [1, 1, 0]


def test_wrong_files_are_named(images: Path, small_toy: Path, tmp_path: Path) -> None:
    index = read_coco_vid(small_toy / "train.json")
    with pytest.raises(FileNotFoundError, match=r"00000\.mp4 does not exist, but .*train\.json names it.*data\.root="):
        ClipDataset(index, tmp_path, CoveringWindows(3), ClipTransform())
    document = json.loads((images / "train.json").read_text())
    for record in (*document["videos"], *document["images"]):
        record["width"] = 9
    (images / "wide.json").write_text(json.dumps(document))
    dataset = ClipDataset(read_coco_vid(images / "wide.json"), images, CoveringWindows(3), ClipTransform())
    with pytest.raises(ValueError, match=r"has frames of 8x6, but .* says 9x6"):
        dataset[0]
    with pytest.raises(IndexError):
        dataset[1]


def _clip(frames: int, height: int, width: int, tracks: int, start: int = 0, step: int = 1) -> Clip:
    index = tuple(range(start, start + frames * step, step))
    targets = ClipTargets(
        torch.zeros(tracks, dtype=torch.int64),
        torch.rand(tracks, frames, 4),
        torch.ones(tracks, frames, dtype=torch.bool),
        torch.zeros(tracks, frames, dtype=torch.bool),
        torch.arange(tracks),
    )
    return Clip(torch.ones(frames, 3, height, width), targets, ClipInfo(1, index, index, (height, width)))


def test_collation_pads_right_bottom_and_in_time() -> None:
    batch = Collate(16)([_clip(2, 17, 30, 3, start=4, step=3), _clip(4, 20, 9, 0), _clip(1, 5, 5, 1, start=9)])
    assert batch.frames.shape == (3, 4, 3, 32, 32)
    assert batch.sizes.tolist() == [[17, 30], [20, 9], [5, 5]]
    assert batch.frame_mask.tolist() == [[True, True, False, False], [True] * 4, [True, False, False, False]]
    assert batch.frame_index.tolist() == [[4, 7, 10, 13], [0, 1, 2, 3], [9, 10, 11, 12]]
    assert batch.frames.sum(dim=(1, 2, 3, 4)).tolist() == [2 * 3 * 17 * 30, 4 * 3 * 20 * 9, 3 * 25]
    assert batch.frames[0, :2, :, :17, :30].min() == 1
    assert [tuple(target.boxes.shape) for target in batch.targets] == [(3, 4, 4), (0, 4, 4), (1, 4, 4)]
    assert batch.targets[0].present.tolist() == [[True, True, False, False]] * 3
    assert [len(info.image_ids) for info in batch.infos] == [2, 4, 1]
    assert continue_count([3], 3) == [3, 4, 5]


def test_collation_refuses_raw_frames_and_nothing() -> None:
    clip = _clip(1, 4, 4, 0)
    raw = Clip(clip.frames.to(torch.uint8), clip.targets, clip.info)
    with pytest.raises(ValueError, match=r"must be normalised before they are batched \(data\.mean, data\.std\)"):
        Collate()([raw])
    with pytest.raises(ValueError, match=r"at least one clip"):
        Collate()([])


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_batch_of_bytes_is_normalised_when_asked(interleaved: bool) -> None:
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    transform = ClipTransform(mean=mean.tolist(), std=std.tolist())
    generator = torch.Generator().manual_seed(0)
    clips = []
    for frames, height, width in ((2, 17, 30), (4, 20, 9)):
        clip = _clip(frames, height, width, 1)
        pixels = torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=generator)
        planes = pixels.permute(0, 3, 1, 2)
        clips.append(Clip(planes if interleaved else planes.contiguous(), clip.targets, clip.info))
    raw = Collate(16, transform.pixels)(clips)
    assert raw.frames.dtype == torch.uint8
    assert (raw.frames.stride(2) == 1) == interleaved
    moved = raw.to("cpu")
    assert moved.frames.dtype == torch.uint8, "moving a batch leaves it as it is"
    assert torch.equal(moved.frames, raw.frames)
    ready = moved.normalised()
    assert ready.frames.is_contiguous()
    for number, clip in enumerate(clips):
        count, _, height, width = clip.frames.shape
        inner = ready.frames[number, :count, :, :height, :width]
        wanted = (clip.frames.double() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        torch.testing.assert_close(inner.double(), wanted, rtol=0, atol=1e-6)
        assert torch.equal(inner, transform.normalise(clip.frames))
        assert ready.frames[number].count_nonzero() == inner.count_nonzero()  # all padding is exactly 0
    assert ready.normalised() is ready
    assert torch.equal(raw.split_frames().normalised().frames, ready.split_frames().frames)


def test_padding_a_batch_is_as_good_as_batching_it_with_larger_clips() -> None:
    small, middle, large = _clip(2, 17, 30, 3, start=4, step=3), _clip(1, 5, 5, 0), _clip(4, 40, 50, 1)
    wanted = Collate(16)([small, middle, large])
    batch = Collate(16)([small, middle])
    assert pad_batch(batch, 2, 32, 32) is batch
    padded = pad_batch(batch, 4, 48, 64)
    for name in ("frames", "sizes", "frame_mask", "frame_index"):
        assert torch.equal(getattr(padded, name), getattr(wanted, name)[:2]), name
    for have, want in zip(padded.targets, wanted.targets, strict=False):
        for name in ClipTargets.__dataclass_fields__:
            assert torch.equal(getattr(have, name), getattr(want, name)), name


def test_single_frames_of_a_clip_have_seeds_of_their_own() -> None:
    clip = _clip(3, 8, 8, 1)
    batch = Collate(8)([replace(clip, info=replace(clip.info, seed=40))])
    assert [info.seed for info in batch.split_frames().infos] == [40, 41, 42]


def test_batches_by_epoch() -> None:
    batches = EpochBatches(10, 4, seed=1)
    assert len(batches) == 2
    first = list(batches)
    assert len({number for batch in first for _, number in batch}) == 8
    assert [len(batch) for batch in first] == [4, 4]
    assert list(batches) == first
    batches.start_at(1)
    second = list(batches)
    assert {epoch for batch in second for epoch, _ in batch} == {1}
    assert [n for b in second for _, n in b] != [n for b in first for _, n in b]
    batches.start_at(0, 1)
    assert list(batches) == first[1:]
    assert [len(batch) for batch in EpochBatches(10, 11)] == [10]
    with pytest.raises(ValueError, match=r"batch_size must be at least 1, got 0"):
        EpochBatches(10, 0)


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_processes_share_each_batch_without_overlap(processes: int) -> None:
    alone = list(EpochBatches(23, 7, seed=2))
    shares = [list(EpochBatches(23, 7, seed=2, share=(rank, processes))) for rank in range(processes)]
    for whole, *parts in zip(alone, *shares, strict=True):
        assert [clip for part in parts for clip in part] == whole
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
    # A run that goes on with another number of processes goes on with the same clips.
    resumed = EpochBatches(23, 7, seed=2, share=(0, processes))
    resumed.start_at(0, 2)
    assert list(resumed) == shares[0][2:]


def test_more_processes_than_clips_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size=4 counts the clips of all 8 processes together; it must be at"):
        EpochBatches(100, 4, share=(0, 8))
    with pytest.raises(ValueError, match=r"an epoch has 3 clips, too few for 4 processes"):
        EpochBatches(3, 4, share=(0, 4))


@pytest.mark.parametrize("processes", [1, 2, 3, 9])
def test_videos_are_shared_whole_and_batches_stay_the_same(processes: int) -> None:
    videos = np.repeat(np.arange(6), [5, 1, 8, 3, 3, 2])
    alone = video_batches(videos, 3)
    assert [[n for _, n in batch] for batch in alone[:4]] == [[0, 1, 2], [3, 4], [5], [6, 7, 8]]
    shares = [video_batches(videos, 3, share=(rank, processes)) for rank in range(processes)]
    assert sorted(batch for part in shares for batch in part) == alone
    shown = [{int(videos[n]) for batch in part for _, n in batch} for part in shares]
    assert sum(len(part) for part in shown) == 6, "no video is shared by two processes"
    if processes == 2:
        assert [sum(len(batch) for batch in part) for part in shares] == [11, 11]
    assert video_batches(np.zeros(0, np.int64), 3) == []
    with pytest.raises(ValueError, match=r"eval_batch_size must be at least 1, got 0"):
        video_batches(videos, 0)


def test_each_worker_reads_whole_videos() -> None:
    videos = np.repeat(np.arange(3), [4, 8, 5])
    batches = video_batches(videos, 2, workers=2)
    # Eight clips to the first worker, four and five to the second, which needs one batch more.
    first, second = [[4, 5], [6, 7], [8, 9], [10, 11]], [[0, 1], [2, 3], [12, 13], [14, 15], [16]]
    taken = [[n for _, n in batch] for batch in batches]
    assert taken[:8:2] == first
    assert taken[1:8:2] + taken[8:] == second
    assert sorted(taken) == sorted(first + second)


def test_workers_change_nothing(small_toy: Path) -> None:
    def batches(num_workers: int, epochs: tuple[int, ...], start_method: str = "forkserver") -> list[torch.Tensor]:
        loader = build_loader(
            _toy(small_toy), 3, shuffle=True, num_workers=num_workers, seed=5, start_method=start_method
        )
        found, workers = [], []
        for epoch in epochs:
            loader.start_at(epoch)
            for batch in loader:
                boxes = torch.cat([target.boxes.flatten() for target in batch.targets])
                seeds = torch.tensor([info.seed for info in batch.infos])
                found.append(torch.cat([batch.frames.flatten(), boxes, batch.frame_index.flatten(), seeds]))
            workers.append([] if num_workers == 0 else [worker.pid for worker in loader._iterator._workers])
        assert workers[0] == workers[1], "workers live through the epochs"
        assert len(workers[0]) == num_workers
        return found

    alone = batches(0, (0, 1))
    torch.manual_seed(123)
    torch.rand(7)
    for other in (batches(0, (0, 1)), batches(2, (0, 1))):
        assert len(other) == len(alone) == 2 * 4
        for one, two in zip(alone, other, strict=True):
            assert torch.equal(one, two)
    assert not torch.equal(alone[0], alone[5])


def test_a_transform_leaves_the_global_generator_alone(small_toy: Path) -> None:
    dataset = _toy(small_toy)
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    dataset[0]
    assert torch.equal(torch.rand(3), expected)


def test_evaluation_shows_every_image_once(small_toy: Path) -> None:
    dataset = _toy(small_toy, "val", train=False)
    loader = build_loader(dataset, 2, shuffle=False)
    ids = [image for batch in loader for info in batch.infos for image in info.image_ids if image >= 0]
    assert sorted(ids) == sorted(dataset.index.image_ids.tolist())
    degraded = {
        image: hit
        for batch in loader
        for info in batch.infos
        for image, hit in zip(info.image_ids, info.degraded, strict=True)
    }
    records = json.loads((small_toy / "val.json").read_text())["images"]
    assert all(degraded[record["id"]] == (record["degradation"] is not None) for record in records)


def test_fork_is_refused(small_toy: Path) -> None:
    with pytest.raises(ValueError, match=r"start_method must be spawn or forkserver, got 'fork'"):
        build_loader(_toy(small_toy), 2, shuffle=False, num_workers=1, start_method="fork")


KILLED = """
import os, signal, sys, multiprocessing
from stdetr.data.coco_vid import read_coco_vid
from stdetr.data.dataset import ClipDataset
from stdetr.data.loader import build_loader
from stdetr.data.sampling import CoveringWindows
from stdetr.data.transforms import ClipTransform
if __name__ == "__main__":
    index = read_coco_vid(sys.argv[1] + "/train.json")
    transform = ClipTransform(mean=(0.5,) * 3, std=(0.25,) * 3)
    dataset = ClipDataset(index, sys.argv[1], CoveringWindows(3), transform)
    batches = iter(build_loader(dataset, 1, shuffle=False, num_workers=1, start_method=sys.argv[2]))
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_workers_end_when_their_run_is_killed(start_method: str, small_toy: Path, tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "killed.py"), str(small_toy), start_method]
    with (tmp_path / "out").open("w") as out:  # no pipe: the worker would hold it open
        subprocess.run(command, stdout=out, stderr=subprocess.DEVNULL, timeout=300, check=False)
    (worker,) = (int(word) for word in (tmp_path / "out").read_text().split())
    for _ in range(600):
        state = Path(f"/proc/{worker}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived the process that it worked for by a minute")
