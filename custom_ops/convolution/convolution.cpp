// The CPU kernels of the operators that kernels.py defines: Winograd's F(2x2, 3x3). What they
// compute, and the letters d, g, u, v, z and m, stand in winograd.py.
//
// Images are NHWC. A tile is a square of 2x2 outputs. Channels are done in vectors, and a product of
// matrices sums over channels (or, for the gradient of the kernels, over tiles). Between the
// transforms and the products lie blocks of tiles that stay in the cache. bfloat16 is multiplied in
// pairs, as the instruction wants it: what is summed over comes in pairs next to each other. A
// processor without that instruction computes bfloat16 in float32. Sums are float32.
//
// What is added up in which order depends on shape, dtype and instructions, never on the number of
// threads. The sizes of blocks decide only the last digits of the gradient of the kernels.

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../vectors.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <vector>

namespace {

using at::Tensor;

#if defined(__AVX512F__)
constexpr int kRows = 14, kRowsOfSums = 8;  // of the products: what 32 registers hold
constexpr int64_t kBlockBytes = 640 << 10;  // of tiles between the transforms, for a cache of 1 MB
constexpr int64_t kChunkBytes = 4 << 20;    // the same, for the gradient of the kernels
constexpr int64_t kSumBytes = 512 << 10, kShareBytes = 384 << 10;  // its sums, and chunks of shares
#else
constexpr int kRows = 6, kRowsOfSums = 4;   // 16 registers
constexpr int64_t kBlockBytes = 320 << 10;  // older processors have 512 KB
constexpr int64_t kChunkBytes = 1 << 20;
constexpr int64_t kSumBytes = 256 << 10, kShareBytes = 128 << 10;
#endif
constexpr int64_t kMostShares = 8, kShareTiles = 512;  // at most 8 shares of at least 512 tiles
constexpr int kColumns = 2 * kLanes;  // of the products
constexpr int kParts = 16;            // elements of a transformed tile, 4x4

// ---------------------------------------------------------------- vectors

// How many numbers one multiplication takes.
template <typename T>
constexpr int kPair = sizeof(T) == 2 ? 2 : 1;
// A cache line. Streams a multiple of 4096 bytes apart would drive each other out of the cache.
template <typename T>
constexpr int64_t kLine = 64 / sizeof(T);

#if HAS_BF16
INLINE __m512i narrow(V first, V second) {
  return (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

// Each lane of both next to each other.
INLINE __m512i pairs(V first, V second) {
  alignas(64) static constexpr auto order = [] {
    std::array<uint16_t, 32> lanes{};
    for (int i = 0; i < 32; ++i) lanes[i] = i / 2 + 16 * (i % 2);
    return lanes;
  }();
  return _mm512_permutexvar_epi16(_mm512_load_si512(order.data()), narrow(first, second));
}
#endif

// Two vectors, `count` lanes of them. With `past_cache`, all of them, to an aligned line.
template <typename T>
INLINE void store(T* to, V first, V second, int64_t count, [[maybe_unused]] bool past_cache) {
#if HAS_BF16
  if constexpr (sizeof(T) == 2) {
    if (past_cache) return _mm512_stream_si512((__m512i*)to, narrow(first, second));
  }
#endif
  store(to, first, count);
  if (count > kLanes) store(to + kLanes, second, count - kLanes);
}

// ---------------------------------------------------------------- memory

int64_t up(int64_t number, int64_t multiple) {
  return (number + multiple - 1) / multiple * multiple;
}

template <typename T>
struct Buffer {
  T* const data;
  explicit Buffer(int64_t count)
      : data(static_cast<T*>(std::aligned_alloc(64, up(count * sizeof(T), 64)))) {
    TORCH_CHECK(data != nullptr, "convolution: no memory for ", count * sizeof(T), " bytes");
  }
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
};

struct Tile {
  int64_t image, y, x;  // of its first output
};

// The tiles of images. With `whole`, those that lie in the image with all four outputs.
struct Grid {
  const int64_t images, height, width;
  const bool whole = false;
  const int64_t across = (width + !whole) / 2, per_image = (height + !whole) / 2 * across;
  const int64_t tiles = images * per_image;

  INLINE Tile operator[](int64_t t) const {
    const int64_t image = t / per_image, place = t % per_image;
    return {image, place / across * 2, place % across * 2};
  }
  INLINE int64_t pixel(const Tile& t, int64_t row, int64_t column) const {
    return (t.image * height + t.y + row) * width + t.x + column;
  }
  INLINE bool contains(const Tile& t, int row, int column) const {
    return t.y + row >= 0 && t.y + row < height && t.x + column >= 0 && t.x + column < width;
  }
};

// ---------------------------------------------------------------- transforms

// B^T d B of 4x4 pixels.
INLINE void transform_input(const V* d, V* v) {
  V rows[kParts];
  for (int j = 0; j < 4; ++j) {
    rows[j] = d[j] - d[8 + j];
    rows[4 + j] = d[4 + j] + d[8 + j];
    rows[8 + j] = d[8 + j] - d[4 + j];
    rows[12 + j] = d[4 + j] - d[12 + j];
  }
  for (int i = 0; i < kParts; i += 4) {
    v[i] = rows[i] - rows[i + 2];
    v[i + 1] = rows[i + 1] + rows[i + 2];
    v[i + 2] = rows[i + 2] - rows[i + 1];
    v[i + 3] = rows[i + 1] - rows[i + 3];
  }
}

// A dY A^T of 2x2 gradients.
INLINE void transform_gradient(const V* dy, V* z) {
  V rows[8];
  for (int j = 0; j < 2; ++j) {
    rows[j] = dy[j];
    rows[2 + j] = dy[j] + dy[2 + j];
    rows[4 + j] = dy[j] - dy[2 + j];
    rows[6 + j] = -dy[2 + j];
  }
  for (int i = 0; i < 4; ++i) {
    z[4 * i] = rows[2 * i];
    z[4 * i + 1] = rows[2 * i] + rows[2 * i + 1];
    z[4 * i + 2] = rows[2 * i] - rows[2 * i + 1];
    z[4 * i + 3] = -rows[2 * i + 1];
  }
}

// A^T m A, the 2x2 outputs.
INLINE void transform_output(const V* m, V* y) {
  V rows[8];
  for (int j = 0; j < 4; ++j) {
    rows[j] = m[j] + m[4 + j] + m[8 + j];
    rows[4 + j] = m[4 + j] - m[8 + j] - m[12 + j];
  }
  for (int i = 0; i < 2; ++i) {
    const V* row = rows + 4 * i;
    y[2 * i] = row[0] + row[1] + row[2];
    y[2 * i + 1] = row[1] - row[2] - row[3];
  }
}

// G g G^T of a 3x3 kernel.
INLINE void transform_kernel(const V* g, V* u) {
  V rows[12];
  for (int j = 0; j < 3; ++j) {
    const V ends = g[j] + g[6 + j];
    rows[j] = g[j];
    rows[3 + j] = (ends + g[3 + j]) * 0.5f;
    rows[6 + j] = (ends - g[3 + j]) * 0.5f;
    rows[9 + j] = g[6 + j];
  }
  for (int i = 0; i < 4; ++i) {
    const V* row = rows + 3 * i;
    const V ends = row[0] + row[2];
    u[4 * i] = row[0];
    u[4 * i + 1] = (ends + row[1]) * 0.5f;
    u[4 * i + 2] = (ends - row[1]) * 0.5f;
    u[4 * i + 3] = row[2];
  }
}

// G^T dU G, the gradient of a 3x3 kernel.
INLINE void transform_kernel_gradient(const V* du, V* dg) {
  V rows[12];
  for (int j = 0; j < 4; ++j) {
    const V half = (du[4 + j] + du[8 + j]) * 0.5f;
    rows[j] = du[j] + half;
    rows[4 + j] = (du[4 + j] - du[8 + j]) * 0.5f;
    rows[8 + j] = half + du[12 + j];
  }
  for (int i = 0; i < 3; ++i) {
    const V* row = rows + 4 * i;
    const V half = (row[1] + row[2]) * 0.5f;
    dg[3 * i] = row[0] + half;
    dg[3 * i + 1] = (row[1] - row[2]) * 0.5f;
    dg[3 * i + 2] = half + row[3];
  }
}

// What is transformed: images. `read` takes the square of Side x Side pixels at a tile, of the
// channels from c on; 0 outside of the image.
template <typename T>
struct Image {
  const T* const data;
  const int64_t channels;

  template <int Side>
  INLINE void read(const Grid& grid, const Tile& t, int64_t c, V* d) const {
    constexpr int kBefore = Side == 4 ? 1 : 0;  // inputs begin a pixel before the outputs
    const int64_t row = grid.width * channels, count = channels - c;
    const T* from = data + grid.pixel(t, -kBefore, -kBefore) * channels + c;
    const bool inside = grid.contains(t, -kBefore, -kBefore) &&
                        grid.contains(t, Side - 1 - kBefore, Side - 1 - kBefore);
    if (inside && count >= kLanes) {
      for (int i = 0; i < Side; ++i) {
        for (int j = 0; j < Side; ++j) d[Side * i + j] = load(from + i * row + j * channels);
      }
      return;
    }
    for (int i = 0; i < Side; ++i) {
      for (int j = 0; j < Side; ++j) {
        const bool there = grid.contains(t, i - kBefore, j - kBefore);
        d[Side * i + j] = there ? load(from + i * row + j * channels, count) : V{};
      }
    }
  }
};

// The same of the gradient of images, given that of the maxima of their 2x2 squares.
template <typename T>
struct Unpooled {
  const T* const data;          // of the maxima
  const uint8_t* const places;  // in their squares
  const int64_t channels, down, across;

  template <int Side>
  INLINE void read(const Grid&, const Tile& t, int64_t c, V* d) const {
    constexpr int kBefore = Side == 4 ? 1 : 0, kSquares = 1 + 2 * kBefore;
    const int64_t count = channels - c;
#pragma GCC unroll 3
    for (int a = 0; a < kSquares; ++a) {
#pragma GCC unroll 3
      for (int b = 0; b < kSquares; ++b) {
        const int64_t row = t.y / 2 + a - kBefore, column = t.x / 2 + b - kBefore;
        V gradient{};
        Ints place{};
        if (row >= 0 && row < down && column >= 0 && column < across) {
          const int64_t at = ((t.image * down + row) * across + column) * channels + c;
          gradient = load(data + at, count);
          place = load_places(places + at, std::min<int64_t>(count, kLanes));
        }
#pragma GCC unroll 2
        for (int i = std::max(0, 2 * a - kBefore); i < std::min(Side, 2 * a - kBefore + 2); ++i) {
#pragma GCC unroll 2
          for (int j = std::max(0, 2 * b - kBefore); j < std::min(Side, 2 * b - kBefore + 2); ++j) {
            const int here = (i + kBefore) % 2 * 2 + (j + kBefore) % 2;
            d[Side * i + j] = place == here ? gradient : V{};
          }
        }
      }
    }
  }
};

// ---------------------------------------------------------------- products

// One pair of b for each column, times one pair of a for all: added to a row of sums.
template <typename T>
struct Columns;

template <>
struct Columns<float> {
  V first, second;
  INLINE explicit Columns(const float* b) : first(load(b)), second(load(b + kLanes)) {}
  INLINE void times(const float* a, V* sums) const {
    const V one = all(*a);
    sums[0] = multiply_add(one, first, sums[0]);
    sums[1] = multiply_add(one, second, sums[1]);
  }
};

#if HAS_BF16
template <>
struct Columns<BFloat16> {
  __m512bh first, second;
  INLINE explicit Columns(const BFloat16* b)
      : first((__m512bh)_mm512_loadu_si512(b)), second((__m512bh)_mm512_loadu_si512(b + 32)) {}
  INLINE void times(const BFloat16* a, V* sums) const {
    int32_t bits;
    std::memcpy(&bits, a, sizeof bits);
    const auto one = (__m512bh)_mm512_set1_epi32(bits);
    sums[0] = (V)_mm512_dpbf16_ps((__m512)sums[0], one, first);
    sums[1] = (V)_mm512_dpbf16_ps((__m512)sums[1], one, second);
  }
};
#endif

// sums (kRows, kColumns) = a (kRows, depth) b (depth, kColumns), all in pairs.
template <typename T>
INLINE void multiply(const T* a, int64_t stride, const T* b, int64_t depth, float* sums) {
  V row[kRows][2] = {};
  for (int64_t d = 0; d < depth; ++d) {
    const Columns<T> columns(b + d * kColumns * kPair<T>);
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) columns.times(a + r * stride + d * kPair<T>, row[r]);
  }
  for (int r = 0; r < kRows; ++r) {
    store(sums + r * kColumns, row[r][0]);
    store(sums + r * kColumns + kLanes, row[r][1]);
  }
}

// sums (kRowsOfSums, kColumns) += a (depth, kRowsOfSums)^T b (depth, kColumns), all in pairs.
template <typename T>
INLINE void add_products(const T* a, const T* b, int64_t depth, float* sums, int64_t stride) {
  V row[kRowsOfSums][2];
  for (int r = 0; r < kRowsOfSums; ++r) {
    row[r][0] = load(sums + r * stride);
    row[r][1] = load(sums + r * stride + kLanes);
  }
  for (int64_t d = 0; d < depth; ++d) {
    const Columns<T> columns(b + d * kColumns * kPair<T>);
#pragma GCC unroll 8
    for (int r = 0; r < kRowsOfSums; ++r) {
      columns.times(a + (d * kRowsOfSums + r) * kPair<T>, row[r]);
    }
  }
  for (int r = 0; r < kRowsOfSums; ++r) {
    store(sums + r * stride, row[r][0]);
    store(sums + r * stride + kLanes, row[r][1]);
  }
}

// ---------------------------------------------------------------- kernels, transformed

// u of a convolution: (panel of outputs, part, pair of inputs, output, 2).
// Kernels are float32, (K, 3, 3, C). For dX, inputs are those of dY, and kernels are turned round.
template <typename T>
struct Kernels {
  const int64_t inputs, outputs;
  const int64_t depth = up(inputs, kPair<T>) / kPair<T>, panels = up(outputs, kColumns) / kColumns;
  Buffer<T> u{panels * kParts * depth * kColumns * kPair<T>};

  INLINE T* at(int64_t output, int part, int64_t pair) const {
    const int64_t panel = output / kColumns;
    return u.data + (((panel * kParts + part) * depth + pair) * kColumns + output % kColumns) *
                        kPair<T>;
  }

  void take(const float* g, int64_t channels) {
    at::parallel_for(0, panels * kColumns, 8, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        for (int64_t c = 0; c < inputs; c += kLanes) {
          const int64_t count = std::min<int64_t>(kLanes, inputs - c);
          V kernel[9] = {}, parts[kParts];
          for (int i = 0; k < outputs && i < 9; ++i) {
            kernel[i] = load(g + (k * 9 + i) * channels + c, count);
          }
          transform_kernel(kernel, parts);
          for (int part = 0; part < kParts; ++part) {
            T lanes[kLanes];
            store(lanes, parts[part]);
            for (int64_t lane = 0; lane < count; lane += kPair<T>) {
              std::memcpy(at(k, part, (c + lane) / kPair<T>), lanes + lane, kPair<T> * sizeof(T));
            }
          }
        }
      }
    });
  }

