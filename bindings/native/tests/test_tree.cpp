// test_tree.cpp - attention over trees of shared prefixes: the mask's tiles against every pair looked at by itself, and
// each branch of a tree against the same branch as a pack of its own, on every instruction set that this CPU has.
#include "checks.h"
#include "cpu/attention.h"
#include "cpu/attention_kernels.h"

#include <cstring>

using namespace cft;
using namespace cft::cpu;

namespace {

// Largest difference over largest value. The same sums as alone, divided into tiles elsewhere; seen: 1e-6.
constexpr double branch_tolerance = 1e-5;

// A prefix and branches, each of which is a tree in turn until depth is reached. parents[i] is the token before token i
// on its path, or -1.
struct tree {
    std::vector<int32_t> visible_until, parents;

    void grow(int parent, int depth, int longest) {
        const int from = size(), length = 1 + static_cast<int>(random_bits() % static_cast<unsigned>(longest));
        for (int i = 0; i < length; i++) {
            parents.push_back(i == 0 ? parent : size() - 1);
            visible_until.push_back(0);
        }
        const int last = size() - 1;
        for (unsigned branches = depth > 0 ? 2 + random_bits() % 3 : 0; branches > 0; branches--) {
            grow(last, depth - 1, longest);
        }
        std::fill(visible_until.begin() + from, visible_until.begin() + last + 1, size());
    }

    int size() const { return static_cast<int>(parents.size()); }

    std::vector<int> path(int token) const {
        std::vector<int> tokens;
        for (; token >= 0; token = parents[static_cast<size_t>(token)]) {
            tokens.insert(tokens.begin(), token);
        }
        return tokens;
    }

    bool leaf(int token) const { return std::find(parents.begin(), parents.end(), token) == parents.end(); }

    std::mt19937 random_bits;
};

tree grown(unsigned seed, int depth, int longest) {
    tree t;
    t.random_bits.seed(seed);
    t.grow(-1, depth, longest);
    t.grow(-1, 1, longest); // a second tree in the same pack
    return t;
}

// ---- the mask

struct counted {
    int64_t pairs = 0, all = 0;
};

// count looks at every pair of the two tiles.
counted count(const tree &t, const std::vector<int32_t> &queries, int query_tile, int key_tile) {
    counted c;
    for (int q = query_tile * attention_tile_queries; q < (query_tile + 1) * attention_tile_queries; q++) {
        for (int key = key_tile * attention_tile_keys; key < (key_tile + 1) * attention_tile_keys; key++) {
            c.all++;
            if (q < static_cast<int>(queries.size()) && key < t.size()) {
                const int32_t token = queries[static_cast<size_t>(q)];
                c.pairs += key <= token && token < t.visible_until[static_cast<size_t>(key)];
            }
        }
    }
    return c;
}

void check_tiles(const tree &t, const std::vector<int32_t> &queries) {
    const attention_mask  mask(t.visible_until.data(), static_cast<size_t>(t.size()), queries.data(), queries.size());
    const attention_tiles tiles(mask);
    std::vector<int64_t>  by_key(static_cast<size_t>(tiles.n_key_tiles));
    int64_t               total = 0;
    for (int qt = 0; qt < tiles.n_query_tiles; qt++) {
        int     listed = tiles.key_tiles_start[qt];
        int64_t pairs  = 0;
        for (int kt = 0; kt < tiles.n_key_tiles; kt++) {
            const counted c = count(t, queries, qt, kt);
            pairs += c.pairs;
            by_key[static_cast<size_t>(kt)] += c.pairs;
            if (c.pairs == 0) {
                continue;
            }
            CHECK(listed < tiles.key_tiles_start[qt + 1] && tiles.key_tiles[listed].index == kt);
            // The last tile of queries is short, and counts as whole when all that there are see every key.
            if (qt + 1 < tiles.n_query_tiles) {
                CHECK(tiles.key_tiles[listed].whole == (c.pairs == c.all));
            }
            listed++;
        }
        CHECK(listed == tiles.key_tiles_start[qt + 1]);
        CHECK(tiles.query_tile_pairs[qt] == pairs);
        total += pairs;
    }
    for (int kt = 0; kt < tiles.n_key_tiles; kt++) {
        CHECK(tiles.key_tile_pairs[kt] == by_key[static_cast<size_t>(kt)]);
    }
    CHECK(mask.n_visible_pairs() == total);
}

void test_tiles() {
    for (unsigned seed = 0; seed < 12; seed++) {
        checks::where = "tiles, seed " + std::to_string(seed);
        const tree t  = grown(seed, 1 + static_cast<int>(seed % 3), 10 + static_cast<int>(seed) * 25);
        // What a query sees is its path.
        for (int i = 0; i < t.size(); i += 7) {
            int sees = 0;
            for (int j = 0; j <= i; j++) {
                sees += t.visible_until[static_cast<size_t>(j)] > i;
            }
            CHECK(sees == static_cast<int>(t.path(i).size()));
        }
        std::vector<int32_t> all, some;
        for (int i = 0; i < t.size(); i++) {
            all.push_back(i);
            if (i % 3 == 1) {
                some.push_back(i);
            }
        }
        check_tiles(t, all);
        check_tiles(t, some);
    }
}

// ---- branches

const attention_shape shape{4, 2, 64, 0.125f};
const size_t          q_columns = 256, k_columns = 128;

struct attended {
    std::vector<float> q, k, v, dout, out, lse, dq, dk, dv;
};

void attend(attended &a, const std::vector<int32_t> &visible_until, thread_pool &pool) {
    const size_t         n = visible_until.size();
    const attention_mask mask(visible_until.data(), n, nullptr, n);
    std::vector<char>    workspace(attention_workspace_bytes(shape, n, n, pool.size()));
    a.out.assign(n * q_columns, 0);
    a.dq.assign(n * q_columns, 0);
    a.lse.assign(n * 4, 0);
    a.dk.assign(n * k_columns, 0);
    a.dv.assign(n * k_columns, 0);
    attention_forward(shape, mask,
                      {a.q.data(), a.k.data(), a.v.data(), a.out.data(), a.lse.data(), q_columns, k_columns, k_columns, q_columns},
                      workspace.data(), pool);
    attention_backward(shape, mask,
                       {a.q.data(), a.k.data(), a.v.data(), a.out.data(), a.lse.data(), a.dout.data(), a.dq.data(), a.dk.data(), a.dv.data(),
                        q_columns, k_columns, k_columns, q_columns, q_columns, q_columns, k_columns, k_columns},
                       workspace.data(), pool);
}

// rows picks the rows of a matrix.
std::vector<float> rows(const std::vector<float> &from, const std::vector<int> &which, size_t columns) {
    std::vector<float> picked;
    for (int row : which) {
        picked.insert(picked.end(), from.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(row) * columns),
                      from.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(row + 1) * columns));
    }
    return picked;
}

