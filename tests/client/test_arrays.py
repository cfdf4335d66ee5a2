"""NumPy, torch and JAX arrays in; the same kind, shape, dtype and device out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pkpo_client import Client, InvalidArgument, LocalClient

VALUES = [[1.0, 0.0, 0.5, 0.25], [0.0, 0.0, 1.0, 2.0]]
#: Powers of two, so that every dtype holds the rewards and the half types hold what comes back of k = 4 exactly.
EXPECTED = [[0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]


@pytest.fixture
def torch() -> Any:
    try:
        import torch
    except ImportError:
        pytest.skip("needs torch")
    return torch


@pytest.fixture
def jax() -> Any:
    try:
        import jax
    except ImportError:
        pytest.skip("needs jax")
    return jax


@pytest.fixture(params=["remote", "local"])
def made(request: pytest.FixtureRequest, client: Client, local: LocalClient) -> Client | LocalClient:
    return client if request.param == "remote" else local


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ">f8", ">f4", "longdouble"])
def test_numpy_floats_keep_their_dtype(made: Any, dtype: str) -> None:
    rewards = np.array(VALUES, dtype=dtype)
    found = made.transform(rewards, 4)
    assert type(found) is np.ndarray
    assert found.dtype == rewards.dtype
    assert found.tolist() == EXPECTED


@pytest.mark.parametrize("dtype", ["int8", "uint64", "int32", "bool"])
def test_numpy_integers_and_bools_become_float64(made: Any, dtype: str) -> None:
    found = made.transform(np.array([[1, 0, 1, 0]], dtype=dtype), 1)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [[1 / 6, -1 / 6, 1 / 6, -1 / 6]])


@pytest.mark.parametrize("rewards", [VALUES, tuple(map(tuple, VALUES)), [[1, 0, 1, 0]], [[True, False]]])
def test_lists_become_float64_arrays(made: Any, rewards: Any) -> None:
    found = made.transform(rewards, 1)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float64
    assert found.shape == np.shape(rewards)


@pytest.mark.parametrize("view", [lambda a: a[::-1], lambda a: a.T.copy().T, lambda a: np.asfortranarray(a)])
def test_numpy_layouts_do_not_matter(made: Any, view: Any) -> None:
    rewards = view(np.array(VALUES))
    np.testing.assert_array_equal(made.transform(rewards, 2), made.transform(rewards.tolist(), 2))


def test_an_advantage_that_does_not_fit_is_an_error_and_not_infinite(made: Any) -> None:
    rewards = np.array([[60000.0, -60000.0]], dtype=np.float16)
    assert made.transform(rewards, 1, scale="sum").tolist() == [[60000.0, -60000.0]]
    with pytest.raises(InvalidArgument, match=r"float16.*120000"):
        made.transform(rewards, 1, scale="mean")
    with pytest.raises(InvalidArgument, match="float32"):
        made.transform(np.array([[3e38, -3e38]], dtype=np.float32), 1, scale="mean")


def test_whatever_speaks_numpys_protocol_is_taken(made: Any) -> None:
    class Column:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.array(VALUES)

    found = made.transform(Column(), 4)
    assert isinstance(found, np.ndarray)
    assert found.tolist() == EXPECTED


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_torch_floats_keep_their_dtype(torch: Any, made: Any, dtype: str) -> None:
    rewards = torch.tensor(VALUES, dtype=getattr(torch, dtype), requires_grad=True)
    found = made.transform(rewards * 1, 4)
    assert isinstance(found, torch.Tensor)
    assert found.dtype == rewards.dtype
    assert found.device == rewards.device
    assert not found.requires_grad
    assert found.tolist() == EXPECTED


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
def test_torch_integers_and_bools_become_float64(torch: Any, made: Any, dtype: str) -> None:
    found = made.transform(torch.tensor([[1, 0, 1, 0]], dtype=getattr(torch, dtype)), 1)
    assert found.dtype == torch.float64


def test_torch_everywhere(torch: Any, made: Any, local: LocalClient) -> None:
    ids, mask = torch.tensor([7, 3, 7, 3, 7]), torch.tensor([1, 1, 1, 1, 0])
    rewards = torch.tensor([1.0, 2.0, 4.0, 8.0, float("nan")])
    result = made.transform_detailed(
        rewards, torch.tensor([1, 2]), group_ids=ids, mask=mask, estimate_k=torch.tensor([1])
    )
    want = local.transform_detailed(
        rewards.numpy(), [1, 2], group_ids=ids.numpy(), mask=mask.numpy().astype(bool), estimate_k=1
    )
    assert isinstance(result.advantages, torch.Tensor)
    np.testing.assert_array_equal(result.advantages.numpy(), want.advantages)
    assert result.group_ids == (7, 3)
    assert isinstance(result.group_statuses, np.ndarray)
    np.testing.assert_array_equal(result.estimates[0].values, want.estimates[0].values)


def test_torch_views_are_not_written_to(torch: Any, made: Any) -> None:
    rewards = torch.tensor(VALUES, dtype=torch.float64).T
    before = rewards.clone()
    found = made.transform(rewards, 2)
    assert found.shape == rewards.shape
    found += 1
    assert torch.equal(rewards, before)


def test_a_tensor_on_a_gpu_comes_back_to_it(torch: Any, made: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs torch and a GPU")
    rewards = torch.tensor(VALUES, dtype=torch.bfloat16, device="cuda")
    found = made.transform(rewards, 4, mask=torch.ones(2, 4, device="cuda"))
    assert (found.dtype, found.device) == (rewards.dtype, rewards.device)
    assert found.tolist() == EXPECTED


def test_a_torch_advantage_that_does_not_fit_is_an_error(torch: Any, made: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"float16.*120000"):
        made.transform(torch.tensor([[60000.0, -60000.0]], dtype=torch.float16), 1, scale="mean")


def test_torch_tensors_as_single_ids_are_refused(torch: Any, made: Any) -> None:
    with pytest.raises(InvalidArgument, match="known by its value"):
        made.transform([1.0, 2.0], 1, group_ids=[torch.tensor(1), torch.tensor(1)])


def test_torch_complex_is_refused(torch: Any, made: Any) -> None:
    with pytest.raises(InvalidArgument, match="complex"):
        made.transform(torch.ones(2, 2, dtype=torch.complex64), 1)


def test_torch_streams_may_use_their_memory_again(torch: Any, client: Client, local: LocalClient) -> None:
    buffer = torch.empty(2, 4, dtype=torch.float64)

    def batches() -> Any:
        for i in range(10):
            buffer[:] = torch.tensor(VALUES) * (i + 1)
            yield buffer

    for i, result in enumerate(client.stream(batches(), 2)):
        np.testing.assert_array_equal(result.advantages.numpy(), local.transform(np.array(VALUES) * (i + 1), 2))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_jax_floats_keep_their_dtype(jax: Any, made: Any, dtype: str) -> None:
    rewards = jax.numpy.array(VALUES, dtype=dtype)
    found = made.transform(rewards, 4)
    assert isinstance(found, jax.Array)
    assert found.dtype == rewards.dtype
    assert found.sharding == rewards.sharding
    assert found.tolist() == EXPECTED


@pytest.mark.parametrize("dtype", ["int32", "bool"])
def test_jax_integers_and_bools_become_the_widest_float(jax: Any, made: Any, dtype: str) -> None:
    found = made.transform(jax.numpy.array([[1, 0, 1, 0]], dtype=dtype), 1)
    assert found.dtype == jax.dtypes.canonicalize_dtype(np.float64)


def test_jax_with_float64(jax: Any, made: Any, local: LocalClient) -> None:
    was = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        found = made.transform(jax.numpy.array(VALUES, dtype="float64"), 2)
        assert found.dtype == np.float64
        np.testing.assert_array_equal(np.asarray(found), local.transform(np.array(VALUES), 2))
        assert made.transform(jax.numpy.array([[1, 0]]), 1).dtype == np.float64
    finally:
        jax.config.update("jax_enable_x64", was)


def test_jax_everywhere(jax: Any, made: Any) -> None:
    result = made.transform_detailed(
        jax.numpy.array([1.0, 2.0, 4.0, 8.0]),
        jax.numpy.array([1, 2]),
        group_ids=jax.numpy.array([7, 3, 7, 3]),
        mask=jax.numpy.array([True, True, True, True]),
    )
    assert isinstance(result.advantages, jax.Array)
    assert result.advantages.tolist() == [-1.5, 0.0, 1.5, 6.0]
    assert result.group_ids == (7, 3)


def test_under_jax_jit_the_error_says_what_to_do(jax: Any, made: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"pkpo_client\.integrations\.jax\.transform"):
        jax.jit(lambda rewards: made.transform(rewards, 2))(jax.numpy.array(VALUES))
