"""Relations of users: what training finds, what changes keep, what files promise."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import ConflictError, InputError, IntegrityError, NotFoundError
from shoal.core.seeds import philox
from shoal.spatial.randomwalks import log_walk_matrix
from shoal.spatial.social import SocialConfig, SocialEmbedding
from shoal.spatial.socialgraph import FriendGraph
from shoal.spatial.socialvectors import chosen_method, train_vectors

METHODS = ("svd", "node2vec", "line")
SMALL = SocialConfig(dim=16, walks=6, walk_length=20, epochs=3, line_samples=300)


def clique(users):
    return list(itertools.combinations(users, 2))


def communities(n=240, groups=6, inside=0.25, across=0.008, seed=0):
    """Friendships of people who mostly know their own group."""
    group = np.arange(n) % groups
    chance = np.where(group[:, None] == group[None, :], inside, across)
    drawn = np.triu(philox(seed, "communities").random((n, n)) < chance, 1)
    return np.argwhere(drawn)


TWO_CLIQUES = np.array(clique(range(8)) + clique(range(8, 16)))


# --- what training finds -------------------------------------------------------------------------


def separation(edges, n, size, **options):
    """Return the least cosine within cliques of ``size`` users, and the largest across."""
    cosine = SocialEmbedding.fit(edges, n_users=n, **options).vectors
    cosine = cosine @ cosine.T
    group = np.arange(n) // size
    same = group[:, None] == group[None, :]
    return cosine[same].min(), cosine[~same].max()


@pytest.mark.parametrize("method", METHODS)
def test_separate_cliques_are_told_apart(method):
    edges = np.array([pair for g in range(12) for pair in clique(range(8 * g, 8 * g + 8))])
    within, across = separation(edges, 96, 8, method=method, config=SMALL)
    assert within > 0.75
    assert across < 0.5


def test_two_separate_cliques_have_nothing_in_common():
    within, across = separation(TWO_CLIQUES, 16, 8, method="svd")
    assert within == pytest.approx(1, abs=1e-5)
    assert across == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("n", [60, 500])  # the full spectrum, and the leading part of it
def test_svd_is_the_dense_computation(n):
    edges = communities(n, inside=24 / n, across=2 / n)
    graph = FriendGraph.build(edges, n_users=n)
    made = SocialEmbedding.fit(edges, n_users=n, method="svd", dim=8)
    values, columns = np.linalg.eigh(log_walk_matrix(graph).toarray())
    raw = columns[:, ::-1][:, :8] * np.sqrt(values[::-1][:8])
    raw *= np.sign(raw[np.argmax(np.abs(raw), axis=0), np.arange(8)])
    raw[graph.degree == 0] = 0
    wanted = raw / np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-300)
    np.testing.assert_allclose(made.vectors, wanted, atol=2e-4)


def split_friendships(edges, n, seed=0):
    """Return friendships to train on, hidden ones, and as many pairs of strangers."""
    generator = philox(seed, "split")
    edges = generator.permutation(edges)
    known = {tuple(pair) for pair in np.sort(edges, axis=1).tolist()}
    strangers = []
    while len(strangers) < len(edges) // 5:
        pair = tuple(sorted(generator.integers(0, n, 2).tolist()))
        if pair[0] != pair[1] and pair not in known:
            strangers.append(pair)
    cut = len(edges) // 5
    return edges[cut:], edges[:cut], np.array(strangers)


def area_under_curve(made, friends, strangers):
    a, b = (
        np.einsum("ij,ij->i", made.vectors[pairs[:, 0]], made.vectors[pairs[:, 1]])
        for pairs in (friends, strangers)
    )
    return (a[:, None] > b).mean() + (a[:, None] == b).mean() / 2


@pytest.mark.parametrize("method", METHODS)
def test_hidden_friendships_are_found_and_shuffled_ones_are_not(method):
    n = 240
    past, hidden, strangers = split_friendships(communities(n), n)
    made = SocialEmbedding.fit(past, n_users=n, method=method, config=SMALL)
    assert area_under_curve(made, hidden, strangers) > 0.8
    # Negative control: the same degrees, friends drawn anew.
    shuffled = np.column_stack([past[:, 0], philox(1, "shuffle").permutation(past[:, 1])])
    blind = SocialEmbedding.fit(shuffled, n_users=n, method=method, config=SMALL)
    # Six standard errors of the area between two equal samples of this size.
    m = len(hidden)
    assert abs(area_under_curve(blind, hidden, strangers) - 0.5) < 6 * math.sqrt(1 / (6 * m))


def test_in_and_out_parameters_reach_the_training():
    a = SocialEmbedding.fit(TWO_CLIQUES, method="node2vec", config=SMALL)
    b = SocialEmbedding.fit(
        TWO_CLIQUES, method="node2vec", config=SMALL.model_copy(update={"q": 4.0})
    )
    assert (a.vectors != b.vectors).any()


def test_small_circles_that_the_leading_vectors_miss_are_filled():
    # Forty pairs and a big clique, in two dimensions.
    edges = clique(range(30)) + [(30 + 2 * i, 31 + 2 * i) for i in range(40)]
    made = SocialEmbedding.fit(np.array(edges), method="svd", dim=2)
    assert made.report.isolated == 0
    assert np.linalg.norm(made.vectors, axis=1) == pytest.approx(1, abs=1e-6)
    assert all(made.relation(30 + 2 * i, 31 + 2 * i) > 0.99 for i in range(40))


def test_one_clique_alone_is_one_circle():
    # Nobody is closer than chance, so the matrix is nearly empty; friends are related all the same.
    made = SocialEmbedding.fit(np.array([[0, 1]]), method="svd")
    assert made.relation(0, 1) == pytest.approx(1)


# --- the same bits -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits(method):
    edges = communities(450 if method == "svd" else 120, inside=0.1)
    first, again, order = (
        SocialEmbedding.fit(e, method=method, config=SMALL, seed=3)
        for e in (edges, edges, np.flip(edges)[::1])
    )
    assert (first.vectors == again.vectors).all()
    assert first.version == again.version
    assert (first.vectors == order.vectors).all()  # neither order nor direction of pairs matters
    if method != "svd":
        other = SocialEmbedding.fit(edges, method=method, config=SMALL, seed=4)
        assert (first.vectors != other.vectors).any()


@pytest.mark.parametrize("method", ["node2vec", "line"])
def test_threads_change_bits_but_not_what_is_found(method):
    n = 240
    past, hidden, strangers = split_friendships(communities(n), n)
    made = SocialEmbedding.fit(past, n_users=n, method=method, config=SMALL, threads=2)
    assert area_under_curve(made, hidden, strangers) > 0.8


def test_signs_are_fixed():
    made, _ = train_vectors(FriendGraph.build(communities()), SocialConfig(method="svd", dim=4))
    again, _ = train_vectors(FriendGraph.build(communities()), SocialConfig(method="svd", dim=4))
    assert (made == again).all()
    assert not np.signbit(made[made == 0]).any()


def test_big_graphs_are_not_factorised_by_default():
    assert chosen_method(SocialConfig(), 50_000) == "svd"
    assert chosen_method(SocialConfig(), 50_001) == "node2vec"
    assert chosen_method(SocialConfig(method="line"), 3) == "line"


# --- input ---------------------------------------------------------------------------------------


PAIRS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=40)


@given(PAIRS)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_graph_is_the_set_of_its_pairs(pairs):
    graph = FriendGraph.build(np.array(pairs, dtype=np.int64).reshape(-1, 2), n_users=10)
    proper = [frozenset(pair) for pair in pairs if pair[0] != pair[1]]
    assert {frozenset(pair) for pair in graph.pairs().tolist()} == set(proper)
    assert graph.edges == len(set(proper))
    assert graph.self_loops == len(pairs) - len(proper)
    assert graph.duplicates == len(proper) - len(set(proper))
    for user in range(10):
        assert graph.of(user).tolist() == sorted(
            min(pair - {user}) for pair in set(proper) if user in pair
        )


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_graph_works(method):
    none = SocialEmbedding.fit([], method=method)
    assert len(none) == 0
    assert none.vectors.shape == (0, 32)
    lonely = SocialEmbedding.fit(np.empty((0, 2), dtype=np.int64), method=method, n_users=3)
    assert not lonely.vectors.any()
    assert lonely.report.isolated == 3
    assert lonely.nearest(1)[0].tolist() == []
    assert lonely.relation(0, 1) == 0


@pytest.mark.parametrize("method", METHODS)
def test_who_has_no_friends_is_neutral_and_counted(method):
    made = SocialEmbedding.fit(
        [[0, 1], [1, 2], [2, 2], [1, 0]], method=method, n_users=5, config=SMALL
    )
    assert (made.report.isolated, made.report.self_loops, made.report.duplicates) == (2, 1, 1)
    assert (made.report.edges_given, made.report.edges, made.report.users) == (4, 2, 5)
    assert not made.vectors[3:].any()
    assert np.linalg.norm(made.vectors[:3], axis=1) == pytest.approx(1, abs=1e-6)
    assert made.vectors.dtype == np.float32


@pytest.mark.parametrize(
    ("edges", "row", "value"),
    [
        ([[0, 1], [2, -1]], 2, -1),
        ([[0, 1], [1, 2], [3, 5]], 3, 5),
        ([[0.0, 1.0], [math.nan, 1.0]], 2, None),
        ([[0.0, math.inf]], 1, math.inf),
        ([[0.0, 1.5]], 1, 1.5),
        (np.array([[0, 2**63]], dtype=np.uint64), 1, 2**63),
    ],
)
def test_wrong_pairs_are_refused_with_their_row(edges, row, value):
    with pytest.raises(InputError) as caught:
        SocialEmbedding.fit(edges, n_users=5)
    assert (caught.value.row, caught.value.field) == (row, "edges")
    assert value is None or caught.value.value == value


@pytest.mark.parametrize(
    "edges", [[[0, 1, 2]], [0, 1], [[0], [1, 2]], [["a", "b"]], [[True, False]]]
)
def test_what_is_no_pair_is_refused(edges):
    with pytest.raises(InputError, match="pairs of whole numbers"):
        SocialEmbedding.fit(edges)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"dim": 0}, "dim"),
        ({"method": "magic"}, "method"),
        ({"threads": 0}, "threads"),
        ({"n_users": -1}, "n_users"),
        ({"users": ["a"], "n_users": 2}, "n_users"),
    ],
)
def test_wrong_options_are_refused(options, field):
    with pytest.raises(InputError) as caught:
        SocialEmbedding.fit([], **options)
    assert caught.value.field == field


# --- external ids --------------------------------------------------------------------------------


def test_users_may_have_names():
    made = SocialEmbedding.fit(
        [("ann", "bob"), ("bob", "cleo"), ("ann", "cleo"), ("dan", "eve")],
        users=["ann", "bob", "cleo", "dan", "eve", "zoë"],
        method="svd",
    )
    assert made.row("dan") == 3
    assert made.nearest("ann", 2)[0] == ["bob", "cleo"]
    assert made.friends("dan") == (["eve"], pytest.approx([1]))
    assert made.relation("ann", "zoë") == 0
    assert made.find_rows(["eve", "nobody"]).tolist() == [4, -1]
    with pytest.raises(NotFoundError, match="'nobody'"):
        made.vector("nobody")


def test_whole_numbers_may_be_names():
    users = [900, 7, 10**12]
    rows = SocialEmbedding.fit(np.array([[7, 10**12]]), users=users)
    assert rows.row(10**12) == 2
    assert rows.friends(7)[0] == [10**12]


@pytest.mark.parametrize(
    ("edges", "users", "row"),
    [
        ([("a", "b"), ("a", "x")], ["a", "b"], 2),
        ([("a", "b"), ("a", None)], ["a", "b"], 2),
        ([("a", "b"), ("a", math.nan)], ["a", "b"], 2),
        ([("a", "b"), ("a",)], ["a", "b"], 2),
        ([(1, 2), (1, 3)], [1, 2], 2),
        ([], ["a", "b", "a"], 3),
    ],
)
def test_wrong_names_are_refused_with_their_row(edges, users, row):
    with pytest.raises(InputError) as caught:
        SocialEmbedding.fit(edges, users=users)
    assert caught.value.row == row


# --- vectors from elsewhere, nearest, friends -----------------------------------------------------


def test_vectors_from_elsewhere_are_scaled():
    made = SocialEmbedding.of([[3, 4], [0, 0], [1e-200, 0]], [[0, 1]])
    np.testing.assert_allclose(made.vectors, [[0.6, 0.8], [0, 0], [1, 0]], atol=1e-7)
    assert made.friends(1)[0].tolist() == [0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_vectors_must_be_finite(bad):
    with pytest.raises(InputError) as caught:
        SocialEmbedding.of([[1.0, 0.0], [bad, 1.0]])
    assert caught.value.row == 2


@pytest.mark.parametrize("wrong", [[1, 2], [[]], [["a"]]])
def test_vectors_must_be_a_table(wrong):
    with pytest.raises(InputError, match="shape"):
        SocialEmbedding.of(wrong)


@given(
    vectors=st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=1, max_size=25),
    limit=st.integers(1, 30),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_nearest_is_a_look_at_everybody(vectors, limit):
    made = SocialEmbedding.of(np.array(vectors, dtype=float))
    cosine = made.vectors @ made.vectors[0]
    wanted = sorted((-float(c), i) for i, c in enumerate(cosine) if i > 0 and c > 0)[:limit]
    users, relation = made.nearest(0, limit)
    assert users.tolist() == [i for _, i in wanted]
    np.testing.assert_allclose(relation, [min(1.0, -c) for c, _ in wanted])
    assert all(
        made.relation(0, u) == pytest.approx(r, abs=1e-6)
        for u, r in zip(users, relation, strict=True)
    )


def test_friends_come_the_most_related_first():
    made = SocialEmbedding.of([[1, 0], [0, 1], [1, 1], [-1, 0]], [[0, 1], [0, 2], [0, 3]])
    users, relation = made.friends(0)
    assert users.tolist() == [2, 1, 3]
    np.testing.assert_allclose(relation, [math.sqrt(0.5), 0, 0], atol=1e-7)
    assert made.friends(0, limit=1)[0].tolist() == [2]
    assert made.friends(1)[0].tolist() == [0]


def test_vectors_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        SocialEmbedding.of([[1.0, 0.0]]).vectors[0, 0] = 2
    made = SocialEmbedding.of([[1.0, 0.0]])
    made.vector(0)[0] = 5
    assert made.vectors[0, 0] == 1


# --- changes -------------------------------------------------------------------------------------


def test_a_new_user_is_the_mean_of_his_friends():
    made = SocialEmbedding.of([[1, 0], [0, 1], [-1, 0]])
    before = made.version
    new = made.add_user([0, 1, 1])
    assert new == 3
    assert made.graph.pairs().tolist() == [[0, 3], [1, 3]]
    assert len(made) == 4
    np.testing.assert_allclose(made.vector(new), [math.sqrt(0.5)] * 2, atol=1e-7)
    assert made.version != before
    assert made.friends(new)[0].tolist() == [0, 1]
    assert made.friends(0)[0].tolist() == [3]
    # Without friends, or with friends who cancel out: neutral.
    assert not made.vector(made.add_user()).any()
    assert not made.vector(made.add_user([0, 2])).any()


def test_many_new_users_keep_the_old_vectors():
    made = SocialEmbedding.of(np.eye(4))
    for _ in range(100):
        made.add_user([0])
    np.testing.assert_array_equal(made.vectors[:4], np.eye(4))
    np.testing.assert_array_equal(made.vectors[4:], np.tile([1, 0, 0, 0], (100, 1)))


def test_a_new_friendship_moves_both_ends():
    made = SocialEmbedding.of([[1, 0], [0, 1], [0, 1]], [[0, 2]])
    far = made.relation(0, 1)
    before = made.version
    assert made.add_edge(0, 1)
    assert made.version != before
    assert made.relation(0, 1) > far
    np.testing.assert_allclose(made.vector(0), [math.sqrt(0.5)] * 2, atol=1e-7)
    np.testing.assert_allclose(made.vector(2), [0, 1])  # nobody else moves
    assert made.friends(0)[0].tolist() == [1, 2]
    after = made.version
    assert not made.add_edge(1, 0)  # known already
    assert made.version == after
    assert made.friends(1)[0].tolist() == [0]


def test_many_friends_make_a_user_slow_to_move():
    few = SocialEmbedding.of(np.eye(2)[[0, 1, 0, 0, 0]], [[0, 2]])
    many = SocialEmbedding.of(np.eye(2)[[0, 1, 0, 0, 0]], [[0, 2], [0, 3], [0, 4]])
    few.add_edge(0, 1)
    many.add_edge(0, 1)
    assert many.vector(0)[0] > few.vector(0)[0]


def test_an_isolated_user_takes_the_vector_of_a_first_friend():
    made = SocialEmbedding.of([[1, 0], [0, 0], [0, 0]])
    made.add_edge(0, 1)
    np.testing.assert_allclose(made.vector(1), [1, 0])
    np.testing.assert_allclose(made.vector(0), [1, 0])
    made.add_edge(2, made.add_user())
    assert not made.vector(2).any()


def test_wrong_changes_are_refused():
    made = SocialEmbedding.fit([("a", "b")], users=["a", "b"])
    with pytest.raises(ConflictError, match="already"):
        made.add_user([], user="a")
    with pytest.raises(NotFoundError):
        made.add_user(["x"], user="c")
    with pytest.raises(InputError, match="have ids"):
        made.add_user(["a"])
    with pytest.raises(InputError, match="himself"):
        made.add_edge("a", "a")
    with pytest.raises(NotFoundError):
        made.add_edge("a", "x")
    assert len(made) == 2
    assert made.version.endswith(".0")
    assert made.add_user(["a"], user="c") == "c"
    assert made.friends("c")[0] == ["a"]
    with pytest.raises(InputError, match="no ids"):
        SocialEmbedding.of([[1.0]]).add_user([0], user="a")


# --- alignment -----------------------------------------------------------------------------------


def rotation(dim, seed=0):
    return np.linalg.qr(philox(seed, "rotation").standard_normal((dim, dim)))[0]


def test_alignment_undoes_a_rotation():
    old = SocialEmbedding.of(philox(0, "old").standard_normal((50, 6)))
    new = SocialEmbedding.of(old.vectors @ rotation(6))
    assert np.abs(new.vectors - old.vectors).max() > 0.5
    turned = new.align(old)
    np.testing.assert_allclose(turned.vectors, old.vectors, atol=1e-6)
    assert turned.report.aligned_to == old.version
    assert turned.report.aligned_users == 50
    assert turned.report.aligned_cosine == pytest.approx(1)
    assert turned.version not in (old.version, new.version)
    assert turned.relation(1, 2) == pytest.approx(new.relation(1, 2), abs=1e-6)


def test_alignment_is_the_best_rotation():
    old = SocialEmbedding.of(philox(0, "old").standard_normal((40, 4)))
    new = SocialEmbedding.of(philox(0, "new").standard_normal((40, 4)))
    left = np.square(new.align(old).vectors - old.vectors).sum()
    for seed in range(200):
        other = np.square(new.vectors @ rotation(4, seed) - old.vectors).sum()
        assert left <= other + 1e-4


def test_alignment_goes_by_the_users_in_common():
    old = SocialEmbedding.of(np.eye(3), users=["a", "b", "c"])
    new = SocialEmbedding.of(np.eye(3)[[1, 2, 0, 0]], users=["c", "x", "b", "a"])
    turned = new.align(old)
    assert turned.report.aligned_users == 3
    best, _, right = np.linalg.svd(new.vectors[[3, 2, 0]].T @ old.vectors)
    np.testing.assert_allclose(turned.vectors, new.vectors @ best @ right, atol=1e-6)
    turned.add_user(["a"], user="d")  # ids of its own
    assert new.find_rows(["d"]).tolist() == [-1]


def test_alignment_keeps_later_friendships():
    new = SocialEmbedding.of(np.eye(3))
    new.add_edge(0, 2)
    turned = new.align(SocialEmbedding.of(np.eye(3)))
    assert turned.friends(0)[0].tolist() == [2]


@pytest.mark.parametrize(
    ("previous", "match"),
    [
        (SocialEmbedding.of(np.eye(4)), "dimensions"),
        (SocialEmbedding.of(np.zeros((3, 3))), "in both"),
        (SocialEmbedding.of(np.eye(3), users=["a", "b", "c"]), "has ids"),
    ],
)
def test_what_cannot_be_aligned_is_refused(previous, match):
    with pytest.raises(InputError, match=match):
        SocialEmbedding.of(np.eye(3)).align(previous)


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture
def named():
    made = SocialEmbedding.fit(
        [("ann", "bob"), ("bob", "çelik")], users=["ann", "bob", "çelik"], dim=4
    )
    made.add_user(["ann"], user="dan")
    made.add_edge("ann", "çelik")
    return made


def test_what_is_saved_is_loaded(named, tmp_path):
    named.save(tmp_path / "social")
    again = SocialEmbedding.load(tmp_path / "social")
    np.testing.assert_array_equal(again.vectors, named.vectors)
    assert again.version == named.version
    assert again.report == named.report
    assert again.config == named.config
    for user in ("ann", "bob", "çelik", "dan"):
        assert again.friends(user)[0] == named.friends(user)[0]
        assert again.row(user) == named.row(user)
    again.add_user(["dan"], user="eve")
    assert again.friends("eve")[0] == ["dan"]


def test_an_empty_one_is_saved_too(tmp_path):
    SocialEmbedding.fit([]).save(tmp_path)
    assert len(SocialEmbedding.load(tmp_path)) == 0


def test_saving_again_leaves_one_file_of_arrays(named, tmp_path):
    named.save(tmp_path)
    named.add_user(["bob"], user="eve")
    named.save(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert SocialEmbedding.load(tmp_path).version == named.version


def test_a_file_cut_anywhere_is_noticed(named, tmp_path):
    named.save(tmp_path)
    for file in sorted(tmp_path.iterdir()):
        whole = file.read_bytes()
        for size in {0, 1, len(whole) // 2, len(whole) - 2}:
            file.write_bytes(whole[:size])
            with pytest.raises(IntegrityError, match=file.name):
                SocialEmbedding.load(tmp_path)
        file.write_bytes(whole)
    SocialEmbedding.load(tmp_path)


def test_an_altered_file_is_noticed(named, tmp_path):
    named.save(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(IntegrityError, match="checksum"):
        SocialEmbedding.load(tmp_path)
    file.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        SocialEmbedding.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"schema": 99}, "schema 99"),
        ({"format": "soup"}, "no manifest"),
        ({"arrays": {}}, "which arrays"),
        ({"arrays": {"file": "../x", "bytes": 1, "sha256": ""}}, "elsewhere"),
        ({"report": {"surprise": 1}}, "not one of ours"),
        ({"version": 7}, "not one of ours"),
        ({"config": {"dim": -1}}, "not one of ours"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(named, tmp_path, change, match):
    named.save(tmp_path)
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(IntegrityError, match=match):
        SocialEmbedding.load(tmp_path)


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(NotFoundError, match="does not exist"):
        SocialEmbedding.load(tmp_path / "nothing")
