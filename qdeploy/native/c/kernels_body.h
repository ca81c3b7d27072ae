/* The kernels of one tier: included once for each, with QD_TIER and QD_FMAF defined. */

#define qd_exp QD_(qd_exp)
#define qd_sigmoid QD_(qd_sigmoid)
#define qd_erf QD_(qd_erf)
#define qd_lane_sum QD_(qd_lane_sum)
#define qd_lane_max QD_(qd_lane_max)
#define qd_rounded QD_(qd_rounded)
#define qd_tile_u8 QD_(qd_tile_u8)
#define qd_tile_row QD_(qd_tile_row)
#define qd_padded QD_(qd_padded)
#define qd_conv_row QD_(qd_conv_row)
#define qd_depthwise_row QD_(qd_depthwise_row)
#define qd_tile_depthwise QD_(qd_tile_depthwise)
#define qd_tile_matmul QD_(qd_tile_matmul)
#define qd_store_steps QD_(qd_store_steps)
#define qd_mul_run QD_(qd_mul_run)
#define qd_add_run QD_(qd_add_run)

static inline float qd_exp(float x) {
  float steps, rest, value;
  x = qd_clamp(x, -87.0f, 88.0f);
  steps = QD_FMAF(x, 1.44269504088896341f, 12582912.0f) - 12582912.0f;
  rest = QD_FMAF(steps, 2.12194440e-4f, QD_FMAF(steps, -0.693359375f, x));
  value = 1.9875691500e-4f;
  value = QD_FMAF(value, rest, 1.3981999507e-3f);
  value = QD_FMAF(value, rest, 8.3334519073e-3f);
  value = QD_FMAF(value, rest, 4.1665795894e-2f);
  value = QD_FMAF(value, rest, 1.6666665459e-1f);
  value = QD_FMAF(value, rest, 0.5f);
  value = QD_FMAF(value, rest * rest, rest) + 1.0f;
  return value * qd_float((uint32_t)((int32_t)steps + 127) << 23);
}

static inline float qd_sigmoid(float x) { return 1.0f / (1.0f + qd_exp(-x)); }

static inline float qd_erf(float x) {
  float size = x < 0.0f ? -x : x, t = 1.0f / QD_FMAF(size, 0.5f, 1.0f), value = 0.17087277f;
  value = QD_FMAF(value, t, -0.82215223f);
  value = QD_FMAF(value, t, 1.48851587f);
  value = QD_FMAF(value, t, -1.13520398f);
  value = QD_FMAF(value, t, 0.27886807f);
  value = QD_FMAF(value, t, -0.18628806f);
  value = QD_FMAF(value, t, 0.09678418f);
  value = QD_FMAF(value, t, 0.37409196f);
  value = QD_FMAF(value, t, 1.00002368f);
  value = QD_FMAF(value, t, -1.26551223f);
  value = 1.0f - t * qd_exp(QD_FMAF(-size, size, value));
  return x < 0.0f ? -value : value;
}

static inline float qd_lane_sum(const float *x, int32_t n) {
  float lanes[16] = {0};
  int32_t i, l, width;
  for (i = 0; i + 16 <= n; i += 16)
    for (l = 0; l < 16; l++) lanes[l] += x[i + l];
  for (l = 0; i + l < n; l++) lanes[l] += x[i + l];
  for (width = 8; width; width /= 2)
    for (l = 0; l < width; l++) lanes[l] += lanes[l + width];
  return lanes[0];
}

static inline float qd_lane_max(const float *x, int32_t n) {
  float lanes[16];
  int32_t i, l;
  for (l = 0; l < 16; l++) lanes[l] = x[0];
  for (i = 0; i + 16 <= n; i += 16)
    for (l = 0; l < 16; l++) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
  for (l = 0; i + l < n; l++) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
  for (l = 1; l < 16; l++) lanes[0] = lanes[l] > lanes[0] ? lanes[l] : lanes[0];
  return lanes[0];
}

static inline uint8_t qd_rounded(float steps, int32_t zero, int32_t low, int32_t high) {
  return (uint8_t)(qd_nearest(qd_clamp(steps, (float)(low - zero), (float)(high - zero))) + zero);
}

