"""The calls, each written once: what to ask, in which order, and what to make of the answers.

Every function here is a method of `Client`, `AsyncClient` and `LocalClient`; its signature and docstring are theirs,
but for `defaults`, which the client fills in. It does no input or output: it yields `Work`, is sent the answer or
thrown the error, and returns what the method returns.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Generic, SupportsIndex, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from pkpo_client import options, splitting
from pkpo_client.arrays import Array, kept, taken
from pkpo_client.errors import InvalidArgument, Violation, refused
from pkpo_client.grouping import Grouped, grouped
from pkpo_client.options import Defaults
from pkpo_client.results import ArrayT, GroupStatus, Limits, MaxAtK, ServerInfo, TransformResult, joined, scattered
from pkpo_client.work import Advantages, Batch, EstimateBatch, Info, Operation, ServerLimits

#: What NumPy makes an array of numbers of.
Numbers: TypeAlias = Sequence[float] | Sequence[Sequence[float]]
#: One integer or several.
Integers: TypeAlias = SupportsIndex | Sequence[SupportsIndex] | Array
Ids: TypeAlias = Sequence[Hashable] | Array
Mask: TypeAlias = Sequence[bool] | Sequence[Sequence[bool]] | Array


@overload
def transform(
    defaults: Defaults,
    rewards: Numbers,
    k: Integers | None = None,
    *,
    group_ids: Ids | None = None,
    mask: Mask | None = None,
    variant: str | None = None,
    scale: str | None = None,
    k_policy: str | None = None,
    seed: int = 0,
    run_id: str | None = None,
    timeout: float | None = None,
) -> Operation[NDArray[np.float64]]: ...
@overload
def transform(
    defaults: Defaults,
    rewards: ArrayT,
    k: Integers | None = None,
    *,
    group_ids: Ids | None = None,
    mask: Mask | None = None,
    variant: str | None = None,
    scale: str | None = None,
    k_policy: str | None = None,
    seed: int = 0,
    run_id: str | None = None,
    timeout: float | None = None,
) -> Operation[ArrayT]: ...
def transform(
    defaults: Defaults,
    rewards: Any,
    k: Integers | None = None,
    *,
    group_ids: Ids | None = None,
    mask: Mask | None = None,
    variant: str | None = None,
    scale: str | None = None,
    k_policy: str | None = None,
    seed: int = 0,
    run_id: str | None = None,
    timeout: float | None = None,
) -> Operation[Any]:
    """Advantages that optimise pass@k / max@k.

    With the rewards of a group sorted, x_1 <= ... <= x_n, the default variant (PKPO eq. 33) gives sample i

        A_1 = 0,   A_{i+1} = A_i + C(i, k-1) / C(n, k) * (x_{i+1} - x_i)

    Args:
        rewards: (groups, n), or (samples,) with `group_ids`: an array of NumPy, torch or JAX, or a list. Finite, of
            magnitude at most 1e100.
        k: how many samples the best is taken of: an integer of at least 1, or one per group (in the order of rows, or
            of the first appearance of ids). None for the variants loo, grpo and tzsm.
        group_ids: (samples,) which samples belong together: integers, strings or any hashables, in any order.
        mask: of the shape of the rewards; a sample with false (or 0) gets the advantage 0 and counts nowhere, whatever
            its reward is, even NaN.
        variant: which function of the rewards the advantages are, such as "sloo_minus_one"; `server_info` lists them.
        scale: "sum" where the loss sums over the samples of a group, "mean" where it averages over them (the
            advantages are then n times larger).
        k_policy: what to do with a k outside the variant's range for a group: "strict" refuses it, "clamp" lowers it.
        seed: of the variant passk_bootstrap, from 0 to 2^64 - 1.
        run_id: names the training run in the service's metrics and logs: up to 128 of A-Z a-z 0-9 . _ : / -
        timeout: seconds the call may take, with all retries and parts; `math.inf` for no end.

        An option left None is what the client was made with.

    Returns:
        The advantages, of the shape, kind, dtype and device of the rewards; float64 for integers, bools and lists.

    Raises:
        InvalidArgument: an argument the service refuses; its `violations` name each, with its value and the bound.
        Unavailable, DeadlineExceeded, Overloaded: the service cannot be reached or does not keep up.
        PkpoError: anything else; see `pkpo_client.errors`.
    """
    result = yield from transform_detailed(
        defaults,
        rewards,
        k,
        group_ids=group_ids,
        mask=mask,
        variant=variant,
        scale=scale,
        k_policy=k_policy,
        seed=seed,
        run_id=run_id,
        timeout=timeout,
    )
    return result.advantages


@overload
def transform_detailed(
    defaults: Defaults,
    rewards: Numbers,
    k: Integers | None = None,
    *,
    estimate_k: Integers = (),
    group_ids: Ids | None = None,
    mask: Mask | None = None,
    variant: str | None = None,
    scale: str | None = None,
    k_policy: str | None = None,
    seed: int = 0,
    run_id: str | None = None,
    timeout: float | None = None,
) -> Operation[TransformResult[NDArray[np.float64]]]: ...
@overload
def transform_detailed(
    defaults: Defaults,
    rewards: ArrayT,
    k: Integers | None = None,
    *,
    estimate_k: Integers = (),
    group_ids: Ids | None = None,
    mask: Mask | None = None,
    variant: str | None = None,
    scale: str | None = None,
    k_policy: str | None = None,
    seed: int = 0,
    run_id: str | None = None,
    timeout: float | None = None,
) -> Operation[TransformResult[ArrayT]]: ...
def transform_detailed(
    defaults: Defaults,
    rewards: Any,
    k: Integers | None = None,
    *,
    estimate_k: Integers = (),
    group_ids: Ids | None = None,
    mask: Mask | None = None,
    variant: str | None = None,
    scale: str | None = None,
    k_policy: str | None = None,
    seed: int = 0,
    run_id: str | None = None,
    timeout: float | None = None,
) -> Operation[TransformResult[Any]]:
    """The advantages of `transform`, the status of each group, and estimates of max@k of the same rewards.

    Args:
        rewards: as in `transform`.
        k: as in `transform`.
        estimate_k: estimate max@k (pass@k for rewards of 0 and 1) of each group for these k too: one integer or
            several, each at least 1.
        group_ids, mask, variant, scale, k_policy, seed, run_id, timeout: as in `transform`.

    Returns:
        A `TransformResult`: `.advantages`, `.group_statuses`, `.estimates`, `.group_ids`. A group of which every sample
        is masked has the status TOO_SMALL and estimates of NaN.

    Raises:
        PkpoError: as in `transform`.
    """
    given = (
        defaults.variant if variant is None else variant,
        defaults.scale if scale is None else scale,
        defaults.k_policy if k_policy is None else k_policy,
        defaults.run_id if run_id is None else run_id,
        defaults.timeout if timeout is None else timeout,
    )
    try:
        chosen = _options(*given)
    except TypeError:  # cannot be looked up, and so is none of what an option may be
        chosen = _options.__wrapped__(*given)
    whole_seed = options.seed(seed)
    estimated = options.k_list("estimate_k", estimate_k)
    array = taken(rewards)
    batch = grouped(array.values, group_ids, mask)
    ks = options.k_per_group(chosen.variant, k, len(batch.group_ids))
    if isinstance(ks, np.ndarray) and batch.groups is not None:
        ks = ks[batch.groups]

    answer = yield from _transformed(batch, ks, estimated, whole_seed, chosen)
    return TransformResult(
        advantages=array.give_back(batch.scattered(answer.values)),
        group_statuses=batch.scattered_statuses(answer.group_statuses, GroupStatus.TOO_SMALL),
        estimates=scattered(answer.estimates, batch.groups, len(batch.group_ids)),
        group_ids=batch.group_ids,
    )


def estimate(
    defaults: Defaults,
    rewards: Any,
    k: Integers,
    *,
    group_ids: Ids | None = None,
    mask: Mask | None = None,
    timeout: float | None = None,
) -> Operation[tuple[MaxAtK, ...]]:
    """Unbiased estimates of max@k of each group (pass@k for rewards of 0 and 1), with standard errors.

    With the rewards of a group sorted, x_1 <= ... <= x_n (PKPO eq. 3 and 12),

        max@k = sum_i C(i-1, k-1) / C(n, k) * x_i

    and its standard error is the jackknife.

    Args:
        rewards: as in `transform`.
        k: one integer or several, each at least 1.
        group_ids, mask, timeout: as in `transform`.

    Returns:
        One `MaxAtK` per k, in its order: `.k`, `.values` and `.standard_errors`, (groups,) each. Values are NaN where
        k is above n, standard errors where k is n or above, both where every sample of the group is masked.

    Raises:
        PkpoError: as in `transform`.
    """
    ks = options.k_list("k", k)
    if not ks:
        raise refused("k", "is empty; must have at least 1 value")
    seconds = options.timeout(defaults.timeout if timeout is None else timeout)
    batch = grouped(taken(rewards).values, group_ids, mask)
    if batch.number_of_groups == 0:
        return scattered(_no_estimates(ks), batch.groups, len(batch.group_ids))

    limits: Limits = yield ServerLimits(seconds)
    answers: list[tuple[MaxAtK, ...]] = []
    for part in splitting.parts(batch, limits, len(ks)):
        answers.append(
            (
                yield from _asked(
                    EstimateBatch(
                        timeout=seconds,
                        rewards=batch.rewards[part.rewards],
                        group_sizes=_of_part(batch.group_sizes, part.groups),
                        number_of_groups=part.groups.stop - part.groups.start,
                        k=ks,
                    ),
                    batch,
                    part,
                )
            )
        )
    return scattered(joined(answers), batch.groups, len(batch.group_ids))


def server_info(defaults: Defaults, *, timeout: float | None = None) -> Operation[ServerInfo]:
    """What the service says of itself: its version, variants, limits and default variant.

    Args:
        timeout: as in `transform`.

    Raises:
        PkpoError: as in `transform`. This call never falls back.
    """
    info: ServerInfo = yield Info(options.timeout(defaults.timeout if timeout is None else timeout))
    return info


@dataclass(frozen=True)
class Plan(Generic[ArrayT]):
    """What a stream does: batches to pull, and the operation each becomes.

    Attributes:
        batches: as the caller gave them.
        operation: of one batch.
        in_flight: how many may be pulled and not yet given back.
    """

    batches: Iterable[Any] | AsyncIterable[Any]
    operation: Callable[[Any], Operation[TransformResult[ArrayT]]]
    in_flight: int


def stream(
    defaults: Defaults,
    batches: Iterable[ArrayT] | AsyncIterable[ArrayT] | Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
    k: Integers | None = None,
    *,
    estimate_k: Integers = (),
    variant: str | None = None,
    scale: str | None = None,
    k_policy: str | None = None,
    seed: int = 0,
    run_id: str | None = None,
    timeout: float | None = None,
    in_flight: int = 8,
) -> Plan[Any]:
    """The results of `transform_detailed` for many batches over one call, in the order of the batches.

    Batches are pulled only as they are needed: while an answer is awaited, up to `in_flight` of them are under way. A
    batch that fails raises its error at its turn, and iteration can go on with the next one. A stream that breaks is
    opened again, and only what was not answered is sent again.

    Args:
        batches: an iterable (of `AsyncClient` also an asynchronous one) of rewards of shape (groups, n), or of mappings
            of the arguments of `transform_detailed`, such as {"rewards": flat, "group_ids": ids, "k": 4}. They are
            pulled in the thread or task that iterates, and copied.
        k: of the batches that do not say theirs.
        estimate_k, variant, scale, k_policy, seed, run_id: of the batches that do not say theirs; as in
            `transform_detailed`.
        timeout: seconds each batch may take. Time in which nobody waits for the stream does not count.
        in_flight: how many batches may be under way, at least 1.

    Returns:
        An iterator of `TransformResult`, with `close()`; it is also a context manager. Leaving early is fine.

    Raises:
        PkpoError: as in `transform`, at the turn of the batch.
    """
    usual = {
        "k": k,
        "estimate_k": estimate_k,
        "variant": variant,
        "scale": scale,
        "k_policy": k_policy,
        "seed": seed,
        "run_id": run_id,
        "timeout": timeout,
    }
    if options.integer("in_flight", in_flight, 2**16) == 0:
        raise refused("in_flight", "is 0; must be at least 1")

    def operation(batch: Any) -> Operation[TransformResult[Any]]:
        arguments = {**usual, **(batch if isinstance(batch, Mapping) else {"rewards": batch})}
        if "rewards" not in arguments:
            return failing(refused("rewards", "is missing; must be in the mapping"))
        strange = sorted(map(str, arguments.keys() - usual.keys() - {"rewards", "group_ids", "mask"}))
        if strange:
            return failing(refused(strange[0], "is given; must be an argument of transform_detailed"))
        # The caller may use the memory for the next batch while this one is still to be sent, or sent again.
        arguments["rewards"] = kept(arguments["rewards"])
        return transform_detailed(defaults, **arguments)

    return Plan(batches, operation, in_flight)


def failing(error: Exception) -> Operation[Any]:
    """The operation that raises `error`."""
    raise error
    yield  # makes it one


@dataclass(frozen=True, slots=True)
class _Options:
    variant: str
    scale: str
    k_policy: str
    run_id: str
    timeout: float


# A training run gives the same ones every time.
@lru_cache(maxsize=64, typed=True)
def _options(variant: Any, scale: Any, k_policy: Any, run_id: Any, timeout: Any) -> _Options:
    return _Options(
        variant=options.name("variant", variant, options.VARIANTS),
        scale=options.name("scale", scale, options.SCALES),
        k_policy=options.name("k_policy", k_policy, options.K_POLICIES),
        run_id=options.run_id(run_id),
        timeout=options.timeout(timeout),
    )


def _transformed(
    batch: Grouped, ks: int | NDArray[np.int64] | None, estimate_k: tuple[int, ...], seed: int, chosen: _Options
) -> Operation[Advantages]:
    if batch.number_of_groups == 0:
        return Advantages(batch.rewards[:0], np.zeros(0, dtype=np.uint8), _no_estimates(estimate_k))
    limits: Limits = yield ServerLimits(chosen.timeout)
    answers: list[Advantages] = []
    for part in splitting.parts(batch, limits, len(estimate_k)):
        answers.append(
            (
                yield from _asked(
                    Batch(
                        timeout=chosen.timeout,
                        rewards=batch.rewards[part.rewards],
                        group_sizes=_of_part(batch.group_sizes, part.groups),
                        number_of_groups=part.groups.stop - part.groups.start,
                        variant=chosen.variant,
                        scale=chosen.scale,
                        k_policy=chosen.k_policy,
                        k=_of_part(ks, part.groups),
                        estimate_k=estimate_k,
                        seed=seed,
                        run_id=chosen.run_id,
                        first_group=part.groups.start,
                    ),
                    batch,
                    part,
                )
            )
        )
    if len(answers) == 1:
        return answers[0]
    return Advantages(
        np.concatenate([answer.values for answer in answers]),
        np.concatenate([answer.group_statuses for answer in answers]),
        joined([answer.estimates for answer in answers]),
    )


def _asked(work: Batch | EstimateBatch, batch: Grouped, part: splitting.Part) -> Generator[Any, Any, Any]:
    """The answer to `work`; a refusal is put in terms of the whole batch and of the caller's arguments."""
    try:
        return (yield work)
    except InvalidArgument as error:
        placed = [_placed(violation, work, batch, part) for violation in error.violations]
        if placed == list(error.violations):
            raise
        # Said again in other words, not another failure: its cause is what the first one's was.
        raise InvalidArgument.of(*placed) from error.__cause__


def _placed(violation: Violation, work: Batch | EstimateBatch, batch: Grouped, part: splitting.Part) -> Violation:
    path, bracket, rest = violation.field.partition("[")
    number = rest.rstrip("]")
    if not (bracket and number.isascii() and number.isdigit()):
        return violation
    index = int(number)
    if path == "groups.rewards" and index < len(work.rewards):
        index += part.rewards.start
        return replace(violation, field=f"{path}[{index}]", where=batch.reward_in_callers_words(index))
    per_group = path == "groups.group_sizes" or (path == "k" and isinstance(work.k, np.ndarray))
    if per_group and index < work.number_of_groups:
        index += part.groups.start
        return replace(violation, field=f"{path}[{index}]", where=batch.group_in_callers_words(index))
    return violation


def _of_part(values: Any, groups: slice) -> Any:
    return values[groups] if isinstance(values, np.ndarray) else values


def _no_estimates(ks: tuple[int, ...]) -> tuple[MaxAtK, ...]:
    return tuple(MaxAtK(k, np.zeros(0), np.zeros(0)) for k in ks)
