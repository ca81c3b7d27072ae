/* Kernels of models compiled by qdeploy: what is common to all CPUs, then the kernels once for each tier.
 *
 * The numbers are the same on every CPU and in every tier, to the last bit: integer sums of 32 bits, float sums as
 * chains of fused multiply-adds in a fixed order with vector lanes only across results. Needs IEEE floats, 8-bit bytes
 * and little-endian memory. Build with -ffp-contract=off.
 */
#ifndef QD_KERNELS_H
#define QD_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__FAST_MATH__)
#error "-ffast-math changes the model's answers: build without it"
#endif
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0 && __FLT_EVAL_METHOD__ != 16
#error "floats must be computed in single precision: on 32-bit x86 build with -msse2 -mfpmath=sse"
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the weights are packed for little-endian memory"
#endif

/* Compilers that know the vector instructions of all tiers: gcc from 8 on, and clang. Others make plain C. */
#if (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 8)) && !defined(QD_ONLY_C99)
#define QD_VECTORS 1
#endif

/* Whether this build has kernels that read what is packed for vectors. */
#if defined(__x86_64__) && defined(QD_VECTORS)
#define QD_WIDE 1
#endif

/* Whether this build has kernels for AArch64 with dot products; clang needs -march=armv8.2-a+dotprod for them. */
#if defined(__aarch64__) && defined(QD_VECTORS)
#if defined(__ARM_FEATURE_DOTPROD)
#define QD_DOT 1
#define QD_DOT_ALWAYS 1
#elif defined(__linux__) && !defined(__clang__)
#define QD_DOT 1
#endif
#endif

#define QD_MAX_ROWS 16   /* rows of a window of floats, dilation included */
#define QD_MAX_STAGES 16 /* operators of a stream */
#define QD_MAX_TABLES 4  /* of one look-up, each for a channel */

/* One convolution or matrix product on codes: windows of `segments` runs of 4 * steps bytes. */
typedef struct {
  int32_t groups, inputs, outputs, blocks; /* channels of one group; blocks of 16 outputs */
  int32_t height, width, channels;         /* of the whole input */
  int32_t top, left, padded_height, padded_width;
  int32_t out_height, out_width, stride_y, stride_x, out_channels;
  int32_t segments, steps, dilation_y;
  int32_t zero_in, zero_out, low, high;
  int32_t bounded;         /* whether all sums times their multipliers are below 2^31 */
  const int32_t *offsets;  /* of each segment in the padded input */
  const uint64_t *weights; /* int8 [group][block][segment][step][16][4] */
  const int32_t *bias;     /* [group][block * 16], the input's zero point included */
  const int32_t *border;   /* [segment][group][block * 16], what zeros add to it; NULL: a segment is no row */
  const float *multiplier; /* [group][block * 16] */
} qd_conv_u8;

/* The segments that row y of the results needs: from `first` to before `end`; the others lie wholly above or below the
 * image, and add no more than a constant each. */
static inline void qd_inside(const qd_conv_u8 *p, int32_t y, int32_t *first, int32_t *end) {
  int32_t s;
  *first = 0;
  *end = p->segments;
  for (s = 0; s < p->segments; s++) {
    int32_t at = y * p->stride_y + s * p->dilation_y - p->top;
    if (at < 0)
      *first = s + 1;
    else if (at >= p->height && s < *end)
      *end = s;
  }
}

/* Sums of `many` results from the `block`-th block of 16 on, before those segments are added. */
static inline void qd_first_sums(const qd_conv_u8 *p, int32_t first, int32_t end, size_t block, int32_t many,
                                 int32_t *sums) {
  int32_t s, i;
  memcpy(sums, p->bias + block * 16, (size_t)many * sizeof *sums);
  for (s = 0; s < p->segments; s++) {
    const int32_t *border;
    if (s >= first && s < end) continue;
    border = p->border + ((size_t)s * p->groups * p->blocks + block) * 16;
    for (i = 0; i < many; i++) sums[i] = (int32_t)((uint32_t)sums[i] + (uint32_t)border[i]);
  }
}

