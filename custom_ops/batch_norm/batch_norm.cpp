// The CPU kernels of the operators that kernels.py defines: pooling, batch normalisation and GELU
// in two passes over memory each way. What they compute, and the letters, stand in formula.py.
//
// Images are NHWC: a pixel is a row of channels, done in vectors. Pixels are done in chunks that stay
// in the cache.
// What is added up in which order depends on shape and dtype, never on the number of threads: sums
// within a chunk are float32, those of chunks are added one after the other in double.

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../vectors.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

namespace {

using at::Tensor;

constexpr int64_t kChunkBytes = 64 << 10;

// ---------------------------------------------------------------- GELU

// e^x for x <= 0, to 1e-7 of itself, or 1e-38: e^x = 2^n e^r with |r| <= ln(2) / 2, and a polynomial
// for e^r (Cephes' expf). Adding 1.5 * 2^23 rounds to an integer.
INLINE V exp_of_negative(V x) {
  x = x > -87.0f ? x : all(-87.0f);
  const V shifted = multiply_add(x, all(1.44269504f), all(12582912.0f));
  const V n = shifted - 12582912.0f;
  V r = multiply_add(n, all(-0.693359375f), x);
  r = multiply_add(n, all(2.12194440e-4f), r);
  V p = all(1.9875691500e-4f);
  for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                        5.0000001201e-1f, 1.0f, 1.0f}) {
    p = multiply_add(p, r, all(c));
  }
  const Bits exponent = ((Bits)shifted << 23) + (127u << 23);  // the lower bits of `shifted` are n
  return p * (V)exponent;
}

struct Normal {
  V below, density;  // Phi(z) and phi(z)
};

// Of a normal number. With x = |z| / sqrt(2), 1 - Phi(|z|) = e^(-x^2) Q(t) / 2 for
// t = 1 / (1 + 0.3 x), in the form of Abramowitz and Stegun 7.1.26; Q has the least relative error, 2e-8, for x < 9.5.
// The density needs the same exponential.
INLINE Normal normal(V z) {
  const V size = (V)((Bits)z & 0x7fffffffu);
  const V bell = exp_of_negative(z * z * -0.5f);
  const V t = 1.0f / multiply_add(size, all(0.3f * 0.70710678f), all(1.0f));
  V q = all(-0.129436819f);
  for (const float c : {0.485109174f, -0.511251471f, 0.546422162f, -0.0936488652f, 0.21444326f,
                        0.148480796f, 0.170692139f, 0.169189605f}) {
    q = multiply_add(q, t, all(c));
  }
  const V beyond = q * t * bell * 0.5f;
  return {z < 0.0f ? beyond : 1.0f - beyond, bell * 0.39894228f};
}

// ---------------------------------------------------------------- where pixels lie

// Images of rows of pixels, and the pixels that are left of them by pooling.
struct Grid {
  const int64_t images, height, width, channels, side;  // side of the pooled squares, 1 or 2
  const int64_t down = height / side, across = width / side, per_image = down * across;
  const int64_t pixels = images * per_image;
};

// The first pixels of squares, one after the other.
class Squares {
 public:
  INLINE Squares(const Grid& grid, int64_t square)
      : grid_(grid),
        column_(square % grid.across),
        row_(square / grid.across % grid.down),
        pixel_((square / grid.per_image * grid.height + row_ * grid.side) * grid.width +
               column_ * grid.side) {}
  INLINE int64_t operator*() const { return pixel_; }
  INLINE void operator++() {
    pixel_ += grid_.side;
    if (++column_ < grid_.across) return;
    column_ = 0;
    pixel_ += grid_.side * (grid_.width - grid_.across);
    if (++row_ < grid_.down) return;
    row_ = 0;
    pixel_ += (grid_.height - grid_.down * grid_.side) * grid_.width;
  }

 private:
  const Grid& grid_;
  int64_t column_, row_, pixel_;
};

struct Chunks {
  const int64_t pixels, size, count;
  Chunks(const Grid& grid, int64_t bytes)
      : pixels(grid.pixels),
        size(std::max<int64_t>(1, kChunkBytes / (grid.channels * bytes))),
        count((grid.pixels + size - 1) / size) {}

