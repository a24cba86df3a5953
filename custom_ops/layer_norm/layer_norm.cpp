// The CPU kernels of the operators that kernels.py defines. What they compute stands in formula.py.
//
// A row is read four times, all but the first time from the cache: for hi, for lo, for the variance
// and for Y; on the way back twice, for the sums and for dL/dX. Vectors are the extension of GCC
// and Clang, as wide as the target allows. For the digits that formula.py promises,
//  - cpu.py compiles without -ffast-math, which would fold (x - hi) - lo, and without contraction
//    into fused multiply-adds, with which g - mean(g) is not 0 for a row of one element;
//  - what is added up in which order depends on the shape alone, never on the number of threads.
// Where a number of elements decides what is done, it was the best of several on one machine with
// caches of 48 KB and 1 MB; the results do not depend on it but for dL/dgamma and dL/dbeta.

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))
#define INLINED __attribute__((always_inline))

namespace {

using at::Tensor;
using c10::BFloat16;
using c10::Half;

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Elements that are worth a thread: below, waking one costs more than it saves.
constexpr int64_t kGrain = 16384;
// Rows of an output this large leave the cache before anyone reads them: written past it.
constexpr int64_t kStreamBytes = 8 << 20;

// ---------------------------------------------------------------- vectors

template <typename T, int W>
struct VectorOf {
  typedef T type __attribute__((vector_size(W * sizeof(T))));
};
template <typename T, int W>
using Vec = typename VectorOf<T, W>::type;

// The type of statistics, products and sums.
template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

// 16 bits to 32, for which GCC takes five instructions instead of one.
template <int W>
INLINE Vec<uint32_t, W> load_bits(const BFloat16* from) {
  using Bits = Vec<uint32_t, W>;
#if defined(__AVX512F__)
  if constexpr (W == 16) return (Bits)_mm512_cvtepu16_epi32(_mm256_loadu_si256((__m256i*)from));
#endif
#if defined(__AVX2__)
  if constexpr (W == 8) return (Bits)_mm256_cvtepu16_epi32(_mm_loadu_si128((__m128i*)from));
#endif
  Vec<uint16_t, W> bits;
  std::memcpy(&bits, from, sizeof bits);
  return __builtin_convertvector(bits, Bits);
}

template <int W, typename T>
INLINE Vec<Wide<T>, W> load(const T* from) {
  Vec<Wide<T>, W> v;
  if constexpr (std::is_same_v<T, Wide<T>>) {
    std::memcpy(&v, from, sizeof v);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    v = (Vec<float, W>)(load_bits<W>(from) << 16);
  } else {
#if defined(__F16C__)
    using V = Vec<float, W>;
#if defined(__AVX512F__)
    if constexpr (W == 16) return (V)_mm512_cvtph_ps(_mm256_loadu_si256((__m256i*)from));
#endif
    if constexpr (W == 8) return (V)_mm256_cvtph_ps(_mm_loadu_si128((__m128i*)from));
    if constexpr (W == 4) return (V)_mm_cvtph_ps(_mm_loadl_epi64((__m128i*)from));
#endif
    for (int lane = 0; lane < W; ++lane) v[lane] = static_cast<float>(from[lane]);
  }
  return v;
}

// With `past_cache`, `to` must be aligned to the vector.
template <typename V>
INLINE void put(void* to, V v, [[maybe_unused]] bool past_cache) {
#if defined(__SSE2__)
  if (past_cache) {
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) return _mm512_stream_si512((__m512i*)to, (__m512i)v);
#endif
#if defined(__AVX__)
    if constexpr (sizeof(V) == 32) return _mm256_stream_si256((__m256i*)to, (__m256i)v);
#endif
    if constexpr (sizeof(V) == 16) return _mm_stream_si128((__m128i*)to, (__m128i)v);
  }
#endif
  std::memcpy(to, &v, sizeof v);
}

