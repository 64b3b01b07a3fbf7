"""Kubeflow Trainer's own models of its API read trainjob.yaml and give it back with nothing lost."""

from __future__ import annotations

import pytest

from .cases import loaded, shown

pytestmark = pytest.mark.oracle
models = pytest.importorskip("kubeflow_trainer_api.models")


@pytest.mark.parametrize("name", shown())
def test_the_api_knows_every_field(name: str) -> None:
    """A field that the API does not have would be dropped on the way; types are checked."""
    document = loaded("kubernetes", name, "trainjob.yaml")
    job = models.TrainerV1alpha1TrainJob.from_dict(document)
    assert job.to_dict() == document
    d = shown()[name]["decision"]
    assert (job.spec.trainer.num_nodes, job.spec.trainer.num_proc_per_node) == (d["nodes"], d["gpus_per_node"])
    assert job.spec.runtime_ref.name == "torch-distributed"


@pytest.mark.parametrize("name", list(shown())[:3])
def test_a_field_that_is_none_would_be_seen(name: str) -> None:
    """The test above is not blind: a misspelt field is lost."""
    document = loaded("kubernetes", name, "trainjob.yaml")
    document["spec"]["trainer"]["numberOfNodes"] = 1
    assert models.TrainerV1alpha1TrainJob.from_dict(document).to_dict() != document