  void take_turned(const float* g, int64_t channels) {
    at::parallel_for(0, depth, 4, [&](int64_t begin, int64_t end) {
      for (int64_t pair = begin; pair < end; ++pair) {
        for (int64_t c = 0; c < panels * kColumns; c += kLanes) {
          const int64_t count = std::clamp<int64_t>(outputs - c, 0, kLanes);
          V parts[kPair<T>][kParts];
          for (int e = 0; e < kPair<T>; ++e) {
            const int64_t k = pair * kPair<T> + e;
            V kernel[9] = {};
            for (int i = 0; k < inputs && i < 9; ++i) {
              kernel[8 - i] = load(g + (k * 9 + i) * channels + c, count);
            }
            transform_kernel(kernel, parts[e]);
          }
          for (int part = 0; part < kParts; ++part) {
            put(at(c, part, pair), parts[0][part], parts[kPair<T> - 1][part]);
          }
        }
      }
    });
  }

 private:
  static INLINE void put(float* to, V first, V) { store(to, first); }
#if HAS_BF16
  static INLINE void put(BFloat16* to, V first, V second) {
    _mm512_storeu_si512(to, pairs(first, second));
  }
#endif
};

// ---------------------------------------------------------------- convolution

constexpr int64_t kStreamBytes = 8 << 20;  // outputs this large leave the cache before they are read