template <int W, typename T>
INLINE void store(T* to, Vec<Wide<T>, W> v, bool past_cache = false) {
  if constexpr (std::is_same_v<T, Wide<T>>) {
    put(to, v, past_cache);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    using Bits = Vec<uint32_t, W>;
    const Bits bits = (Bits)v;
    const Bits nearest_even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Bits rounded = v == v ? nearest_even : Bits{} + 0x7fc0;  // NaN would round to infinity
    put(to, __builtin_convertvector(rounded, Vec<uint16_t, W>), past_cache);
  } else {
#if defined(__F16C__)
#if defined(__AVX512F__)
    if constexpr (W == 16) return put(to, _mm512_cvtps_ph((__m512)v, 0), past_cache);
#endif
    if constexpr (W == 8) return put(to, _mm256_cvtps_ph((__m256)v, 0), past_cache);
    if constexpr (W == 4) return _mm_storel_epi64((__m128i*)to, _mm_cvtps_ph((__m128)v, 0));
#endif
    for (int lane = 0; lane < W; ++lane) to[lane] = static_cast<T>(v[lane]);
  }
}

// The upper half is added to the lower one until one lane is left.
#if __has_builtin(__builtin_shufflevector)
template <int W, typename A, int... Lane>
INLINE Vec<A, W / 2> halve(Vec<A, W> v, std::integer_sequence<int, Lane...>) {
  return __builtin_shufflevector(v, v, Lane...) + __builtin_shufflevector(v, v, (Lane + W / 2)...);
}

template <int W, typename A>
INLINE A sum_lanes(Vec<A, W> v) {
  if constexpr (W == 1) {
    return v[0];
  } else if constexpr (W == 2) {
    return v[0] + v[1];
  } else {
    return sum_lanes<W / 2, A>(halve<W, A>(v, std::make_integer_sequence<int, W / 2>{}));
  }
}
#else  // before GCC 12
template <int W, typename A>
INLINE A sum_lanes(Vec<A, W> v) {
  A lanes[W];
  for (int lane = 0; lane < W; ++lane) lanes[lane] = v[lane];
  for (int half = W / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}
#endif

// The sums of the lanes of R vectors, in R lanes; the same sums as those of sum_lanes.
template <int W, int R, typename A>
INLINE Vec<A, R> sum_each(const Vec<A, W>* v) {
  Vec<A, R> sums;
#if __has_builtin(__builtin_shufflevector)
  if constexpr (W > 4) {
    Vec<A, W / 2> halves[R];
    for (int r = 0; r < R; ++r) {
      halves[r] = halve<W, A>(v[r], std::make_integer_sequence<int, W / 2>{});
    }
    return sum_each<W / 2, R, A>(halves);
  } else if constexpr (W == 4 && R == 4) {  // all four at once
    const auto first = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5) +
                       __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
    const auto last = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5) +
                      __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
    return __builtin_shufflevector(first, last, 0, 1, 4, 5) +
           __builtin_shufflevector(first, last, 2, 3, 6, 7);
  }
#endif
  for (int r = 0; r < R; ++r) sums[r] = sum_lanes<W, A>(v[r]);
  return sums;
}

struct EveryLane {
  template <typename V>
  INLINE V operator()(V v) const {
    return v;
  }
};

template <typename Mask>
struct LanesIn {
  Mask mask;
  template <typename V>
  INLINE V operator()(V v) const {
    return mask ? v : V{};
  }
};

// Calls f(i, keep, k) for vectors of W elements from i on that cover [begin, end) of a row of at
// least W elements. The last one ends at `end`, so it may begin with elements that came before:
// `keep` makes those 0, for sums. What is only written may be written twice. k is the number of one
// of K sums for the vector to go to, so that an addition need not wait for the one before.
template <int W, int K, typename A, typename F>
INLINE void each(int64_t begin, int64_t end, F f) {
  int64_t i = begin;
  if constexpr (K > 1) {
    for (; i + K * W <= end; i += K * W) {
      for (int k = 0; k < K; ++k) f(i + k * W, EveryLane{}, k);
    }
  }
  for (; i + W <= end; i += W) f(i, EveryLane{}, 0);
  if constexpr (W > 1) {
    if (i < end) {
      using Index = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
      Vec<Index, W> lane;
      for (int l = 0; l < W; ++l) lane[l] = l;
      f(end - W, LanesIn<Vec<Index, W>>{lane >= static_cast<Index>(i - (end - W))}, 0);
    }
  }
}

// Calls f(begin, end) for pieces of a row short enough that a float sum over one loses nothing.
template <typename F>
INLINE void each_piece(int64_t m, F f) {
  constexpr int64_t kPiece = 4096;
  for (int64_t begin = 0; begin < m; begin += kPiece) f(begin, std::min(m, begin + kPiece));
}