  // Calls work(chunk, first pixel, end).
  template <typename F>
  void each(const F& work) const {
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) work(i, i * size, std::min(pixels, (i + 1) * size));
    });
  }
};

// Calls work(first channel, number of channels) for each vector of channels.
template <typename F>
INLINE void each_vector(int64_t channels, const F& work) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) work(c, kLanes);
  if (c < channels) work(c, channels - c);
}

// ---------------------------------------------------------------- pooling

// Of values that were read as T: nothing is rounded.
INLINE void store_exact(float* to, V v, int64_t count) { store(to, v, count); }
INLINE void store_exact(BFloat16* to, V v, int64_t count) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  const auto upper = _mm256_srli_epi32((__m256i)v, 16);
  const auto half = _mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0b1000);
  const auto halves = (Halves)_mm256_castsi256_si128(half);
#else
  const auto halves = __builtin_convertvector((Bits)v >> 16, Halves);
#endif
  std::memcpy(to, &halves, count * sizeof(BFloat16));
}

// ---------------------------------------------------------------- sums

// Two sums of every channel of every chunk.
struct Sums {
  const int64_t channels;
  std::vector<float> values;
  Sums(const Chunks& chunks, int64_t channels)
      : channels(channels), values(2 * chunks.count * channels) {}
  float* of(int64_t chunk, int which) { return values.data() + (2 * chunk + which) * channels; }
};

// The mean and the variance (biased) of every channel, from the sums over each chunk of p - f and of
// (p - f)^2, f the first pixel of the chunk: what is subtracted keeps the sums small.
// Chan, Golub and LeVeque, 1979: chunks are joined by their means and squares about them.
template <typename T>
void join(const T* p, const Chunks& chunks, Sums& sums, float* mean, float* variance) {
  const int64_t channels = sums.channels;
  at::parallel_for(0, channels, 16, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double count = 0, average = 0, squares = 0;
      for (int64_t i = 0; i < chunks.count; ++i) {
        const double here = std::min(chunks.size, chunks.pixels - i * chunks.size);
        const double sum = sums.of(i, 0)[c], first = p[i * chunks.size * channels + c];
        const double apart = first + sum / here - average, total = count + here;
        squares += sums.of(i, 1)[c] - sum * sum / here + apart * apart * count * here / total;
        average += apart * here / total;
        count = total;
      }
      mean[c] = static_cast<float>(average);
      variance[c] = static_cast<float>(std::max(squares, 0.0) / count);
    }
  });
}

// ---------------------------------------------------------------- forward

// The maxima of the squares from `begin` to `end`, and their places.
template <typename T>
void pool(const T* x, const Grid& grid, int64_t begin, int64_t end, T* pooled, uint8_t* places) {
  const int64_t channels = grid.channels, row = grid.width * channels;
  Squares square(grid, begin);
  for (int64_t pixel = begin; pixel < end; ++pixel, ++square) {
    const T* corner = x + *square * channels;
    each_vector(channels, [&](int64_t c, int64_t lanes) {
      const V four[4] = {load(corner + c, lanes), load(corner + channels + c, lanes),
                         load(corner + row + c, lanes), load(corner + row + channels + c, lanes)};
      Ints place;
      store_exact(pooled + pixel * channels + c, largest(four, &place), lanes);
      store(places + pixel * channels + c, place, lanes);
    });
  }
}

// The sums of p - f and of (p - f)^2 over the pixels of a chunk, f the first of them.
template <int N, typename T>
INLINE void add_up(const T* p, int64_t channels, int64_t pixels, int64_t lanes, float* sums,
                   float* sums_of_squares) {
  V first[N], sum[N] = {}, squares[N] = {};
  for (int i = 0; i < N; ++i) first[i] = load(p + i * kLanes, lanes);
  for (int64_t pixel = 0; pixel < pixels; ++pixel, p += channels) {
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      const V apart = load(p + i * kLanes, lanes) - first[i];
      sum[i] += apart;
      squares[i] = multiply_add(apart, apart, squares[i]);
    }
  }
  for (int i = 0; i < N; ++i) {
    store(sums + i * kLanes, sum[i], lanes);
    store(sums_of_squares + i * kLanes, squares[i], lanes);
  }
}

