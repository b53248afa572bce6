"""Stages that are done in shards: a graph that plans, maps over the shards, which any worker may do, and collects.

Steps hand each other keys and figures (`step_outputs`). In a run that is one process all is one shard, and with nothing
missing there is none.
"""

from collections.abc import Callable, Sequence
from functools import wraps

from dagster import DynamicOut, DynamicOutput, In, Nothing, Out, RetryRequested

from rag_pipeline.core.errors import RagError
from rag_pipeline.core.sharding import Shard
from rag_pipeline.resources import Pipeline
from rag_pipeline.step_outputs import STEP_OUTPUTS

# A shard takes a worker a minute or a few. Several batches of the provider's largest size, and enough files that
# starting a step is nothing beside them.
SHARD_CHUNKS = 4096
SHARD_BYTES = 64 * 2**20

# What a plan makes: a shard each, and what the last step needs to know.
PLAN_OUTS = {"shards": DynamicOut(io_manager_key=STEP_OUTPUTS), "plan": Out(io_manager_key=STEP_OUTPUTS)}
# What a shard makes: its report.
SHARD_OUT = Out(io_manager_key=STEP_OUTPUTS)

AFTER = {"after": In(Nothing)}


def largest_shard(pipeline: Pipeline, size: int) -> int | None:
    """`size` where several workers share the shards, else None: one shard."""
    return None if pipeline.runtime.settings.executor == "in_process" else size


def tried_twice(shard_step: Callable) -> Callable:
    """The step of a shard, done once more where a worker failed, which does what is still missing of it.

    What a person has to put right fails at once, and so does everything in a run that is one process.
    """

    @wraps(shard_step)
    def run(pipeline: Pipeline, **inputs: object) -> object:
        try:
            return shard_step(pipeline, **inputs)
        except RagError:
            raise
        except Exception as error:
            if pipeline.runtime.settings.executor == "in_process":
                raise
            raise RetryRequested(max_retries=1) from error

    return run


def shard_outputs(shards: Sequence[Shard]) -> list[DynamicOutput]:
    """The shards as the outputs of a step."""
    return [
        DynamicOutput(
            {"first": shard.first.hex(), "last": shard.last.hex(), "size": shard.size},
            output_name="shards",
            mapping_key=str(number),
        )
        for number, shard in enumerate(shards)
    ]


def read_shard(value: dict) -> Shard:
    """A shard as it comes to another step."""
    return Shard(bytes.fromhex(value["first"]), bytes.fromhex(value["last"]), value["size"])