// Calls f with the widest vector that a row of m elements fills.
template <typename A, typename F>
void with_width(int64_t m, F f) {
  constexpr int kWidest = kVectorBytes / sizeof(A);
  if (m >= kWidest) return f(std::integral_constant<int, kWidest>{});
  if constexpr (kWidest > 4) {
    if (m >= 4) return f(std::integral_constant<int, 4>{});
  }
  f(std::integral_constant<int, 1>{});
}

// ---------------------------------------------------------------- forward

template <typename T>
struct Forward {
  using A = Wide<T>;
  const T* x;
  const A* weight;  // or null
  const A* bias;    // or null
  T* y;
  A* statistics;
  int64_t rows;
  int64_t m;
  A eps;
  bool past_cache;

  // R rows side by side, from `row` on: their sums don't wait for each other.
  template <int W, int R>
  void normalise(int64_t row) const {
    using V = Vec<A, W>;
    const int64_t m = this->m;  // locals: a store to Y might change members
    const bool past_cache = this->past_cache;
    const A* const weight = this->weight;
    const A* const bias = this->bias;
    const T* const x = this->x + row * m;
    T* const y = this->y + row * m;
    const bool fetch_ahead = m <= 2048;  // the next rows then fit into the first cache, too

    // The means of term(r, X) over each row r.
    auto mean = [&](bool fetch, auto term) INLINED -> Vec<A, R> {
      Vec<A, R> sums = {};
      each_piece(m, [&](int64_t begin, int64_t end) INLINED {
        V sum[R][2] = {};
        each<W, 2, A>(begin, end, [&](int64_t i, auto keep, int k) INLINED {
          for (int r = 0; r < R; ++r) {
            if (fetch) __builtin_prefetch(x + (r + R) * m + i);
            sum[r][k] += keep(term(r, load<W>(x + r * m + i)));
          }
        });
        V both[R];
        for (int r = 0; r < R; ++r) both[r] = sum[r][0] + sum[r][1];
        sums += sum_each<W, R, A>(both);
      });
      return sums / static_cast<A>(m);
    };

    const auto hi = mean(false, [&](int, V v) INLINED { return v; });
    const auto lo = mean(fetch_ahead, [&](int r, V v) INLINED { return v - hi[r]; });
    const auto var = mean(false, [&](int r, V v) INLINED {
      const V centred = (v - hi[r]) - lo[r];
      return centred * centred;
    });
    Vec<A, R> rstd;
    for (int r = 0; r < R; ++r) rstd[r] = std::sqrt(var[r] + eps);
    rstd = A(1) / rstd;
    for (int r = 0; r < R; ++r) {
      each<W, 1, A>(0, m, [&](int64_t i, auto, int) INLINED {
        V v = ((load<W>(x + r * m + i) - hi[r]) - lo[r]) * rstd[r];
        if (weight) v *= load<W>(weight + i);
        if (bias) v += load<W>(bias + i);
        store<W>(y + r * m + i, v, past_cache);
      });
    }
    std::memcpy(statistics + row, &hi, sizeof hi);
    std::memcpy(statistics + rows + row, &lo, sizeof lo);
    std::memcpy(statistics + 2 * rows + row, &rstd, sizeof rstd);
  }
};

// ---------------------------------------------------------------- backward

template <typename T>
struct Backward {
  using A = Wide<T>;
  const T* dy;
  const T* x;
  const A* weight;  // or null
  const A* statistics;
  T* dx;  // or null
  int64_t rows;
  int64_t m;
  bool past_cache;

