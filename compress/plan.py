"""The plan of a conversion: which site becomes which student, at what cost; made and checked before hours are spent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from .baselines.factorised import fill_factors
from .errors import CompressError, SiteError
from .lookup import Geometry
from .lookup.budget import DenseGeometry, Sizes, fill, most_tables
from .lookup.packed import HashDtype, TableDtype
from .recipe import LookupSettings, Recipe, included_names, match_sites, patterns_for
from .sites import experts_error, listed
from .students import StudentGeometry, cost, described, stored_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from .data import Corpus
    from .sites import Site
    from .streams import Stream

_READS = {"main": "the model's input", "decoder": "what the decoder reads", "images": "images"}


@dataclass(frozen=True)
class SitePlan:
    """One site and its student's geometry; None keeps the site dense.

    `plain`: the student of the same budget without tables, where sizes are automatic; the fit says which is better.
    """

    site: Site
    geometry: StudentGeometry | None
    hash_dtype: HashDtype | Literal["auto"]
    plain: Geometry | None = None

    @property
    def dense(self) -> DenseGeometry:
        """Sizes of the dense FFN."""
        return dense_geometry(self.site)


@dataclass(frozen=True)
class Needs:
    """Upper bounds of what a conversion takes, in bytes: memory of the process, disk of its folder at its peak."""

    memory: int
    disk: int
    checkpoint: int  # the files that stay


@dataclass(frozen=True)
class Plan:
    """All sites of a conversion and what was clamped or is worth knowing before it starts."""

    sites: tuple[SitePlan, ...]
    table_dtype: TableDtype
    notes: tuple[str, ...]
    needs: Needs | None = None

    @property
    def converted(self) -> tuple[SitePlan, ...]:
        """The sites that get a student."""
        return tuple(entry for entry in self.sites if entry.geometry is not None)

    @property
    def cost(self) -> float:
        """Multiply-adds of all FFNs over the dense ones', sites kept dense included."""
        total = sum(entry.dense.cost for entry in self.sites)
        return sum(cost(e.geometry) if e.geometry else e.dense.cost for e in self.sites) / total

    @property
    def memory(self) -> float:
        """Stored bytes of the students over the int8 bytes of the dense FFNs that they replace."""
        total = sum(entry.dense.int8_bytes for entry in self.converted)
        return sum(self.stored(entry) for entry in self.converted) / total if total else 0.0

    def keeping_dense(self, name: str, reason: str) -> Plan:
        """The plan with one site left dense after all, and a note that says why."""
        sites = tuple(replace(entry, geometry=None) if entry.site.name == name else entry for entry in self.sites)
        return replace(self, sites=sites, notes=(*self.notes, f"{name} stays dense: {reason}"))

    def without_tables(self, name: str) -> Plan:
        """The plan with one site's student without tables after all."""
        sites = (replace(e, geometry=e.plain, plain=None) if e.site.name == name else e for e in self.sites)
        return replace(self, sites=tuple(sites))

    def stored(self, entry: SitePlan) -> int:
        """Bytes of a student in the checkpoint."""
        assert entry.geometry is not None
        return stored_bytes(entry.geometry, self.table_dtype, _stored(entry.hash_dtype))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the journal and for --json."""
        return {
            "cost": self.cost,
            "memory": self.memory,
            "costs": {e.site.name: cost(e.geometry) / e.dense.cost for e in self.converted if e.geometry},
            "notes": list(self.notes),
            "needs": asdict(self.needs) if self.needs else None,
            "sites": {e.site.name: e.geometry.to_dict() if e.geometry else None for e in self.sites},
        }

    def table(self) -> Table:
        """The plan as a rich table."""
        from rich.table import Table

        table = Table(title=f"Plan: {self.cost:.3f} of the FFNs' multiply-adds, {self.memory:.1f}x their int8 bytes")
        for column in ("site", "dense", "student", "cost", "bytes"):
            table.add_column(column, justify="left" if column in ("site", "student") else "right")
        for entry in self.sites:
            dense, g = entry.dense, entry.geometry
            shape = f"{dense.d_in}-{dense.d_hidden}-{dense.d_out} {dense.activation}{' gated' if dense.gated else ''}"
            if g is None:
                table.add_row(entry.site.name, shape, "kept dense", "1", "1x")
                continue
            stored = self.stored(entry) / dense.int8_bytes
            table.add_row(entry.site.name, shape, described(g), f"{cost(g) / dense.cost:.3f}", f"{stored:.1f}x")
        return table


def dense_geometry(site: Site) -> DenseGeometry:
    """Sizes of a site's dense FFN, for the budget."""
    return DenseGeometry(site.d_in, site.d_hidden, site.d_out, site.gated, site.activation)


def choose_sites(
    sites: Sequence[Site], recipe: Recipe, experts: Sequence[str] = ()
) -> dict[str, LookupSettings | None]:
    """Match the recipe to a model's sites: the settings of each, None where it stays dense.

    Raises RecipeError where a pattern hits nothing, ModelError where the recipe includes layers with `experts`,
    SiteError where it includes sites that cannot be replaced; the messages say which to include instead.
    """
    names = [site.name for site in sites]
    included = included_names(recipe, [*names, *experts])
    good = [site.name for site in sites if not site.obstacle]
    others = [*experts, *(site.name for site in sites if site.obstacle)]
    instead = f"include only the others: sites.include: {json.dumps(patterns_for(good, others))}"
    if routed := [path for path in experts if path in included]:
        raise experts_error(routed, instead if good else "convert a model with dense feed-forward networks")
    settings = match_sites(recipe, names, experts)
    if blocked := [site for site in sites if site.obstacle and settings[site.name] is not None]:
        reasons = list(dict.fromkeys(site.obstacle for site in blocked))
        raise SiteError(
            f"{listed([site.name for site in blocked])} cannot be replaced: {'; '.join(map(str, reasons))}",
            where=blocked[0].name,
            remedy=instead if good else "convert another model: this one has no other feed-forward networks",
        )
    return settings