// The outputs of all tiles. With `places`, of a grid of whole tiles: their maxima alone.
template <typename T, typename Source>
void convolve(const Source& x, const Kernels<T>& kernels, const float* bias, T* y, uint8_t* places,
              const Grid& grid) {
  const int64_t inputs = kernels.inputs, outputs = kernels.outputs;
  const int64_t stride = up(inputs, kLanes) + kLine<T>;
  const int64_t most = kBlockBytes / (kParts * (stride * sizeof(T) + kColumns * sizeof(float)));
  const int64_t rows = std::clamp<int64_t>(most / kRows, 1, 16) * kRows;
  const int64_t step = rows * stride + kLine<T>, step_of_sums = rows * kColumns + kLine<float>;
  const int64_t bytes = grid.images * grid.height * grid.width * outputs * sizeof(T);
  const bool past_cache = places == nullptr && outputs % kColumns == 0 &&
                          reinterpret_cast<uintptr_t>(y) % 64 == 0 && bytes >= kStreamBytes;
  at::parallel_for(0, up(grid.tiles, rows) / rows, 1, [&](int64_t begin, int64_t end) {
    Buffer<T> v(kParts * step);
    Buffer<float> sums(kParts * step_of_sums);
    std::memset(v.data, 0, kParts * step * sizeof(T));  // rows of no tile are multiplied, too
    std::vector<Tile> tiles(rows);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * rows, count = std::min(rows, grid.tiles - first);
      for (int64_t r = 0; r < count; ++r) {
        tiles[r] = grid[first + r];
        for (int64_t c = 0; c < inputs; c += kLanes) {
          V pixels[kParts], parts[kParts];
          x.template read<4>(grid, tiles[r], c, pixels);
          transform_input(pixels, parts);
          for (int part = 0; part < kParts; ++part) {
            store(v.data + part * step + r * stride + c, parts[part]);
          }
        }
      }
      for (int64_t k = 0; k < outputs; k += kColumns) {
        for (int part = 0; part < kParts; ++part) {
          for (int64_t r = 0; r < count; r += kRows) {
            multiply<T>(v.data + part * step + r * stride, stride, kernels.at(k, part, 0),
                        kernels.depth, sums.data + part * step_of_sums + r * kColumns);
          }
        }
        const int64_t columns = std::min<int64_t>(kColumns, outputs - k);
        const int64_t above = std::min<int64_t>(columns, kLanes);
        V offset[2] = {};
        if (bias != nullptr) {
          offset[0] = load(bias + k, above);
          if (columns > kLanes) offset[1] = load(bias + k + kLanes, columns - kLanes);
        }
        for (int64_t r = 0; r < count; ++r) {
          V out[2][4];
          for (int half = 0; half < 2; ++half) {
            V parts[kParts];
            for (int part = 0; part < kParts; ++part) {
              parts[part] =
                  load(sums.data + part * step_of_sums + r * kColumns + half * kLanes);
            }
            transform_output(parts, out[half]);
          }
          if (places != nullptr) {
            const int64_t to = (first + r) * outputs + k;
            for (int half = 0; half * kLanes < columns; ++half) {
              const int64_t lanes = std::min<int64_t>(kLanes, columns - half * kLanes);
              Ints place;
              const V most = largest(out[half], &place) + offset[half];
              store(y + to + half * kLanes, most, lanes);
              store(places + to + half * kLanes, place, lanes);
            }
            continue;
          }
          for (int place = 0; place < 4; ++place) {
            if (!grid.contains(tiles[r], place / 2, place % 2)) continue;
            T* to = y + grid.pixel(tiles[r], place / 2, place % 2) * outputs + k;
            store(to, out[0][place] + offset[0], out[1][place] + offset[1], columns, past_cache);
          }
        }
      }
    }
  });
}