  // R rows side by side, from `row` on; adds their part to dweight and dbias, which may be null.
  template <int W, int R>
  void differentiate(int64_t row, A* dweight, A* dbias) const {
    using V = Vec<A, W>;
    const int64_t m = this->m;
    const bool past_cache = this->past_cache;
    const A* const weight = this->weight;
    const T* const x = this->x + row * m;
    const T* const dy = this->dy + row * m;
    Vec<A, R> hi, lo, rstd;
    std::memcpy(&hi, statistics + row, sizeof hi);
    std::memcpy(&lo, statistics + rows + row, sizeof lo);
    std::memcpy(&rstd, statistics + 2 * rows + row, sizeof rstd);
    auto x_hat = [&](int r, int64_t i) INLINED -> V {
      return ((load<W>(x + r * m + i) - hi[r]) - lo[r]) * rstd[r];
    };

    Vec<A, R> mean_g = {}, slope = {};  // mean(G) and mean(G X̂)
    each_piece(m, [&](int64_t begin, int64_t end) INLINED {
      V sum_g[R] = {}, sum_gx[R] = {};
      each<W, 1, A>(begin, end, [&](int64_t i, auto keep, int) INLINED {
        V sum_dy, sum_dyx;
        for (int r = 0; r < R; ++r) {
          const V h = x_hat(r, i);
          V g = load<W>(dy + r * m + i);
          sum_dy = r ? sum_dy + g : g;
          sum_dyx = r ? sum_dyx + g * h : g * h;
          if (weight) g *= load<W>(weight + i);
          sum_g[r] += keep(g);
          sum_gx[r] += keep(g * h);
        }
        if (dweight) store<W>(dweight + i, load<W>(dweight + i) + keep(sum_dyx));
        if (dbias) store<W>(dbias + i, load<W>(dbias + i) + keep(sum_dy));
      });
      mean_g += sum_each<W, R, A>(sum_g);
      slope += sum_each<W, R, A>(sum_gx);
    });
    if (!dx) return;

    T* const dx = this->dx + row * m;
    mean_g /= static_cast<A>(m);
    slope /= static_cast<A>(m);
    for (int r = 0; r < R; ++r) {
      each<W, 1, A>(0, m, [&](int64_t i, auto, int) INLINED {
        V g = load<W>(dy + r * m + i);
        if (weight) g *= load<W>(weight + i);
        store<W>(dx + r * m + i, ((g - mean_g[r]) - x_hat(r, i) * slope[r]) * rstd[r], past_cache);
      });
    }
  }
};

// out[i] = sum over blocks of parts[block][i], always from the first block to the last.
template <typename A>
void sum_blocks(const A* parts, int64_t blocks, int64_t m, A* out) {
  constexpr int64_t kTile = 1024;
  const int64_t tiles = at::divup(m, kTile);
  at::parallel_for(0, tiles, at::divup(kGrain, blocks * kTile), [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t begin = tile * kTile, size = std::min(kTile, m - begin);
      std::memcpy(out + begin, parts + begin, size * sizeof(A));
      for (int64_t block = 1; block < blocks; ++block) {
        const A* part = parts + block * m + begin;
        for (int64_t i = 0; i < size; ++i) out[begin + i] += part[i];
      }
    }
  });
}

// ---------------------------------------------------------------- rows to threads

// How many units of work of `elements` each make up one thread's share.
int64_t grain(int64_t elements) { return at::divup(kGrain, std::max<int64_t>(elements, 1)); }

void finish_streaming([[maybe_unused]] bool past_cache) {
#if defined(__SSE2__)
  if (past_cache) _mm_sfence();
#endif
}

template <typename T>
void run(const Forward<T>& p) {
  // Four of longer rows, with those fetched ahead, would not fit into the first cache.
  const int64_t together = p.m <= 512 ? 4 : 1;
  with_width<Wide<T>>(p.m, [&](auto width) {
    constexpr int W = decltype(width)::value;
    const int64_t units = at::divup(p.rows, together);
    at::parallel_for(0, units, grain(together * p.m), [&](int64_t first, int64_t last) {
      int64_t row = first * together;
      const int64_t end = std::min(p.rows, last * together);
      for (; together == 4 && row + 4 <= end; row += 4) {
        p.template normalise<W, 4>(row);
      }
      for (; row < end; ++row) p.template normalise<W, 1>(row);
      finish_streaming(p.past_cache);
    });
  });
}

