// The `pairs` walk on the CPU. Compiled once per instruction set (VAEFAST_ISA names the copy).
//
// Lanes are cols. What depends on the cols alone (1 / sigma, log-normalisers) is packed once, in blocks that lie one
// dimension after the other, so that the inner loop is a subtraction, a product, a multiply-add and, for each dimension
// on its own, one exponential. Forward, every lane has a log-sum-exp of its own, which takes a block of cols at a time:
// one rescaling per block. Backward makes each pair again from the forward's result. No pair is ever stored.
#include "density/pairs.h"

#include "cpu/stacks.h"
#include "walk.h"

namespace vaefast {
inline namespace VAEFAST_ISA {
namespace {

constexpr int kBlock = 8;              // vectors of cols that forward takes at once
constexpr int kRows = kRegisters / 4;  // rows that share what is loaded of the cols, and keep two sums each
constexpr int64_t kParallel = 32768;   // terms below which starting threads costs more than it gains

// An array that is freed with its scope. Not the standard library's, whose copies for each instruction set would have
// one name, and the linker would keep one of them.
template <class T>
class Array {
 public:
  explicit Array(int64_t size) : data_(new T[size]()) {}
  Array(const Array&) = delete;
  ~Array() { delete[] data_; }
  T* get() const { return data_; }

 private:
  T* data_;
};

// The logarithm of a sum of exponentials, in every lane: max + log(sum).
template <class V>
struct LogSum {
  V max, sum;
};

template <int N, class V>
VF_FN void add(LogSum<V>& to, const V* x) {
  using N_ = Native<V>;
  V max = to.max;  // finite from the start: -inf less -inf is not met
  for (int v = 0; v < N; ++v) max = select(x[v] > max, x[v], max);
  max = N_::at_most(max, splat<V>(kLargest<Scalar<V>>));
  V sum = to.sum * exp_only(to.max - max);
  for (int v = 0; v < N; ++v) sum += exp_only(x[v] - max);
  to = {max, sum};
}

template <class V>
Scalar<V> total(LogSum<V> lanes) {
  Scalar<V> max = lanes.max[0];
  for (size_t l = 1; l < sizeof(V) / sizeof(max); ++l) max = lanes.max[l] > max ? lanes.max[l] : max;
  lanes.sum *= exp_only(lanes.max - max);
  return max + log(add_lanes<Scalar<V>, kBytes>(lanes.sum));
}

template <class D, class C>
class PairsRunner {
  using V = typename VectorOf<C>::Type;
  static constexpr int kLanes = sizeof(V) / sizeof(C);
  static constexpr int kWidth = kBlock * kLanes;  // cols of a block

  // What lies in cols: `dims` rows of a block's width, one block after the other, then one number per col.
  struct Packed {
    C *a, *b, *c, *last;
    Packed(C* at, int64_t padded, int64_t dims)
        : a(at), b(a + padded * dims), c(b + padded * dims), last(c + padded * dims) {}
  };

 public:
  explicit PairsRunner(const Pairs& pairs)
      : p_(pairs),
        rows_(pairs.rows),
        cols_(pairs.cols),
        dims_(pairs.dims),
        padded_(pairs.padded()),
        points_(static_cast<const C*>(pairs.points)),
        cols_data_(static_cast<C*>(pairs.scratch), padded_, dims_),
        scales_(pairs.scale_count) {
    for (int i = 0; i < pairs.scale_count; ++i) scales_.get()[i] = static_cast<C>(pairs.scales[i]);
  }

  void forward(int threads) {
    pack();
    [[maybe_unused]] bool parallel = threads > 1 && rows_ * cols_ * (dims_ + 1) >= kParallel;
#pragma omp parallel num_threads(threads) if (parallel)
    {
      Array<LogSum<V>> state(kRows * sums());
#pragma omp for schedule(static)
      for (int64_t row = 0; row < rows_; row += kRows)
        forward_rows(row, static_cast<int>(rows_ - row < kRows ? rows_ - row : kRows), state.get());
    }
  }

  void backward(int threads) {
    pack();
    const int64_t row_parts = p_.row_parts(), col_parts = p_.col_parts(), parts = row_parts * col_parts;
    C* sums = static_cast<C*>(p_.scratch) + p_.packed_size();
    C* points = sums + row_parts * p_.sums_size();
    [[maybe_unused]] bool parallel = threads > 1 && parts > 1 && rows_ * cols_ * (dims_ + 1) >= kParallel;
#pragma omp parallel num_threads(threads) if (parallel)
    {
      Array<V> room(kRows * (dims_ + 1));
      Array<C> of_rows(2 * kRows * dims_);
#pragma omp for schedule(dynamic)
      for (int64_t part = 0; part < parts; ++part) {
        int64_t r = part / col_parts, c = part % col_parts;
        C* of_cols = sums + r * p_.sums_size();
        backward_part(bound(rows_, r, row_parts, kRows), bound(rows_, r + 1, row_parts, kRows),
                      bound(padded_, c, col_parts, Pairs::kAlign), bound(padded_, c + 1, col_parts, Pairs::kAlign),
                      Packed(of_cols, padded_, dims_), points + c * p_.points_size(), room.get(), of_rows.get());
      }
    }
    if (p_.grad_centres || p_.symmetric) finish_cols(sums, row_parts);
    if (p_.grad_points) finish_points(points, col_parts);
    if (!D::logarithm && p_.value) finish_values(points + rows_ * dims_, col_parts);
  }

 private:
  // Where part `i` of `parts` begins: a multiple of `unit`, or the end.
  static int64_t bound(int64_t size, int64_t i, int64_t parts, int64_t unit) {
    int64_t at = size * i / parts / unit * unit;
    return i == parts ? size : at;
  }

  int64_t width(int64_t block) const { return padded_ - block < kWidth ? padded_ - block : kWidth; }
  // Where the first dimension of `col` lies; the next one lies width(block) further.
  int64_t at(int64_t col) const { return col / kWidth * kWidth * dims_ + col % kWidth; }

  void pack() {
    unstack_cols(static_cast<const C*>(p_.centres), cols_data_.a);
    if (D::scaled) unstack_cols(static_cast<const C*>(p_.logvar), cols_data_.b);
    auto log_weights = static_cast<const C*>(p_.log_weights);
    const C none = D::logarithm ? -C(__builtin_inf()) : C(0);  // the weight of a col that is not there
    for (int64_t col = 0; col < padded_; col += kLanes) {
      double weight[kLanes] = {};
      int64_t to = at(col), step = width(col / kWidth * kWidth);
      if constexpr (D::scaled)
        for (int64_t d = 0; d < dims_; ++d, to += step) {
          V half = load<V>(cols_data_.b + to) * C(-0.5);
          V scale = exp_parts(half).exp * C(0.70710678118654752440);
          store(cols_data_.b + to, Native<V>::at_most(scale, splat<V>(kLargest<C>)));
          V term = half - C(0.91893853320467274178);  // log(2 pi) / 2
          for (int l = 0; l < kLanes; ++l) weight[l] += term[l];
          for (int l = 0; l < kLanes; ++l)
            if (col + l >= cols_) term[l] = none;
          store(cols_data_.c + to, term);
        }
      for (int l = 0; l < kLanes; ++l) {
        bool there = col + l < cols_;
        double log_weight = there && log_weights ? log_weights[col + l] : 0;
        double whole = D::logarithm ? weight[l] + log_weight : p_.symmetric ? 2 * p_.every : p_.every;
        cols_data_.last[col + l] = there ? static_cast<C>(whole) : none;
      }
    }
  }

  // [cols, dims] to blocks, zeros where there is no col.
  void unstack_cols(const C* from, C* to) const {
    for (int64_t block = 0; block < padded_; block += kWidth) {
      int64_t step = width(block), there = cols_ - block < step ? cols_ - block : step;
      C* first = to + at(block);
      turn(from + block * dims_, dims_, there, dims_, first, step);
      for (int64_t d = 0; there < step && d < dims_; ++d)
        for (int64_t i = there; i < step; ++i) first[d * step + i] = 0;
    }
  }

  // Blocks to [cols, dims].
  void stack_cols(const C* from, C* to) const {
    for (int64_t block = 0; block < padded_; block += kWidth) {
      int64_t step = width(block), there = cols_ - block < step ? cols_ - block : step;
      turn(from + at(block), step, dims_, there, to + block * dims_, dims_);
    }
  }

  // The first col that `row` … meet, in whole vectors.
  int64_t first_col(int64_t row) const { return p_.symmetric ? row / kLanes * kLanes : 0; }

  // What the pairs (i, i) and (i, i + 1 mod cols) of i = first + row have beyond the others, and what a symmetric walk
  // takes from the others before them; false where col … has none of these.
  bool special(int64_t row, int64_t col, V* extra, int count) const {
    row += p_.first;
    int64_t next = row + 1 == cols_ ? 0 : row + 1, size = int64_t{count} * kLanes;
    bool own_is_here = row >= col && row < col + size, next_is_here = next >= col && next < col + size;
    bool before_is_here = p_.symmetric && row > col;
    if (!own_is_here && !next_is_here && !before_is_here) return false;
    C values[kWidth] = {};
    if (before_is_here)
      for (int64_t i = 0, end = row - col < size ? row - col : size; i < end; ++i)
        values[i] = static_cast<C>(-2 * p_.every);
    if (own_is_here) values[row - col] += static_cast<C>(p_.symmetric ? p_.own - p_.every : p_.own);
    if (next_is_here) values[next - col] += static_cast<C>(p_.next);
    for (int v = 0; v < count; ++v) extra[v] = load<V>(values + v * kLanes);
    return true;
  }

  VF_FN V distance(V point, const C* mu, const C* scale) const {
    V u = point - load<V>(mu);
    if constexpr (D::scaled) u *= load<V>(scale);
    return u;
  }

  // ---- forward ----

  // A row's sums: one for each dimension on its own, then the whole's.
  int64_t sums() const { return D::dimensions ? dims_ + 1 : 1; }

  void forward_rows(int64_t row, int count, LogSum<V>* state) const {
    for (int64_t i = 0; i < count * sums(); ++i) state[i] = {splat<V>(-kLargest<C>), V{}};
    for (int64_t col = first_col(row), end; col < padded_; col = end) {
      int64_t block = col / kWidth * kWidth;
      end = block + width(block);
      if (end - col == kWidth) {
        for (int r = 0; r < count; ++r) forward_block<kBlock>(row + r, col, state + r * sums());
      } else if constexpr (D::dimensions) {
        rest<kBlock / 2>(row, count, col, end, state);
      } else {
        for (; col < end; col += kLanes) forward_tile(row, count, col, state);
      }
    }
    const C every = static_cast<C>(p_.every);
    for (int r = 0; r < count; ++r, state += sums()) {
      if constexpr (D::dimensions)
        for (int64_t d = 0; d < dims_; ++d) static_cast<C*>(p_.values)[(row + r) * dims_ + d] = total(state[d]) + every;
      C& value = static_cast<C*>(p_.value)[row + r];
      if constexpr (D::logarithm)
        value = total(state[sums() - 1]) + every;
      else
        value = add_lanes<C, kBytes>(state->sum);
    }
  }

  // Less than a block, in vectors of fewer and fewer cols.
  template <int N>
  void rest(int64_t row, int count, int64_t col, int64_t end, LogSum<V>* state) const {
    for (; col + N * kLanes <= end; col += N * kLanes)
      for (int r = 0; r < count; ++r) forward_block<N>(row + r, col, state + r * sums());
    if constexpr (N > 1) rest<N / 2>(row, count, col, end, state);
  }

  template <int N>
  void forward_block(int64_t row, int64_t col, LogSum<V>* state) const {
    V extra[N] = {};
    if (special(row, col, extra, N))
      forward_block<N, true>(row, col, extra, state);
    else
      forward_block<N, false>(row, col, extra, state);
  }

  template <int N, bool Special>
  VF_FN void forward_block(int64_t row, int64_t col, const V* extra, LogSum<V>* state) const {
    const int64_t step = width(col / kWidth * kWidth);
    const C *point = points_ + row * dims_, *mu = cols_data_.a + at(col), *scale = cols_data_.b + at(col);
    const C* term = cols_data_.c + at(col);
    V q[N] = {};
    for (int64_t d = 0; d < dims_; ++d, mu += step, scale += step, term += step) {
      V z = splat<V>(point[d]), x[N];
      VF_UNROLL
      for (int v = 0; v < N; ++v) {
        V u = distance(z, mu + v * kLanes, scale + v * kLanes);
        q[v] = Native<V>::multiply_add(u, u, q[v]);
        if constexpr (D::dimensions) {
          x[v] = Native<V>::multiply_add(-u, u, load<V>(term + v * kLanes));
          if (Special) x[v] += extra[v];
        }
      }
      if constexpr (D::dimensions) add<N>(state[d], x);
    }
    V x[N];
    VF_UNROLL
    for (int v = 0; v < N; ++v) {
      V weight = load<V>(cols_data_.last + col + v * kLanes);
      if (Special) weight += extra[v];
      if constexpr (D::logarithm)
        x[v] = weight - q[v];
      else
        state->sum += weight * D::kernel(q[v], scales_.get(), p_.scale_count).value;
    }
    if constexpr (D::logarithm) add<N>(state[sums() - 1], x);
  }

  // One vector of cols and all the rows: sums that wait for each other are of different rows.
  void forward_tile(int64_t row, int count, int64_t col, LogSum<V>* state) const {
    V q[kRows], extra[kRows] = {};
    for (int r = 0; r < count; ++r) special(row + r, col, extra + r, 1);
    distances([&](int r) { return points_ + (row + (r < count ? r : 0)) * dims_; }, col, q);
    for (int r = 0; r < count; ++r, ++state) {
      V weight = load<V>(cols_data_.last + col) + extra[r];
      if constexpr (D::logarithm) {
        V x = weight - q[r];
        add<1>(*state, &x);
      } else {
        state->sum += weight * D::kernel(q[r], scales_.get(), p_.scale_count).value;
      }
    }
  }

  // The squared distances of kRows points, `point(r)`, to a vector of cols.
  template <class F>
  VF_FN void distances(F point, int64_t col, V* q) const {
    const int64_t step = width(col / kWidth * kWidth), first = at(col);
    const C *mu = cols_data_.a + first, *scale = cols_data_.b + first;
    const C* points[kRows];
    V sums[kRows] = {};
    for (int r = 0; r < kRows; ++r) points[r] = point(r);
    for (int64_t d = 0; d < dims_; ++d, mu += step, scale += step) {
      VF_UNROLL
      for (int r = 0; r < kRows; ++r) {
        V u = distance(splat<V>(points[r][d]), mu, scale);
        sums[r] = Native<V>::multiply_add(u, u, sums[r]);
      }
    }
    for (int r = 0; r < kRows; ++r) q[r] = sums[r];
  }

  // ---- backward ----

  // A row's own numbers: of one that is not there those of the first, with gradients of 0.
  struct Row {
    const C* point;
    C *values, *grads;  // by dimension; as `value` and `grad`
    C value, grad;      // what the logarithms of shares are counted from; minus the gradient, where there are shares
  };

  void backward_part(int64_t row, int64_t row_end, int64_t col, int64_t col_end, Packed sums, C* points, V* room,
                     C* of_rows) const {
    for (int64_t c = col; c < col_end; c += kLanes) {
      int64_t to = at(c), step = width(c / kWidth * kWidth);
      for (int64_t d = 0; d < dims_; ++d, to += step) {
        store(sums.a + to, V{});
        if constexpr (D::scaled) store(sums.b + to, V{});
        if constexpr (D::dimensions) store(sums.c + to, V{});
      }
      store(sums.last + c, V{});
    }
    for (; row < row_end; row += kRows) {
      const int64_t count = row_end - row < kRows ? row_end - row : kRows;
      Row rows[kRows];
      for (int64_t r = 0; r < kRows; ++r) rows[r] = row_at(row, r, count, of_rows);
      for (int64_t i = 0; i < kRows * (dims_ + 1); ++i) room[i] = V{};
      int64_t from = first_col(row) > col ? first_col(row) : col;
      for (int64_t c = from, end; c < col_end; c = end) {
        end = c / kWidth * kWidth + kWidth;
        if (end > col_end) end = col_end;
        backward_block(row, rows, c, static_cast<int>((end - c) / kLanes), sums, room);
      }
      add_up(room, count * dims_, points + row * dims_);
      if constexpr (!D::logarithm)
        for (int64_t r = 0; r < count; ++r)
          points[rows_ * dims_ + row + r] = add_lanes<C, kBytes>(room[kRows * dims_ + r]);
    }
  }

  // The sum of each vector's lanes.
  static void add_up(const V* from, int64_t size, C* to) {
    int64_t i = 0;
    if constexpr (sizeof(C) == 4)
      for (; i + kLanes <= size; i += kLanes) {
        V square[kLanes];
        for (int l = 0; l < kLanes; ++l) square[l] = from[i + l];
        store(to + i, add_rows(square));
      }
    for (; i < size; ++i) to[i] = add_lanes<C, kBytes>(from[i]);
  }

  // Of the logarithm of a sum, e^(x - value) is the pair's share; where no pair counts, that of every pair is 0.
  static C finite(C value) { return value < -kLargest<C> ? -kLargest<C> : value; }

  Row row_at(int64_t row, int64_t r, int64_t count, C* of_rows) const {
    const bool there = r < count;
    const int64_t i = there ? row + r : row;
    const C every = static_cast<C>(p_.every), sign = D::logarithm ? C(-1) : C(1);
    Row result{points_ + i * dims_, of_rows + r * dims_, of_rows + (kRows + r) * dims_, 0, 0};
    if (there) result.grad = sign * static_cast<const C*>(p_.grad_value)[i];
    if (D::logarithm) result.value = finite(static_cast<const C*>(p_.value)[i] - every);
    if constexpr (D::dimensions)
      for (int64_t d = 0; d < dims_; ++d) {
        result.values[d] = finite(static_cast<const C*>(p_.values)[i * dims_ + d] - every);
        result.grads[d] = there ? sign * static_cast<const C*>(p_.grad_values)[i * dims_ + d] : C(0);
      }
    return result;
  }

  // Some rows and at most a block of cols: a row's sums stay in registers meanwhile.
  void backward_block(int64_t row, const Row* rows, int64_t col, int count, Packed sums, V* room) const {
    V slope[kBlock * kRows], extra[kBlock * kRows] = {};
    bool any_special = false;
    for (int v = 0; v < count; ++v)
      any_special |= slopes(row, rows, col + v * kLanes, slope + v * kRows, extra + v * kRows, sums, room);
    if (D::dimensions && any_special)
      backward_dims<true>(rows, col, count, slope, extra, sums, room);
    else
      backward_dims<false>(rows, col, count, slope, extra, sums, room);
  }

  // slope: of the loss by q; for each dimension on its own, by the square of its u. Returns whether a pair is special.
  bool slopes(int64_t row, const Row* rows, int64_t col, V* slope, V* extra, Packed sums, V* room) const {
    bool any_special = false;
    for (int r = 0; r < kRows; ++r) any_special |= special(row + r, col, extra + r, 1);
    V q[kRows];
    distances([&](int r) { return rows[r].point; }, col, q);
    V weight = load<V>(cols_data_.last + col), all{};
    for (int r = 0; r < kRows; ++r) {
      if constexpr (D::logarithm)
        slope[r] = share(weight + extra[r] - q[r] - rows[r].value) * rows[r].grad;
      else {
        Kernel<V> kernel = D::kernel(q[r], scales_.get(), p_.scale_count);
        V counts = weight + extra[r];
        room[kRows * dims_ + r] = Native<V>::multiply_add(kernel.value, counts, room[kRows * dims_ + r]);
        slope[r] = kernel.slope * counts * rows[r].grad;
      }
      all += slope[r];
    }
    store(sums.last + col, load<V>(sums.last + col) + all);
    return any_special;
  }

  template <bool Special>
  VF_FN void backward_dims(const Row* rows, int64_t col, int count, const V* slope, const V* extra, Packed sums,
                           V* room) const {
    using N = Native<V>;
    const int64_t step = width(col / kWidth * kWidth);
    for (int64_t d = 0, start = at(col); d < dims_; ++d, start += step) {
      V z[kRows], point[kRows];
      VF_UNROLL
      for (int r = 0; r < kRows; ++r) z[r] = splat<V>(rows[r].point[d]), point[r] = room[r * dims_ + d];
      for (int v = 0; v < count; ++v) {
        const int64_t at = start + v * kLanes;
        const C *mu = cols_data_.a + at, *scale = cols_data_.b + at;
        V first{}, second{}, all{};
        VF_UNROLL
        for (int r = 0; r < kRows; ++r) {
          V u = distance(z[r], mu, scale), g = slope[v * kRows + r];
          if constexpr (D::scaled) u = clamp(u, -kLargest<C>, kLargest<C>);  // nothing times infinity is nothing here
          if constexpr (D::dimensions) {
            V x = N::multiply_add(-u, u, load<V>(cols_data_.c + at));
            if (Special) x += extra[v * kRows + r];
            g = N::multiply_add(share(x - rows[r].values[d]), splat<V>(rows[r].grads[d]), g);
            all += g;
          }
          if constexpr (D::scaled) {
            V moved = g * u;
            first += moved;
            second = N::multiply_add(moved, u, second);
            point[r] = N::multiply_add(moved, load<V>(scale), point[r]);
          } else {
            first = N::multiply_add(g, u, first);
            point[r] = N::multiply_add(g, u, point[r]);
          }
        }
        store(sums.a + at, load<V>(sums.a + at) + first);
        if constexpr (D::scaled) store(sums.b + at, load<V>(sums.b + at) + second);
        if constexpr (D::dimensions) store(sums.c + at, load<V>(sums.c + at) + all);
      }
      VF_UNROLL
      for (int r = 0; r < kRows; ++r) room[r * dims_ + d] = point[r];
    }
  }

  // A part's sums: the gradients of the points, then the values.
  void finish_points(const C* points, int64_t parts) const {
    auto grad = static_cast<C*>(p_.grad_points);
    for (int64_t part = 0, size = rows_ * dims_; part < parts; ++part, points += p_.points_size())
      if (part == 0 && !p_.symmetric)  // else there is what finish_cols left
        for (int64_t i = 0; i < size; ++i) grad[i] = 2 * points[i];
      else
        for (int64_t i = 0; i < size; ++i) grad[i] += 2 * points[i];
  }

  void finish_values(const C* values, int64_t parts) const {
    auto value = static_cast<C*>(p_.value);
    for (int64_t i = 0; i < rows_; ++i) {
      value[i] = 0;
      for (int64_t part = 0; part < parts; ++part) value[i] += values[part * p_.points_size() + i];
    }
  }

  // du/dmu = -scale, du/dlogvar = -u / 2, and each pair's c has -logvar / 2.
  void finish_cols(C* sums, int64_t parts) const {
    Packed sum(sums, padded_, dims_);
    const int64_t all = p_.sums_size(), last = sum.last - sums, used = last / 3 * (1 + D::scaled + D::dimensions);
    for (int64_t part = 1; part < parts; ++part) {
      const C* more = sums + part * all;
      for (int64_t i = 0; i < used; ++i) sums[i] += more[i];
      for (int64_t i = last; i < all; ++i) sums[i] += more[i];
    }
    for (int64_t col = 0; col < padded_; col += kLanes) {
      int64_t from = at(col), step = width(col / kWidth * kWidth);
      for (int64_t d = 0; d < dims_; ++d, from += step) {
        V pull = load<V>(sum.a + from) * C(-2);
        if constexpr (D::scaled) {
          pull *= load<V>(cols_data_.b + from);
          V all = load<V>(D::dimensions ? sum.c + from : sum.last + col);
          store(sum.b + from, all * C(0.5) - load<V>(sum.b + from));
        }
        store(sum.a + from, pull);
      }
    }
    stack_cols(sum.a, static_cast<C*>(p_.symmetric ? p_.grad_points : p_.grad_centres));
    if (D::scaled) stack_cols(sum.b, static_cast<C*>(p_.grad_logvar));
    if (auto log_weights = static_cast<C*>(p_.grad_log_weights))
      for (int64_t col = 0; col < cols_; ++col) log_weights[col] = -sum.last[col];
  }

  const Pairs& p_;
  const int64_t rows_, cols_, dims_, padded_;
  const C* points_;
  const Packed cols_data_;  // mu, 1 / (sqrt(2) sigma), -(logvar + log(2 pi)) / 2; the weight of the whole
  const Array<C> scales_;
};

struct Entry {
  const char* name;
  void (*narrow)(const Pairs&, int);
  void (*wide)(const Pairs&, int);
};

template <class D, class C>
void run_forward(const Pairs& pairs, int threads) {
  PairsRunner<D, C>(pairs).forward(threads);
}

template <class D, class C>
void run_backward(const Pairs& pairs, int threads) {
  PairsRunner<D, C>(pairs).backward(threads);
}

#define VAEFAST_ENTRY(name, D)                                      \
  {name "_forward", run_forward<D, float>, run_forward<D, double>}, \
      {name "_backward", run_backward<D, float>, run_backward<D, double>},
constexpr Entry kEntries[] = {VAEFAST_PAIR_DENSITIES(VAEFAST_ENTRY)};

}  // namespace

// False: no density of that name.
bool run_pairs(const char* density, const Pairs& pairs, int threads) {
  const Entry* entry = find(kEntries, density);
  if (entry == nullptr) return false;
  (pairs.wide ? entry->wide : entry->narrow)(pairs, threads);
  return true;
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
