// Multi-resolution hash encoding on the CPU: d-linear features, smoothed gradient with respect to the points.
//
// Plain C interface, loaded with ctypes; float32. The mathematics is in reference.py, whose names are used here. Results do
// not depend on the number of threads: in the forward pass and in the x-gradient a thread owns points, in the tables'
// gradients it owns whole levels, so there are no atomics and every sum has one fixed order.
//
// Points are processed in blocks, one array per corner and axis, so that compilers vectorise everything but the gathers.
// Corner c of a cell has bit (D - 1 - k) set where it is the upper one along axis k: axis 0 is the slowest, as in the
// row-major dense tables.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

constexpr int kBlock = 128;
constexpr uint32_t kPrimes[3] = {1u, 2654435761u, 805459861u};

enum Reading { kLinear = 0, kProduct = 1, kProductNorm = 2, kAxis = 3 };  // the order of READINGS in grid.py

using Lane = float[kBlock];
using IntLane = uint32_t[kBlock];

// Contraction is off in the compiler's flags, so that positions are rounded as torch rounds them; sums may use it.
inline float MultiplyAdd(float a, float b, float c) {
#if defined(__FMA__) || defined(__FP_FAST_FMAF) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// delta'(w) = (pi / 2) sin(pi w) on [0, 1], as a polynomial in (w - 1/2)^2, good to 1e-7.
inline float DeltaSlope(float w) {
  const float s = (w - 0.5f) * (w - 0.5f);
  float value = -0.0383210406f;
  value = MultiplyAdd(value, s, 0.369038284f);
  value = MultiplyAdd(value, s, -2.09734607f);
  value = MultiplyAdd(value, s, 6.37540531f);
  value = MultiplyAdd(value, s, -7.75156927f);
  return MultiplyAdd(value, s, 1.57079637f);
}

template <int D>
struct Block {
  static constexpr int kCorners = 1 << D;

  alignas(64) Lane point[D];           // clamped to the unit box
  alignas(64) Lane fraction[D];        // position inside the cell
  alignas(64) IntLane row[kCorners];   // table row of every corner
  alignas(64) Lane weight[kCorners];   // d-linear weight of every corner

  static constexpr bool Upper(int corner, int axis) { return (corner >> (D - 1 - axis)) & 1; }

  // Reads n points [n, D]; the rest of the block is filled with zeros, which are valid points.
  void Load(const float* x, int n) {
    if (n < kBlock) std::memset(point, 0, sizeof(point));
    for (int k = 0; k < D; ++k) {
      for (int i = 0; i < n; ++i) {
        const float value = x[i * D + k];
        point[k][i] = value < 0.0f ? 0.0f : (value > 1.0f ? 1.0f : value);  // keeps NaN
      }
    }
  }

  // Finds the cells of a level; mask is 0 for a dense one.
  void Locate(uint32_t resolution, uint32_t mask) {
    alignas(64) IntLane cell[D];
    const float scale = static_cast<float>(resolution);
    const int32_t last = static_cast<int32_t>(resolution) - 1;
    for (int k = 0; k < D; ++k) {
      for (int i = 0; i < kBlock; ++i) {
        const float position = point[k][i] * scale;
        const int32_t floor = position >= 0.0f ? static_cast<int32_t>(position) : 0;  // NaN stays in the table
        const int32_t clipped = floor > last ? last : floor;                          // x = 1 is in the last cell
        cell[k][i] = static_cast<uint32_t>(clipped);
        fraction[k][i] = position - static_cast<float>(clipped);
      }
    }
    if (mask == 0) {
      const uint32_t side = resolution + 1;
      for (int c = 0; c < kCorners; ++c) {
        uint32_t offset = 0;
        for (int k = 0; k < D; ++k) offset = offset * side + Upper(c, k);
        for (int i = 0; i < kBlock; ++i) {
          uint32_t base = cell[0][i];
          for (int k = 1; k < D; ++k) base = base * side + cell[k][i];
          row[c][i] = base + offset;
        }
      }
    } else {
      for (int k = 1; k < D; ++k) {
        for (int i = 0; i < kBlock; ++i) cell[k][i] *= kPrimes[k];
      }
      for (int c = 0; c < kCorners; ++c) {
        for (int i = 0; i < kBlock; ++i) {
          uint32_t hash = 0;
          for (int k = 0; k < D; ++k) hash ^= cell[k][i] + (Upper(c, k) ? kPrimes[k] : 0u);
          row[c][i] = hash & mask;
        }
      }
    }
  }

  void Weigh() {
    for (int c = 0; c < kCorners; ++c) {
      for (int i = 0; i < kBlock; ++i) {
        float product = 1.0f;
        for (int k = 0; k < D; ++k) product *= Upper(c, k) ? fraction[k][i] : 1.0f - fraction[k][i];
        weight[c][i] = product;
      }
    }
  }

  // Asks for the corners' table rows before they are needed: gathers are what all of this waits for.
  template <int F, bool kWrite>
  void Prefetch(const float* table, int n) const {
    for (int c = 0; c < kCorners; ++c) {
      for (int i = 0; i < n; ++i) __builtin_prefetch(table + static_cast<size_t>(row[c][i]) * F, kWrite);
    }
  }

  // The d-linear interpolant of corner values, or its slope along an axis (axis = -1 for the value).
  void Contract(const Lane* values, int axis, float* result) const {
    alignas(64) Lane buffer[kCorners / 2];
    const Lane* source = values;
    for (int k = 0; k < D; ++k) {
      const int half = 1 << (D - 1 - k);
      for (int c = 0; c < half; ++c) {
        float* target = half == 1 ? result : buffer[c];
        if (k == axis) {
          for (int i = 0; i < kBlock; ++i) target[i] = source[c + half][i] - source[c][i];
        } else {
          for (int i = 0; i < kBlock; ++i) {
            target[i] = MultiplyAdd(fraction[k][i], source[c + half][i] - source[c][i], source[c][i]);
          }
        }
      }
      source = buffer;
    }
  }
};

struct Problem {
  int64_t batch;
  int levels;
  const float* x;               // [batch, D]
  const float* const* tables;   // per level [entries, F]
  const uint32_t* resolutions;  // cells per axis of every level
  const uint32_t* masks;        // hash mask of every level, 0 if dense
  int threads;
};

inline int BlockSize(int64_t batch, int64_t start) {
  return static_cast<int>(std::min<int64_t>(kBlock, batch - start));
}

// Sets a freshly allocated table to zero. Huge pages where the system offers them: faulting in 4 KB pages took half the time
// of a backward pass over 16K points.
void Clear(float* table, size_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096, kHugePage = 1 << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(table) + kPage - 1) & ~(kPage - 1);
  const uintptr_t end = reinterpret_cast<uintptr_t>(table + size) & ~(kPage - 1);
  if (end > begin + kHugePage) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a hint: may fail
#endif
  std::memset(table, 0, size * sizeof(float));
}