// Rows are cut into blocks by the shape alone. A block adds up its part of the sums over rows from
// 0, and the parts are added in order: few rows to a part keep the digits of large batches.
template <typename T, typename A = Wide<T>>
void run(const Backward<T>& p, A* dweight, A* dbias) {
  const int64_t m = std::max<int64_t>(p.m, 1);
  // One by one where rows come from the next cache or from memory: in a single stream it is ahead.
  // Not where the sums over rows don't fit into the first cache: those are read and written less.
  const bool far = p.rows * p.m * int64_t{sizeof(T)} > (1 << 20);
  const int64_t together = m <= 2048 && m >= (far ? 32 : 512) ? 1 : 4;
  int64_t size = std::max(std::min<int64_t>(at::divup(p.rows, 64), 512), at::divup(kGrain, m));
  if (m > 2048) size = std::max(size, std::min<int64_t>(at::divup(p.rows, 8), 8));
  size = at::divup(size, together) * together;
  const int64_t blocks = std::max<int64_t>(at::divup(p.rows, size), 1);

  Tensor parts;
  A* parts_of[2] = {dweight, dbias};
  if (blocks > 1 && (dweight || dbias)) {
    parts = at::empty({2, blocks, p.m}, c10::CppTypeToScalarType<A>::value);
    for (int k : {0, 1}) {
      if (parts_of[k]) parts_of[k] = parts.mutable_data_ptr<A>() + k * blocks * p.m;
    }
  }
  with_width<A>(p.m, [&](auto width) {
    constexpr int W = decltype(width)::value;
    at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        A* const dw = dweight ? parts_of[0] + block * p.m : nullptr;
        A* const db = dbias ? parts_of[1] + block * p.m : nullptr;
        if (dw) std::fill_n(dw, p.m, A(0));
        if (db) std::fill_n(db, p.m, A(0));
        int64_t row = block * size;
        const int64_t end = std::min(p.rows, row + size);
        for (; together == 4 && row + 4 <= end; row += 4) {
          p.template differentiate<W, 4>(row, dw, db);
        }
        for (; row < end; ++row) p.template differentiate<W, 1>(row, dw, db);
      }
      finish_streaming(p.past_cache);
    });
  });
  if (blocks > 1 && dweight) sum_blocks(parts_of[0], blocks, p.m, dweight);
  if (blocks > 1 && dbias) sum_blocks(parts_of[1], blocks, p.m, dbias);
}

// ---------------------------------------------------------------- operators

// Calls f with a value of the C++ type of a dtype.
template <typename F>
void with_type(at::ScalarType dtype, F f) {
  switch (dtype) {
    case at::kFloat: return f(float{});
    case at::kDouble: return f(double{});
    case at::kBFloat16: return f(BFloat16{});
    case at::kHalf: return f(Half{});
    default:
      TORCH_CHECK_TYPE(false, "layer_norm expected x of a floating dtype, got ", dtype,
                       c10::isComplexType(dtype) ? ": normalise x.real and x.imag"
                                                 : ": call x.float()");
  }
}