void check_same(const std::vector<float> &got, const std::vector<float> &want, const char *what) {
    double top = 0, worst = 0;
    for (size_t i = 0; i < want.size(); i++) {
        top   = std::max(top, std::fabs(static_cast<double>(want[i])));
        worst = checks::larger(worst, std::fabs(static_cast<double>(got[i]) - static_cast<double>(want[i])));
    }
    if (!(worst <= branch_tolerance * top)) {
        std::fprintf(stderr, "test_tree.cpp: %s: %s differs by %.2g of %.2g\n", checks::where.c_str(), what, worst, top);
        checks::failures++;
    }
}

// A position's output gradient goes to one branch only, its leaf's own tokens, as in training: then what the shared
// positions get is the sum over the branches.
void check_branches(const tree &t, thread_pool &pool) {
    const size_t                    n = static_cast<size_t>(t.size());
    std::mt19937                    bits(5);
    std::normal_distribution<float> normal;
    attended                        whole;
    for (auto [v, columns] : {std::pair{&whole.q, q_columns}, {&whole.k, k_columns}, {&whole.v, k_columns}, {&whole.dout, q_columns}}) {
        v->resize(n * columns);
        std::generate(v->begin(), v->end(), [&] { return normal(bits); });
    }
    std::vector<int> owners(n, 0);
    for (int i = 0; i < t.size(); i++) {
        if (t.leaf(i)) {
            for (int token : t.path(i)) {
                owners[static_cast<size_t>(token)]++;
            }
        }
    }
    for (size_t i = 0; i < n; i++) {
        if (owners[i] > 1) {
            std::fill_n(whole.dout.begin() + static_cast<ptrdiff_t>(i * q_columns), q_columns, 0.0f);
        }
    }
    attend(whole, t.visible_until, pool);

    std::vector<float> dq(n * q_columns), dk(n * k_columns), dv(n * k_columns);
    const auto         add = [](std::vector<float> &to, const std::vector<float> &from, const std::vector<int> &path, size_t columns) {
        for (size_t i = 0; i < path.size(); i++) {
            for (size_t c = 0; c < columns; c++) {
                to[static_cast<size_t>(path[i]) * columns + c] += from[i * columns + c];
            }
        }
    };
    for (int i = 0; i < t.size(); i++) {
        if (!t.leaf(i)) {
            continue;
        }
        const std::vector<int> path = t.path(i);
        attended               alone;
        alone.q    = rows(whole.q, path, q_columns);
        alone.k    = rows(whole.k, path, k_columns);
        alone.v    = rows(whole.v, path, k_columns);
        alone.dout = rows(whole.dout, path, q_columns);
        attend(alone, std::vector<int32_t>(path.size(), static_cast<int32_t>(path.size())), pool);
        check_same(rows(whole.out, path, q_columns), alone.out, "out");
        add(dq, alone.dq, path, q_columns);
        add(dk, alone.dk, path, k_columns);
        add(dv, alone.dv, path, k_columns);
    }
    check_same(whole.dq, dq, "dq");
    check_same(whole.dk, dk, "dk");
    check_same(whole.dv, dv, "dv");
}

void test_branches() {
    thread_pool pool(2);
    for (const char *set : {"generic", "avx2", "avx512"}) {
        if (!attention_use_kernels(set)) {
            std::printf("tree: no %s on this CPU\n", set);
            continue;
        }
        for (unsigned seed = 0; seed < 6; seed++) {
            checks::where = std::string(set) + ", branches, seed " + std::to_string(seed);
            check_branches(grown(seed, 1 + static_cast<int>(seed % 3), 20 + static_cast<int>(seed) * 30), pool);
        }
    }
}

} // namespace

int main() {
    test_tiles();
    test_branches();
    std::printf("tree: %d failures\n", checks::failures);
    return checks::failures == 0 ? 0 : 1;
}
