"""From what a user typed to a model: a file, a folder, a name of the catalog, a hub id, or a few numbers."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

from .architectures import build_model
from .architectures.reader import shown
from .computation import Adapters
from .errors import InputError, did_you_mean
from .model import Model
from .units import count

LARGEST_REFERENCE = 4096  # characters of a path, as Linux allows
LARGEST_FILE_BYTES = 2**20  # published config.json files are below 100 kB, the longest with quantization tables
DEEPEST_NESTING = 32  # published files nest 4 deep
HUB_TIMEOUT_S = 5.0
# peft 0.21.2 utils/transformers_weight_conversion.py with transformers 5.23.0 conversion_mapping.py
PEFT_REMAPS = frozenset({"mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3"})
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
DO = "give a config.json, a folder that holds one, a name from `trainplan models list`, or a hub id org/name"


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogModel:
    """One row of configs/models.toml."""

    name: str
    config: Mapping[str, object]
    aliases: tuple[str, ...]
    hub: tuple[str, ...]
    source: str

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that means this row: a hub id does so without its organisation, too."""
        return (self.name, *self.aliases, *self.hub, *(identity.rpartition("/")[2] for identity in self.hub))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A model, and what its name was taken to mean: "70b means Llama-3.1-70B", or nothing where that is plain."""

    model: Model
    note: str = ""


def spelling(name: str) -> str:
    """A name without case, ``-``, ``_`` and blanks.

    >>> spelling("Llama-3.1 70B") == spelling("llama_3.1-70b")
    True
    """
    return re.sub(r"[-_\s]", "", name.lower())


@lru_cache(maxsize=1)
def catalog() -> Mapping[str, CatalogModel]:
    """Every model of configs/models.toml, by name."""
    text = (resources.files(__package__.rpartition(".")[0]) / "configs" / "models.toml").read_text(encoding="utf-8")
    return {name: _row(name, row) for name, row in tomllib.loads(text)["models"].items()}


def _row(name: str, row: Mapping[str, object]) -> CatalogModel:
    """TOML has no null: ``null`` lists the keys that config.json sets to it."""
    config, null, aliases, hub = (row.get(key, []) for key in ("config", "null", "aliases", "hub"))
    assert isinstance(config, dict)
    assert isinstance(null, list)
    assert isinstance(aliases, list)
    assert isinstance(hub, list)
    return CatalogModel(
        name=name,
        config={**config, **dict.fromkeys(null)},
        aliases=tuple(aliases),
        hub=tuple(hub),
        source=str(row["source"]),
    )


@lru_cache(maxsize=1)
def spellings() -> Mapping[str, str]:
    """Every accepted spelling, and the catalog's name for it."""
    return {spelling(alias): row.name for row in catalog().values() for alias in row.names}


@lru_cache(maxsize=256)
def catalog_model(name: str) -> Model:
    """A model of the catalog by its canonical name; the same object each time."""
    row = catalog()[name]
    return build_model(row.config, name=name, source=f"catalog: {name}, from {row.source}")


def load_model(reference: str) -> Model:
    """The model a reference means; see ``find_model``."""
    return find_model(reference).model


def find_model(reference: str) -> Found:
    """Resolve a reference: an existing file, a folder with a config.json, a catalog name or alias, a hub id.

    Args:
        reference: what the user typed.

    Returns:
        The model, and a note where the name was a short form.

    Raises:
        InputError: nothing of that name, or a wrong file.

    >>> find_model("70b").note
    '70b means Llama-3.1-70B'
    """
    if not reference.strip() or len(reference) > LARGEST_REFERENCE or "\0" in reference:
        raise InputError(f"model: not a name, got {shown(reference)}; {DO}")
    path = Path(reference)
    if path.is_file():
        return Found(
            model=_from_file(path, name=path.resolve().parent.name if path.name == "config.json" else path.stem)
        )
    if (path / "config.json").is_file():
        return Found(model=_from_file(path / "config.json", name=path.resolve().name))
    if (name := spellings().get(spelling(reference))) is not None:
        note = "" if spelling(reference) == spelling(name) else f"{reference} means {name}"
        return Found(model=catalog_model(name), note=note)
    if HUB_ID.fullmatch(reference):
        return Found(model=_from_hub(reference))
    raise InputError(f"model: unknown, got {shown(reference)}{_similar(reference)}; {DO}")