/* Copy an image of codes into one with borders of its zero point. */
static void qd_padded(const uint8_t *in, uint8_t *out, int32_t height, int32_t width, int32_t channels, int32_t top,
                      int32_t left, int32_t padded_height, int32_t padded_width, int32_t zero) {
  size_t row = (size_t)padded_width * channels, begin = (size_t)left * channels, used = (size_t)width * channels;
  int32_t y;
  memset(out, zero, row * top);
  for (y = 0; y < height; y++) {
    uint8_t *to = out + (size_t)(top + y) * row;
    memset(to, zero, begin);
    memcpy(to + begin, in + (size_t)y * used, used);
    memset(to + begin + used, zero, row - begin - used);
  }
  memset(out + (size_t)(top + height) * row, zero, row * (padded_height - top - height));
}

#if defined(QD_VNNI)
#include "kernels_vnni.h"
#include "kernels_vnni_u8.h"
#include "kernels_vnni_f32.h"
#elif defined(QD_AVX2)
#include "kernels_avx2.h"
#elif defined(QD_NEON)
#include "kernels_neon.h"
#else
static void QD_(conv_u8)(const qd_conv_u8 *p, const uint8_t *in, uint8_t *out, void *scratch) {
  int32_t g, b, y, x, s, q, l;
  const uint8_t *image = in;
  size_t block_bytes = (size_t)p->segments * p->steps * 64;
  if (p->padded_height != p->height || p->padded_width != p->width) {
    qd_padded(in, (uint8_t *)scratch, p->height, p->width, p->channels, p->top, p->left, p->padded_height,
              p->padded_width, p->zero_in);
    image = (const uint8_t *)scratch;
  }
  for (g = 0; g < p->groups; g++)
    for (b = 0; b < p->blocks; b++) {
      const int8_t *weights = (const int8_t *)p->weights + ((size_t)g * p->blocks + b) * block_bytes;
      const int32_t *bias = p->bias + (g * p->blocks + b) * 16;
      const float *multiplier = p->multiplier + (g * p->blocks + b) * 16;
      int32_t last = p->outputs - 16 * b < 16 ? p->outputs - 16 * b : 16;
      for (y = 0; y < p->out_height; y++)
        for (x = 0; x < p->out_width; x++) {
          const uint8_t *from = image + g * p->inputs +
                                ((size_t)y * p->stride_y * p->padded_width + (size_t)x * p->stride_x) * p->channels;
          const int8_t *w = weights;
          uint8_t *to = out + ((size_t)y * p->out_width + x) * p->out_channels + g * p->outputs + 16 * b;
          uint32_t sums[16]; /* they may wrap around */
          memcpy(sums, bias, sizeof sums);
          for (s = 0; s < p->segments; s++) {
            const uint8_t *run = from + p->offsets[s];
            for (q = 0; q < p->steps; q++, w += 64, run += 4)
              for (l = 0; l < 16; l++)
                sums[l] += (uint32_t)(run[0] * w[4 * l] + run[1] * w[4 * l + 1] + run[2] * w[4 * l + 2] +
                                      run[3] * w[4 * l + 3]);
          }
          for (l = 0; l < last; l++)
            to[l] = qd_rounded((float)(int32_t)sums[l] * multiplier[l], p->zero_out, p->low, p->high);
        }
    }
}

#endif

#if !defined(QD_AVX2) && !defined(QD_VNNI) && !defined(QD_NEON)
static void QD_(table)(const uint8_t *table, const uint8_t *in, uint8_t *out, int32_t n) {
  int32_t i;
  for (i = 0; i < n; i++) out[i] = table[in[i]];
}
#endif

static void QD_(tables)(const uint8_t *tables, const uint8_t *in, uint8_t *out, int32_t outer, int32_t channels,
                        int32_t inner) {
  int32_t i, c;
#ifdef QD_VNNI
  if (inner == 1) {
    qd_tables_mixed(tables, in, out, outer * channels, channels);
    return;
  }
#endif
  for (i = 0; i < outer; i++)
    for (c = 0; c < channels; c++, in += inner, out += inner)
      if (inner == 1)
        out[0] = tables[256 * c + in[0]];
      else
        QD_(table)(tables + 256 * c, in, out, inner);
}