at::ScalarType wide(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

struct Shape {
  int64_t rows = 1;
  int64_t m = 1;
  at::IntArrayRef row;
};

Shape shape_of(const Tensor& x, int64_t ndim) {
  TORCH_CHECK_VALUE(0 < ndim && ndim <= x.dim(), "layer_norm expected ndim from 1 to ", x.dim(),
                    ", the dimensions of x, got ", ndim);
  Shape shape;
  shape.row = x.sizes().slice(x.dim() - ndim);
  for (int64_t size : x.sizes().slice(0, x.dim() - ndim)) shape.rows *= size;
  for (int64_t size : shape.row) shape.m *= size;
  return shape;
}

// A parameter as the kernels read it; undefined for None. One on another device never comes here:
// that device's kernel would be asked.
Tensor widen(const char* name, const std::optional<Tensor>& parameter, const Tensor& x,
             at::IntArrayRef row) {
  if (!parameter || !parameter->defined()) return {};
  TORCH_CHECK_VALUE(parameter->sizes() == row, "layer_norm expected ", name, " of shape ", row,
                    ", got ", parameter->sizes(), ": reshape ", name,
                    " to normalized_shape or change normalized_shape");
  TORCH_CHECK_TYPE(parameter->is_floating_point(), "layer_norm expected ", name,
                   " of a floating dtype, got ", parameter->dtype(), ": call ", name,
                   ".to(x.dtype)");
  const auto from = parameter->scalar_type(), to = wide(x.scalar_type());
  if (to != at::kFloat || (from != at::kBFloat16 && from != at::kHalf)) {
    return parameter->to(to).contiguous();
  }
  const Tensor narrow = parameter->contiguous();  // to() takes longer than a small forward pass
  Tensor wider = at::empty(row, narrow.options().dtype(to));
  const auto widen_all = [&](auto example) {
    const auto* const read = narrow.const_data_ptr<decltype(example)>();
    float* const write = wider.mutable_data_ptr<float>();
    with_width<float>(narrow.numel(), [&](auto width) {
      constexpr int W = decltype(width)::value;
      each<W, 1, float>(0, narrow.numel(), [&](int64_t i, auto, int) INLINED {
        store<W>(write + i, load<W>(read + i));
      });
    });
  };
  from == at::kHalf ? widen_all(Half{}) : widen_all(BFloat16{});
  return wider;
}

template <typename A>
const A* data(const Tensor& t) {
  return t.defined() ? t.const_data_ptr<A>() : nullptr;
}

template <typename T>
bool write_past_cache(const Tensor& out, int64_t m) {
  constexpr int64_t lanes = kVectorBytes / sizeof(Wide<T>);
  return int64_t(out.nbytes()) >= kStreamBytes && m % lanes == 0 &&
         reinterpret_cast<uintptr_t>(out.const_data_ptr()) % kVectorBytes == 0;
}

std::tuple<Tensor, Tensor> layer_norm_forward(const Tensor& any_x,
                                              const std::optional<Tensor>& any_weight,
                                              const std::optional<Tensor>& any_bias, int64_t ndim,
                                              double eps) {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  const Tensor x = any_x.contiguous();
  const Shape shape = shape_of(x, ndim);
  const Tensor weight = widen("weight", any_weight, x, shape.row);
  const Tensor bias = widen("bias", any_bias, x, shape.row);
  Tensor y = at::empty(x.sizes(), x.options());
  Tensor statistics = at::empty({3, shape.rows}, x.options().dtype(wide(x.scalar_type())));
  with_type(x.scalar_type(), [&](auto example) {
    using T = decltype(example);
    using A = Wide<T>;
    run(Forward<T>{data<T>(x), data<A>(weight), data<A>(bias), y.mutable_data_ptr<T>(),
                   statistics.mutable_data_ptr<A>(), shape.rows, shape.m, static_cast<A>(eps),
                   write_past_cache<T>(y, shape.m)});
  });
  return {y, statistics};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& any_dy, const Tensor& any_x,
                                                       const std::optional<Tensor>& any_weight,
                                                       const Tensor& any_statistics, int64_t ndim,
                                                       std::array<bool, 3> needs) {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  const auto sums = wide(any_x.scalar_type());
  // X and dL/dY come in one type: their own, or that of the sums.
  const auto dtype = any_dy.scalar_type() == any_x.scalar_type() ? any_x.scalar_type() : sums;
  const Tensor x = any_x.to(dtype).contiguous(), dy = any_dy.to(dtype).contiguous();
  const Shape shape = shape_of(x, ndim);
  TORCH_CHECK_VALUE(dy.sizes() == x.sizes(), "layer_norm expected dy of shape ", x.sizes(),
                    ", got ", dy.sizes());
  TORCH_CHECK_VALUE(any_statistics.scalar_type() == sums && any_statistics.dim() == 2 &&
                        any_statistics.size(0) == 3 && any_statistics.size(1) == shape.rows,
                    "layer_norm expected the statistics that its forward pass returned");
  const Tensor statistics = any_statistics.contiguous();
  const Tensor weight = widen("weight", any_weight, x, shape.row);
  const auto options = statistics.options();
  Tensor dx = needs[0] ? at::empty(x.sizes(), x.options()) : at::empty({0}, options);
  Tensor dweight = needs[1] ? at::empty(shape.row, options) : at::empty({0}, options);
  Tensor dbias = needs[2] ? at::empty(shape.row, options) : at::empty({0}, options);
  with_type(dtype, [&](auto example) {
    using T = decltype(example);
    using A = Wide<T>;
    const Backward<T> pass{data<T>(dy), data<T>(x), data<A>(weight), data<A>(statistics),
                           needs[0] ? dx.mutable_data_ptr<T>() : nullptr, shape.rows, shape.m,
                           needs[0] && write_past_cache<T>(dx, shape.m)};
    run(pass, needs[1] ? dweight.mutable_data_ptr<A>() : nullptr,
        needs[2] ? dbias.mutable_data_ptr<A>() : nullptr);
  });
  if (needs[0]) dx = dx.to(any_x.scalar_type());
  return {dx, dweight, dbias};
}

// ---------------------------------------------------------------- autograd

// An operator of kernels.py, to be called where modes of PyTorch see it.
template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  const auto qualified = std::string("custom_ops::") + name;
  return c10::Dispatcher::singleton().findSchemaOrThrow(qualified.c_str(), "").typed<Signature>();
}

std::tuple<Tensor, Tensor> call_forward(const Tensor& x, const std::optional<Tensor>& weight,
                                        const std::optional<Tensor>& bias, int64_t ndim,
                                        double eps) {
  static const auto op = find<decltype(layer_norm_forward)>("layer_norm_forward");
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  return op.call(x, weight, bias, ndim, eps);
}