// Pools if the squares are larger than a pixel, and measures what is left.
template <typename T>
void measure(const T* x, T* pooled, uint8_t* places, const Grid& grid, float* mean,
             float* variance) {
  const Chunks chunks(grid, sizeof(T));
  const int64_t channels = grid.channels;
  const bool pools = grid.side == 2;
  const T* p = pools ? pooled : x;
  Sums sums(chunks, channels);
  chunks.each([&](int64_t chunk, int64_t begin, int64_t end) {
    if (pools) pool(x, grid, begin, end, pooled, places);
    const T* from = p + begin * channels;
    float *sum = sums.of(chunk, 0), *squares = sums.of(chunk, 1);
    constexpr int64_t kBlock = 4 * kLanes;
    int64_t c = 0;
    for (; c + kBlock <= channels; c += kBlock) {
      add_up<4>(from + c, channels, end - begin, kLanes, sum + c, squares + c);
    }
    for (; c < channels; c += kLanes) {
      const int64_t lanes = std::min<int64_t>(kLanes, channels - c);
      add_up<1>(from + c, channels, end - begin, lanes, sum + c, squares + c);
    }
  });
  join(p, chunks, sums, mean, variance);
}

// What channels are normalised with, in whole vectors.
class Channels {
 public:
  // gamma and beta may be null, for 1 and 0.
  Channels(int64_t channels, const float* mean, const float* rstd, const float* gamma,
           const float* beta)
      : channels_(up(channels)), values_(4 * channels_) {
    const float* sources[] = {mean, rstd, gamma, beta};
    for (int which = 0; which < 4; ++which) {
      float* to = values_.data() + which * channels_;
      if (sources[which] != nullptr) {
        std::copy_n(sources[which], channels, to);
      } else {
        std::fill_n(to, channels, which == 2 ? 1.0f : 0.0f);
      }
    }
  }

  static int64_t up(int64_t channels) { return (channels + kLanes - 1) / kLanes * kLanes; }
  INLINE V standard(V p, int64_t c) const { return (p - of(0, c)) * of(1, c); }
  INLINE V scaled(V standard, int64_t c) const { return multiply_add(standard, of(2, c), of(3, c)); }
  INLINE V factor(int64_t c) const { return of(1, c) * of(2, c); }

 private:
  const int64_t channels_;
  std::vector<float> values_;
  INLINE V of(int which, int64_t c) const { return load(values_.data() + which * channels_ + c); }
};

template <typename T>
void activate(const T* p, const Grid& grid, const Channels& with, T* y) {
  const int64_t channels = grid.channels;
  Chunks(grid, sizeof(T)).each([&](int64_t, int64_t begin, int64_t end) {
    for (int64_t row = begin * channels; row < end * channels; row += channels) {
      each_vector(channels, [&](int64_t c, int64_t lanes) {
        const V z = with.scaled(with.standard(load(p + row + c, lanes), c), c);
        store(y + row + c, z * normal(z).below, lanes);
      });
    }
  });
}

// ---------------------------------------------------------------- backward

// dL/dZ = dL/dY (Phi(Z) + Z phi(Z)).
INLINE V slope(V dy, V z) {
  const Normal of = normal(z);
  return dy * multiply_add(z, of.density, of.below);
}

// dL/dbeta = sum of dL/dZ, and dL/dgamma = sum of dL/dZ times the standardised P.
template <typename T>
void sum_gradients(const T* dy, const T* p, const Grid& grid, const Channels& with, float* dgamma,
                   float* dbeta) {
  const Chunks chunks(grid, sizeof(T));
  const int64_t channels = grid.channels;
  Sums sums(chunks, Channels::up(channels));
  chunks.each([&](int64_t chunk, int64_t begin, int64_t end) {
    float *sum = sums.of(chunk, 0), *products = sums.of(chunk, 1);
    for (int64_t row = begin * channels; row < end * channels; row += channels) {
      each_vector(channels, [&](int64_t c, int64_t lanes) {
        const V standard = with.standard(load(p + row + c, lanes), c);
        const V dz = slope(load(dy + row + c, lanes), with.scaled(standard, c));
        store(sum + c, load(sum + c) + dz);
        store(products + c, multiply_add(dz, standard, load(products + c)));
      });
    }
  });
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0, products = 0;
    for (int64_t i = 0; i < chunks.count; ++i) {
      sum += sums.of(i, 0)[c];
      products += sums.of(i, 1)[c];
    }
    dbeta[c] = static_cast<float>(sum);
    dgamma[c] = static_cast<float>(products);
  }
}