#ifndef QD_VNNI
static void QD_(depthwise_u8)(const qd_depthwise_u8 *p, const uint8_t *in, uint8_t *out, void *scratch) {
  int32_t y, x, r, c, i, k;
  uint32_t sums[32];
  const uint8_t *image = in;
  if (p->padded_height != p->height || p->padded_width != p->width) {
    qd_padded(in, (uint8_t *)scratch, p->height, p->width, p->channels, p->top, p->left, p->padded_height,
              p->padded_width, p->zero_in);
    image = (const uint8_t *)scratch;
  }
  for (y = 0; y < p->out_height; y++)
    for (x = 0; x < p->out_width; x++)
      for (i = 0; i < p->channels; i += 32) {
        int32_t n = p->channels - i < 32 ? p->channels - i : 32;
        uint8_t *to = out + ((size_t)y * p->out_width + x) * p->channels + i;
        for (k = 0; k < n; k++) sums[k] = (uint32_t)p->bias[i + k];
        for (r = 0; r < p->rows; r++)
          for (c = 0; c < p->columns; c++) {
            const uint8_t *from = image + i +
                                  ((size_t)(y * p->stride_y + r * p->dilation_y) * p->padded_width +
                                   (size_t)(x * p->stride_x + c * p->dilation_x)) * p->channels;
            const int16_t *w = p->weights + (r * p->columns + c) * p->channels + i;
            for (k = 0; k < n; k++) sums[k] += (uint32_t)(from[k] * w[k]);
          }
        for (k = 0; k < n; k++)
          to[k] = qd_rounded((float)(int32_t)sums[k] * p->multiplier[i + k], p->zero_out, p->low, p->high);
      }
}

#ifndef QD_AVX2
/* One row of results from the rows of its windows. */
static inline void qd_conv_row(const qd_conv_f32 *p, const float *const *rows, float *out) {
  int32_t g, b, x, r, c, i, l, lanes = p->lanes;
  for (g = 0; g < p->groups; g++)
    for (b = 0; b < p->blocks; b++) {
      size_t block = (size_t)g * p->blocks + b;
      const float *weights = p->weights + block * p->rows * p->columns * p->inputs * lanes;
      int32_t last = p->outputs - lanes * b < lanes ? p->outputs - lanes * b : lanes;
      for (x = 0; x < p->out_width; x++) {
        const float *w = weights;
        float sums[16], *to = out + (size_t)x * p->out_channels + g * p->outputs + lanes * b;
        for (l = 0; l < lanes; l++) sums[l] = p->bias[block * lanes + l];
        for (r = 0; r < p->rows; r++)
          for (c = 0; c < p->columns; c++) {
            const float *from = rows[r] + ((size_t)x * p->stride_x + c * p->dilation_x) * p->channels + g * p->inputs;
            for (i = 0; i < p->inputs; i++, w += lanes)
              for (l = 0; l < lanes; l++) sums[l] = QD_FMAF(from[i], w[l], sums[l]);
          }
        for (l = 0; l < last; l++) to[l] = qd_clamp(sums[l], p->low, p->high);
      }
    }
}

static inline void qd_depthwise_row(const qd_conv_f32 *p, const float *const *rows, float *out) {
  int32_t x, r, c, i, k;
  for (x = 0; x < p->out_width; x++)
    for (i = 0; i < p->channels; i += 8) {
      float sums[8];
      int32_t n = p->channels - i < 8 ? p->channels - i : 8;
      for (k = 0; k < 8; k++) sums[k] = p->bias[i + k];
      for (r = 0; r < p->rows; r++)
        for (c = 0; c < p->columns; c++) {
          const float *from = rows[r] + ((size_t)x * p->stride_x + c * p->dilation_x) * p->channels + i;
          const float *w = p->weights + (size_t)(r * p->columns + c) * p->channels + i;
          if (n == 8)
            for (k = 0; k < 8; k++) sums[k] = QD_FMAF(from[k], w[k], sums[k]);
          else
            for (k = 0; k < n; k++) sums[k] = QD_FMAF(from[k], w[k], sums[k]);
        }
      for (k = 0; k < n; k++) out[(size_t)x * p->channels + i + k] = qd_clamp(sums[k], p->low, p->high);
    }
}

#endif
#endif

static void QD_(conv_row_f32)(const qd_conv_f32 *p, const float *const *rows, float *out) {
  if (p->lanes)
    qd_conv_row(p, rows, out);
  else
    qd_depthwise_row(p, rows, out);
}