/* One depthwise convolution on codes or floats. */
typedef struct {
  int32_t height, width, channels, top, left, padded_height, padded_width;
  int32_t out_height, out_width, stride_y, stride_x, rows, columns, dilation_y, dilation_x;
  int32_t zero_in, zero_out, low, high, bounded;
  const int16_t *weights; /* [row][column][channel] */
  const int32_t *bias;
  const float *multiplier;
  /* The same for 64 results at a time, see qd_interleave; NULL for CPUs that cannot make so many. Bytes of weights lie
   * [block of 64][four places of the window][64][4]; up to 32 channels that divide 64 are repeated to 64. */
  const int8_t *packed;
  const int32_t *packed_bias;
  const float *packed_multiplier;
} qd_depthwise_u8;

/* One convolution or matrix product on floats. */
typedef struct {
  int32_t groups, inputs, outputs, lanes, blocks; /* lanes: 8 or 16 outputs a block; 0: depthwise */
  int32_t height, width, channels, top, left, padded_height, padded_width;
  int32_t out_height, out_width, stride_y, stride_x, rows, columns, dilation_y, dilation_x, out_channels;
  float low, high;
  const float *weights; /* [group][block][row][column][input][lane]; depthwise: [row][column][channel] */
  const float *bias;    /* [group][block * lanes] */
} qd_conv_f32;

/* Loops over a result and two inputs; the last is the innermost, where the result's stride is 1. */
typedef struct {
  int32_t sides[4], a[4], b[4];
} qd_loops;

typedef struct {
  qd_loops loops;
  float ratio_a, ratio_b, fixed; /* add */
  int32_t zero_a, zero_b;        /* mul */
  float multiplier, zero_out;
} qd_binary_u8;

typedef struct {
  qd_loops loops;
  float low, high;
} qd_binary_f32;

/* Products of matrices [batch][m][k] and [batch][k][n]; n is innermost in b and in the result. */
typedef struct {
  int32_t batch, m, n, k;
  int32_t a_batch, a_m, a_k, b_batch, b_k;
  int32_t zero_a, zero_b, zero_out;
  float multiplier, low, high;
} qd_matmul;

/* Means: `count` values `stride` apart, for each of outer x inner results; inner is contiguous. */
typedef struct {
  int32_t outer, outer_stride, inner, count, stride;
  int32_t zero_in, zero_out;
  float multiplier, low, high;
} qd_mean;

typedef struct {
  int32_t height, width, channels, out_height, out_width, rows, columns, stride_y, stride_x, top, left;
} qd_maxpool;

typedef struct {
  int32_t sides[5], strides[5]; /* of the source, in the order of the result */
  int32_t item;                 /* bytes of one value: 1 or 4 */
} qd_copy;

typedef struct {
  const char *name;
  void (*conv_u8)(const qd_conv_u8 *p, const uint8_t *in, uint8_t *out, void *scratch);
  void (*depthwise_u8)(const qd_depthwise_u8 *p, const uint8_t *in, uint8_t *out, void *scratch);
  void (*conv_f32)(const qd_conv_f32 *p, const float *in, float *out, void *scratch);
  void (*conv_row_f32)(const qd_conv_f32 *p, const float *const *rows, float *out);
  void (*table)(const uint8_t *table, const uint8_t *in, uint8_t *out, int32_t n);
  /* a table for each of `channels` channels, of which each has `inner` values, `outer` times */
  void (*tables)(const uint8_t *tables, const uint8_t *in, uint8_t *out, int32_t outer, int32_t channels,
                 int32_t inner);
  void (*add_u8)(const qd_binary_u8 *p, const uint8_t *a, const uint8_t *b, uint8_t *out);
  void (*mul_u8)(const qd_binary_u8 *p, const uint8_t *a, const uint8_t *b, uint8_t *out);
  void (*matmul_u8)(const qd_matmul *p, const uint8_t *a, const uint8_t *b, uint8_t *out, void *scratch);
  void (*matmul_f32)(const qd_matmul *p, const float *a, const float *b, float *out);
  void (*mean_u8)(const qd_mean *p, const uint8_t *in, uint8_t *out);
  void (*mean_f32)(const qd_mean *p, const float *in, float *out);
  void (*maxpool_u8)(const qd_maxpool *p, const uint8_t *in, uint8_t *out);
  void (*maxpool_f32)(const qd_maxpool *p, const float *in, float *out);
  void (*quantize)(const float *in, uint8_t *out, int32_t n, float scale, int32_t zero);
  void (*dequantize)(const uint8_t *in, float *out, int32_t n, float scale, int32_t zero);
  void (*add_f32)(const qd_binary_f32 *p, const float *a, const float *b, float *out);
  void (*sub_f32)(const qd_binary_f32 *p, const float *a, const float *b, float *out);
  void (*mul_f32)(const qd_binary_f32 *p, const float *a, const float *b, float *out);
  void (*div_f32)(const qd_binary_f32 *p, const float *a, const float *b, float *out);
  void (*unary_f32)(int32_t function, const float *in, float *out, int32_t n, float low, float high);
  void (*softmax)(const float *in, float *out, int32_t rows, int32_t n);
  /* of codes: `powers` of how far each is below the largest, in whole numbers */
  void (*softmax_u8)(const int32_t *powers, const uint8_t *in, uint8_t *out, int32_t rows, int32_t n, float multiplier,
                     int32_t zero);
  void (*layernorm)(const float *in, float *out, int32_t rows, int32_t n, const float *scale, const float *bias,
                    float epsilon);
} qd_kernels;