// dL/dP = gamma r (dL/dZ - mean(dL/dZ) - S mean(dL/dZ S)) with S, the standardised P; put at the
// pixel of X that P came from, with 0 at the other pixels of its square.
template <typename T>
void differentiate(const T* dy, const T* p, const uint8_t* places, const Grid& grid,
                   const Channels& with, const float* dgamma, const float* dbeta, T* dx) {
  const int64_t channels = grid.channels;
  const float share = 1.0f / static_cast<float>(grid.pixels);
  std::vector<float> mean(Channels::up(channels)), along(Channels::up(channels));
  for (int64_t c = 0; c < channels; ++c) {
    mean[c] = dbeta[c] * share;
    along[c] = dgamma[c] * share;
  }
  Chunks(grid, sizeof(T)).each([&](int64_t, int64_t begin, int64_t end) {
    Squares square(grid, begin);
    for (int64_t pixel = begin; pixel < end; ++pixel, ++square) {
      const int64_t row = pixel * channels;
      T* to = dx + *square * channels;
      each_vector(channels, [&](int64_t c, int64_t lanes) {
        const V standard = with.standard(load(p + row + c, lanes), c);
        const V dz = slope(load(dy + row + c, lanes), with.scaled(standard, c));
        const V across = dz - load(&mean[c]) - standard * load(&along[c]);
        const V dp = across * with.factor(c);
        if (grid.side == 1) return store(to + c, dp, lanes);
        const Ints place = load_places(places + row + c, lanes);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          T* there = to + (j / 2 * grid.width + j % 2) * channels + c;
          store(there, place == j ? dp : V{}, lanes);
        }
      });
    }
  });
}

// 0 for the last row and the last column that no square reaches.
template <typename T>
void clear_edges(T* dx, const Grid& grid) {
  const int64_t row = grid.width * grid.channels;
  for (int64_t y = 0; y < grid.images * grid.height; ++y) {
    if (y % grid.height >= grid.down * grid.side) {
      std::fill_n(dx + y * row, row, T(0));
    } else if (grid.width % grid.side) {
      std::fill_n(dx + (y + 1) * row - grid.channels, grid.channels, T(0));
    }
  }
}

// ---------------------------------------------------------------- operators

constexpr auto kNHWC = at::MemoryFormat::ChannelsLast;

template <typename F>
void with_type(at::ScalarType dtype, const F& call) {
  if (dtype == at::kBFloat16) return call(BFloat16());
  TORCH_CHECK_TYPE(dtype == at::kFloat, "batch_norm_gelu has kernels for float32 and bfloat16, got ",
                   dtype);
  call(float());
}

Grid grid_of(const Tensor& x, bool pool) {
  TORCH_CHECK_VALUE(x.dim() == 4, "batch_norm_gelu expected images (N, C, H, W), got ", x.sizes());
  const Grid grid{x.size(0), x.size(2), x.size(3), x.size(1), pool ? 2 : 1};
  TORCH_CHECK_VALUE(grid.pixels > 0 && grid.channels > 0, "batch_norm_gelu expected pixels, got ",
                    x.sizes());
  return grid;
}

void check(const Tensor& found, at::IntArrayRef shape, const char* name) {
  TORCH_CHECK_TYPE(!found.is_complex(), "batch_norm_gelu expected real ", name);
  TORCH_CHECK_VALUE(found.sizes() == shape, "batch_norm_gelu expected ", name, " of shape ", shape,
                    ", got ", found.sizes());
}

std::optional<Tensor> floats(const Tensor& x, const std::optional<Tensor>& parameter,
                             const char* name) {
  if (!parameter) return std::nullopt;
  check(*parameter, {x.size(1)}, name);
  return parameter->to(at::kFloat).contiguous();
}

