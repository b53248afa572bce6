"""One partition for each collection. `rag.collection` is the truth; Dagster's dynamic partitions follow it."""

from collections.abc import Iterable

from dagster import DagsterInstance, DynamicPartitionsDefinition

collections_partitions = DynamicPartitionsDefinition(name="collections")

# What the assets have in common.
shared = {"partitions_def": collections_partitions, "group_name": "rag_pipeline"}


def sync_partitions(instance: DagsterInstance, names: Iterable[str]) -> None:
    """Make Dagster's partitions equal to the collections' names."""
    wanted, present = set(names), set(instance.get_dynamic_partitions(collections_partitions.name))
    if wanted - present:
        instance.add_dynamic_partitions(collections_partitions.name, sorted(wanted - present))
    for name in present - wanted:
        instance.delete_dynamic_partition(collections_partitions.name, name)