// LayerNormFunction of function.py, step by step: here, a call spends no time in Python.
struct LayerNormNode : torch::autograd::Function<LayerNormNode> {
  using Context = torch::autograd::AutogradContext;
  using Tensors = torch::autograd::variable_list;

  static Tensor forward(Context* ctx, const Tensor& x, const std::optional<Tensor>& weight,
                        const std::optional<Tensor>& bias, int64_t ndim, double eps) {
    auto [y, statistics] = call_forward(x, weight, bias, ndim, eps);
    if (x.requires_grad() || (weight && weight->requires_grad())) {
      const bool for_x = weight && x.requires_grad();
      ctx->save_for_backward({x, for_x ? *weight : Tensor(), statistics});
    }
    ctx->saved_data["ndim"] = ndim;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["given"] = (weight ? 1 : 0) + (bias ? 2 : 0);
    return y;
  }

  static Tensors backward(Context* ctx, const Tensors& dys) {
    static const auto op = find<decltype(layer_norm_backward)>("layer_norm_backward");
    const auto saved = ctx->get_saved_variables();
    const int64_t ndim = ctx->saved_data["ndim"].toInt(), given = ctx->saved_data["given"].toInt();
    // None has no edge in the graph, so that later arguments move up.
    const std::array<bool, 3> needs = {ctx->needs_input_grad(0),
                                       (given & 1) && ctx->needs_input_grad(1),
                                       (given & 2) && ctx->needs_input_grad(given == 3 ? 2 : 1)};
    if (saved.empty() || at::GradMode::is_enabled() || transforming()) {
      return differentiable(dys[0], saved, ndim, ctx->saved_data["eps"].toDouble(), needs);
    }
    auto [dx, dweight, dbias] = op.call(dys[0], saved[0], saved[1], saved[2], ndim, needs);
    return {needs[0] ? dx : Tensor(), needs[1] ? dweight : Tensor(), needs[2] ? dbias : Tensor(),
            {}, {}};
  }

 private:
  // Whether backward itself is transformed, or differentiated in forward mode.
  static bool transforming() {
    constexpr auto functorch = c10::DispatchKey::FuncTorchDynamicLayerFrontMode;
    return c10::impl::tls_is_dispatch_key_included(functorch) ||
           torch::autograd::ForwardADLevel::try_get_by_idx(0) != nullptr;
  }

  static Tensors differentiable(const Tensor& dy, const Tensors& saved, int64_t ndim, double eps,
                                std::array<bool, 3> needs) {
    using Signature = std::vector<Tensor>(const Tensor&, const std::optional<Tensor>&,
                                          const std::optional<Tensor>&, int64_t, double,
                                          std::array<bool, 3>);
    static const auto op = find<Signature>("layer_norm_gradients");
    std::optional<Tensor> x, weight;
    if (!saved.empty()) x = saved[0];
    if (!saved.empty() && saved[1].defined()) weight = saved[1];
    const auto found = op.call(dy, x, weight, ndim, eps, needs);
    Tensors gradients(5);
    auto next = found.begin();
    for (int i : {0, 1, 2}) {
      if (needs[i]) gradients[i] = *next++;
    }
    return gradients;
  }
};

Tensor layer_norm_without_grad(const Tensor& x, const std::optional<Tensor>& weight,
                               const std::optional<Tensor>& bias, int64_t ndim, double eps) {
  return std::get<0>(call_forward(x, weight, bias, ndim, eps));
}

Tensor layer_norm(const Tensor& x, const std::optional<Tensor>& weight,
                  const std::optional<Tensor>& bias, int64_t ndim, double eps) {
  return at::GradMode::is_enabled() ? LayerNormNode::apply(x, weight, bias, ndim, eps)
                                    : layer_norm_without_grad(x, weight, bias, ndim, eps);
}

}  // namespace

TORCH_LIBRARY_IMPL(custom_ops, CPU, m) {
  m.impl("layer_norm_forward", layer_norm_forward);
  m.impl("layer_norm_backward", layer_norm_backward);
  m.impl("layer_norm", layer_norm_without_grad);
}

TORCH_LIBRARY_IMPL(custom_ops, AutogradCPU, m) { m.impl("layer_norm", layer_norm); }
