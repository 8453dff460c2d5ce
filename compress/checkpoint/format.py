"""What `quantization_config` in `config.json` says: where the model comes from, and every student's place and sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from ..errors import CheckpointError, CompressError
from ..lookup import Geometry
from ..lookup.packed import HashDtype, TableDtype
from ..sites import Site, to_base
from ..students import PackedStudent, StudentGeometry, layout, parse_geometry
from ..untrusted import read_json
from .rest import Int8Rest

METHOD = "lookup_ffn"
# 1 had LookupFFN alone and the rest as it was, 2 no tables in 4 bits; both are still what such checkpoints say.
FORMAT_VERSION = 3
CONFIG_FILE = "config.json"

_UPGRADE = "upgrade: pip install --upgrade compress-lookup"
_DAMAGED = "fetch the checkpoint again, or convert the model again"


@dataclass(frozen=True)
class Placement:
    """One student's place in the base model (every path is relative to it), its geometry and its storage dtypes."""

    name: str  # the site's: its dense output linear
    entry: str  # the module that the student is
    identities: tuple[str, ...]  # modules that hand the student's answer on
    geometry: StudentGeometry
    table_dtype: TableDtype = "int8"
    hash_dtype: HashDtype = "int8"

    @classmethod
    def of(cls, model: nn.Module, site: Site, student: PackedStudent) -> Placement:
        """Describe the place that `student` has at a site of `model`, whatever head the model has."""
        site = to_base(model, site)
        return cls(
            site.name, site.entry, site.identities, student.geometry, student.table_dtype, student.hash_dtype
        )  # fmt: skip

    @property
    def tombstone(self) -> str:
        """The dense weight whose name an empty tensor takes, so that a load which ignores the students fails."""
        return f"{self.name}.weight"

    def layout(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Names, relative to the entry, shapes and dtypes of the student's tensors."""
        return layout(self.geometry, self.table_dtype, self.hash_dtype)

    def fits(self, student: nn.Module) -> bool:
        """Whether a packed student is the one described."""
        return isinstance(student, PackedStudent) and (
            (student.geometry, student.table_dtype, student.hash_dtype)
            == (self.geometry, self.table_dtype, self.hash_dtype)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `config.json`."""
        return {
            "name": self.name,
            "entry": self.entry,
            "identities": list(self.identities),
            "geometry": self.geometry.to_dict(),
            "table_dtype": self.table_dtype,
            "hash_dtype": self.hash_dtype,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Placement:
        """Read what `to_dict` wrote. Raises KeyError, TypeError, ValueError or CompressError where it is damaged."""
        if not isinstance(values, dict):
            raise TypeError(f"{values!r} is no site")
        if problem := values.keys() ^ _KEYS:
            raise ValueError(f"a site with missing or unknown keys: {', '.join(sorted(problem))}")
        if not isinstance(values["geometry"], dict) or not isinstance(values["identities"], list):
            raise TypeError("a site's geometry is no mapping, or its identities are no list")
        placement = cls(
            name=values["name"],
            entry=values["entry"],
            identities=tuple(values["identities"]),
            geometry=parse_geometry(values["geometry"]),
            table_dtype=values["table_dtype"],
            hash_dtype=values["hash_dtype"],
        )
        for path in (placement.name, placement.entry, *placement.identities):
            if not isinstance(path, str) or not all(path.split(".")):
                raise TypeError(f"{path!r} is no module path")
        for dtype, known in ((placement.table_dtype, TableDtype), (placement.hash_dtype, HashDtype)):
            if dtype not in get_args(known):
                raise ValueError(f"unknown dtype {dtype!r}")
        return placement


_KEYS = {field.name for field in fields(Placement)}


@dataclass(frozen=True)
class CheckpointConfig:
    """The whole `quantization_config` of a compressed checkpoint.

    `rest_dtype` is the dtype that float32 weights outside the students are stored in where it holds them exactly (the
    source's own), None to store them as they are. `extra` keeps keys that this version does not know.
    """

    source: str  # hub id, or a folder's name
    revision: str | None
    sites: tuple[Placement, ...]
    rest_dtype: str | None = None
    transformers: str | None = None  # version whose module names the paths are
    int8: Int8Rest = field(default_factory=Int8Rest)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def from_hub(self) -> bool:
        """Whether the source is a model of the hub, some of whose older ids have no owner."""
        return "/" in self.source or self.revision is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `config.json`."""
        return {
            **self.extra,
            "quant_method": METHOD,
            "format_version": self._version(),
            "source": self.source,
            "revision": self.revision,
            "rest_dtype": self.rest_dtype,
            "transformers": self.transformers,
            "sites": [placement.to_dict() for placement in self.sites],
            **({"int8": self.int8.to_dict()} if self.int8 else {}),
        }

    def _version(self) -> int:
        if any(site.table_dtype == "int4" for site in self.sites):
            return FORMAT_VERSION
        plain = not self.int8 and all(isinstance(site.geometry, Geometry) for site in self.sites)
        return 1 if plain else 2

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str | None = None) -> CheckpointConfig:
        """Read what `to_dict` wrote.

        Raises CheckpointError where it is damaged or its `format_version` is newer than this version of the library.
        """
        rest = dict(values)
        rest.pop("quant_method", None)
        version = rest.pop("format_version", None)
        if type(version) is not int or version < 1:
            raise CheckpointError(f"the checkpoint's format_version is {version!r}", where=where, remedy=_DAMAGED)
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f"the checkpoint has format_version {version}, this version of compress reads up to {FORMAT_VERSION}",
                where=where, remedy=_UPGRADE,
            )  # fmt: skip
        try:
            if not isinstance(rest["sites"], list):
                raise TypeError("sites is no list")
            checkpoint = cls(
                source=rest.pop("source"),
                revision=rest.pop("revision"),
                sites=tuple(Placement.from_dict(site) for site in rest.pop("sites")),
                rest_dtype=rest.pop("rest_dtype", None),
                transformers=rest.pop("transformers", None),
                int8=Int8Rest.from_dict(rest.pop("int8", {})),
                extra=rest,
            )
            checkpoint._check()
            return checkpoint
        except (KeyError, TypeError, ValueError, CompressError) as error:
            problem = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(
                f"the checkpoint's quantization_config is damaged: {problem}", where=where, remedy=_DAMAGED
            ) from None

    def _check(self) -> None:
        """Raise TypeError or ValueError where values are of another type or two students claim one place."""
        for key in ("source", "revision", "rest_dtype", "transformers"):
            value = getattr(self, key)
            if not (isinstance(value, str) or (value is None and key != "source")):
                raise TypeError(f"{key} is {value!r}")
        for key in ("name", "entry"):
            if len({getattr(placement, key) for placement in self.sites}) < max(1, len(self.sites)):
                raise ValueError(f"no site, or several with one {key}")
        taken = [path for placement in self.sites for path in (placement.entry, *placement.identities)]
        unique = set(taken)
        if len(unique) < len(taken) or any(around in unique for path in unique for around in _parents(path)):
            raise ValueError("two students, or their identities, share a module")


def _parents(path: str) -> Iterator[str]:
    while path := path.rpartition(".")[0]:
        yield path


def public_name(source: str) -> str:
    """Name the source: a hub id without its revision; of a folder only its name, which tells nothing of the machine."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else source.partition("@")[0]


def read_config_file(folder: Path) -> dict[str, Any]:
    """Parse `config.json` of a model folder. Raises CheckpointError where it is missing or no JSON object."""
    path = folder / CONFIG_FILE
    try:
        values = read_json(path)
    except OSError:
        raise CheckpointError(
            "this is no model folder: it has no config.json", where=str(folder),
            remedy="give the folder that `compress convert` wrote",
        ) from None  # fmt: skip
    except ValueError as error:
        raise CheckpointError(f"config.json is damaged: {error}", where=str(path), remedy=_DAMAGED) from None
    if not isinstance(values, dict):
        raise CheckpointError("config.json is damaged: it holds no JSON object", where=str(path), remedy=_DAMAGED)
    return values


def is_compressed(folder: Path | str) -> bool:
    """Whether a folder holds a compressed checkpoint; False for anything else, a missing folder too."""
    try:
        values = read_config_file(Path(folder))
    except CheckpointError:
        return False
    return _quantization(values).get("quant_method") == METHOD


def read_config(folder: Path | str) -> CheckpointConfig:
    """Read what a compressed checkpoint holds, without loading it.

    Raises CheckpointError where the folder holds no compressed checkpoint, a damaged or a newer one.
    """
    folder = Path(folder)
    quantization = _quantization(read_config_file(folder))
    if quantization.get("quant_method") != METHOD:
        raise CheckpointError(
            "this is no compressed checkpoint", where=str(folder),
            remedy="convert the model first: compress convert MODEL RECIPE",
        )  # fmt: skip
    return CheckpointConfig.from_dict(quantization, where=str(folder / CONFIG_FILE))


def _quantization(values: Mapping[str, Any]) -> Mapping[str, Any]:
    quantization = values.get("quantization_config")
    return quantization if isinstance(quantization, dict) else {}