// ---------------------------------------------------------------- gradient of the kernels

// Parts of one pair of tiles and of a vector of channels, to (part, panel, pair, channel, 2).
template <typename T, int Panel>
INLINE void put_parts(T* to, int64_t step, int64_t panel_step, const V* parts) {
  for (int part = 0; part < kParts; ++part) {
    T* at = to + part * step;
#if HAS_BF16
    if constexpr (sizeof(T) == 2) {
      const __m512i both = pairs(parts[part], parts[kParts + part]);
      if constexpr (Panel >= kLanes) {
        _mm512_storeu_si512(at, both);
      } else {
        _mm256_storeu_si256((__m256i*)at, _mm512_castsi512_si256(both));
        _mm256_storeu_si256((__m256i*)(at + panel_step), _mm512_extracti64x4_epi64(both, 1));
      }
      continue;
    }
#endif
    if constexpr (Panel >= kLanes) {
      store(reinterpret_cast<float*>(at), parts[part]);
    } else {
      for (int lane = 0; lane < kLanes; lane += Panel) {
        std::memcpy(at + lane / Panel * panel_step,
                    reinterpret_cast<const float*>(parts + part) + lane, Panel * sizeof(float));
      }
    }
  }
}

// Transforms the squares of a pair of tiles before `end`, of all channels.
template <typename T, int Panel, int Side, typename Source, typename Transform>
INLINE void transform_pair(const Source& from, const Grid& grid, int64_t first, int64_t end,
                           int64_t chunk, T* to, const Transform& transform) {
  constexpr int P = kPair<T>;
  const int64_t channels = from.channels;
  const int64_t width = up(channels, std::max(Panel, kLanes));
  Tile tiles[P];
  for (int e = 0; e < P; ++e) tiles[e] = grid[first + e];
  for (int64_t c = 0; c < width; c += kLanes) {
    V parts[P * kParts];
    for (int e = 0; e < P; ++e) {
      V values[Side * Side];
      if (first + e < end && c < channels) {
        from.template read<Side>(grid, tiles[e], c, values);
      } else {
        std::fill(std::begin(values), std::end(values), V{});
      }
      transform(values, parts + e * kParts);
    }
    put_parts<T, Panel>(to + c / Panel * chunk * Panel + c % Panel * P, chunk * width + kLine<T>,
                        chunk * Panel, parts);
  }
}