def make_plan(
    sites: Sequence[Site], recipe: Recipe, corpus: Corpus, streams: Mapping[str, Stream] | None = None,
    experts: Sequence[str] = (),
) -> Plan:  # fmt: skip
    """Fill every size that the recipe leaves open, of the sites that it chooses (`choose_sites`).

    `streams` says which tokens a site sees, by its name; "main" where it does not.

    Raises what `choose_sites` does, and CompressError where sizes do not fit a site or its budget.
    """
    settings = choose_sites(sites, recipe, experts)
    entries, bounded, seen = [], False, {}
    for site in sites:
        chosen = settings[site.name]
        stream: Stream = (streams or {}).get(site.name, "main")
        there = corpus.train.tokens_in(stream)
        if chosen is not None and not there:
            raise SiteError(
                f"{site.name} sees {_READS[stream]}, of which the data has none", where=site.name,
                remedy="exclude this site in the recipe, or give data of both kinds: `source: jsonl` with `fields`",
            )  # fmt: skip
        share = there / corpus.train.tokens
        tokens = recipe.distill.steps * recipe.distill.batch_tokens
        tokens += int(recipe.finetune.steps * recipe.finetune.batch_tokens * share)
        if chosen is not None:
            seen[stream] = (tokens, there)
        try:
            geometry = None if chosen is None else _geometry(site, chosen, recipe, tokens, there)
        except CompressError as error:
            raise type(error)(error.message, where=f"{error.where}, site {site.name}", remedy=error.remedy) from None
        if isinstance(geometry, Geometry) and chosen is not None and chosen.tables == "auto":
            bounded |= geometry.tables == most_tables(there, geometry.bits)
        plain = None if chosen is None else _plain(site, chosen, geometry, recipe, tokens, there)
        entries.append(SitePlan(site, geometry, chosen.hash_dtype if chosen else recipe.lookup.hash_dtype, plain))
    notes = [corpus.description]
    if experts:
        notes.append(f"mixture of experts, stays as it is: {listed(experts)}")
    if recipe.fit.tokens > corpus.train.tokens:
        notes.append(f"fit.tokens = {recipe.fit.tokens:,} is clamped to the {corpus.train.tokens:,} there are")
    if any(entry.plain for entry in entries):
        notes.append("where the closed form without tables has less error, a site's student has more neurons instead")
    if bounded:
        notes.append(f"the {corpus.train.tokens:,} tokens fill no more tables than these; more data would")
    for stream, (tokens, there) in seen.items():
        which = "each site" if len(seen) == 1 else f"each site that sees {_READS[stream]}"
        notes.append(f"{which} sees {tokens:,} tokens in training, {tokens / there:.1f} times the data")
    return Plan(tuple(entries), recipe.pack.table_dtype, tuple(notes))


def _stored(hash_dtype: HashDtype | Literal["auto"]) -> HashDtype:
    """What to count with: either choice of `auto` takes as many bytes."""
    return "w8a8" if hash_dtype == "auto" else hash_dtype


def _geometry(site: Site, settings: LookupSettings, recipe: Recipe, tokens: int, distinct: int) -> StudentGeometry:
    def fixed(value: int | str) -> int | None:
        return None if value == "auto" else int(value)

    sizes = Sizes(
        settings.budget, settings.memory, fixed(settings.tables), fixed(settings.bits), fixed(settings.rank),
        fixed(settings.neurons),
    )  # fmt: skip
    table_dtype, hash_dtype = recipe.pack.table_dtype, _stored(settings.hash_dtype)
    if settings.student == "factors":
        for key in ("tables", "bits"):
            if getattr(settings, key) != "auto":
                raise CompressError(
                    f"low-rank factors have no {key}", where=f"lookup.{key}",
                    remedy="leave it out, or convert with `lookup.student: lookup`",
                )  # fmt: skip
        return fill_factors(dense_geometry(site), sizes, table_dtype=table_dtype, hash_dtype=hash_dtype)
    return fill(
        dense_geometry(site), sizes, tokens, distinct, table_dtype=table_dtype, hash_dtype=hash_dtype,
        projection=settings.projection, block=settings.block, read=settings.read,
    )  # fmt: skip


def _plain(
    site: Site, settings: LookupSettings, geometry: StudentGeometry | None, recipe: Recipe, tokens: int, distinct: int
) -> Geometry | None:  # fmt: skip
    """The student of the same budget without tables, where tables and neurons are for the plan to choose."""
    if not (isinstance(geometry, Geometry) and geometry.tables and settings.tables == settings.neurons == "auto"):
        return None
    settings = settings.model_copy(update={"tables": 0, "bits": "auto"})
    try:
        plain = _geometry(site, settings, recipe, tokens, distinct)
    except CompressError:
        return None
    return plain if isinstance(plain, Geometry) and plain.neurons else None