template <int D, int F>
void Forward(const Problem& problem, float* out) {
  const int64_t stride = static_cast<int64_t>(problem.levels) * F;
#pragma omp parallel for schedule(dynamic, 8) num_threads(problem.threads)
  for (int64_t start = 0; start < problem.batch; start += kBlock) {
    Block<D> block;
    const int n = BlockSize(problem.batch, start);
    block.Load(problem.x + start * D, n);
    for (int level = 0; level < problem.levels; ++level) {
      const float* table = problem.tables[level];
      block.Locate(problem.resolutions[level], problem.masks[level]);
      block.template Prefetch<F, false>(table, n);
      block.Weigh();
      float* target = out + start * stride + level * F;
      for (int i = 0; i < n; ++i) {
        float sum[F] = {};
        for (int c = 0; c < Block<D>::kCorners; ++c) {
          const float* entry = table + static_cast<size_t>(block.row[c][i]) * F;
          for (int f = 0; f < F; ++f) sum[f] = MultiplyAdd(block.weight[c][i], entry[f], sum[f]);
        }
        for (int f = 0; f < F; ++f) target[i * stride + f] = sum[f];
      }
    }
  }
}

template <int D, int F>
void PointGradients(const Problem& problem, const float* grad_out, Reading reading, float smoothing, float* x_grad) {
  constexpr int kCorners = Block<D>::kCorners;
  const int64_t stride = static_cast<int64_t>(problem.levels) * F;
#pragma omp parallel for schedule(dynamic, 8) num_threads(problem.threads)
  for (int64_t start = 0; start < problem.batch; start += kBlock) {
    Block<D> block;
    alignas(64) Lane pull[kCorners];  // c_i = H_i . dL/dh, how a corner acts on the loss
    alignas(64) Lane slope;
    alignas(64) Lane total[D];
    std::memset(pull, 0, sizeof(pull));
    std::memset(total, 0, sizeof(total));
    const int n = BlockSize(problem.batch, start);
    block.Load(problem.x + start * D, n);

    for (int level = 0; level < problem.levels; ++level) {
      const float* table = problem.tables[level];
      block.Locate(problem.resolutions[level], problem.masks[level]);
      block.template Prefetch<F, false>(table, n);
      const float* grad = grad_out + start * stride + level * F;
      for (int i = 0; i < n; ++i) {
        for (int c = 0; c < kCorners; ++c) {
          const float* entry = table + static_cast<size_t>(block.row[c][i]) * F;
          float dot = 0.0f;
          for (int f = 0; f < F; ++f) dot = MultiplyAdd(entry[f], grad[i * stride + f], dot);
          pull[c][i] = dot;
        }
      }

      if (reading == kProductNorm) {
        block.Contract(pull, -1, slope);
        for (int c = 0; c < kCorners; ++c) {
          for (int i = 0; i < kBlock; ++i) pull[c][i] -= slope[i];
        }
      }
      if (reading == kProduct || reading == kProductNorm) {
        block.Weigh();
        for (int c = 0; c < kCorners; ++c) {
          for (int i = 0; i < kBlock; ++i) {
            pull[c][i] *= MultiplyAdd(smoothing, DeltaSlope(block.weight[c][i]), 1.0f);
          }
        }
      }
      const float scale = static_cast<float>(problem.resolutions[level]);
      for (int k = 0; k < D; ++k) {
        block.Contract(pull, k, slope);
        if (reading == kAxis) {
          for (int i = 0; i < kBlock; ++i) {
            slope[i] *= MultiplyAdd(smoothing, DeltaSlope(block.fraction[k][i]), 1.0f);
          }
        }
        for (int i = 0; i < kBlock; ++i) total[k][i] = MultiplyAdd(scale, slope[i], total[k][i]);
      }
    }

    for (int i = 0; i < n; ++i) {
      for (int k = 0; k < D; ++k) {
        const float value = problem.x[(start + i) * D + k];
        x_grad[(start + i) * D + k] = value >= 0.0f && value <= 1.0f ? total[k][i] : 0.0f;
      }
    }
  }
}