/* Rows with borders of zeros are made in a ring, as they are needed. */
static void QD_(conv_f32)(const qd_conv_f32 *p, const float *in, float *out, void *scratch) {
  int32_t y, r, next = 0, span = p->dilation_y * (p->rows - 1) + 1;
  int bare = p->padded_height == p->height && p->padded_width == p->width;
  size_t used = (size_t)p->width * p->channels, row = (size_t)p->padded_width * p->channels;
  size_t begin = (size_t)p->left * p->channels;
  float *ring = (float *)scratch;
  const float *rows[QD_MAX_ROWS];
  for (y = 0; y < p->out_height; y++) {
    for (; !bare && next < y * p->stride_y + span; next++) {
      float *to = ring + (size_t)(next % span) * row;
      memset(to, 0, row * sizeof *to);
      if (next >= p->top && next < p->top + p->height)
        memcpy(to + begin, in + (size_t)(next - p->top) * used, used * sizeof *to);
    }
    for (r = 0; r < p->rows; r++) {
      int32_t at = y * p->stride_y + r * p->dilation_y;
      rows[r] = bare ? in + (size_t)at * used : ring + (size_t)(at % span) * row;
    }
    QD_(conv_row_f32)(p, rows, out + (size_t)y * p->out_width * p->out_channels);
  }
}

/* Runs are along the innermost axis, or a run is one value where the first input's neighbours are apart. */
#define QD_LOOPS(p, a, b, A, B, O, body)                                                                   \
  {                                                                                                        \
    const int32_t *n = (p)->sides, *sa = (p)->a, *sb = (p)->b;                                             \
    const int32_t run = sa[3] == 1 && (sb[3] == 0 || sb[3] == 1) ? n[3] : 1;                               \
    int32_t i0, i1, i2, i3, i;                                                                             \
    for (i0 = 0; i0 < n[0]; i0++)                                                                          \
      for (i1 = 0; i1 < n[1]; i1++)                                                                        \
        for (i2 = 0; i2 < n[2]; i2++)                                                                      \
          for (i3 = 0; i3 < n[3]; i3 += run, O += run) {                                                   \
            A = a + (size_t)i0 * sa[0] + (size_t)i1 * sa[1] + (size_t)i2 * sa[2] + (size_t)i3 * sa[3];     \
            B = b + (size_t)i0 * sb[0] + (size_t)i1 * sb[1] + (size_t)i2 * sb[2] + (size_t)i3 * sb[3];     \
            if (sb[3] == 0)                                                                                \
              for (i = 0; i < run; i++) body(A[i], B[0], O[i]);                                            \
            else                                                                                           \
              for (i = 0; i < run; i++) body(A[i], B[i], O[i]);                                            \
          }                                                                                                \
  }

#if defined(QD_VNNI) || defined(QD_AVX2)
#define QD_RUNS(name, made)                                                                                 \
  static void name(const qd_binary_u8 *p, const uint8_t *a, const uint8_t *b, uint8_t *out) {               \
    const int32_t *n = p->loops.sides, *sa = p->loops.a, *sb = p->loops.b;                                  \
    const int32_t run = sa[3] <= 1 && sb[3] <= 1 ? n[3] : 1;                                                \
    int32_t i0, i1, i2, i3;                                                                                 \
    for (i0 = 0; i0 < n[0]; i0++)                                                                           \
      for (i1 = 0; i1 < n[1]; i1++)                                                                         \
        for (i2 = 0; i2 < n[2]; i2++)                                                                       \
          for (i3 = 0; i3 < n[3]; i3 += run, out += run)                                                    \
            made(p, a + (size_t)i0 * sa[0] + (size_t)i1 * sa[1] + (size_t)i2 * sa[2] + (size_t)i3 * sa[3],  \
                 b + (size_t)i0 * sb[0] + (size_t)i1 * sb[1] + (size_t)i2 * sb[2] + (size_t)i3 * sb[3], out, \
                 run, sa[3], sb[3]);                                                                        \
  }