/* What a model calls: whoever includes this file may say it in its own words, and the compiler leaves out the rest. */
#ifndef QD_USED
#define QD_USED(use)                                                                                              \
  use(conv_u8) use(depthwise_u8) use(conv_f32) use(conv_row_f32) use(table) use(tables) use(add_u8) use(mul_u8)   \
      use(matmul_u8) use(matmul_f32) use(mean_u8) use(mean_f32) use(maxpool_u8) use(maxpool_f32) use(quantize)    \
          use(dequantize) use(add_f32) use(sub_f32) use(mul_f32) use(div_f32) use(unary_f32) use(softmax)         \
              use(softmax_u8) use(layernorm)
#endif
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#endif

/* One operator of a stream, which makes its result row by row from `window` rows of its source; of the results of all
 * but the last only as many rows are kept as the next one needs. */
typedef struct {
  void (*make)(const qd_kernels *k, uint8_t *arena, const void *const *rows, int32_t y, void *out);
  int32_t rows, source_rows, window, dilation, stride, top;
  int32_t kept;       /* rows of its result; 0: all, in the stream's result */
  size_t row, begin, place; /* bytes of a kept row and of its left border; where the rows lie in the scratch */
} qd_stage;

/* The scratch begins with a row of zeros, for what is above and below an image. */
static inline void qd_stream(const qd_kernels *k, const qd_stage *stages, int32_t n, const uint8_t *in, size_t in_row,
                             uint8_t *out, size_t out_row, uint8_t *arena, uint8_t *scratch, size_t bytes) {
  int32_t done[QD_MAX_STAGES] = {0}, i, r;
  const void *rows[QD_MAX_ROWS];
  memset(scratch, 0, bytes);
  while (done[n - 1] < stages[n - 1].rows) {
    const qd_stage *s;
    for (i = n - 1; i > 0; i--) { /* the last one that has the rows it needs */
      int32_t need = done[i] * stages[i].stride + stages[i].dilation * (stages[i].window - 1) - stages[i].top + 1;
      if (done[i - 1] >= (need < stages[i].source_rows ? need : stages[i].source_rows)) break;
    }
    s = &stages[i];
    for (r = 0; r < s->window; r++) {
      int32_t y = done[i] * s->stride + r * s->dilation - s->top;
      const qd_stage *before = s - 1;
      if (y < 0 || y >= s->source_rows)
        rows[r] = scratch;
      else if (i == 0)
        rows[r] = in + (size_t)y * in_row;
      else
        rows[r] = scratch + before->place + (size_t)(y % before->kept) * before->row;
    }
    if (s->kept)
      s->make(k, arena, rows, done[i], scratch + s->place + (size_t)(done[i] % s->kept) * s->row + s->begin);
    else
      s->make(k, arena, rows, done[i], out + (size_t)done[i] * out_row);
    done[i]++;
  }
}