// dU, (part, input, output), of the tiles from `begin` on, before `end`, in chunks of so many bytes.
template <typename T, typename Source>
void add_up(const Image<T>& x, const Source& dy, const Grid& grid, int64_t begin, int64_t end,
            int64_t bytes, int64_t width, int64_t columns, float* du) {
  constexpr int P = kPair<T>;
  const int64_t most = bytes / (kParts * sizeof(T) * (width + columns));
  const int64_t chunk = std::max<int64_t>(32, most / 32 * 32);
  const int64_t step_of_v = chunk * width + kLine<T>, step_of_z = chunk * columns + kLine<T>;
  Buffer<T> v(kParts * step_of_v), z(kParts * step_of_z);
  std::memset(du, 0, kParts * width * columns * sizeof(float));
  for (int64_t first = begin; first < end; first += chunk) {
    const int64_t depth = up(std::min(chunk, end - first), P) / P;
    at::parallel_for(0, depth, 1, [&](int64_t from, int64_t to) {
      for (int64_t pair = from; pair < to; ++pair) {
        transform_pair<T, kRowsOfSums, 4>(x, grid, first + pair * P, end, chunk,
                                          v.data + pair * kRowsOfSums * P, transform_input);
        transform_pair<T, kColumns, 2>(dy, grid, first + pair * P, end, chunk,
                                       z.data + pair * kColumns * P, transform_gradient);
      }
    });
    const int64_t panels = columns / kColumns;
    at::parallel_for(0, kParts * panels, 1, [&](int64_t from, int64_t to) {
      for (int64_t unit = from; unit < to; ++unit) {
        const int64_t part = unit / panels, k = unit % panels * kColumns;
        for (int64_t c = 0; c < x.channels; c += kRowsOfSums) {
          add_products<T>(v.data + part * step_of_v + c * chunk, z.data + part * step_of_z + k * chunk,
                          depth, du + (part * width + c) * columns + k, columns);
        }
      }
    });
  }
}