QD_RUNS(QD_(add_u8), qd_add_run)
QD_RUNS(QD_(mul_u8), qd_mul_run)
#undef QD_RUNS
#else
static void QD_(add_u8)(const qd_binary_u8 *p, const uint8_t *a, const uint8_t *b, uint8_t *restrict out) {
  const float ratio_a = p->ratio_a, ratio_b = p->ratio_b, fixed = p->fixed;
  const uint8_t *x, *y;
#define QD_ADD(u, v, o) \
  o = (uint8_t)qd_nearest(qd_clamp(QD_FMAF((float)(u), ratio_a, QD_FMAF((float)(v), ratio_b, fixed)), 0.0f, 255.0f))
  QD_LOOPS(&p->loops, a, b, x, y, out, QD_ADD)
#undef QD_ADD
}

static void QD_(mul_u8)(const qd_binary_u8 *p, const uint8_t *a, const uint8_t *b, uint8_t *restrict out) {
  const int32_t zero_a = p->zero_a, zero_b = p->zero_b;
  const float multiplier = p->multiplier, zero_out = p->zero_out;
  const uint8_t *x, *y;
#define QD_MUL(u, v, o)                                                                                    \
  o = (uint8_t)qd_nearest(                                                                                 \
      qd_clamp((float)(((int32_t)(u)-zero_a) * ((int32_t)(v)-zero_b)) * multiplier + zero_out, 0.0f, 255.0f))
  QD_LOOPS(&p->loops, a, b, x, y, out, QD_MUL)
#undef QD_MUL
}
#endif

/* One function each: a model that only multiplies pays for no division. */
#define QD_BINARY(name, body)                                                                                  \
  static void QD_(name)(const qd_binary_f32 *p, const float *a, const float *b, float *restrict out) {         \
    const float low = p->low, high = p->high;                                                                  \
    const float *x, *y;                                                                                        \
    QD_LOOPS(&p->loops, a, b, x, y, out, body)                                                                 \
  }
#define QD_PLUS(u, v, o) o = qd_clamp((u) + (v), low, high)
#define QD_MINUS(u, v, o) o = qd_clamp((u) - (v), low, high)
#define QD_TIMES(u, v, o) o = qd_clamp((u) * (v), low, high)
#define QD_OVER(u, v, o) o = qd_clamp((u) / (v), low, high)
QD_BINARY(add_f32, QD_PLUS)
QD_BINARY(sub_f32, QD_MINUS)
QD_BINARY(mul_f32, QD_TIMES)
QD_BINARY(div_f32, QD_OVER)
#undef QD_BINARY
#undef QD_PLUS
#undef QD_MINUS
#undef QD_TIMES
#undef QD_OVER
#undef QD_LOOPS

#ifndef QD_VNNI
static void QD_(matmul_u8)(const qd_matmul *p, const uint8_t *a, const uint8_t *b, uint8_t *out, void *scratch) {
  int32_t i, m, n, k, l;
  (void)scratch;
  for (i = 0; i < p->batch; i++)
    for (m = 0; m < p->m; m++)
      for (n = 0; n < p->n; n += 16) {
        uint32_t sums[16] = {0};
        int32_t width = p->n - n < 16 ? p->n - n : 16;
        const uint8_t *left = a + (size_t)i * p->a_batch + (size_t)m * p->a_m;
        const uint8_t *right = b + (size_t)i * p->b_batch + n;
        uint8_t *to = out + ((size_t)i * p->m + m) * p->n + n;
        for (k = 0; k < p->k; k++) {
          int32_t factor = left[(size_t)k * p->a_k] - p->zero_a;
          for (l = 0; l < width; l++) sums[l] += (uint32_t)(factor * (right[(size_t)k * p->b_k + l] - p->zero_b));
        }
        for (l = 0; l < width; l++) to[l] = qd_rounded((float)(int32_t)sums[l] * p->multiplier, p->zero_out, 0, 255);
      }
}

#ifndef QD_AVX2
static void QD_(matmul_f32)(const qd_matmul *p, const float *a, const float *b, float *out) {
  int32_t i, m, n, k, l;
  for (i = 0; i < p->batch; i++)
    for (m = 0; m < p->m; m++)
      for (n = 0; n < p->n; n += 16) {
        float sums[16] = {0}, *to = out + ((size_t)i * p->m + m) * p->n + n;
        int32_t width = p->n - n < 16 ? p->n - n : 16;
        const float *left = a + (size_t)i * p->a_batch + (size_t)m * p->a_m;
        const float *right = b + (size_t)i * p->b_batch + n;
        for (k = 0; k < p->k; k++)
          for (l = 0; l < width; l++)
            sums[l] = QD_FMAF(left[(size_t)k * p->a_k], right[(size_t)k * p->b_k + l], sums[l]);
        for (l = 0; l < width; l++) to[l] = qd_clamp(sums[l], p->low, p->high);
      }
}
#endif
#endif

