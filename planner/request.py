"""What the user asked for, after parsing and with every default filled in and named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .billing import Ownership
from .computation import default_targets
from .errors import InputError
from .hardware import Tier
from .model import Model
from .time.fabrics import fabric_names
from .units import DAY_S, GIGA, count, duration, usd
from .workload import Method, Precision, RunOptions, Workload

DEFAULT_TOKENS = 1_000_000_000
DEFAULT_SEQ_LEN = 4096
DEFAULT_BATCH_TOKENS = 2**20  # about 1M tokens per optimizer step
DEFAULT_DEADLINE_S = 30 * DAY_S
DEFAULT_MAX_GPUS = 1024
LONGEST_S = 3650 * DAY_S
LARGEST = {
    "tokens": 10**15,
    "seq_len": 2**24,
    "global_batch": 2**20,
    "max_gpus": 2**17,
    "nodes": 2**14,
    "lora_rank": 4096,
    "eval_every": 10**9,
    "eval_tokens": 10**15,
}
LARGEST_AMOUNT = {  # of numbers above 0
    "price_usd_per_gpu_hour": 1e4,
    "host_memory_gib": 65_536.0,
    "internode_gbps": 1e6,
    "capital_usd_per_node": 1e9,
    "years": 50.0,
    "power_kw_per_node": 1e4,
    "usd_per_kwh": 100.0,
    "utilization": 1.0,
    "hosting_usd_per_node_year": 1e8,
    "storage_gib": 1e12,
    "egress_gib": 1e12,
    "storage_gbps": 1e6,
    "mtbf_gpu_hours": 1e9,
}
FLAGS = {  # options whose names differ from the request's
    "price_usd_per_gpu_hour": "price",
    "capital_usd_per_node": "capital",
    "power_kw_per_node": "power-kw",
    "hosting_usd_per_node_year": "hosting-usd",
}
OWNED = ("capital_usd_per_node", "years", "power_kw_per_node", "usd_per_kwh", "pue", "utilization")
RANGES = {"pue": (1.0, 3.0), "grid_kgco2_per_kwh": (0.0, 3.0)}
CHEAPEST = "cheapest"  # --budget without a value


@dataclass(frozen=True, kw_only=True)
class Request:
    """Every choice a plan depends on; None is "not given" and gets its default in `complete`."""

    gpus: tuple[str, ...] = ("any",)
    gpu_count: int | None = None
    nodes: int | None = None
    max_gpus: int = DEFAULT_MAX_GPUS
    cloud: str | None = None
    region: str | None = None
    tier: Tier = Tier.ON_DEMAND
    price_usd_per_gpu_hour: float | None = None
    prices: str | None = None  # a price list in place of the built-in offers
    profile: str | None = None  # figures of a platform, from trainplan calibrate
    capital_usd_per_node: float | None = None  # of the user's own machines, as the next six
    years: float | None = None
    power_kw_per_node: float | None = None
    usd_per_kwh: float | None = None
    utilization: float | None = None
    hosting_usd_per_node_year: float | None = None
    storage_gib: float | None = None  # kept while the run lasts
    egress_gib: float | None = None  # moved out of the cloud
    gpus_per_node: int | None = None  # of the user's own machines
    host_memory_gib: float | None = None  # of a node, where the catalog does not know it
    internode_gbps: float | None = None  # Gbit/s of a node, where the catalog does not know it
    fabric: str | None = None  # what joins nodes, where the catalog does not know it
    tokens: int = DEFAULT_TOKENS
    seq_len: int = DEFAULT_SEQ_LEN
    global_batch: int | None = None
    deadline_s: float = DEFAULT_DEADLINE_S
    budget: float | str | None = None  # dollars, CHEAPEST, or none
    methods: tuple[Method, ...] = ()
    require: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    lora_rank: int = 16
    lora_targets: tuple[str, ...] = ()
    nvme_path: str = "/local_nvme"
    eval_every: int | None = None  # optimizer steps
    eval_tokens: int | None = None  # of one evaluation
    checkpoint_every_s: float | None = None
    storage_gbps: float | None = None  # GB/s of the whole cluster
    mtbf_gpu_hours: float | None = None
    grid_kgco2_per_kwh: float | None = None
    pue: float | None = None
    given: frozenset[str] = field(default_factory=frozenset)  # names the user set

    @property
    def sequences(self) -> int:
        """Global batch in sequences; by default the power of two nearest to 2^20 tokens."""
        if self.global_batch is not None:
            return self.global_batch
        return 1 << max(0, round(math.log2(max(1.0, DEFAULT_BATCH_TOKENS / self.seq_len))))

    @property
    def _batches(self) -> str:
        """How sequences fill a batch."""
        if "padded-batches" in self.require:
            return "batches padded to the longest, for which the plan is"
        return "every batch full (packed)"

    @property
    def budget_usd(self) -> float:
        """Dollars, infinite where there is no limit."""
        return float(self.budget) if isinstance(self.budget, int | float) else math.inf

    @property
    def allowed(self) -> tuple[Method, ...]:
        """Methods in order of faithfulness: as given; any under --budget; else full fine-tuning only."""
        if self.methods:
            return tuple(m for m in Method if m in self.methods)
        return tuple(Method) if self.budget is not None else (Method.FULL,)

    @property
    def ownership(self) -> Ownership | None:
        """What the user's own machines cost; None where their figures are not given."""
        if any(getattr(self, name) is None for name in OWNED):
            return None
        return Ownership(**{name: getattr(self, name) for name in (*OWNED, "hosting_usd_per_node_year")})

    @property
    def owns(self) -> bool:
        """Whether the machines are the user's own: at a price, or at what they cost."""
        return self.price_usd_per_gpu_hour is not None or self.ownership is not None

    def workload(self, model: Model) -> Workload:
        """The job itself."""
        run = RunOptions(
            eval_every=self.eval_every,
            eval_tokens=self.eval_tokens,
            checkpoint_every_s=self.checkpoint_every_s,
            storage_bytes_per_s=None if self.storage_gbps is None else self.storage_gbps * GIGA,
            mtbf_gpu_hours=self.mtbf_gpu_hours,
            grid_kgco2_per_kwh=self.grid_kgco2_per_kwh,
            pue=self.pue,
            power_kw_per_node=self.power_kw_per_node,
        )
        return Workload(model=model, tokens=self.tokens, seq_len=self.seq_len, global_batch=self.sequences, run=run)

    def suited(self, model: Model) -> Request:
        """With sequences as long as the model's positions where the default is longer."""
        if "seq_len" in self.given or not 0 < model.max_positions < self.seq_len:
            return self
        return replace(self, seq_len=model.max_positions)

    def check(self, model: Model, *, replica_gpus: int = 1) -> None:
        """Numbers in range, and consistent.

        Args:
            model: what is trained.
            replica_gpus: over how many GPUs one replica of it is cut.

        Raises:
            InputError: all problems at once.
        """
        problems = [p for p in (*self._ranges(), *self._contradictions(model, replica_gpus)) if p]
        if problems:
            raise InputError("; ".join(problems))

    def _ranges(self) -> list[str]:
        found = []
        for name, largest in LARGEST.items():
            value = self.sequences if name == "global_batch" else getattr(self, name)
            if value is not None and not 1 <= value <= largest:
                found.append(
                    f"--{name.replace('_', '-')}: out of range, got {value:,}; allowed are 1 to {largest:,}; change it"
                )
        for name, largest_float in LARGEST_AMOUNT.items():
            value = getattr(self, name)
            if value is not None and not 0 < value <= largest_float:
                found.append(
                    f"--{flag(name)}: out of range, got {value:g}; allowed is above 0 up to {largest_float:,.0f}; "
                    f"change it"
                )
        if self.fabric is not None and self.fabric not in (known := fabric_names()):
            found.append(f"--fabric: no such network, got {_shown(self.fabric)}; allowed are {', '.join(known)}")
        if self.prices is not None and not (self.prices.strip() and self.prices.isprintable()):
            found.append(
                f"--prices: not a file's name, got {_shown(self.prices)}; a TOML or CSV file is needed; give it"
            )
        if self.profile is not None and not (self.profile.strip() and self.profile.isprintable()):
            found.append(f"--profile: not a file's name, got {_shown(self.profile)}; a profile is needed; give it")
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                found.append(
                    f"--{flag(name)}: out of range, got {value:g}; allowed is {least:g} to {most:g}; change it"
                )
        every = self.checkpoint_every_s
        if every is not None and not 1 <= every <= LONGEST_S:
            found.append(f"--checkpoint-every: out of range, got {every:g} s; allowed are 1 s to 3650d; change it")
        if isinstance(self.budget, int | float) and not 0 < self.budget <= 1e12:
            found.append(f"--budget: out of range, got {self.budget:g}; allowed is above 0 up to 1e12 dollars")
        return found

    def _contradictions(self, model: Model, replica_gpus: int) -> list[str]:
        found = []
        if model.max_positions and self.seq_len > model.max_positions:
            found.append(
                f"--seq-len {self.seq_len:,}: {model.name} has positions for {model.max_positions:,} tokens; "
                f"use at most that many"
            )
        if self.gpu_count and self.gpu_count > self.max_gpus:
            found.append(
                f"--gpus {self.gpu_count}x...: more than --max-gpus {self.max_gpus}; raise --max-gpus or ask for fewer"
            )
        replicas = (self.gpu_count or 0) // replica_gpus
        if replicas and self.sequences % replicas:
            near = max(1, round(self.sequences / replicas)) * replicas
            what = f"{replicas} GPUs" if replica_gpus == 1 else f"{replicas} data-parallel ranks"
            found.append(
                f"--global-batch {self.sequences}: not micro-batch x {what} x n; use for example --global-batch {near}"
            )
        found += self._own_machines()
        if (self.eval_every is None) != (self.eval_tokens is None):
            given, missing = ("every", "tokens") if self.eval_tokens is None else ("tokens", "every")
            found.append(f"--eval-{given}: needs --eval-{missing} too, which is not given; give both or neither")
        if self.tokens < self.seq_len * self.sequences and "tokens" in self.given:
            found.append(
                f"--tokens {self.tokens:,}: less than one global batch of {self.sequences} x {self.seq_len:,}; "
                f"lower --global-batch"
            )
        return found

    def _own_machines(self) -> list[str]:
        """What is wrong with the price of the user's own machines."""
        stated = [n for n in (*OWNED, "hosting_usd_per_node_year") if n != "pue" and getattr(self, n) is not None]
        missing = [f"--{flag(name)}" for name in OWNED if getattr(self, name) is None]
        priced = self.price_usd_per_gpu_hour is not None
        if priced and stated:
            return [f"--price: contradicts --{flag(stated[0])}; give your price, or what your machines cost"]
        if stated and missing:
            return [
                f"--{flag(stated[0])}: your own machines cost more than that, and nothing of it is free; "
                f"missing are {', '.join(missing)}; give them, or --price USD_PER_GPU_HOUR"
            ]
        if self.tier is Tier.OWNED and not self.owns:
            return [
                "--tier owned: nobody else knows what your machines cost; give --price USD_PER_GPU_HOUR, or "
                + ", ".join(f"--{flag(name)}" for name in OWNED)
            ]
        if not self.owns:
            return []
        what, found = "--price" if priced else "--capital", []
        if self.gpus == ("any",):
            found.append(f"{what}: needs to know your GPUs, got --gpus any; name one type with --gpus")
        if len(self.gpus) > 1:
            found.append(f"{what}: one price for {len(self.gpus)} GPU types; name one type with --gpus")
        other_tier = "tier" in self.given and self.tier is not Tier.OWNED
        if self.cloud or self.region or other_tier or self.prices is not None:
            found.append(
                f"{what}: your own machines have no cloud, region, tier or price list; "
                f"drop --cloud, --region, --tier and --prices"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON values, for plan.json."""
        document = asdict(self)
        document["tier"] = self.tier.value
        document["methods"] = [m.value for m in self.methods]
        document["given"] = sorted(self.given)
        document["require"], document["forbid"] = list(self.require), list(self.forbid)
        document["gpus"], document["lora_targets"] = list(self.gpus), list(self.lora_targets)
        return document

    def assumptions(self, model: Model, precision: Precision, optimizer: str) -> list[dict[str, str]]:
        """What was filled in for the user, and what was theirs."""
        targets = ", ".join(self.lora_targets or default_targets(model)) or "every linear layer"
        rows = (
            ("tokens", count(self.tokens), "tokens"),
            ("sequence length", f"{self.seq_len:,} tokens, {self._batches}", "seq_len"),
            (
                "global batch",
                f"{self.sequences:,} sequences = {count(self.sequences * self.seq_len)} tokens",
                "global_batch",
            ),
            ("deadline", duration(self.deadline_s), "deadline_s"),
            ("budget", usd(self.budget_usd) if math.isfinite(self.budget_usd) else "no limit", "budget"),
            ("precision", precision.value, "precision"),
            ("optimizer", optimizer, "optimizer"),
            ("tier", Tier.OWNED.value if self.owns else self.tier.value, "tier"),
            ("GPUs at most", f"{self.max_gpus:,}", "max_gpus"),
            (
                "adapters (LoRA, QLoRA)",
                f"rank {self.lora_rank} on {targets}",
                "lora_rank",
            ),
        )
        return [
            {"name": name, "value": text, "from": "you" if key in self.given else "default"} for name, text, key in rows
        ]


def flag(name: str) -> str:
    """The option of a field, without its dashes.

    >>> flag("capital_usd_per_node"), flag("usd_per_kwh")
    ('capital', 'usd-per-kwh')
    """
    return FLAGS.get(name, name.replace("_", "-"))


def request_from(document: Mapping[str, Any], *, where: str) -> Request:
    """Read the request of a plan file; it is untrusted.

    Raises:
        InputError: keys are missing, unknown or of a wrong type.
    """
    try:
        values = dict(document)
        values["tier"] = Tier(values["tier"])
        values["methods"] = tuple(Method(m) for m in values["methods"])
        values["given"] = frozenset(str(x) for x in values["given"])
        for key in ("gpus", "require", "forbid", "lora_targets"):
            values[key] = tuple(str(x) for x in values[key])
        request = Request(**values)
        _check_types(request)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{where}: its request cannot be read, {error}; plan again with this version of trainplan"
        ) from error
    return request


def _check_types(request: Request) -> None:
    """Numbers are numbers and not negative, a bool is none; texts are texts."""
    whole = ("max_gpus", "tokens", "seq_len", "lora_rank")
    for name in (*whole, "gpu_count", "nodes", "global_batch", "gpus_per_node", "eval_every", "eval_tokens"):
        value = getattr(request, name)
        if not ((value is None and name not in whole) or (type(value) is int and value >= 1)):
            raise ValueError(f"{name} is {_shown(value)}, not a whole number above 0")
    for name in (*LARGEST_AMOUNT, "deadline_s", "checkpoint_every_s", "pue"):
        value = getattr(request, name)
        if not ((value is None and name != "deadline_s") or _is_amount(value)):
            raise ValueError(f"{name} is {_shown(value)}, not a number above 0")
    if not (request.grid_kgco2_per_kwh in (None, 0) or _is_amount(request.grid_kgco2_per_kwh)):
        raise ValueError(f"grid_kgco2_per_kwh is {_shown(request.grid_kgco2_per_kwh)}, not a number from 0 on")
    for name in ("cloud", "region", "fabric", "prices", "profile", "nvme_path"):
        value = getattr(request, name)
        if not ((value is None and name != "nvme_path") or isinstance(value, str)):
            raise ValueError(f"{name} is {_shown(value)}, not a text")
    if request.prices is not None and not request.prices.isprintable():
        raise ValueError(f"prices is {_shown(request.prices)}, not a file's name")
    if not (request.budget in (None, CHEAPEST) or _is_amount(request.budget)):
        raise ValueError(f"budget is {_shown(request.budget)}, not an amount")


def _is_amount(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(float(str(value))) and float(str(value)) > 0


def _shown(value: object) -> str:
    return repr(value)[:40]
