"""Caches of earlier tokens: used without being changed, and repeated."""

import gc
import weakref

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from masp.vlm.caches import behind, go_on_from, hold_same, read_only, take_rows


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def filled() -> DynamicCache:
    """Six earlier tokens in layers of three kinds."""
    cache = DynamicCache()
    cache.layers = [DynamicLayer(), DynamicSlidingWindowLayer(4), LinearAttentionLayer()]
    for layer in cache.layers[:2]:
        layer.update(random(2, 3, 6, 8), random(2, 3, 6, 8))
    cache.layers[2].update_conv_state(random(2, 5, 4), conv_kernel_size=4)
    cache.layers[2].update_recurrent_state(random(2, 3, 8, 8))
    return cache


def states(cache):
    found = [tensor for layer in cache.layers[:2] for tensor in (layer.keys, layer.values)]
    return [*found, cache.layers[2].conv_states[0], cache.layers[2].recurrent_states[0]]


def used(cache):
    """What the layers give with two new tokens."""
    new = random(2, 3, 2, 8)
    found = [tensor for layer in cache.layers[:2] for tensor in layer.update(new, new)]
    return [
        *found,
        cache.layers[2].update_conv_state(random(2, 5, 2)),
        cache.layers[2].update_recurrent_state(new[:, :, :1]),
    ]