def _similar(reference: str) -> str:
    """Did-you-mean over names and aliases."""
    known = {alias.lower(): None for row in catalog().values() for alias in (row.name, *row.aliases)}
    return did_you_mean(reference[:100], known)


def _from_file(path: Path, *, name: str) -> Model:
    return build_model(read_config(path), name=_printable(name or path.stem), source=_printable(str(path)))


def _printable(text: str) -> str:
    """A file's name without escape sequences for the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def read_config(path: Path) -> Mapping[str, object]:
    """The keys of a config.json: bounded in size and depth, no key twice, no NaN, nothing executed.

    Raises:
        InputError: unreadable, too large, no JSON object.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; give a readable config.json") from None
    if len(data) > LARGEST_FILE_BYTES:
        raise InputError(
            f"{path}: larger than {LARGEST_FILE_BYTES:,} bytes; give the model's config.json, not its weights"
        )
    return parse_config(data, where=str(path))


def parse_config(data: bytes, *, where: str, wanted: str = "the model's config.json") -> Mapping[str, object]:
    """The keys of a JSON file's bytes; ``wanted`` says in messages what should have been given.

    Raises:
        InputError: no UTF-8, no JSON object, a key twice, NaN, nested too deep.

    >>> parse_config(b'{"hidden_size": 8}', where="doctest")
    {'hidden_size': 8}
    """
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        raise InputError(_too_deep(where, wanted)) from None
    except ValueError as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{where}: not JSON: {reason}; give {wanted}") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: not a JSON object, got {type(value).__name__}; give {wanted}")
    if _depth(value) > DEEPEST_NESTING:
        raise InputError(_too_deep(where, wanted))
    return value


def _too_deep(where: str, wanted: str) -> str:
    return f"{where}: nested too deep; allowed are {DEEPEST_NESTING} levels; give {wanted}"


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object whose keys are all different."""
    keys = dict(pairs)
    if len(keys) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"key {shown(next(key for key in names if names.count(key) > 1))} twice")
    return keys


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _depth(value: object) -> int:
    """Levels of nesting, counted level by level."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return depth