// dg (K, 3, 3, C), float32. If dU fits into the cache of a core, each thread adds up its own shares of
// the tiles (their number is fixed, so that threads change no digit): no thread reads what another
// has transformed. Otherwise all threads share each chunk, and dU.
template <typename T, typename Source>
void differentiate(const Image<T>& x, const Source& dy, float* dg, const Grid& grid) {
  const int64_t inputs = x.channels, outputs = dy.channels;
  const int64_t width = up(inputs, std::max(kRowsOfSums, kLanes)), columns = up(outputs, kColumns);
  const int64_t size = kParts * width * columns;
  const bool fits = size * static_cast<int64_t>(sizeof(float)) <= kSumBytes;
  const int64_t shares = fits ? std::clamp<int64_t>(grid.tiles / kShareTiles, 1, kMostShares) : 1;
  const int64_t share = up(up(grid.tiles, shares) / shares, kPair<T>);
  Buffer<float> du(shares * size);
  const auto add_share = [&](int64_t s, int64_t bytes) {
    add_up(x, dy, grid, s * share, std::min(grid.tiles, (s + 1) * share), bytes, width, columns,
           du.data + s * size);
  };
  if (shares == 1) {
    add_share(0, kChunkBytes);
  } else {
    at::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) add_share(s, kShareBytes);  // nested: by this thread
    });
  }
  at::parallel_for(0, inputs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      for (int64_t k = 0; k < outputs; k += kLanes) {
        V parts[kParts] = {}, kernel[9];
        for (int64_t s = 0; s < shares; ++s) {
          for (int part = 0; part < kParts; ++part) {
            parts[part] += load(du.data + s * size + (part * width + c) * columns + k);
          }
        }
        transform_kernel_gradient(parts, kernel);
        for (int64_t lane = 0; lane < std::min<int64_t>(kLanes, outputs - k); ++lane) {
          for (int i = 0; i < 9; ++i) dg[((k + lane) * 9 + i) * inputs + c] = kernel[i][lane];
        }
      }
    }
  });
}

