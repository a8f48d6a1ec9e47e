"""What upstreams still serve of the domains: addresses and checksums as torchvision 0.29 has them.

The checksum of FGVC-Aircraft, which torchvision does not have, is the one its authors publish beside the archive.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cl_runner.benchmarks.sources.source import Progress, Say, check_md5, file_md5
from cl_runner.downloads import download
from cl_runner.unpacking import unpack, unpack_member

_VGG = "https://www.robots.ox.ac.uk/~vgg/data"


@dataclass(frozen=True)
class Download:
    """A file to fetch.

    Attributes:
        url, md5: of the file.
        archive: where it goes, below data_root.
        gives: what it unpacks to beside itself, below data_root; the file itself where it is no archive.
        inner: an archive inside a zip that holds what is wanted.
    """

    url: str
    md5: str
    archive: str
    gives: str
    inner: str = ""


DOWNLOADS: dict[str, tuple[Download, ...]] = {
    "aircraft": (
        Download(
            f"{_VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
            "d4acdd33327262359767eeaa97a4f732",
            "fgvc-aircraft-2013b.tar.gz",
            "fgvc-aircraft-2013b",
        ),
    ),
    "caltech101": (
        Download(
            "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
            "3138e1922a9193bfa496528edbbc45d0",
            "caltech101/caltech-101.zip",
            "caltech101/101_ObjectCategories",
            inner="caltech-101/101_ObjectCategories.tar.gz",
        ),
    ),
    "dtd": (
        Download(
            f"{_VGG}/dtd/download/dtd-r1.0.1.tar.gz",
            "fff73e5086ae6bdbea199a49dfb8a4c1",
            "dtd/dtd-r1.0.1.tar.gz",
            "dtd/dtd",
        ),
    ),
    "eurosat": (
        Download(
            "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
            "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
            "c8fa014336c82ac7804f0398fcb19387",
            "eurosat/EuroSAT.zip",
            "eurosat/2750",
        ),
    ),
    "flowers": (
        Download(
            f"{_VGG}/flowers/102/102flowers.tgz",
            "52808999861908f626f3c1f4e79d11fa",
            "flowers-102/102flowers.tgz",
            "flowers-102/jpg",
        ),
        *(
            Download(f"{_VGG}/flowers/102/{file}", md5, f"flowers-102/{file}", f"flowers-102/{file}")
            for file, md5 in (
                ("imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
                ("setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
            )
        ),
    ),
    "food101": (
        Download(
            "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
            "85eeb15f3717b99a5da872d97d918f87",
            "food-101.tar.gz",
            "food-101",
        ),
    ),
    "pets": tuple(
        Download(f"{_VGG}/pets/data/{part}.tar.gz", md5, f"oxford-iiit-pet/{part}.tar.gz", f"oxford-iiit-pet/{part}")
        for part, md5 in (
            ("images", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
            ("annotations", "95a8c909bbe2e81eed6a22bccdf3f68f"),
        )
    ),
    "sun397": (
        Download(
            "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
            "8ca2778205c41d23104230ba66911c7a",
            "SUN397.tar.gz",
            "SUN397",
        ),
    ),
}
"""By domain; Stanford Cars is served no more, MNIST and CIFAR-100 are fetched by their own sources."""


def fetch(item: Download, root: Path, key: str, say: Say, progress: Progress | None = None) -> None:
    """Downloads and unpacks what is not there yet; an interrupted download is continued.

    Raises:
        RequestError: there is no network, or the archive is not the official one.
    """
    archive, target = root / item.archive, root / item.gives
    if target.exists():
        return
    if archive.is_file():
        check_md5(file_md5(archive, key), item.md5, archive, key, "remove it and run the command again")
    else:
        say(f"downloading {item.url} to {archive}")
        download(item.url, archive, item.md5, key, progress)
    if target == archive:
        return
    say(f"unpacking {archive}")
    if item.inner:
        inner = unpack_member(archive, item.inner, key)
        unpack(inner, PurePosixPath(item.gives).name, key)
        inner.unlink(missing_ok=True)
    else:
        unpack(archive, PurePosixPath(item.gives).name, key)