/* Exchange the half of each run of 2 * `bits` bits of b and the other half of those of a. */
#define QD_EXCHANGE(a, b, bits, mask)                        \
  {                                                          \
    uint64_t moved = (((a) >> (bits)) ^ (b)) & (mask);       \
    (b) ^= moved;                                            \
    (a) ^= moved << (bits);                                  \
  }

/* Turn 8 rows of 8 bytes, `row` bytes apart, into as many columns, `to_row` bytes apart. */
static inline void qd_turn_8(const uint8_t *from, size_t row, uint8_t *to, size_t to_row) {
  uint64_t x[8];
  int i;
  for (i = 0; i < 8; i++) memcpy(x + i, from + i * row, 8);
  for (i = 0; i < 4; i++) QD_EXCHANGE(x[i], x[i + 4], 32, 0x00000000FFFFFFFFu)
  for (i = 0; i < 8; i += i % 4 ? 3 : 1) QD_EXCHANGE(x[i], x[i + 2], 16, 0x0000FFFF0000FFFFu)
  for (i = 0; i < 8; i += 2) QD_EXCHANGE(x[i], x[i + 1], 8, 0x00FF00FF00FF00FFu)
  for (i = 0; i < 8; i++) memcpy(to + i * to_row, x + i, 8);
}

static inline void qd_copy_run(const qd_copy *p, const void *source, void *target) {
  const int32_t *n = p->sides, *s = p->strides;
  int32_t i0, i1, i2, i3, i4;
  size_t done = 0;
  for (i0 = 0; i0 < n[0]; i0++)
    for (i1 = 0; i1 < n[1]; i1++)
      for (i2 = 0; i2 < n[2]; i2++) {
        if (p->item == 1 && s[3] == 1 && n[3] % 8 == 0 && n[4] % 8 == 0) {
          const uint8_t *from = (const uint8_t *)source + (size_t)i0 * s[0] + (size_t)i1 * s[1] + (size_t)i2 * s[2];
          for (i3 = 0; i3 < n[3]; i3 += 8)
            for (i4 = 0; i4 < n[4]; i4 += 8)
              qd_turn_8(from + (size_t)i4 * s[4] + i3, (size_t)s[4],
                        (uint8_t *)target + done + (size_t)i3 * n[4] + i4, (size_t)n[4]);
          done += (size_t)n[3] * n[4];
          continue;
        }
        for (i3 = 0; i3 < n[3]; i3++) {
          size_t at = (size_t)i0 * s[0] + (size_t)i1 * s[1] + (size_t)i2 * s[2] + (size_t)i3 * s[3];
          if (s[4] == 1) {
            memcpy((char *)target + done * p->item, (const char *)source + at * p->item, (size_t)n[4] * p->item);
          } else if (p->item == 1) {
            const uint8_t *from = (const uint8_t *)source + at;
            uint8_t *to = (uint8_t *)target + done;
            for (i4 = 0; i4 < n[4]; i4++) to[i4] = from[(size_t)i4 * s[4]];
          } else {
            const float *from = (const float *)source + at;
            float *to = (float *)target + done;
            for (i4 = 0; i4 < n[4]; i4++) to[i4] = from[(size_t)i4 * s[4]];
          }
          done += (size_t)n[4];
        }
      }
}

/* Join `outer` runs of `bytes` bytes each into places `step` bytes apart. */
static inline void qd_place(const void *source, void *target, int32_t outer, int32_t bytes, int32_t step) {
  int32_t i;
  for (i = 0; i < outer; i++)
    memcpy((char *)target + (size_t)i * step, (const char *)source + (size_t)i * bytes, (size_t)bytes);
}

#include "kernels_pick.h"

static inline uint32_t qd_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

static inline float qd_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

/* The integer nearest to x, half to even; |x| below 2^22. */
static inline int32_t qd_nearest(float x) { return (int32_t)(qd_bits(x + 12582912.0f) - 0x4B400000u); }

static inline float qd_clamp(float x, float low, float high) {
  x = x > low ? x : low;
  return x < high ? x : high;
}