static void QD_(mean_u8)(const qd_mean *p, const uint8_t *in, uint8_t *out) {
  int32_t o, i, k, l;
  for (o = 0; o < p->outer; o++)
    for (i = 0; i < p->inner; i += 32) {
      int32_t sums[32] = {0}, width = p->inner - i < 32 ? p->inner - i : 32;
      const uint8_t *from = in + (size_t)o * p->outer_stride + i;
      for (k = 0; k < p->count; k++, from += p->stride)
        for (l = 0; l < width; l++) sums[l] += from[l];
      for (l = 0; l < width; l++)
        out[o * p->inner + i + l] =
            qd_rounded((float)(sums[l] - p->count * p->zero_in) * p->multiplier, p->zero_out, 0, 255);
    }
}

static void QD_(mean_f32)(const qd_mean *p, const float *in, float *out) {
  int32_t o, i, k, l;
  for (o = 0; o < p->outer; o++, in += p->outer_stride, out += p->inner) {
    if (p->stride == 0) { /* along the innermost axis */
      out[0] = qd_clamp(qd_lane_sum(in, p->count) * p->multiplier, p->low, p->high);
      continue;
    }
    for (i = 0; i < p->inner; i += 16) {
      float sums[16] = {0};
      const float *from = in + i;
      const int32_t width = p->inner - i < 16 ? p->inner - i : 16;
      for (k = 0; k < p->count; k++, from += p->stride)
        for (l = 0; l < width; l++) sums[l] += from[l];
      for (l = 0; l < width; l++) out[i + l] = qd_clamp(sums[l] * p->multiplier, p->low, p->high);
    }
  }
}

