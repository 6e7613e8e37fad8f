"""What a traced pass brings home: the residual adds with their names, and where each operand can be taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import Tensor, nn

from resmon.capture.discovery import rule
from resmon.capture.discovery.dataflow import Add, Does, Frame, Fused, Node
from resmon.capture.discovery.operations import Operations
from resmon.capture.host.compiler import plain
from resmon.capture.host.placement import class_name
from resmon.quantities import listed
from resmon.records import ResidualSite, SiteKind

TOLD = 3  # modules that a sentence names
NEXT = 4  # sums further on among which the next one on the same stream is looked for


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """One residual add in one traced pass."""

    frame: Frame
    ordinal: int
    residual: rule.Residual
    skip: Node
    branch: Node
    output: Node
    factors: tuple[float, float]  # what skip and branch are multiplied with in the call
    varies: bool  # in the next call it may be something else
    shape: tuple[int, ...]
    parameters: tuple[str, ...]
    branch_modules: tuple[str, ...]
    skip_modules: tuple[str, ...]
    met: tuple[int, int]  # how many of the places of skip and branch came before the add

    @property
    def call(self) -> tuple[str, int]:
        return self.frame.path, self.frame.call

    @property
    def module(self) -> str:
        return plain(self.frame.path)

    @property
    def counts(self) -> bool:
        """Once the pass is over: whether it is none of those calls of its module that run aside."""
        return self.frame.call >= 0


@dataclass(frozen=True, slots=True)
class Hidden:
    """A residual addition that is not observed: the function or kernel `operation` in `module` makes it, surely or perhaps."""

    operation: str
    module: str
    branch: tuple[str, ...]
    does: Does


_SAID: dict[Does, str] = {
    "adds": "adds a branch to a residual stream within its own computation, where neither can be taken, and is not observed. "
    "Compute the branch by itself and write resmon.residual_add(skip, branch) instead",
    "may add": "reads a residual stream and what a branch has made of it, and torch cannot look into it. If it adds them, say so "
    "by resmon.residual_add(skip, branch, output=sum), which computes nothing. Until then it is not observed",
    "subtracts": "subtracts from a tensor what a branch has made of it, which is not observed. If that is a residual connection, "
    "write resmon.residual_add(skip, -branch) instead",
}


# Hears of a residual add before it runs, with skip and branch, and answers with what is to be told the sum.
Witness = Callable[[Add, rule.Residual], Callable[[Tensor, Sighting], None] | None]


class Survey:
    """Listens to a trace and keeps what the rule calls residual. `witness`, if any, sees the tensors too."""

    def __init__(self, witness: Witness | None = None) -> None:
        self.sightings: list[Sighting] = []
        self._witness = witness

    def __call__(self, add: Add) -> Callable[[Tensor, Node], None] | None:
        residual = rule.judge(add.first_node, add.second_node, add.frame, marked=add.marked, into=add.into)
        if residual is None:
            return None
        skip, branch = add.first_node, add.second_node
        if not residual.skip_is_first:
            skip, branch = branch, skip
        told = self._witness(add, residual) if self._witness else None
        met = len(skip.places), len(branch.places)
        branch_parameters = rule.parameters(residual.shared, residual.branch)
        skip_parameters = rule.parameters(residual.shared, residual.skip)

        def finished(output: Tensor, node: Node) -> None:
            node.carries = skip
            sighting = Sighting(
                add.frame,
                add.ordinal,
                residual,
                skip,
                branch,
                node,
                add.factors if residual.skip_is_first else (add.factors[1], add.factors[0]),
                add.varies,
                tuple(output.shape),
                (*branch_parameters, *(p for p in skip_parameters if p not in branch_parameters)),
                _owners(branch_parameters),
                _owners(skip_parameters),
                met,
            )
            self.sightings.append(sighting)
            if told is not None:
                told(output, sighting)

        return finished


def hidden(fused: Sequence[Fused]) -> list[Hidden]:
    """The residual additions among what was fused, in order of execution, each module's once."""
    found: dict[tuple[str, str], Hidden] = {}
    for call in fused:
        key = call.operation, plain(call.frame.path)
        residual = rule.judge(call.first, call.second, call.frame) if key not in found else None
        if residual is not None and _is_told(call, residual):
            found[key] = Hidden(*key, _owners(rule.parameters(residual.shared, residual.branch)), call.does)
    return list(found.values())


def _is_told(call: Fused, residual: rule.Residual) -> bool:
    if call.does == "adds":
        return True
    if residual.kind != "identity" or call.does == "may add":
        return residual.kind == "identity"
    # A difference that goes from module to module is a stream; others are losses and gates.
    return residual.skip_is_first and call.result is not None and bool(call.result.places)


def tell(hidden: Sequence[Hidden], root: str) -> list[str]:
    """What is to be said of them, a sentence for each operation. `root` is the class of the model, which has no path."""
    said = []
    for operation, does in dict.fromkeys((each.operation, each.does) for each in hidden):
        modules = [each.module or root for each in hidden if (each.operation, each.does) == (operation, does)]
        said.append(f"{operation} in {listed(modules, TOLD)} {_SAID[does]}")
    return said


def _owners(parameters: Iterable[str]) -> tuple[str, ...]:
    """The paths of the modules that own the parameters; a parametrised weight belongs to the module that uses it."""
    paths = (name.rpartition(".")[0].split(".parametrizations")[0] for name in parameters)
    return tuple(dict.fromkeys(paths))


