"""``convert``: one source folder (or archive, or file) in one format into one CocoVID folder."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stdetr.atomic import publish
from stdetr.datasets.converters.archive import extract, is_archive
from stdetr.datasets.converters.coco_vid_writer import Counts
from stdetr.datasets.converters.conversion import Conversion, work_folder
from stdetr.datasets.converters.media import MediaLinker, check_link
from stdetr.datasets.converters.options import Options, SplitRules
from stdetr.datasets.converters.problems import Problems
from stdetr.datasets.converters.records import Reader
from stdetr.datasets.converters.source_tree import VIDEO_SUFFIXES, SourceTree
from stdetr.names import did_you_mean, nearest_file

FORMATS = {
    "imagenet_vid": "imagenet_vid:ImageNetVidReader",
    "youtube_vis": "youtube_vis:YoutubeVisReader",
    "ovis": "youtube_vis:YoutubeVisReader",
    "lvvis": "youtube_vis:LvvisReader",
    "tao": "tao:TaoReader",
    "mot": "mot:MotReader",
    "dancetrack": "mot:MotReader",
    "bdd100k": "bdd100k:Bdd100kReader",
    "ua_detrac": "ua_detrac:UaDetracReader",
    "visdrone_vid": "visdrone_vid:VisdroneVidReader",
    "argoverse_hd": "argoverse_hd:ArgoverseHdReader",
    "epic_kitchens": "epic_kitchens:EpicKitchensReader",
    "coco": "coco:CocoReader",
    "cvat": "cvat:CvatReader",
    "videos": "video_folder:VideoFolderReader",
}
"""Format name -> module and class in this package; imported on demand."""


def reader_class(name: str) -> type[Reader]:
    """The reader of a format.

    Raises:
        ValueError: unknown name, with the nearest valid one.
    """
    if name not in FORMATS:
        hint = did_you_mean(str(name).lower(), FORMATS) or ";"
        raise ValueError(f"format={name} is unknown{hint} known are {', '.join(sorted(FORMATS))}")
    module, attribute = FORMATS[name].split(":")
    return getattr(importlib.import_module(f"stdetr.datasets.converters.{module}"), attribute)


def convert(
    format: str,
    source: str | Path,
    output: str | Path,
    *,
    strict: bool = True,
    link: str = "auto",
    follow_links: bool = False,
    splits: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Counts], Problems]:
    """Convert ``source`` into ``output/<split>.json`` with ``output/videos``.

    strict: refuse the first malformed record; else skip such records and list them in ``output/skipped.txt``
    link: how frames get there, see :class:`MediaLinker`
    splits: rules as in :class:`SplitRules`
    options: keys of :class:`Options`

    Returns the counts of each output file, and what was skipped or left out.  Nothing in ``output`` is replaced unless
    the whole conversion succeeds.

    Raises:
        ValueError: unknown format, bad key, malformed source (MalformedInputError names file, record and reason).
        FileNotFoundError: the source, or a file that the format requires, is missing.
    """
    reader_type = reader_class(format)
    check_link(link)
    source, output, keys = Path(source), Path(output), dict(options or {})
    rules = SplitRules(splits)
    Options.from_keys(keys, reader_type.accepted, format)
    if not source.exists():
        raise FileNotFoundError(f"source={source}: no such file or folder{nearest_file(source)}")
    if output.exists() and not output.is_dir():
        raise ValueError(f"output={output} is a file; give a folder")
    if source.is_dir() and source.resolve() in (output.resolve(), *output.resolve().parents):
        raise ValueError(f"output={output} lies inside source={source}; choose a folder outside of it")
    with work_folder(output) as work:
        root = source if source.is_dir() else source.parent
        if is_archive(source):
            root = extract(source, output / "source")
        elif source.is_file():
            # A file means its folder, with that file as the video or the annotation file.
            role = "video" if source.suffix.lower() in VIDEO_SUFFIXES else "annotations"
            if role not in reader_type.accepted:
                raise ValueError(f"source={source} is a file; this format needs the folder of the data set")
            keys[role] = source.name
        tree = SourceTree(root, follow_links)
        problems = Problems(strict, work / "skipped.txt")
        reader = reader_type(tree, Options.from_keys(keys, reader_type.accepted, format), problems)
        info = {"format": format, "source": source.resolve().name}
        counts = Conversion(reader, output, MediaLinker(tree, output, link), rules, problems, info).run(work)
        if problems.skipped:
            publish(work / "skipped.txt", output / "skipped.txt")
        else:
            (output / "skipped.txt").unlink(missing_ok=True)
    return counts, problems
