"""Published data sets: their files, where these can be downloaded, and their digests.

Digests are the publishers' own (MD5 for the older sets: they tell a damaged file from a whole one, and an archive from
another edition; they are no protection against somebody who forges one). LEAF's sets are made by LEAF's own scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Download:
    """A file: its name, the addresses it can be had from, and its digest, as in "md5:58c8...".

    `members` are the files of an archive that are unpacked beside it, under their last name; an archive without any is
    read as it is.
    """

    file: str
    urls: tuple[str, ...]
    digest: str
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A published data set. `folder` is its place in data.root; `advice` says how to get what no program can fetch."""

    folder: str
    downloads: tuple[Download, ...] = ()
    advice: str = ""


_IDX = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz")
_MNIST = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
_MNIST_MD5 = ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432", "9fb629c4189551a2d022fa330f9573f3",
              "ec29112dd5afa0611ce80d1b7f02629c")
_FASHION = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/")
_FASHION_MD5 = ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310")
#: The six ways in which EMNIST is cut.
EMNIST_SPLITS = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
_TORONTO = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
_TFF = "https://storage.googleapis.com/tff-datasets-public/"
_LEAF = ("LEAF publishes scripts, not files: run data/{0}/preprocess.sh of https://github.com/TalwalkarLab/leaf and put "
         "its data/train and data/test folders into {{folder}}")


def _idx(bases: tuple[str, ...], digests: tuple[str, ...]) -> tuple[Download, ...]:
    return tuple(Download(file, tuple(base + file for base in bases), f"md5:{digest}")
                 for file, digest in zip(_IDX, digests, strict=True))


def _cifar(file: str, digest: str) -> tuple[Download, ...]:
    return (Download(file, tuple(base + file for base in _TORONTO), f"md5:{digest}"),)


def _tff(name: str, digest: str, *members: str) -> Download:
    return Download(f"{name}.tar.bz2", (f"{_TFF}{name}.tar.bz2",), f"sha256:{digest}", members)


#: Name in a configuration (`data.dataset`) -> what is known of its files.
CATALOGUE: Mapping[str, Entry] = MappingProxyType({
    "mnist": Entry("mnist", _idx(_MNIST, _MNIST_MD5)),
    "fashion_mnist": Entry("fashion_mnist", _idx(_FASHION, _FASHION_MD5)),
    "emnist": Entry("emnist", (Download(
        "gzip.zip", ("https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",), "md5:58c8d27c78d21e728a6bc7b3cc06412e",
        tuple(f"gzip/emnist-{split}-{part}-{kind}-ubyte.gz" for split in EMNIST_SPLITS for part in ("train", "test")
              for kind in ("images-idx3", "labels-idx1"))),)),
    "cifar10": Entry("cifar10", _cifar("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")),
    "cifar100": Entry("cifar100", _cifar("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8")),
    "femnist": Entry("femnist", advice=_LEAF.format("femnist")),
    "shakespeare": Entry("shakespeare", advice=_LEAF.format("shakespeare")),
    "federated_emnist": Entry("federated_emnist", (
        _tff("fed_emnist", "fe1ed5a502cea3a952eb105920bff8cffb32836b5173cb18a57a32c3606f3ea0", "fed_emnist_train.h5",
             "fed_emnist_test.h5"),)),
    "federated_cifar100": Entry("federated_cifar100", (
        _tff("fed_cifar100", "e8575e22c038ecef1ce6c7d492d7abee7da13b1e1ba9b70a7fc18531ba7590de", "fed_cifar100_train.h5",
             "fed_cifar100_test.h5"),)),
    "federated_shakespeare": Entry("federated_shakespeare", (
        _tff("shakespeare", "0285be9906cb5f268092eee4edeeacfc2af4574f2941f7cc2f08a321d7f5c707", "shakespeare_train.h5",
             "shakespeare_test.h5"),)),
    "stackoverflow": Entry("stackoverflow", (
        _tff("stackoverflow", "99eca2f8b8327a09e5fc123979df2d237acbc5e52322f6d86bf523ee47b961a2",
             "stackoverflow_train.h5", "stackoverflow_test.h5"),
        _tff("stackoverflow.word_count", "1dc00256d6e527c54b9756d968118378ae14e6692c0b3b6cad470cdd3f0c519c",
             "stackoverflow.word_count"))),
})