template <int D, int F>
void TableGradients(const Problem& problem, const float* grad_out, const int64_t* entries, float* const* table_grads) {
  const int64_t stride = static_cast<int64_t>(problem.levels) * F;
#pragma omp parallel for schedule(dynamic, 1) num_threads(problem.threads)
  for (int index = 0; index < problem.levels; ++index) {
    const int level = problem.levels - 1 - index;  // the fine ones take longest: first
    float* table_grad = table_grads[level];
    if (table_grad == nullptr) continue;
    Clear(table_grad, static_cast<size_t>(entries[level]) * F);
    Block<D> block;
    for (int64_t start = 0; start < problem.batch; start += kBlock) {
      const int n = BlockSize(problem.batch, start);
      block.Load(problem.x + start * D, n);
      block.Locate(problem.resolutions[level], problem.masks[level]);
      block.template Prefetch<F, true>(table_grad, n);
      block.Weigh();
      const float* grad = grad_out + start * stride + level * F;
      for (int i = 0; i < n; ++i) {
        for (int c = 0; c < Block<D>::kCorners; ++c) {
          float* entry = table_grad + static_cast<size_t>(block.row[c][i]) * F;
          for (int f = 0; f < F; ++f) entry[f] = MultiplyAdd(block.weight[c][i], grad[i * stride + f], entry[f]);
        }
      }
    }
  }
}

// Calls action with the dimensions and features as compile-time constants; false if they were not compiled.
template <template <int, int> class Action, typename... Arguments>
bool Dispatch(int dims, int features, Arguments... arguments) {
#define HASHPOSE_CASE(D, F)                  \
  if (dims == D && features == F) {          \
    Action<D, F>::Run(arguments...);         \
    return true;                             \
  }
  HASHPOSE_CASE(2, 1)
  HASHPOSE_CASE(2, 2)
  HASHPOSE_CASE(2, 4)
  HASHPOSE_CASE(2, 8)
  HASHPOSE_CASE(3, 1)
  HASHPOSE_CASE(3, 2)
  HASHPOSE_CASE(3, 4)
  HASHPOSE_CASE(3, 8)
#undef HASHPOSE_CASE
  return false;
}

template <int D, int F>
struct RunForward {
  static void Run(const Problem* problem, float* out) { Forward<D, F>(*problem, out); }
};

template <int D, int F>
struct RunBackward {
  static void Run(const Problem* problem, const float* grad_out, int reading, float smoothing, const int64_t* entries,
                  float* x_grad, float* const* table_grads) {
    if (x_grad != nullptr) {
      PointGradients<D, F>(*problem, grad_out, static_cast<Reading>(reading), smoothing, x_grad);
    }
    TableGradients<D, F>(*problem, grad_out, entries, table_grads);
  }
};

}  // namespace

extern "C" {

// Features [batch, levels * F]. Returns 0, or 1 if dims and features were not compiled.
int hashpose_forward(int64_t batch, int dims, int features, int levels, const float* x, const float* const* tables,
                     const uint32_t* resolutions, const uint32_t* masks, int threads, float* out) {
  const Problem problem{batch, levels, x, tables, resolutions, masks, threads};
  return Dispatch<RunForward>(dims, features, &problem, out) ? 0 : 1;
}

// Overwrites x_grad [batch, dims] and the tables' gradients; x_grad and any of table_grads may be null: not computed.
int hashpose_backward(int64_t batch, int dims, int features, int levels, const float* x, const float* const* tables,
                      const uint32_t* resolutions, const uint32_t* masks, int threads, const float* grad_out, int reading,
                      float smoothing, const int64_t* entries, float* x_grad, float* const* table_grads) {
  const Problem problem{batch, levels, x, tables, resolutions, masks, threads};
  return Dispatch<RunBackward>(dims, features, &problem, grad_out, reading, smoothing, entries, x_grad, table_grads) ? 0
                                                                                                                     : 1;
}
}