// ---------------------------------------------------------------- operators

constexpr auto kNHWC = at::MemoryFormat::ChannelsLast;

bool is_computed(at::ScalarType dtype) { return dtype == at::kFloat || dtype == at::kBFloat16; }

// bfloat16 is computed in float32 where the processor does not multiply it.
Tensor multipliable(const Tensor& x) { return HAS_BF16 ? x : x.to(at::kFloat); }

// Calls with an example of the type.
template <typename F>
void with_type(at::ScalarType dtype, const F& call) {
#if HAS_BF16
  if (dtype == at::kBFloat16) return call(BFloat16());
#endif
  call(float());
}

Tensor kernels_of(const Tensor& weight) {
  return weight.to(at::kFloat).permute({0, 2, 3, 1}).contiguous();
}

void check_computed(const Tensor& x) {
  TORCH_CHECK_TYPE(is_computed(x.scalar_type()), "convolution expected float32 or bfloat16, got ",
                   x.scalar_type());
}

void check(const Tensor& x, const Tensor& weight) {
  TORCH_CHECK_VALUE(x.dim() == 4 && weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3,
                    "convolution expected images (N, C, H, W) and kernels (K, C, 3, 3), got ",
                    x.sizes(), " and ", weight.sizes());
  TORCH_CHECK_TYPE(at::isFloatingType(weight.scalar_type()),
                   "convolution expected floating kernels, got ", weight.scalar_type());
  TORCH_CHECK_VALUE(x.size(1) == weight.size(1), "convolution expected ", weight.size(1),
                    " channels, got ", x.size(1));
  TORCH_CHECK_VALUE(x.size(1) > 0 && weight.size(0) > 0, "convolution expected channels, got kernels ",
                    weight.sizes());
}

// A gradient of each pixel of Y, or of each square of `side` x `side` of them.
void check_gradient(const Tensor& dy, const Tensor& x, const Tensor& weight, int64_t side) {
  const std::array<int64_t, 4> sizes{x.size(0), weight.size(0), x.size(2) / side, x.size(3) / side};
  TORCH_CHECK_TYPE(at::isFloatingType(dy.scalar_type()),
                   "convolution expected floating gradients, got ", dy.scalar_type());
  TORCH_CHECK_VALUE(dy.sizes() == at::IntArrayRef(sizes), "convolution expected gradients of shape ",
                    at::IntArrayRef(sizes), ", got ", dy.sizes());
}

Grid grid_of(const Tensor& x, bool whole = false) { return {x.size(0), x.size(2), x.size(3), whole}; }

// Y of the weight's transformed kernels; for a `turned` weight, dL/dX. `source` makes what is read
// from a type; with `places`, Y has the maxima of the squares.
template <typename Source>
void dispatch(at::ScalarType dtype, const Source& source, const Tensor& weight, bool turned,
              const Tensor& offset, Tensor& y, uint8_t* places, const Grid& grid) {
  const Tensor g = kernels_of(weight);
  const int64_t channels = weight.size(1);
  with_type(dtype, [&](auto example) {
    using T = decltype(example);
    Kernels<T> kernels{weight.size(turned ? 0 : 1), weight.size(turned ? 1 : 0)};
    if (turned) {
      kernels.take_turned(g.const_data_ptr<float>(), channels);
    } else {
      kernels.take(g.const_data_ptr<float>(), channels);
    }
    convolve<T>(source(example), kernels, offset.defined() ? offset.const_data_ptr<float>() : nullptr,
                y.mutable_data_ptr<T>(), places, grid);
  });
}

auto image(const Tensor& x) {
  return [&x](auto example) {
    using T = decltype(example);
    return Image<T>{x.const_data_ptr<T>(), x.size(1)};
  };
}

auto unpooled(const Tensor& dy, const Tensor& places) {
  return [&](auto example) {
    using T = decltype(example);
    return Unpooled<T>{dy.const_data_ptr<T>(), places.const_data_ptr<uint8_t>(), dy.size(1),
                       dy.size(2), dy.size(3)};
  };
}

Tensor offset_of(const std::optional<Tensor>& bias, const Tensor& weight) {
  if (!bias) return Tensor();
  TORCH_CHECK_VALUE(bias->dim() == 1 && bias->size(0) == weight.size(0),
                    "convolution expected a bias of shape [", weight.size(0), "], got ",
                    bias->sizes());
  return bias->to(at::kFloat).contiguous();
}