@dataclass(frozen=True, slots=True)
class _Sum:
    """What tells one residual add of a model from the others, in any pass."""

    call: tuple[str, int]  # of the module that holds it
    branch: tuple[str, ...]  # modules
    skip: tuple[str, ...]
    kind: SiteKind
    turn: int  # among those that are alike


def _child(module: str, branch: Sequence[str]) -> str:
    """The last of the direct children of `module` that a branch goes through."""
    inside = module + "." if module else ""
    children = [path[len(inside) :].split(".")[0] for path in branch if path.startswith(inside) and path != module]
    return children[-1] if children else ""


def _joined(before: Sequence[str], now: Sequence[str], there: set[str]) -> tuple[str, ...]:
    """What was seen before and is still there, and what is seen now."""
    kept = [each for each in before if each in there]
    return tuple(kept if set(now) <= set(kept) else dict.fromkeys((*now, *kept)))


class Names:
    """Gives sites their names, and the same site the same name in every pass."""

    def __init__(self, model: nn.Module, key: str = "") -> None:
        self._model = model
        self._root = class_name(model)  # for an add of the model itself whose branch has no child with parameters
        self._key = key
        self._names: dict[_Sum, str] = {}
        self._sites: dict[str, ResidualSite] = {}  # the newest of each name

    def sites(self, sightings: Sequence[Sighting], *, rebuilt: bool = False) -> list[ResidualSite]:
        """One site per sighting, in order of execution.

        Where the model was `rebuilt` since the last pass, a sum keeps its name though its modules are others: adapters are put
        around a projection, or merged into it. So does one of which other modules run from pass to pass, such as the experts of a
        mixture that tokens were sent to: all that were seen are its modules.
        """
        held = Counter((s.module, s.frame.call) for s in sightings)
        seen: Counter[_Sum] = Counter()
        keys: list[_Sum] = []
        for s in sightings:
            first = _Sum((s.module, s.frame.call), s.branch_modules, s.skip_modules, s.residual.kind, 1)
            seen[first] += 1
            keys.append(replace(first, turn=seen[first]))
        present = {self._names[key] for key in keys if key in self._names}
        owned = {plain(name) for name, _ in self._model.named_parameters(remove_duplicate=False)}
        there = set(_owners(owned))
        sites = []
        operations = Operations(self._model)
        for i, s in enumerate(sightings):
            key = keys[i]
            if key not in self._names:
                name = self._name(s, several=held[s.module, s.frame.call] > 1)
                former = self._former(key, name, present, rebuilt=rebuilt)
                self._names[key] = former or self._free(name)
                present.add(self._names[key])
            name = self._names[key]
            before = self._sites.get(name)
            site = ResidualSite(
                name=name,
                module=s.module,
                kind=s.residual.kind,
                branch=_joined(before.branch if before else (), s.branch_modules, there),
                skip=_joined(before.skip if before else (), s.skip_modules, there),
                shape=s.shape,
                parameters=_joined(before.parameters if before else (), s.parameters, owned),
                model=self._key,
                operations=operations.of(s.residual.branch, s.module, s.factors[1]),
                skip_operations=operations.of(rule.between(s.residual.shared, s.skip), s.module, s.factors[0]),
                following=operations.of(_up_to_the_next(s, sightings[i + 1 :]), s.module),
            )
            self._sites[name] = site
            sites.append(site)
        return sites

    def _name(self, s: Sighting, *, several: bool) -> str:
        path, child = s.module, _child(s.module, s.branch_modules)
        name = (f"{path}.{child}" if several and child else path) if path else (child or self._root)
        return name + (f"@{s.frame.call + 1}" if s.frame.call > 0 else "")

    def _former(self, key: _Sum, name: str, present: set[str], *, rebuilt: bool) -> str | None:
        """The name of the sum of the same call and kind that is not there in this pass, where this is it: its branch ends in the
        same child and has modules in common with this one, or, in a model that was `rebuilt`, the name would be the same.
        """
        for other, given in self._names.items():
            if given in present or (other.call, other.kind, other.turn) != (key.call, key.kind, key.turn):
                continue
            ends_alike = _child(key.call[0], other.branch) == _child(key.call[0], key.branch)
            if (ends_alike and not set(other.branch).isdisjoint(key.branch)) or (rebuilt and given == name):
                return given
        return None

    def _free(self, name: str) -> str:
        taken = set(self._names.values())
        candidate, k = name, 2
        bare, at, again = name.partition("@")
        while candidate in taken:
            candidate, k = f"{bare}#{k}{at}{again}", k + 1
        return candidate


def _up_to_the_next(s: Sighting, later: Sequence[Sighting]) -> tuple[Node, ...]:
    """The values between a sum and the tensor at which the next block on its stream begins; none where there is no next."""
    for following in later[:NEXT]:
        shared = following.residual.shared
        if shared is s.output:
            return ()
        if way := rule.between(s.output, shared):
            return way
    return ()


def is_watched(site: ResidualSite | Hidden, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether the patterns (as fnmatch, against the site's module and name) let the site in; exclusion wins."""

    names = (site.module, site.name) if isinstance(site, ResidualSite) else (site.module,)

    def matches(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, p) for name in names for p in patterns)

    return (not include or matches(include)) and not matches(exclude)
