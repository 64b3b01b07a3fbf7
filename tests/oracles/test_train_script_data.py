"""The training script's data: what `datasets` streams becomes batches, and a position gives back the rest exactly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from trainplan.planner.job import train

datasets = pytest.importorskip("datasets")
torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.oracle,
    # datasets leaves the file of a stream that is not read to its end to the garbage collector
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

END = 0
DOCUMENTS = [list(range(10 * i + 1, 10 * i + 1 + n)) for i, n in enumerate((3, 9, 1, 5, 8, 2, 7))]
FILES = ("jsonl", "csv", "parquet", "txt")


class Numbers:
    """A tokenizer of texts that are numbers."""

    eos_token_id = END

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


def write(folder: Path, kind: str, documents: Sequence[Sequence[int]] = DOCUMENTS) -> Path:
    """The documents as a file of this kind, with an empty one among them."""
    texts = [" ".join(map(str, document)) for document in documents]
    path = folder / f"it's [1] data.{kind}"
    table = datasets.Dataset.from_dict({"text": [*texts[:2], "", *texts[2:]], "number": list(range(len(texts) + 1))})
    if kind == "jsonl":
        table.to_json(path)
    elif kind == "csv":
        table.to_csv(path)
    elif kind == "parquet":
        table.to_parquet(path)
    else:
        path.write_text("\n".join(texts) + "\n")
    return path


def stream(path: Path, *, rank: int = 0, ranks: int = 1, packed: bool = True, seq_len: int = 4) -> train.Stream:
    """One rank's stream."""
    rows = train.open_data(str(path), "train", "text")
    return train.Stream(rows, Numbers(), "text", seq_len, packed, rank, ranks)


def tokens(batches: Sequence[Any]) -> list[int]:
    """Ids in the order they are trained on."""
    return [int(i) for batch in batches for i in batch["input_ids"].flatten()]


def followed(documents: Sequence[Sequence[int]]) -> list[int]:
    """Documents with their ends."""
    return [token for document in documents for token in (*document, END)]


@pytest.mark.parametrize("kind", FILES)
def test_documents_follow_each_other_packed(tmp_path: Path, kind: str) -> None:
    """Every token once, in order, an end behind each document, cut every seq_len; then the next epoch."""
    taken, _ = stream(write(tmp_path, kind)).take(batches=12, sequences=2)
    assert all(batch["input_ids"].shape == (2, 4) for batch in taken)
    assert tokens(taken) == (followed(DOCUMENTS) * 3)[: 12 * 2 * 4]
    assert all(torch.equal(batch["input_ids"], batch["labels"]) for batch in taken)


def test_ranks_share_the_documents(tmp_path: Path) -> None:
    """Each document is one rank's; together they have all."""
    path = write(tmp_path, "txt")
    streams = [stream(path, rank=rank, ranks=2) for rank in range(2)]
    for rank, each in enumerate(streams):
        assert tokens(each.take(4, 1)[0]) == (followed(DOCUMENTS[rank::2]) * 2)[:16]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", FILES)
def test_a_position_gives_back_the_rest_exactly(tmp_path: Path, kind: str, packed: bool) -> None:
    """Stopped after any step and read back as JSON: no token is repeated or skipped, over the end of an epoch too."""
    path = write(tmp_path, kind)
    whole = [tokens(taken) for taken, _ in _steps(stream(path, rank=1, ranks=2, packed=packed), 12)]
    for step in (1, 2, 5, 9):
        *_, (_, state) = _steps(stream(path, rank=1, ranks=2, packed=packed), step)
        resumed = stream(path, rank=1, ranks=2, packed=packed)
        resumed.load(json.dumps(json.loads(state)))
        assert [tokens(taken) for taken, _ in _steps(resumed, 12 - step)] == whole[step:]


def _steps(each: train.Stream, steps: int) -> list[tuple[list[Any], str]]:
    return [each.take(batches=2, sequences=1) for _ in range(steps)]


def test_padded_documents_stand_alone(tmp_path: Path) -> None:
    """One sequence a document, cut where longer; padding is masked and predicts nothing."""
    ((batch,), _) = stream(write(tmp_path, "jsonl"), packed=False, seq_len=8).take(batches=1, sequences=3)
    first, second, third = ([*d, END] for d in (DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[1]))
    assert batch["input_ids"].tolist() == [first + [END] * 4, second[:8], third[8:] + [END] * 6]
    assert batch["labels"].tolist() == [first + [-100] * 4, second[:8], third[8:] + [-100] * 6]
    assert batch["attention_mask"].sum(1).tolist() == [4, 8, 2]


def test_padded_batches_count_by_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means of micro-batches, weighted, are the mean over all labels of all ranks."""
    ignored = train.IGNORED
    batches = [
        {"labels": torch.tensor([[5, 1, 2, ignored]]), "attention_mask": None},
        {"labels": torch.tensor([[5, 1, 2, 3]]), "attention_mask": None},
    ]
    other_rank = 2 + 1
    monkeypatch.setattr(train, "over_ranks", lambda mine: [mine, [float(other_rank)]])
    labels, micro_batches = 2 + 3 + other_rank, 4
    assert train.weights_of(batches) == pytest.approx([2 * micro_batches / labels, 3 * micro_batches / labels])


def test_a_folder_is_read(tmp_path: Path) -> None:
    """Files of one format."""
    (tmp_path / "a.txt").write_text("1 2 3\n")
    assert tokens(stream(tmp_path).take(1, 1)[0]) == [1, 2, 3, END]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("nowhere.jsonl", "no such file or folder"),
        ("./nowhere", "no such file or folder"),
        ("a.xml", "unknown format '.xml'; allowed are .jsonl, .json, .parquet, .csv, .txt, folders, hub ids"),
        ("empty.jsonl", "has no rows"),
        ("broken.jsonl", "cannot be read"),
        ("b.jsonl", "no text in field 'text'; fields with text: title, body; give --text-field"),
    ],
)
def test_bad_data_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, words: str
) -> None:
    """Where, what, and what is allowed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.xml").write_text("<a/>")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"text": "a"')
    (tmp_path / "b.jsonl").write_text('{"title": "a", "body": "b", "text": 3}\n')
    with pytest.raises(train.Refused) as refusal:
        train.open_data(data, "train", "text")
    assert str(refusal.value).startswith(f"--data {data}: ")
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_data_without_text_end(tmp_path: Path) -> None:
    """A rank that would wait for ever says so."""
    with pytest.raises(train.Refused, match="rank 1 of 2 finds no text"):
        stream(write(tmp_path, "txt", [[1, 2]]), rank=1, ranks=2).take(1, 1)