const float* data(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<float>() : nullptr;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_gelu(
    const Tensor& any_x, const std::optional<Tensor>& any_weight,
    const std::optional<Tensor>& any_bias, double eps, bool pool) {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  const Grid grid = grid_of(any_x, pool);
  const Tensor x = any_x.contiguous(kNHWC);
  const auto weight = floats(x, any_weight, "weight"), bias = floats(x, any_bias, "bias");
  const std::array<int64_t, 4> size{grid.images, grid.channels, grid.down, grid.across};
  Tensor y = at::empty(size, x.options(), kNHWC);
  Tensor pooled = pool ? at::empty(size, x.options(), kNHWC) : at::empty({0}, x.options());
  Tensor places = pool ? at::empty(size, x.options().dtype(at::kByte), kNHWC)
                       : at::empty({0}, x.options().dtype(at::kByte));
  Tensor statistics = at::empty({3, grid.channels}, x.options().dtype(at::kFloat));
  float* mean = statistics.mutable_data_ptr<float>();
  float *variance = mean + grid.channels, *rstd = variance + grid.channels;
  with_type(x.scalar_type(), [&](auto example) {
    using T = decltype(example);
    measure(x.const_data_ptr<T>(), pooled.mutable_data_ptr<T>(), places.mutable_data_ptr<uint8_t>(),
            grid, mean, variance);
    for (int64_t c = 0; c < grid.channels; ++c) {
      rstd[c] = static_cast<float>(1 / std::sqrt(variance[c] + eps));
    }
    activate((pool ? pooled : x).const_data_ptr<T>(), grid,
             Channels(grid.channels, mean, rstd, data(weight), data(bias)), y.mutable_data_ptr<T>());
  });
  return {y, pooled, places, statistics};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_gelu_backward(
    const Tensor& any_dy, const Tensor& any_x, const Tensor& pooled, const Tensor& places,
    const std::optional<Tensor>& any_weight, const std::optional<Tensor>& any_bias,
    const Tensor& any_statistics) {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  const bool pool = places.numel() > 0;
  const Grid grid = grid_of(any_x, pool);
  const std::array<int64_t, 4> size{grid.images, grid.channels, grid.down, grid.across};
  check(any_dy, size, "a gradient");
  check(any_statistics, {3, grid.channels}, "statistics");
  if (pool) {
    check(pooled, size, "maxima");
    check(places, size, "places");
  }
  const Tensor x = any_x.contiguous(kNHWC), dy = any_dy.to(x.scalar_type()).contiguous(kNHWC);
  const Tensor p = pool ? pooled.contiguous(kNHWC) : x, places_of_p = places.contiguous(
      pool ? kNHWC : at::MemoryFormat::Contiguous);
  const Tensor statistics = any_statistics.contiguous();
  const auto weight = floats(x, any_weight, "weight"), bias = floats(x, any_bias, "bias");
  Tensor dx = at::empty(x.sizes(), x.options(), kNHWC);
  Tensor dweight = at::empty({grid.channels}, statistics.options());
  Tensor dbias = at::empty({grid.channels}, statistics.options());
  const float* mean = statistics.const_data_ptr<float>();
  const Channels with(grid.channels, mean, mean + 2 * grid.channels, data(weight), data(bias));
  with_type(x.scalar_type(), [&](auto example) {
    using T = decltype(example);
    const T *out = dy.const_data_ptr<T>(), *from = p.const_data_ptr<T>();
    float *gamma = dweight.mutable_data_ptr<float>(), *beta = dbias.mutable_data_ptr<float>();
    sum_gradients(out, from, grid, with, gamma, beta);
    differentiate(out, from, places_of_p.const_data_ptr<uint8_t>(), grid, with, gamma, beta,
                  dx.mutable_data_ptr<T>());
    if (pool) clear_edges(dx.mutable_data_ptr<T>(), grid);
  });
  return {dx, dweight, dbias};
}

}  // namespace

TORCH_LIBRARY_IMPL(custom_ops, CPU, m) {
  m.impl("batch_norm_gelu", batch_norm_gelu);
  m.impl("batch_norm_gelu_backward", batch_norm_gelu_backward);
}