/* a * b + c, rounded once, where the CPU has no instruction for it: exact in double but for a tie after rounding. */
static inline float qd_soft_fmaf(float a, float b, float c) {
  double product = (double)a * (double)b, addend = c, total = product + addend;
  uint64_t bits;
  memcpy(&bits, &total, 8);
  if ((bits & 0x1FFFFFFFu) == 0x10000000u || (total < 2.5e-38 && total > -2.5e-38)) { /* round to odd */
    double part = total - product, error = (product - (total - part)) + (addend - part);
    if (error != 0.0 && !(bits & 1)) {
      bits = (error > 0.0) == (total > 0.0) ? bits + 1 : bits - 1;
      memcpy(&total, &bits, 8);
    }
  }
  return (float)total;
}

/* The square root, correctly rounded, where the compiler has no instruction for it. */
static inline float qd_soft_sqrtf(float x) {
  double root = x, value = x;
  int i;
  if (!(x > 0.0f)) return x;
  for (i = 0; i < 140; i++) root = 0.5 * (root + value / root);
  return (float)root;
}

#define QD_JOIN(a, b) a##_##b
#define QD_JOINED(a, b) QD_JOIN(a, b)
#define QD_(name) QD_JOINED(name, QD_TIER)

/* The tier of plain C99. */
#define QD_TIER c99
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__aarch64__)
#define QD_FMAF __builtin_fmaf
#else
#define QD_FMAF qd_soft_fmaf
#endif
#include "kernels_body.h"
#undef QD_TIER
#undef QD_FMAF

#ifdef __GNUC__
#define QD_INLINE static inline __attribute__((always_inline))
#define QD_PRAGMA(words) _Pragma(#words)
#ifdef __clang__
#define QD_UNROLL(times) QD_PRAGMA(clang loop unroll(full))
#else
#define QD_UNROLL(times) QD_PRAGMA(GCC unroll times)
#endif
#endif

#if defined(QD_WIDE)
#include <cpuid.h>
#include <immintrin.h>
#define QD_FMAF __builtin_fmaf
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define QD_TIER avx2
#define QD_AVX2 1
#include "kernels_body.h"
#undef QD_TIER
#undef QD_AVX2
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")
#endif
#define QD_TIER vnni
#define QD_VNNI 1
#include "kernels_body.h"
#undef QD_TIER
#undef QD_VNNI
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef QD_FMAF

/* What this CPU and its system can run: 0 C99, 1 AVX2 with FMA, 2 AVX-512 with VNNI and VBMI. */
static int qd_best_tier(void) {
  unsigned a, b, c, d, low, high;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27)) || !(c & (1u << 12))) return 0; /* OSXSAVE, FMA */
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & 6u) != 6u || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & (1u << 5))) return 0;
  if ((low & 0xE6u) != 0xE6u) return 1;
  /* F, DQ, BW, VL; VBMI, VNNI */
  if ((b & 0xC0030000u) == 0xC0030000u && (c & (1u << 1)) && (c & (1u << 11))) return 2;
  return 1;
}

static const qd_kernels *const qd_tiers[] = {&kernels_c99, &kernels_avx2, &kernels_vnni};
#elif defined(QD_DOT)
#include <arm_neon.h>
#ifdef __linux__
#include <sys/auxv.h>
#endif
#define QD_FMAF __builtin_fmaf
#ifndef QD_DOT_ALWAYS
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#define QD_TIER neon
#define QD_NEON 1
#include "kernels_body.h"
#undef QD_TIER
#undef QD_NEON
#ifndef QD_DOT_ALWAYS
#pragma GCC pop_options
#endif
#undef QD_FMAF

/* What this CPU can run: 0 C99, 1 NEON with dot products; the system says so in bit 20 of the word 16. */
static int qd_best_tier(void) {
#if defined(__linux__)
  return (getauxval(16) & (1u << 20)) != 0;
#else
  return 1;
#endif
}

static const qd_kernels *const qd_tiers[] = {&kernels_c99, &kernels_neon};
#else
static int qd_best_tier(void) { return 0; }
static const qd_kernels *const qd_tiers[] = {&kernels_c99};
#endif

#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

#endif