def test_a_second_use_is_as_the_first_and_nothing_is_changed():
    cache = filled()
    before = [tensor.clone() for tensor in states(cache)]
    frozen = read_only(cache)
    first, second = used(frozen), used(frozen)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    for tensor, kept in zip(states(cache), before, strict=True):
        assert torch.equal(tensor, kept)
    # the same as the cache itself would give, which is changed by that
    for one, other in zip(first[:-1], used(cache)[:-1], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(cache.layers[0].keys, first[0]) and torch.equal(first[0][..., :6, :], before[0])
    assert [tensor.shape for tensor in states(frozen)] == [tensor.shape for tensor in before]


def test_a_gradient_passes_through_a_state_that_is_not_overwritten():
    frozen = read_only(filled())
    weight = torch.ones((), requires_grad=True)
    found = frozen.layers[2].update_recurrent_state(random(2, 3, 8, 8) * weight)
    again = frozen.layers[2].update_recurrent_state(found * weight)
    again.square().sum().backward()
    assert weight.grad is not None and float(weight.grad) != 0


@pytest.mark.parametrize("count", [1, 3])
def test_one_row_becomes_many(count):
    cache = DynamicCache()
    cache.layers = [DynamicLayer(), LinearAttentionLayer()]
    cache.layers[0].update(random(1, 3, 6, 8), random(1, 3, 6, 8))
    cache.layers[1].update_conv_state(random(1, 5, 4), conv_kernel_size=4)
    keys, conv = cache.layers[0].keys.clone(), cache.layers[1].conv_states[0].clone()
    take_rows(cache, torch.zeros(count, dtype=torch.long))
    assert torch.equal(cache.layers[0].keys, keys.expand(count, -1, -1, -1))
    assert torch.equal(cache.layers[1].conv_states[0], conv.expand(count, -1, -1))


def test_a_pass_goes_on_from_what_a_repeated_one_added():
    """The pass is repeated for its gradient, and the cache stays as it was; the next sees prefix and additions once."""
    draw = torch.Generator().manual_seed(0)

    def states(count):
        return torch.randn(1, 2, count, 4, generator=draw), torch.randn(1, 2, count, 4, generator=draw)

    prefix, first, second = states(3), states(2), states(1)
    for is_empty in (False, True):
        cache = go_on_from(DynamicCache())
        cache.layers = [DynamicLayer()]
        if not is_empty:
            cache.update(*prefix, 0)
        before = [] if is_empty else [prefix]
        frozen = read_only(cache)
        for _ in range(2):
            keys, values = frozen.update(*first, 0)
            assert torch.equal(keys, torch.cat([k for k, _ in [*before, first]], -2))
        longer = behind(cache)
        for _ in range(2):
            keys, values = read_only(longer).update(*second, 0)
            assert torch.equal(keys, torch.cat([k for k, _ in [*before, first, second]], -2))
            assert torch.equal(values, torch.cat([v for _, v in [*before, first, second]], -2))
        assert cache.get_seq_length() == (0 if is_empty else 3)
    plain = DynamicCache()
    plain.layers = [DynamicLayer()]
    frozen = read_only(plain)
    frozen.update(*first, 0)
    assert frozen.layers[0].added is None  # nobody goes on from it, so nothing is kept


def test_what_was_extended_in_place_is_gone_on_from_as_it_is():
    cache = go_on_from(DynamicCache())
    assert behind(cache) is cache


def test_a_cache_with_the_same_content_grows_alone():
    """As often as wanted, from one prefix: keys and values, with a window or without."""
    first = filled()
    first.layers = first.layers[:2]
    before = [tensor.clone() for layer in first.layers for tensor in (layer.keys, layer.values)]
    new, found = random(2, 3, 2, 8), []
    for _ in range(2):
        other = DynamicCache()
        hold_same(other, first)
        found.append([tensor for layer in other.layers for tensor in layer.update(new, new)])
        assert other.get_seq_length() == 8 and first.get_seq_length() == 6
    assert all(torch.equal(one, another) for one, another in zip(*found, strict=True))
    after = [tensor for layer in first.layers for tensor in (layer.keys, layer.values)]
    assert all(torch.equal(one, another) for one, another in zip(before, after, strict=True))


def prefixed() -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
    """Three earlier tokens in one layer."""
    cache = DynamicCache()
    cache.layers = [DynamicLayer()]
    keys, values = random(1, 2, 3, 4), random(1, 2, 3, 6)
    cache.update(keys, values, 0)
    return cache, keys, values


def test_passes_of_any_length_take_turns_behind_a_prefix_that_is_copied_once():
    cache, keys, values = prefixed()
    places = set()
    for length in (2, 5, 1, 4):
        new, other = random(1, 2, length, 4).requires_grad_(), random(1, 2, length, 6).requires_grad_()
        found = read_only(cache).update(new, other, 0)
        assert torch.equal(found[0], torch.cat([keys, new], -2)) and torch.equal(
            found[1], torch.cat([values, other], -2)
        )
        weight = random(1, 2, 3 + length, 4)
        (gradient,) = torch.autograd.grad((found[0] * weight).sum(), new)
        assert torch.equal(gradient, weight[..., 3:, :])
        places.add(found[0].data_ptr())
        assert cache.get_seq_length() == 3 and torch.equal(cache.layers[0].keys, keys)
    assert len(places) == 2  # one room, and a larger one when it was too small
    assert cache.layers[0].keys.data_ptr() == found[0].data_ptr()  # and the prefix is not held beside it


def test_a_gradient_that_comes_too_late_is_an_error():
    cache, *_ = prefixed()
    new = random(1, 2, 2, 4).requires_grad_()
    keys, values = read_only(cache).update(new, random(1, 2, 2, 6), 0)
    loss = keys.square().sum() + values.sum()
    read_only(cache).update(new + 1, random(1, 2, 2, 6), 0)
    with pytest.raises(RuntimeError, match="modified"):
        loss.backward()


def test_passes_at_two_places_wait_for_their_gradients():
    cache, prefix, _ = prefixed()
    given = [random(1, 2, length, 4).requires_grad_() for length in (2, 3)]
    found = [read_only(cache, place).update(new, random(1, 2, 2 + place, 6), 0)[0] for place, new in enumerate(given)]
    for _ in range(2):  # in both places, the prefix is copied once
        for keys, new in zip(found, given, strict=True):
            assert torch.equal(keys, torch.cat([prefix, new], -2))
        gradients = torch.autograd.grad(sum(keys.square().sum() for keys in found), given)
        assert all(torch.equal(gradient, 2 * new) for gradient, new in zip(gradients, given, strict=True))
        before = [keys.data_ptr() for keys in found]
        found = [
            read_only(cache, place).update(new, random(1, 2, 2 + place, 6), 0)[0] for place, new in enumerate(given)
        ]
        assert [keys.data_ptr() for keys in found] == before


def test_new_caches_have_the_layers_of_transformers_also_after_a_read_only_one():
    class Sparse(DynamicLayer):
        _layer_type = "sparse_of_a_test"

    cache = DynamicCache()
    cache.layers = [Sparse()]
    try:
        (frozen,) = read_only(cache).layers
        assert DYNAMIC_LAYER_TYPE_MAPPING["sparse_of_a_test"] is Sparse
        assert isinstance(frozen, Sparse) and frozen._layer_type == "sparse_of_a_test"
    finally:
        del DYNAMIC_LAYER_TYPE_MAPPING["sparse_of_a_test"]


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_prefix_leaves_memory_with_its_last_user(goes_on):
    """Not when Python's collector of garbage finds it: the next prefix would come into memory beside it."""
    cache, *_ = prefixed()
    if goes_on:
        go_on_from(cache)
    given = [random(1, 2, 2, 4).requires_grad_() for _ in range(2)]
    gc.collect()
    gc.disable()
    try:
        found = [read_only(cache, place).update(new, random(1, 2, 2, 6), 0) for place, new in enumerate(given)]
        held = [weakref.ref(tensor) for tensor in (cache.layers[0].keys, cache.layers[0].values, *sum(found, ()))]
        torch.autograd.grad(sum(keys.sum() for keys, _ in found), given)
        del cache, found
        assert [tensor() for tensor in held] == [None] * len(held)
    finally:
        gc.enable()


def test_what_is_read_only_already_uses_the_same_room():
    cache, prefix, _ = prefixed()
    frozen = read_only(cache)
    first = frozen.update(random(1, 2, 2, 4), random(1, 2, 2, 6), 0)[0]
    again = read_only(frozen).update(random(1, 2, 2, 4), random(1, 2, 2, 6), 0)[0]
    assert torch.equal(first, again) and first.data_ptr() == again.data_ptr()
    assert torch.equal(again[..., :3, :], prefix)


def test_a_prefix_that_grew_meanwhile_is_seen_whole():
    cache, keys, _ = prefixed()
    new, other = random(1, 2, 2, 4), random(1, 2, 2, 6)
    read_only(cache).update(new, other, 0)
    cache.update(new, other, 0)
    found = read_only(cache).update(new + 1, other, 0)[0]
    assert torch.equal(found, torch.cat([keys, new, new + 1], -2))