def _from_hub(repository: str) -> Model:
    """A model's config.json from the hub's cache, else from the network."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError(
            f"model: {repository} is not in the catalog{_similar(repository)}, and huggingface_hub is not installed; "
            f"pip install 'trainplan[hub]', or download its config.json and give the path"
        )
    import huggingface_hub

    source = f"huggingface.co/{repository}"
    cached = huggingface_hub.try_to_load_from_cache(repository, "config.json")
    config = read_config(Path(cached)) if isinstance(cached, str) else parse_config(_download(repository), where=source)
    return build_model(config, name=repository.rpartition("/")[2], source=source)


def _download(repository: str) -> bytes:
    """The repository's config.json and nothing else; no more of it than a config.json may have.

    One try: hf_hub_download makes six before it gives up, 23 s without a network (huggingface_hub 2.4.0, measured).
    """
    from huggingface_hub import get_session, get_token, hf_hub_url

    headers = {"Range": f"bytes=0-{LARGEST_FILE_BYTES}"}  # inclusive: one byte more than allowed
    if token := get_token():  # gated models: what `hf auth login` left
        headers["Authorization"] = f"Bearer {token}"
    try:
        response = get_session().get(hf_hub_url(repository, "config.json"), headers=headers, timeout=HUB_TIMEOUT_S)
        response.raise_for_status()
    except Exception as error:  # its own, httpx' and OS errors, by version
        raise InputError(
            f"model: {repository} is not in the catalog{_similar(repository)}, and the hub does not give its "
            f"config.json ({type(error).__name__}); download it and give the path, or describe the model by its numbers"
        ) from None
    if len(response.content) > LARGEST_FILE_BYTES:
        raise InputError(f"{repository}: config.json is larger than {LARGEST_FILE_BYTES:,} bytes; name another model")
    return bytes(response.content)


def adapter_parameters(model: Model, adapters: Adapters) -> int:
    """Parameters that LoRA trains: r (fan_in + fan_out) for each adapted weight.

    peft 0.21.2 does otherwise for Mixtral, Qwen3-MoE and DeepSeek (``PEFT_REMAPS``): names of MLP projections then mean
    the stacked experts and the router, with twice the rank on gate_up_proj, and no longer the dense or shared MLPs.

    Source:
        LoRA, arXiv 2106.09685, section 4.1; peft 0.21.2 tuners/lora/layer.py: lora_A (r, in) and lora_B (out, r).

    >>> adapter_parameters(load_model("llama-2-7b"), Adapters(rank=8, targets=("q_proj", "v_proj")))
    4194304
    >>> 32 * 2 * 8 * (4096 + 4096)
    4194304
    """
    return sum(
        layers * adapters.rank * (p.fan_in + p.fan_out)
        for block, layers in model.distinct_blocks
        for p in adapters.adapted(block)
    )


def describe_by_hand(
    params: float,
    layers: int,
    hidden: int,
    heads: int | None = None,
    kv_heads: int | None = None,
    intermediate: int | None = None,
    vocab: int = 32000,
) -> Model:
    """A Llama-shaped model of about so many parameters: the MLP width f is solved from the rest.

    P = 2 V h + h + L (2 h a d + 2 h kv d + 3 h f + 2 h), with an untied head.

    Args:
        params: P, parameters wanted.
        layers: L.
        hidden: h.
        heads: a; left out, heads of 128 as in Llama, else the largest head size up to 128 that divides h.
        kv_heads: kv; left out, a.
        intermediate: f; left out, solved.
        vocab: V.

    Returns:
        The model whose count is nearest to ``params``, of those whose MLP is as wide as MLPs are (`_usual_width`).

    Raises:
        InputError: no such model: P too small for L and h, or far from what L, h and f give.

    >>> describe_by_hand(13e9, 40, 5120).parameter_count  # Llama-2-13B has 13,015,864,320
    13015864320
    """
    if not (isinstance(params, int | float) and math.isfinite(params) and 1 <= params <= 1e15):
        raise InputError(f"--params: got {shown(params)}; allowed is a number from 1 to 1e15; write for example 13e9")
    config = _llama_config(layers, hidden, heads, kv_heads, intermediate or 1, vocab)
    smallest = build_model(config, name="by hand", source="--layers, --hidden")
    if intermediate is None:
        per_width = 3 * layers * hidden  # gate, up and down, in every layer
        config["intermediate_size"] = _usual_width(round((params - smallest.parameter_count) / per_width) + 1)
        if int(str(config["intermediate_size"])) < 1:
            raise InputError(
                f"--params: got {params:g}; {layers} layers of hidden size {hidden} have {smallest.parameter_count:,} "
                f"parameters before any MLP; give more parameters, or fewer or narrower layers"
            )
    return _named_by_hand(config, params, solved=intermediate is None)


WIDTH_MULTIPLE, FROM_WIDTH = 64, 2048  # rows of whole 128-byte lines in 16 bits; others are slow, and no model has them


def _usual_width(width: int) -> int:
    """The nearest width that kernels like; narrow MLPs as they are, so that the parameters stay near what was asked."""
    return width if width < FROM_WIDTH else round(width / WIDTH_MULTIPLE) * WIDTH_MULTIPLE


NEAR_ENOUGH = 0.05  # given all sizes, how far their count may be from the parameters that were typed as well


def _named_by_hand(config: dict[str, object], params: float, *, solved: bool) -> Model:
    """Build it, and say what was assumed."""
    described = (
        f"{config['num_hidden_layers']} layers, hidden {config['hidden_size']}, MLP {config['intermediate_size']}"
    )
    source = f"by hand: Llama-shaped, {described}{' (solved)' if solved else ''}, {count(params)} asked"
    model = build_model(config, name=f"by-hand-{count(params)}", source=source)
    if abs(model.parameter_count - params) > NEAR_ENOUGH * params:
        raise InputError(
            f"--params: got {params:g}, but {described} make {model.parameter_count:,}; leave the MLP width out to "
            f"have it solved, or correct the numbers"
        )
    return model


ROTARY_POSITIONS = 10**7  # rotary embeddings have no table that ends; LlamaConfig would take 2,048


def _llama_config(
    layers: int, hidden: int, heads: int | None, kv_heads: int | None, intermediate: int, vocab: int
) -> dict[str, object]:
    """The keys of config.json."""
    return {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads if heads is not None else _usual_heads(hidden),
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "max_position_embeddings": ROTARY_POSITIONS,
    }


def _usual_heads(hidden: int) -> int:
    """Heads of 128, as all Llama models above 3B have; else of the largest size below that divides h."""
    largest = 128
    if not isinstance(hidden, int) or hidden < 1:
        return 1
    return hidden // next(size for size in range(min(largest, hidden), 0, -1) if hidden % size == 0)