Tensor winograd(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  check(x, weight);
  if (!is_computed(x.scalar_type())) {
    return at::convolution(x, weight, bias, {1, 1}, {1, 1}, {1, 1}, false, {0, 0}, 1)
        .contiguous(kNHWC);
  }
  const Tensor pixels = multipliable(x.contiguous(kNHWC));
  Tensor y = at::empty({x.size(0), weight.size(0), x.size(2), x.size(3)}, pixels.options(), kNHWC);
  dispatch(pixels.scalar_type(), image(pixels), weight, false, offset_of(bias, weight), y, nullptr,
           grid_of(x));
  return y.to(x.scalar_type());
}

// Gradients of a convolution of `pixels`, from a source of dL/dY.
template <typename Source>
std::tuple<Tensor, Tensor> gradients(const Source& dy, const Tensor& x, const Tensor& weight,
                                     std::array<bool, 2> needs, const Grid& grid) {
  const Tensor pixels = multipliable(x.contiguous(kNHWC));
  Tensor dx = at::empty({0}, x.options()), dw = at::empty({0}, weight.options());
  if (needs[0]) {
    Tensor computed = at::empty(x.sizes(), pixels.options(), kNHWC);
    dispatch(pixels.scalar_type(), dy, weight, true, Tensor(), computed, nullptr, grid_of(x));
    dx = computed.to(x.scalar_type());
  }
  if (needs[1]) {
    Tensor dg = at::empty({weight.size(0), 3, 3, weight.size(1)}, x.options().dtype(at::kFloat));
    with_type(pixels.scalar_type(), [&](auto example) {
      differentiate(image(pixels)(example), dy(example), dg.mutable_data_ptr<float>(), grid);
    });
    dw = dg.permute({0, 3, 1, 2}).to(weight.scalar_type());
  }
  return {dx, dw};
}

std::tuple<Tensor, Tensor> winograd_backward(const Tensor& dy, const Tensor& x,
                                             const Tensor& weight, std::array<bool, 2> needs) {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  check(x, weight);
  check_gradient(dy, x, weight, 1);
  if (!is_computed(x.scalar_type())) {
    auto [dx, dw, _] = at::convolution_backward(dy, x, weight, std::nullopt, {1, 1}, {1, 1}, {1, 1},
                                                false, {0, 0}, 1, {needs[0], needs[1], false});
    return {needs[0] ? dx.contiguous(kNHWC) : at::empty({0}, x.options()),
            needs[1] ? dw.contiguous(kNHWC) : at::empty({0}, weight.options())};
  }
  const Tensor rows = multipliable(dy.to(x.scalar_type())).contiguous(kNHWC);
  return gradients(image(rows), x, weight, needs, grid_of(x));
}

std::tuple<Tensor, Tensor> winograd_pool(const Tensor& x, const Tensor& weight,
                                         const std::optional<Tensor>& bias) {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  check(x, weight);
  check_computed(x);
  const Tensor pixels = multipliable(x.contiguous(kNHWC));
  const std::array<int64_t, 4> sizes{x.size(0), weight.size(0), x.size(2) / 2, x.size(3) / 2};
  Tensor y = at::empty(sizes, pixels.options(), kNHWC);
  Tensor places = at::empty(sizes, x.options().dtype(at::kByte), kNHWC);
  dispatch(pixels.scalar_type(), image(pixels), weight, false, offset_of(bias, weight), y,
           places.mutable_data_ptr<uint8_t>(), grid_of(x, true));
  return {y.to(x.scalar_type()), places};
}

std::tuple<Tensor, Tensor> winograd_pool_backward(const Tensor& dy, const Tensor& any_places,
                                                  const Tensor& x, const Tensor& weight,
                                                  std::array<bool, 2> needs) {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  check(x, weight);
  check_computed(x);
  check_gradient(dy, x, weight, 2);
  TORCH_CHECK_VALUE(any_places.sizes() == dy.sizes(), "convolution expected places of shape ",
                    dy.sizes(), ", got ", any_places.sizes());
  const Tensor rows = multipliable(dy.to(x.scalar_type())).contiguous(kNHWC);
  const Tensor places = any_places.contiguous(kNHWC);
  return gradients(unpooled(rows, places), x, weight, needs, grid_of(x, true));
}

}  // namespace

TORCH_LIBRARY_IMPL(custom_ops, CPU, m) {
  m.impl("winograd", winograd);
  m.impl("winograd_backward", winograd_backward);
  m.impl("winograd_pool", winograd_pool);
  m.impl("winograd_pool_backward", winograd_pool_backward);
}