#define QD_MAXPOOL(name, type)                                                                        \
  static void QD_(name##_run)(const type *restrict from, type *restrict most, int32_t n) {            \
    int32_t c;                                                                                        \
    for (c = 0; c < n; c++) most[c] = from[c] > most[c] ? from[c] : most[c];                          \
  }                                                                                                   \
  static void QD_(name)(const qd_maxpool *p, const type *in, type *out) {                             \
    int32_t y, x, r, k;                                                                               \
    for (y = 0; y < p->out_height; y++)                                                               \
      for (x = 0; x < p->out_width; x++, out += p->channels) {                                        \
        int first = 1;                                                                                \
        for (r = 0; r < p->rows; r++)                                                                 \
          for (k = 0; k < p->columns; k++) {                                                          \
            int32_t at_y = y * p->stride_y + r - p->top, at_x = x * p->stride_x + k - p->left;        \
            const type *from;                                                                         \
            if (at_y < 0 || at_x < 0 || at_y >= p->height || at_x >= p->width) continue;              \
            from = in + ((size_t)at_y * p->width + at_x) * p->channels;                               \
            if (first)                                                                                \
              memcpy(out, from, (size_t)p->channels * sizeof *out);                                   \
            else                                                                                      \
              QD_(name##_run)(from, out, p->channels);                                                \
            first = 0;                                                                                \
          }                                                                                           \
      }                                                                                               \
  }

QD_MAXPOOL(maxpool_u8, uint8_t)
QD_MAXPOOL(maxpool_f32, float)
#undef QD_MAXPOOL

static void QD_(quantize)(const float *in, uint8_t *restrict out, int32_t n, float scale, int32_t zero) {
  int32_t i;
  for (i = 0; i < n; i++) out[i] = qd_rounded(in[i] / scale, zero, 0, 255);
}

static void QD_(dequantize)(const uint8_t *in, float *restrict out, int32_t n, float scale, int32_t zero) {
  int32_t i;
  for (i = 0; i < n; i++) out[i] = (float)((int32_t)in[i] - zero) * scale;
}

static void QD_(unary_f32)(int32_t function, const float *in, float *restrict out, int32_t n, float low, float high) {
  int32_t i;
  for (i = 0; i < n; i++) {
    float x = in[i];
    switch (function) {
      case 1: x = qd_sigmoid(x); break;
      case 2: x = qd_exp(x); break;
      case 3: x = qd_erf(x); break;
      case 4: x = (x * 0.5f) * (1.0f + qd_erf(x * 0.70710678f)); break;
      case 5: x = x * qd_sigmoid(x); break;
      case 6: x = 1.0f - 2.0f / (qd_exp(x + x) + 1.0f); break;
      case 7: x = qd_clamp(QD_FMAF(x, (float)(1.0 / 6.0), 0.5f), 0.0f, 1.0f); break;
      case 8: x = x * qd_clamp(QD_FMAF(x, (float)(1.0 / 6.0), 0.5f), 0.0f, 1.0f); break;
      case 9: x = qd_soft_sqrtf(x); break;
      default: break;
    }
    out[i] = qd_clamp(x, low, high);
  }
}

#ifndef QD_VNNI
/* Softmax of rows of codes: `powers` of how far each is below the largest, in whole numbers; in place if need be. */
static void QD_(softmax_u8)(const int32_t *powers, const uint8_t *in, uint8_t *out, int32_t rows, int32_t n,
                            float multiplier, int32_t zero) {
  int32_t r, i;
  for (r = 0; r < rows; r++, in += n, out += n) {
    const float low = (float)-zero, high = (float)(255 - zero);
    int32_t most = 0, sum = 0;
    float share;
    for (i = 0; i < n; i++) most = in[i] > most ? in[i] : most;
    for (i = 0; i < n; i++) sum += powers[most - in[i]];
    share = multiplier / (float)sum;
    for (i = 0; i < n; i++)
      out[i] = (uint8_t)(qd_nearest(qd_clamp((float)powers[most - in[i]] * share, low, high)) + zero);
  }
}

static void QD_(softmax)(const float *in, float *out, int32_t rows, int32_t n) {
  int32_t r, i;
#ifdef QD_AVX2
  if (n % 16 == 0) {
    qd_softmax_whole(in, out, rows, n);
    return;
  }
#endif
  for (r = 0; r < rows; r++, in += n, out += n) {
    float sum, most = qd_lane_max(in, n);
    if (out != in) memcpy(out, in, (size_t)n * sizeof *out); /* one array alone: compilers make vectors of its loop */
    for (i = 0; i < n; i++) out[i] = qd_exp(out[i] - most);
    sum = qd_lane_sum(out, n);
    for (i = 0; i < n; i++) out[i] = out[i] / sum;
  }
}
#endif

static void QD_(layernorm)(const float *in, float *restrict out, int32_t rows, int32_t n, const float *scale,
                           const float *bias, float epsilon) {
  int32_t r, i, l, width;
  const float share = 1.0f / (float)n;
  for (r = 0; r < rows; r++, in += n, out += n) {
    float mean = qd_lane_sum(in, n) * share, lanes[16] = {0}, variance, spread;
    for (i = 0; i < n; i++) {
      float square;
      out[i] = in[i] - mean;
      square = out[i] * out[i];
      lanes[i % 16] += square;
    }
    for (width = 8; width; width /= 2)
      for (l = 0; l < width; l++) lanes[l] += lanes[l + width];
    variance = lanes[0] * share;
    spread = qd_soft_sqrtf(variance + epsilon);
    for (i = 0; i < n; i++) out[i] = QD_FMAF(out[i] / spread, scale[i], bias[i]);
  }
}

#define QD_TEXT(x) #x
#define QD_TEXT_OF(x) QD_TEXT(x)
#define QD_ENTRY(kernel) .kernel = QD_(kernel),
static const qd_kernels QD_(kernels) = {.name = QD_TEXT_OF(QD_TIER), QD_USED(QD_ENTRY)};
#undef QD_ENTRY
#undef QD_TEXT
#undef QD_TEXT_OF
#undef qd_exp
#undef qd_sigmoid
#undef qd_erf
#undef qd_lane_sum
#undef qd_lane_max
#undef qd_rounded
#undef qd_tile_u8
#undef qd_tile_row
#undef qd_padded
#undef qd_conv_row
#undef qd_depthwise_row
#undef qd_add_run
#undef qd_mul_run
#undef qd_store_steps
#undef qd_tile_matmul
#undef qd_tile_depthwise
